"""AutoWarmUp hears rises of the loss and no others, on many made-up curves; more of them, and how
far from the true rate it ends, in benchmarks/autowu_detection.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from _loss_curves import (
    LossCurve,
    falling,
    growing,
    open_loop,
    plateau,
    valley,
)
from largebatch.rules import AutoWarmUp
from largebatch.rules.auto_warm_up.rule import warm_up_rate

SEEDS = range(60)
Make = Callable[[int], LossCurve]


def ended(curve: LossCurve) -> tuple[float, float] | None:
    """(part of the warm-up, rate) where it ended before its time."""
    steps = len(curve.losses)
    for step, decision in enumerate(
        open_loop(AutoWarmUp(backoff=1.0), curve.losses, warm_up=steps)
    ):
        if "warm-up ended" in decision.reason:
            return step / steps, decision.lr_multiplier
    return None


@pytest.mark.parametrize(
    "make", [plateau, falling, partial(plateau, noise=growing)], ids=["plateau", "falling", "noisy"]
)
def test_a_loss_that_does_not_rise_gives_no_alarm(make: Make) -> None:
    assert sum(ended(make(seed)) is not None for seed in SEEDS) <= 1


def test_a_rise_of_the_loss_is_detected_after_the_minimum_and_near_its_rate() -> None:
    curves = [valley(seed) for seed in SEEDS]
    found = [(curve.minimum, end) for curve in curves if (end := ended(curve)) is not None]
    assert len(found) >= len(curves) - 1
    assert all(at > minimum for minimum, (at, _) in found if minimum is not None)
    factors = [
        abs(np.log(rate / warm_up_rate(x=minimum, low=1e-5, high=1.0)))
        for minimum, (_, rate) in found
        if minimum is not None
    ]
    assert np.exp(np.median(factors)) <= 1.5
