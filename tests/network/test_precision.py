"""float32 against float64: what a measurement says must not depend on the digits, however small the step in use is."""

import pytest
import torch
from torch import nn

from etastar.moments import CurvatureMoments, SplitMoments, SubspaceMoments
from etastar.network import AlignmentMeter
from etastar.network.expansion import least_step


def measured(dtype, step_size, rank, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    inputs, targets = torch.randn(60, 10).double(), torch.randn(60, 4).double()
    batch = inputs.to(dtype), targets.to(dtype)
    meter = AlignmentMeter(
        model.to(dtype), lambda m, b: (m(b[0]) - b[1]).square().mean(), [batch], rank, tolerance=1e-3
    )
    return meter.measure(step_size, 6)


@pytest.mark.parametrize("step_size", [1e-7, 1e-5, 1e-4, 1e-2])
def test_round_off_does_not_move_the_critical_step(step_size):
    single, double = (measured(dtype, step_size, 3, 0) for dtype in (torch.float32, torch.float64))
    assert double.critical_step_size.resolved
    assert single.critical_step_size.value == pytest.approx(double.critical_step_size.value, rel=2e-3)
    shifts = [row.certificate["third_derivative_shift"] for row in (single, double)]
    assert shifts[0] == pytest.approx(shifts[1], abs=5e-3)


def test_without_a_critical_step_the_stability_limit_says_what_is_small():
    signal, quiet = CurvatureMoments(1.0, 2.0, 4.0), CurvatureMoments(0.0, 0.0, 0.0)
    level = SplitMoments(SubspaceMoments(signal, quiet), SubspaceMoments(signal, quiet))  # N = M = 0: neutral
    assert least_step(level, 8.0, torch.float64) == pytest.approx(2.0**-13)  # 4·eps^¼·2/λ₁
    assert least_step(level, 0.0, torch.float64) == 0
