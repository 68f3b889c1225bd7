"""The tiny-subspaces experiment on a network of 610 parameters, which takes seconds; as a program, one to be killed.

``python tiny_protocol.py DIRECTORY SEEDS`` runs it, a process for each seed, and writes its states every 20 ms.
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path

from etastar.recipes.networks.catalogue import NETWORKS, Recipe
from etastar.recipes.networks.digits import load_digits
from etastar.recipes.networks.models import tanh_mlp
from etastar.recipes.networks.network import Settings
from etastar.recipes.tiny_subspaces import (
    PROTOCOLS,
    TinySubspacesPlan,
    plan,
    run,
    stage,
    tiny_subspaces,
    write_tiny_subspaces,
)

PLAN = TinySubspacesPlan("digits", steps=150, curvature_samples=100, seeds=1)
RECIPE = Recipe(partial(tanh_mlp, 64, 8, 10), partial(load_digits, (64,)), {"mse": Settings(0.1, 20, 3, 100, 50, 100)})
PROTOCOL = plan.Protocol("tiny", "mse", 0.2, 20, 3)
SWITCH = 0.8  # reached within the short run


def patched(patch):
    """Put network and threshold into the experiment through ``patch(mapping or module, name, value)``."""
    patch(NETWORKS, "tiny", RECIPE)
    patch(PROTOCOLS, "digits", PROTOCOL)
    patch(stage, "SWITCH", SWITCH)


def put(where, name, value):
    if isinstance(where, dict):
        where[name] = value
    else:
        setattr(where, name, value)


if __name__ in ("__main__", "__mp_main__"):  # workers too
    patched(put)
    run.CHECKPOINT_SECONDS = 0.02

if __name__ == "__main__":
    out, seeds = Path(sys.argv[1]), int(sys.argv[2])
    write_tiny_subspaces(tiny_subspaces(dataclasses.replace(PLAN, seeds=seeds), out, workers=seeds), out)
