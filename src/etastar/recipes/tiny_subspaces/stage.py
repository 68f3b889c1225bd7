"""One stage of the experiment: SGD until it may switch, or one of the four runs after that, step by step.

A stage's state is all that its next steps depend on, so that one that was killed goes on as if it had not been.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from etastar.measurement import Measurement, encode
from etastar.network import HessianOperator, ProjectedOptimizer, Subspace, SubspaceTracker
from etastar.network.producer import Basis, training_moments
from etastar.recipes.networks import Network
from etastar.recipes.tiny_subspaces.plan import TinySubspacesPlan

__all__ = [
    "BRANCHES",
    "COLUMNS",
    "MEMORY",
    "SPACING",
    "SWITCH",
    "WINDOW",
    "BranchName",
    "Stage",
    "StageName",
    "switched",
]

BranchName = Literal["sgd", "dominant", "bulk", "gd"]
StageName = Literal["approach", "sgd", "dominant", "bulk", "gd"]
BRANCHES: tuple[BranchName, ...] = ("sgd", "dominant", "bulk", "gd")
COLUMNS = ("loss", "chi", "largest_eigenvalue", "smallest_dominant_eigenvalue", "basis_error", "products")

MEMORY = 0.9  # of the moving average of χ, which starts at 0
SWITCH = 0.95  # that it must pass
WINDOW = 16  # measurements of the moments after the switch, in the run of SGD
SPACING = 4  # steps from one to the next
_TOLERANCE = 1e-2  # of the basis
_CHUNK = 512  # samples of one backward for the whole gradient


class Stage:
    """A network, its optimizer and its tracker, with what was seen at each step.

    Args:
        network: As initialised; moved from there.
        plan: Without zeros.
        seed: Of this run.
        name: "approach" is SGD that stops where the moving average of χ passes `SWITCH`, or halfway through; the
            others start there and end with the plan's last step, or where the loss is not finite.
    """

    def __init__(self, network: Network, plan: TinySubspacesPlan, seed: int, name: StageName) -> None:
        self.network, self.plan, self.seed, self.name = network, plan, seed, name
        own = plan.protocol
        everything = len(network.train[0])
        self.operator = HessianOperator(
            network.model, network.loss_fn, network.curvature_batches(plan.curvature_samples)
        )
        self.tracker = SubspaceTracker(self.operator, own.rank, seed=seed)
        self._whole = None
        if plan.curvature_samples < everything:
            self._whole = HessianOperator(network.model, network.loss_fn, network.curvature_batches(everything))
        self._inner = torch.optim.SGD(network.model.parameters(), lr=plan.step_size)
        self._optimizer: torch.optim.Optimizer = self._inner
        if name in ("dominant", "bulk"):
            self._optimizer = ProjectedOptimizer(self._inner, self.tracker, name, every=None)
        self._generator = torch.Generator().manual_seed(seed)
        self.step = 0
        self.average = 0.0
        self.ended = False
        self._rows: list[list[float]] = []
        self._measured: list[str] = []
        self._last = plan.steps // 2 if name == "approach" else plan.steps

    def advance(self) -> None:
        """Look at the network as it is, and take one step; or end."""
        loss, pieces = self._look()
        if self.ended or not math.isfinite(loss):
            self.ended = True
            return
        with self.operator.held():
            found = self.tracker.refresh(_TOLERANCE)
            if not math.isfinite(found.error):
                self.ended = True
                return
            if self.name == "sgd" and len(self._rows) % SPACING == 0 and len(self._measured) < WINDOW:
                self._measured.append(encode(self._measure(found)))
        gradient = torch.cat([piece.reshape(-1) for piece in pieces])
        chi = float((found.basis.mT @ gradient).norm() / gradient.norm())
        self.average = MEMORY * self.average + (1 - MEMORY) * chi
        if self.name == "approach" and self.average > SWITCH:
            self.ended = True
            return
        first, last = float(found.eigenvalues[0]), float(found.eigenvalues[-1])
        self._rows.append([loss, chi, first, last, found.error, float(found.products)])
        self._take(pieces)
        self.step += 1
        self.ended = self.step >= self._last

    def state_dict(self) -> dict[str, Any]:
        """Safe for ``weights_only`` loading."""
        return {
            "step": self.step,
            "average": self.average,
            "ended": self.ended,
            "model": self.network.model.state_dict(),
            "optimizer": self._inner.state_dict(),
            "tracker": self.tracker.state_dict(),
            "generator": self._generator.get_state(),
            "series": torch.tensor(self._rows, dtype=torch.float64).reshape(-1, len(COLUMNS)),
            "measured": list(self._measured),
        }

    def continue_from(self, state: dict[str, Any]) -> None:
        """Go on where the same stage was."""
        self.start_from(state)
        self.ended = bool(state["ended"])
        self._rows = state["series"].tolist()
        self._measured = [str(line) for line in state["measured"]]

    def start_from(self, state: dict[str, Any]) -> None:
        """Start where another stage ended: parameters, basis, the mini-batches still to be drawn, the average of χ."""
        self.network.model.load_state_dict(state["model"])
        self._inner.load_state_dict(state["optimizer"])
        self.tracker.load_state_dict(state["tracker"])
        self._generator.set_state(state["generator"])
        self.step, self.average = int(state["step"]), float(state["average"])

    def _look(self) -> tuple[float, list[Tensor]]:
        """Loss and gradient over all training samples."""
        inputs, targets = self.network.train
        tensors, total = self.operator.vector.tensors, 0.0
        pieces = [torch.zeros_like(tensor) for tensor in tensors]
        for begin in range(0, len(inputs), _CHUNK):
            batch = inputs[begin : begin + _CHUNK], targets[begin : begin + _CHUNK]
            weight = len(batch[0]) / len(inputs)
            loss = self.network.loss_fn(self.network.model, batch)
            for piece, part in zip(pieces, torch.autograd.grad(loss, tensors), strict=True):
                piece.add_(part, alpha=weight)
            total += weight * loss.item()
        return total, pieces

    def _take(self, pieces: list[Tensor]) -> None:
        self._optimizer.zero_grad()
        if self.name == "gd":
            for tensor, piece in zip(self.operator.vector.tensors, pieces, strict=True):
                tensor.grad = piece
        else:
            batch = self.network.draw(self._generator, self.plan.protocol.batch_size)
            self.network.loss_fn(self.network.model, batch).backward()
        self._optimizer.step()

    def _measure(self, found: Subspace) -> Measurement:
        """Moments of a step of SGD here: noise of the curvature's samples, gradient of all."""
        size = self.plan.protocol.batch_size
        basis = Basis.tracked(self.tracker, found)
        produced = training_moments(
            self.operator, self.network.loss_fn, basis, size, whole=self._whole, seed=self.seed + self.step
        )
        return Measurement(
            step=self.step,
            step_size=self.plan.step_size,
            moments=produced.moments,
            batch_size=size,
            provenance={"target": "training", "samples": self.operator.samples},
        )


def switched(approach: dict[str, Any]) -> bool:
    """Whether that stage ended because χ got there, and not halfway through the run or with a loss not finite."""
    return approach["average"] > SWITCH
