"""Named networks on real data: model, loss, samples and the settings of their runs.

What is measured on a network means something only on real data with a loss that is a mean over samples: these are.
"""

import etastar.network  # noqa: F401  # pyright: ignore[reportUnusedImport]  # names the extra where it is missing
from etastar.recipes.networks.catalogue import NETWORKS, Recipe, load_network
from etastar.recipes.networks.network import LossName, Network, Settings
from etastar.recipes.networks.plan import RunPlan, at_least, load_run

__all__ = ["NETWORKS", "LossName", "Network", "Recipe", "RunPlan", "Settings", "at_least", "load_network", "load_run"]
