"""The exported names are a contract; and importing them loads NumPy alone."""

import subprocess
import sys

import etastar
import etastar.quadratic

ETASTAR = """
    BatchAdvice BatchOutcome BatchSize batch_size_advice
    Coupling CriticalStep CurvatureMoments Descent Estimate EtastarError History InvalidArgument InvalidFile LossChange
    LossThresholds Measurement MissingExtra Outcome Regime SplitMoments StepBudget SubspaceBudget SubspaceMoments
    UnstableStep alignment alignment_after alignment_change chi critical_step_size jackknife loss_border loss_change
    loss_thresholds regime_border step_budget
"""
QUADRATIC = """
    Averaged Curve Edges HeavyBall MinibatchNoise Nesterov Noise PaperBounds Paths Phases Preconditioned Quadratic
    RatioExpectation SGD SimulationState Spectrum Stability corrected_critical_step edges expected_alignment
    expected_alignment_after expected_alignment_stationary guaranteed_ratio paper_bounds ratio_bound
"""
HEAVY = ("scipy", "matplotlib", "plotly", "sklearn", "torch", "pandas", "rich", "tyro")


def test_names_of_etastar():
    assert sorted(etastar.__all__) == sorted(ETASTAR.split())
    assert all(hasattr(etastar, name) for name in etastar.__all__)


def test_names_of_the_laboratory():
    assert sorted(etastar.quadratic.__all__) == sorted(QUADRATIC.split())
    assert all(hasattr(etastar.quadratic, name) for name in etastar.quadratic.__all__)


def loaded_by(statement):
    code = f"import sys; {statement}; print(' '.join(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_import_loads_numpy_alone():
    assert loaded_by("import etastar") == []
    assert loaded_by("import etastar.quadratic") == []


def test_the_exception_tree():
    assert issubclass(etastar.InvalidArgument, (etastar.EtastarError, ValueError))
    assert issubclass(etastar.InvalidFile, etastar.InvalidArgument)
    assert issubclass(etastar.UnstableStep, ValueError)
    assert issubclass(etastar.MissingExtra, ImportError)
    assert str(etastar.MissingExtra("a plot", "report")).endswith("pip install 'etastar[report]'")
    assert etastar.MissingExtra("a plot", "report").extra == "report"


def test_a_bad_value_is_shown_on_one_short_line():
    error = etastar.InvalidArgument("name", "line\n" * 100, "must be short")
    assert str(error).startswith("name: got 'line\\nline")
    assert str(error).endswith("; must be short")
    assert "…" in str(error)
    assert len(str(error)) < 120
    assert (error.name, error.allowed) == ("name", "must be short")
