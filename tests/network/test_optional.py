"""Without torch, etastar.network says which extra to install."""

import subprocess
import sys


def test_without_torch_the_extra_is_named() -> None:
    code = "import sys; sys.modules['torch'] = None; import etastar; import etastar.network"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "MissingExtra: etastar.network needs an extra" in done.stderr
    assert "pip install 'etastar[network]'" in done.stderr
