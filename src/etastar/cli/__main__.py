"""``python -m etastar.cli``."""

import sys

from etastar.cli import main

sys.exit(main())
