"""AdaScale's gain depends neither on how a batch is divided to be measured nor on its noise.

`benchmarks/gain_doors.py` has more seeds and problems.
"""

from __future__ import annotations

import numpy as np
import pytest

from _known_noise import equal_parts, steady
from gain_doors import (
    BASE,
    BATCH,
    MOTIONS,
    NOISE_SCALES,
    SCALE,
    WAYS,
    expected_deviation,
    gain_of,
    gains_of,
    lag_of,
    paper_gains,
)

STEPS = 400


@pytest.mark.parametrize("noise_scale", NOISE_SCALES)
def test_the_gain_has_one_mean_and_the_deviation_of_the_papers_average(noise_scale: float) -> None:
    true = gain_of(noise_scale, 1.0, scale=SCALE, base=BASE)
    means, deviations = [], []
    for parts in WAYS.values():
        gains = gains_of(parts, variance=noise_scale, sqnorms=steady(STEPS), seeds=24)
        late = gains[:, STEPS // 4 :]
        means.append(late.mean() / true)
        deviations.append(late.std() / expected_deviation(variance=noise_scale, parts=parts(BATCH)))
    assert means == pytest.approx([1.0] * len(WAYS), abs=0.02)
    assert max(means) - min(means) <= 0.02
    # 24 seeds x 300 steps are worth about 58 independent gains, so 9 % is one standard error
    assert deviations == pytest.approx([1.0] * len(WAYS), abs=0.35)


@pytest.mark.parametrize("motion", list(MOTIONS))
def test_the_gain_lags_as_the_papers_average_does(motion: str) -> None:
    sqnorms = MOTIONS[motion](1500)
    true = gain_of(800.0, sqnorms, scale=SCALE, base=BASE)
    seeds = 4
    paper = lag_of(paper_gains(variance=800.0, sqnorms=sqnorms, seeds=seeds).mean(axis=0), true)
    assert paper > 0
    for label, parts in WAYS.items():
        gains = gains_of(parts, variance=800.0, sqnorms=sqnorms, seeds=seeds)
        assert lag_of(gains.mean(axis=0), true) == pytest.approx(paper, rel=0.15, abs=3), label


@pytest.mark.parametrize(("scale", "noise_scale"), [(2, 640.0), (8, 640.0), (8, 5000.0)])
@pytest.mark.parametrize("parts", [2, 8])
def test_the_clock_is_unbiased(scale: int, noise_scale: float, parts: int) -> None:
    gains = gains_of(
        equal_parts(parts),
        variance=noise_scale,
        sqnorms=steady(200),
        seeds=30,
        scale=scale,
        directions=20,
    )
    clocks = gains.mean(axis=1) / gain_of(noise_scale, 1.0, scale=scale, base=BASE)
    error = clocks.std() / len(clocks) ** 0.5
    assert abs(clocks.mean() - 1.0) <= 0.015 + 3.0 * error


def test_the_lag_of_a_shifted_curve_is_its_shift() -> None:
    true = gain_of(800.0, MOTIONS["rises tenfold"](1500), scale=SCALE, base=BASE)
    shifted = np.concatenate([np.full(37, true[0]), true[:-37]])
    assert lag_of(shifted, true) == 37
    assert lag_of(true, true) == 0
