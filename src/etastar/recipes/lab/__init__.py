"""One question to the laboratory, as the command line asks it: curve, η*_t, regimes and phases of a quadratic."""

from etastar.recipes.lab.answer import COLUMNS, LabAnswer, ask, write_answer
from etastar.recipes.lab.question import LabQuestion, Posed, pose, read_spectrum

__all__ = ["COLUMNS", "LabAnswer", "LabQuestion", "Posed", "ask", "pose", "read_spectrum", "write_answer"]
