"""What every rule that compares the batch with the noise scale keeps to: it needs evidence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from batch_rules import moments_of
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch import methods
from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import Budget, GradientMoments, Reading
from largebatch.core.rule import Rule, chain
from largebatch.rules import (
    AdaptiveGrowth,
    ClampToNoiseScale,
    Growth,
    NoiseScaleControl,
    NormTest,
)
from largebatch.rules.stages import Stages

RULES: dict[str, Rule] = {
    "norm test": NormTest(eta=1.0, denominator="unbiased"),
    "noise scale control": NoiseScaleControl(),
    "adaptive growth": AdaptiveGrowth(patience=1),
    "bound": chain(Growth(at=(1e-9,), stages=Stages(batch=(1, 1000))), ClampToNoiseScale()),
    "adasgd": methods.adasgd(every=1),
    "adadam": methods.adadam(every=1),
    "method of adaptive growth": methods.adaptive_growth(every=1, patience=1),
}
every_rule = pytest.mark.parametrize("name", RULES)


def decide(
    rule: Rule, steps: list[GradientMoments], *, base: int, size: int | None = None
) -> list[Decision]:
    """Each step's decision, of a batch in hand that stays what the moments say."""
    first = int(steps[0].batch_size)
    decider = Decider.start(
        rule, base_batch_size=base, batch_size=first, dataset_size=size,
        budget=Budget(samples=10**9),
    )  # fmt: skip
    found = []
    for moments in steps:
        reading = Reading(samples=first, moments=moments, preconditioned_moments=moments)
        decider, decision = decider.decide(decider.see(reading, base_lr=0.1))
        found.append(decision)
    return found


def quiet(noise: float, *, batch: int = 64) -> GradientMoments:
    """A step whose estimates are exact."""
    return moments_of(noise, 1.0 + noise / batch, batch_size=batch)


@every_rule
def test_squared_norms_below_zero_do_not_move_the_first_three_steps(name: str) -> None:
    lost = moments_of(640.0, 0.0)
    assert lost.sqnorm == -10.0
    for decision in decide(RULES[name], [lost] * 3, base=64):
        assert decision.next_batch_size == 64


@every_rule
@given(count=st.integers(3, 40), base=st.sampled_from([2, 64]))
@settings(deadline=None, max_examples=25)
def test_one_squared_norm_below_zero_does_not_make_the_batch_grow(
    name: str, count: int, base: int
) -> None:
    """The batch 64 is a quarter above the noise scale; -variance / B is the least that can be."""
    steps = [quiet(51.2)] * count + [moments_of(51.2, 0.0)]
    assert decide(RULES[name], steps, base=base)[-1].next_batch_size <= 64


@every_rule
@given(
    numbers=st.lists(
        st.tuples(st.floats(0, 1e9), st.floats(0, 1e9) | st.just(0.0), st.integers(2, 64)),
        min_size=1, max_size=15,
    ),
    size=st.none() | st.integers(64, 10**6),
)  # fmt: skip
@settings(deadline=None, max_examples=25)
def test_proposals_are_whole_and_within_the_data_set(
    name: str, numbers: list[tuple[float, float, int]], size: int | None
) -> None:
    steps = [moments_of(v, s, parts=k) for v, s, k in numbers]
    for decision in decide(RULES[name], steps, base=64, size=size):
        assert isinstance(decision.next_batch_size, int)
        assert decision.next_batch_size >= 2
        assert size is None or decision.next_batch_size <= max(size, 64)
        assert math.isfinite(decision.lr_multiplier)


@every_rule
def test_a_batch_within_the_interval_stays(name: str) -> None:
    """Noise scales of 25 and 95 in turn, of a batch of 64."""
    steps = [quiet(noise) for noise in [25.0, 95.0] * 10]
    for decision in decide(RULES[name], steps, base=2):
        assert decision.next_batch_size == 64


# Runs on a problem whose noise scale is known and does not move


def draw(generator: Any, batch: int, parts: int, *, noise: float, d: int) -> GradientMoments:
    """Moments of Gaussian samples with |G|^2 = 1, in d directions of equal noise."""
    variance = noise * generator.chisquare((parts - 1) * d) / ((parts - 1) * d)
    g = generator.normal(size=d) * math.sqrt(noise / batch / d)
    g[0] += 1.0
    return moments_of(float(variance), float(g @ g), batch_size=batch, parts=parts)


def last_batch(rule: Rule, *, noise: float, d: int, parts: int, steps: int, seed: int) -> int:
    generator = np.random.default_rng(seed)
    decider = Decider.start(rule, base_batch_size=16, batch_size=16, dataset_size=60_000)
    for _ in range(steps):
        batch = decider.batch_size
        m = draw(generator, batch, parts, noise=noise, d=d) if decider.measure else None
        reading = Reading(samples=batch, moments=m, preconditioned_moments=m)
        decider, _ = decider.decide(decider.see(reading, base_lr=0.1))
    return decider.batch_size


@pytest.mark.parametrize("parts", [2, 8])
@pytest.mark.parametrize("method", [methods.adasgd, methods.adadam, methods.adaptive_growth])
def test_the_methods_stop_at_the_noise_scale(method: Any, parts: int) -> None:
    """From 16, which is far below: single tests ran past twice the noise scale in 25 to 46 % of the
    runs, and to 28 times. Four times is never passed here, and the median is near."""
    found = [
        last_batch(method(), noise=400.0, d=20, parts=parts, steps=400, seed=seed) / 400.0
        for seed in range(25)
    ]
    assert max(found) <= 4.0
    assert np.mean([batch > 2.0 for batch in found]) <= 0.12
    assert 0.4 <= np.median(found) <= 1.6
