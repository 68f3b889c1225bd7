"""``python -m etastar``: the command line."""

import sys

from etastar.cli import main

sys.exit(main())
