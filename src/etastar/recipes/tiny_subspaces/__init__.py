"""The tiny-subspaces experiment of Song, Ahn and Yun (ICLR 2025, arXiv 2405.16002), with what thresholds say of it.

SGD's gradient comes to lie in the dominant subspace, and yet it is the bulk that learns: at the switch the same
parameters go on as SGD, Dom-SGD, Bulk-SGD and full-batch GD.
"""

from etastar.recipes.tiny_subspaces.plan import PROTOCOLS, DataName, TinySubspacesPlan
from etastar.recipes.tiny_subspaces.run import SeedRun, Series, TinySubspacesRun, tiny_subspaces
from etastar.recipes.tiny_subspaces.section import tiny_subspaces_section, write_tiny_subspaces

__all__ = [
    "PROTOCOLS",
    "DataName",
    "SeedRun",
    "Series",
    "TinySubspacesPlan",
    "TinySubspacesRun",
    "tiny_subspaces",
    "tiny_subspaces_section",
    "write_tiny_subspaces",
]
