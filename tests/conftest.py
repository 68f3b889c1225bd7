"""What all tests share: the oracles are importable as `oracles`, and Hypothesis runs the same examples every time.

`ETASTAR_EXAMPLES=random` draws fresh examples instead, ten times as many: for hunting, not for the gate.
"""

import os
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

if str(Path(__file__).parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent))

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("gate", deadline=None, derandomize=True, max_examples=100, suppress_health_check=_SLOW)
settings.register_profile("random", deadline=None, max_examples=1000, suppress_health_check=_SLOW)
settings.load_profile("random" if os.environ.get("ETASTAR_EXAMPLES") == "random" else "gate")
