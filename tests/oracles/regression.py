"""Small regressions with everything dense: parameters, Hessian, per-sample gradients and third derivative by autograd
through the model as one function of one vector; and moments estimated from mini-batches drawn by hand.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev

from etastar import Coupling, CurvatureMoments, Descent, SplitMoments, SubspaceMoments


def squared(model, batch):
    return 0.5 * (model(batch[0])[:, 0] - batch[1]).square().mean()


@dataclass(eq=False)
class Regression:
    """A model with its samples, which stays where it is; `batches` are ragged."""

    model: nn.Module
    X: torch.Tensor
    y: torch.Tensor
    cut: tuple

    @property
    def batches(self):
        edges = [0, *self.cut, len(self.X)]
        return [(self.X[a:b], self.y[a:b]) for a, b in pairwise(edges)]

    @property
    def parameters(self):
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])

    def loss(self, theta, rows=slice(None)):
        pieces, begin = {}, 0
        for name, p in self.model.named_parameters():
            pieces[name] = theta[begin : begin + p.numel()].view_as(p)
            begin += p.numel()
        return 0.5 * (functional_call(self.model, pieces, (self.X[rows],))[:, 0] - self.y[rows]).square().mean()

    @cached_property
    def gradient(self):
        return grad(self.loss)(self.parameters).numpy()

    @cached_property
    def hessian(self):
        return jacrev(grad(self.loss))(self.parameters).numpy()

    @cached_property
    def third(self):
        """∇³L, ``(P, P, P)``."""
        return jacrev(jacrev(grad(self.loss)))(self.parameters).numpy()

    @cached_property
    def sample_gradients(self):
        """∇ℓ_i, ``(N, P)``."""
        theta = self.parameters
        return np.stack([grad(self.loss)(theta, slice(i, i + 1)).numpy() for i in range(len(self.X))])

    def covariance(self, batch_size, replace=True):
        """Σ of a mini-batch gradient."""
        rows = self.sample_gradients - self.gradient
        n = len(rows)
        return rows.T @ rows / n / batch_size * (1.0 if replace else (n - batch_size) / (n - 1))


def linear(samples=60, seed=0):
    """½·mean((Xw − y)²)."""
    torch.manual_seed(seed)
    scales = torch.tensor([4.0, 3.0, 1.0, 0.7, 0.5, 0.2], dtype=torch.float64)
    X = torch.randn(samples, 6, dtype=torch.float64) * scales
    y = X @ torch.randn(6, dtype=torch.float64) + 0.3 * torch.randn(samples, dtype=torch.float64)
    return Regression(nn.Linear(6, 1, bias=False).double(), X, y, (25, 50))


def two_layer(samples=60, seed=2, steps=60, step_size=0.03):
    """The same data through two linear layers, after some steps of SGD on batches of 5: a quartic in the parameters."""
    problem = linear(samples, seed)
    torch.manual_seed(seed + 1)
    model = nn.Sequential(nn.Linear(6, 3, bias=False), nn.Linear(3, 1, bias=False)).double()
    for _ in range(steps):
        rows = torch.randint(samples, (5,))
        found = torch.autograd.grad(squared(model, (problem.X[rows], problem.y[rows])), list(model.parameters()))
        for p, g in zip(model.parameters(), found, strict=True):
            p.data.sub_(step_size * g)
    return Regression(model, problem.X, problem.y, problem.cut)


def sampled_moments(rng, problem, P, batch_size, pairs, replace=True, momentum=None, noise_scale=1.0, drawn=30):
    """Unbiased moments from pairs of independent mini-batch gradients, one replicate each, with the Hessian known.

    Batches of `drawn` samples stand for those of `batch_size`, with their noise scaled up: theirs would drown the
    signal. `momentum` is what the update adds to `noise_scale` times a gradient: h = noise_scale·g + momentum.
    """
    rows, H = problem.sample_gradients, problem.hessian
    n = len(rows)
    louder = drawn / batch_size * (1.0 if replace else (n - batch_size) / (n - drawn))

    def draw():
        if replace:
            return rng.multinomial(drawn, np.full(n, 1.0 / n), size=pairs) @ rows / drawn
        places = np.argsort(rng.random((pairs, n)), axis=1)
        return (places < drawn) @ rows / drawn

    a, b = draw(), draw()
    half = (a - b) * noise_scale * np.sqrt(louder / 2.0)  # of covariance Σ
    plain = momentum is None
    ha, hb = (a, b) if plain else (noise_scale * a + momentum, noise_scale * b + momentum)

    def dot(x, S, y):
        return np.einsum("ri,ij,rj->r", x, S, y)

    def side(S):
        first = 0.5 * (dot(a, S @ H, hb) + dot(b, S @ H, ha))
        signal = CurvatureMoments(dot(a, S, b), first, dot(ha, H @ S @ H, hb))
        noise = CurvatureMoments(dot(half, S, half), dot(half, S @ H, half), dot(half, H @ S @ H, half))
        slope = 0.5 * (dot(a, S, hb) + dot(b, S, ha))
        return SubspaceMoments(signal, noise, None if plain else Descent(slope, dot(ha, S @ H @ S, hb)))

    Q = np.eye(len(H)) - P
    cross = P @ H @ Q
    coupling = Coupling(0.5 * (dot(ha, cross, hb) + dot(hb, cross, ha)), dot(half, cross, half))
    return SplitMoments(side(P), side(Q), coupling)
