"""Calibration: every prediction of the meter beside what real mini-batch steps of a named network do.

`calibrate` measures, `calibration_section` is its part of a report.
"""

from etastar.recipes.calibration.calibrate import calibrate
from etastar.recipes.calibration.result import Calibration, CalibrationPlan, CalibrationRow, Compared
from etastar.recipes.calibration.section import calibration_section

__all__ = ["Calibration", "CalibrationPlan", "CalibrationRow", "Compared", "calibrate", "calibration_section"]
