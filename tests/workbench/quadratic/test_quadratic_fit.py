"""Test that a fit finds the power law of a synthetic record, or names what the record lacks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from largebatch.core.not_enough import NotEnough
from largebatch.workbench.quadratic import Phase, QuadraticFit, Spectrum, fit_quadratic, forecast
from largebatch.workbench.quadratic.curves import RecordedRun, best_scales
from largebatch.workbench.quadratic.minimise import simplex_minimum


def record(spectrum: Spectrum, *, scatter: float = 0.0, points: int = 40) -> dict[str, Any]:
    """Return a run with two batch sizes, two learning rates and three measured noise scales."""
    steps = np.unique(np.geomspace(1, 20_000, points).round())
    between = np.diff(steps, prepend=0.0)
    batches = np.where(steps < 2000, 32.0, 128.0)
    lrs = np.where(steps < 8000, 0.3, 0.15)
    schedule = [
        Phase(batch_size=b, lr=lr, steps=n) for b, lr, n in zip(batches, lrs, between, strict=True)
    ]
    found = forecast(spectrum, schedule)
    noise = np.random.default_rng(0).standard_normal(len(steps))
    measured = np.full(len(steps), math.nan)
    at = [len(steps) // 4, len(steps) // 2, len(steps) - 2]
    measured[at] = np.array(found.noise_scale)[at]
    return {
        "steps": steps,
        "samples": np.cumsum(batches * between),
        "losses": np.array(found.loss) * (1.0 + scatter * noise),
        "batch_sizes": batches,
        "lrs": lrs,
        "noise_scales": measured,
    }


LAWS = [
    (1.2, 0.5, 2.0, 3.0, 5.0, 0.2),
    (1.6, 0.2, 0.5, 1.0, 20.0, 1.0),
    (1.0, 0.0, 1.0, 1.0, 1.0, 0),
]


def law(p: float, q: float, curvature: float, start: float, noise: float, floor: float) -> Spectrum:
    return Spectrum.power_law(
        100_000,
        curvature_exponent=p,
        start_exponent=q,
        curvature=curvature,
        start=start,
        noise=noise,
        floor=floor,
    )


@pytest.mark.parametrize("known", LAWS)
def test_the_law_of_a_clean_record_is_found(known: tuple[float, ...]) -> None:
    found = fit_quadratic(**record(law(*known)))
    assert isinstance(found, QuadraticFit)
    p, q, *scales = known
    assert found.curvature_exponent == pytest.approx(p, abs=1e-3)
    assert found.start_exponent == pytest.approx(q, abs=1e-3)
    spectrum = found.spectrum
    first = [spectrum.curvature[0], spectrum.second_moment[0], spectrum.noise[0], spectrum.floor]
    assert first == pytest.approx(scales, rel=2e-3, abs=1e-3)


def test_a_scatter_of_one_percent_moves_the_law_little_and_its_forecast_less() -> None:
    known = law(*LAWS[0])
    found = fit_quadratic(**record(known, scatter=0.01))
    assert isinstance(found, QuadraticFit)
    assert found.curvature_exponent == pytest.approx(1.2, abs=0.01)
    assert found.start_exponent == pytest.approx(0.5, abs=0.05)
    later = [Phase(batch_size=64, lr=0.4, steps=100_000), Phase(batch_size=4096, lr=0.4, steps=1e4)]
    expected = forecast(known, later)
    assert forecast(found.spectrum, later).loss == pytest.approx(expected.loss, rel=0.01)


def test_a_long_record_is_thinned_and_gives_the_same_fit() -> None:
    found = fit_quadratic(**record(law(*LAWS[0]), points=600))
    assert isinstance(found, QuadraticFit)
    assert found.points <= 64
    assert found.curvature_exponent == pytest.approx(1.2, abs=0.02)
    assert found.start_exponent == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("off", [0.2, 5.0])
def test_noise_scales_that_follow_no_law_leave_the_losses_to_the_fit(off: float) -> None:
    known = record(law(*LAWS[0]))
    measured = np.flatnonzero(np.isfinite(known["noise_scales"]))
    known["noise_scales"][measured[-1]] *= off
    found = fit_quadratic(**known)
    assert isinstance(found, QuadraticFit)
    assert found.loss_spread < 0.1


def test_large_curvature_with_small_rates_is_the_same_law() -> None:
    """Fit the numbers of a transformer's record, whose columns differ by twenty powers of 10."""
    known = record(law(2.2, -1.0, 1.0, 1.0, 5.0, 0.2))
    found = fit_quadratic(**{**known, "lrs": 1e-6 * known["lrs"]})
    assert isinstance(found, QuadraticFit)
    assert found.loss_spread < 0.01
    assert found.spectrum.curvature[0] == pytest.approx(1e6, rel=0.05)


def test_a_law_in_which_nothing_is_left_to_measure_has_no_scales() -> None:
    steps = np.arange(1.0, 13.0)
    losses = np.concatenate([[1.0, 0.5], np.full(10, 1e-3)])
    run = RecordedRun(
        losses=losses,
        noise_scales=np.full(12, 20.0),
        batch_sizes=np.full(12, 16.0),
        lrs=np.full(12, 1.0),
        between=np.diff(steps, prepend=0.0),
    )
    still = Spectrum(curvature=[1.0], noise=[0.0], second_moment=[1.0])
    assert best_scales(still, run) is None


@pytest.mark.parametrize("factor", [2.1, 1e3, 1e6])
def test_a_law_by_which_the_record_would_have_diverged_has_no_scales(factor: float) -> None:
    known = record(law(*LAWS[0]))
    run = RecordedRun(
        losses=known["losses"],
        noise_scales=np.full(len(known["losses"]), 50.0),
        batch_sizes=known["batch_sizes"],
        lrs=known["lrs"],
        between=np.diff(known["steps"], prepend=0.0),
    )
    fast = Spectrum.power_law(
        100, curvature=factor / 0.3, curvature_exponent=1.0, start_exponent=0.0
    )
    assert best_scales(fast, run) is None


def test_a_fit_names_what_the_record_lacks() -> None:
    whole = record(law(*LAWS[0]))
    short = fit_quadratic(**{name: values[:9] for name, values in whole.items()})
    assert isinstance(short, NotEnough)
    assert short.reason == "9 losses"
    blind = fit_quadratic(**{**whole, "noise_scales": np.full(len(whole["steps"]), math.nan)})
    assert isinstance(blind, NotEnough)
    assert blind.reason == "0 measured noise scales"
    noise = 1.0 + 0.1 * np.random.default_rng(1).standard_normal(len(whole["steps"]))
    level = fit_quadratic(**{**whole, "losses": noise})
    assert isinstance(level, NotEnough)
    assert "fall of the loss is not larger than its scatter" in level.reason


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"losses": [1.0]}, "six one-dimensional series of the same length"),
        ({"lrs": np.zeros(38)}, "lrs holds a number that is not finite"),
        ({"steps": np.ones(38)}, "increase from point to point"),
        ({"batch_sizes": np.full(38, 8.0)}, "count the samples of all ranks"),
        ({"noise_scales": np.full(38, -1.0)}, "noise_scales holds a number that is not above 0"),
    ],
)
def test_a_record_that_cannot_be_is_refused(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        fit_quadratic(**{**record(law(*LAWS[0])), **wrong})


def test_the_simplex_finds_the_bottom_of_a_bent_valley() -> None:
    at, value = simplex_minimum(
        lambda x: float((1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2), [-1.2, 1.0], size=0.5
    )
    assert at == pytest.approx([1.0, 1.0], abs=1e-4)
    assert value < 1e-8
