"""The made-up curves are what they say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from _loss_curves import (
    LENGTHS,
    LossCurve,
    falling,
    growing,
    open_loop,
    plateau,
    sluggish,
    valley,
    white,
)
from largebatch.rules import LinearScaling

SEEDS = range(60)


@pytest.mark.parametrize("make", [plateau, falling, valley])
def test_a_seed_gives_the_same_curve_and_seeds_cover_lengths_and_units(
    make: Callable[[int], LossCurve],
) -> None:
    curves = [make(seed) for seed in SEEDS]
    assert make(7) == curves[7]
    assert {len(curve.losses) for curve in curves} == set(LENGTHS)
    spread = [np.mean(curve.losses) for curve in curves]
    assert max(spread) > 1000 * min(spread)


def test_a_valley_turns_where_it_says() -> None:
    for seed in SEEDS:
        curve = valley(3 * seed)  # of the least noise
        assert curve.minimum is not None
        lowest = np.argmin(np.convolve(curve.losses, np.ones(5) / 5, mode="valid")) + 2
        assert lowest / len(curve.losses) == pytest.approx(curve.minimum, abs=0.08)


@pytest.mark.parametrize(("noise", "memory"), [(white, 0.0), (sluggish, 0.9)])
def test_noise_has_its_variance_and_its_memory(
    noise: Callable[..., np.ndarray], memory: float
) -> None:
    values = noise(np.random.default_rng(0), 50_000)
    assert values.var() == pytest.approx(1.0, rel=0.1)
    assert np.corrcoef(values[1:], values[:-1])[0, 1] == pytest.approx(memory, abs=0.02)


def test_growing_noise_ends_five_times_as_large() -> None:
    values = growing(np.random.default_rng(0), 50_000)
    assert values[-2000:].std() / values[:2000].std() == pytest.approx(5.0, rel=0.1)


def test_an_open_loop_asks_once_a_step() -> None:
    decisions = list(open_loop(LinearScaling(), [2.3] * 7, warm_up=100))
    assert [decision.lr_multiplier for decision in decisions] == [1.0] * 7
