"""A rule that sees running averages of the moments."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.decision import Decision
from largebatch.core.measurement import GradientMoments, Measurement
from largebatch.core.moving_moments import AveragedMoments, MovingMoments
from largebatch.core.rule import chain
from largebatch.rules import (
    AdaptiveGrowth,
    AdaScale,
    Averaged,
    ClampToNoiseScale,
    LinearScaling,
    NoiseScaleControl,
    NormTest,
    Observe,
)

NUMBERS = st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(-10, 1e3)), min_size=1, max_size=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Keeps as state what it was shown."""

    needs = frozenset({"moments"})
    changes = bounds = forbids = frozenset()

    def init(self) -> None:
        return None

    def update(
        self, state: object, seen: Measurement, proposed: Decision
    ) -> tuple[GradientMoments | None, Decision]:
        return seen.moments, proposed


def see(
    variance: float, sqnorm: float, *, step: int, batch_size: int = 64, samples: int | None = None
) -> Measurement:
    moments = GradientMoments(
        batch_size=batch_size,
        parts=4,
        batch_sqnorm=sqnorm + variance / batch_size,
        variance=variance,
    )
    return Measurement(
        step=step,
        samples=64 * step if samples is None else samples,
        base_steps=0.0,
        batch_size=batch_size,
        base_batch_size=16,
        moments=moments,
    )


def run(rule: Averaged, steps: list[Measurement]) -> list[tuple[object, Decision]]:
    state, found = rule.init(), []
    for seen in steps:
        state, decision = rule.update(state, seen, Decision(next_batch_size=64, base_steps=4.0))
        found.append((state[1], decision))
    return found


@given(values=NUMBERS, window=st.floats(4.0, 400.0))
def test_the_rule_sees_weighted_means_of_variance_and_squared_norm(
    values: list[tuple[float, float]], window: float
) -> None:
    steps = [see(v, s, step=i) for i, (v, s) in enumerate(values)]
    shown, _ = run(Averaged(Keep(), window=window), steps)[-1]
    """Four base batches in each step forget 4 / window of the past. Each pair is divided by the
    level of the variance before it, or by a quarter of its own variance if that is more. The mean
    is shown in units of the last level."""
    forget = min(4 / window, 0.125)
    weights = np.array([(1.0 - forget) ** age for age in range(len(values))][::-1])
    levels = [values[0][0]]
    for variance, _ in values:
        levels.append((levels[-1] + min(variance, 4 * levels[-1])) / 2)
    units = [max(at, v / 4) for (v, _), at in zip(values, levels, strict=False)]
    raw = np.array([(v / at, s / at) for (v, s), at in zip(values, units, strict=True)])
    expected = levels[-1] * (weights[:, None] * raw).sum(axis=0) / weights.sum()
    assert isinstance(shown, GradientMoments)
    assert (shown.variance, shown.sqnorm) == pytest.approx(tuple(expected), rel=1e-6, abs=1e-6)
    assert (shown.batch_size, shown.parts) == (64, 4)


@given(values=NUMBERS, window=st.sampled_from([4.0, 50.0, 100.0, 700.0]))
def test_averages_are_not_averaged_again(values: list[tuple[float, float]], window: float) -> None:
    """Of two the outer window counts."""
    steps = [see(v, s, step=i, batch_size=64 << i % 4) for i, (v, s) in enumerate(values)]
    for inner in (AdaScale(), NormTest(), NoiseScaleControl(), AdaptiveGrowth(patience=1)):
        plain = run(Averaged(inner, window=window), steps)
        twice = run(Averaged(Averaged(inner, window=7.0), window=window), steps)
        assert [decision for _, decision in twice] == [decision for _, decision in plain]


@given(values=NUMBERS)
def test_the_usual_window_around_a_rule_with_a_memory_changes_nothing(
    values: list[tuple[float, float]],
) -> None:
    steps = [see(v, s, step=i, batch_size=64 << i % 4) for i, (v, s) in enumerate(values)]
    for rule in (
        NormTest(denominator="unbiased"),
        NoiseScaleControl(kappa=0.3, offset=5.0),
        AdaptiveGrowth(patience=2),
        ClampToNoiseScale(kappa=2.0),
    ):
        wrapped, state = run(Averaged(rule, window=100.0), steps), rule.init()
        for seen, (_, decision) in zip(steps, wrapped, strict=True):
            proposed = Decision(next_batch_size=64, base_steps=4.0)
            state, expected = rule.update(state, seen, proposed)
            assert decision == expected


@given(values=NUMBERS)
def test_adascale_inside_uses_the_averages_that_it_is_shown(
    values: list[tuple[float, float]],
) -> None:
    steps = [see(v, s, step=i) for i, (v, s) in enumerate(values)]
    for seen, (state, _) in zip(
        steps, run(Averaged(AdaScale(window=3.0), window=200.0), steps), strict=True
    ):
        assert isinstance(state, MovingMoments)
        assert state.measured_at == seen.samples + 64
    assert state.average.count == len(steps)


def test_means_are_divided_late() -> None:
    """Variances 1 and 3, squared norms 1 and -0.5: 4 / 0.5 = 8, not the mean of 1 and inf. The
    level before both is 1."""
    shown, _ = run(Averaged(Keep(), window=1e12), [see(1, 1, step=0), see(3, -0.5, step=1)])[-1]
    assert isinstance(shown, GradientMoments)
    assert shown.noise_scale == pytest.approx(8.0, rel=1e-6)


def test_a_step_without_moments_shows_none_and_keeps_the_average() -> None:
    rule = Averaged(Keep(), window=100.0)
    blind = replace(see(9.0, 9.0, step=1), moments=None)
    found = run(rule, [see(2.0, 1.0, step=0), blind, see(2.0, 1.0, step=2)])
    assert found[1][0] is None
    shown = found[2][0]
    assert isinstance(shown, AveragedMoments)
    assert (shown.variance, shown.sqnorm) == pytest.approx((2.0, 1.0))
    assert shown.past.average.count == 2


def test_a_short_window_holds_eight_measurements() -> None:
    steps = [see(1.0, 0.0, step=0), see(1.0, 1.0, step=1)]
    shown, _ = run(Averaged(Keep(), window=4.0), steps)[-1]
    assert isinstance(shown, GradientMoments)
    assert shown.sqnorm == pytest.approx(1.0 / 1.875)


def test_steps_without_a_measurement_age_the_average() -> None:
    """Ten steps of four base batches each forget a tenth of a window of 400."""
    steps = [see(1.0, 0.0, step=0), see(1.0, 1.0, step=10)]
    shown, _ = run(Averaged(Keep(), window=400.0), steps)[-1]
    assert isinstance(shown, GradientMoments)
    assert shown.sqnorm == pytest.approx(1.0 / 1.9)


def test_a_true_estimate_replaces_the_temporal_ones() -> None:
    rough = see(9.0, 9.0, step=0)
    assert rough.moments is not None
    rough = replace(rough, moments=replace(rough.moments, source="temporal"))
    shown, _ = run(Averaged(Keep(), window=1e6), [rough, see(2.0, 1.0, step=1)])[-1]
    assert isinstance(shown, AveragedMoments)
    assert shown.past.average.count == 1
    assert shown.noise_scale == pytest.approx(2.0)


def test_the_state_of_averaged_holds_its_average_and_its_rules_state() -> None:
    assert Averaged(AdaScale()).init() == (MovingMoments(), AdaScale().init())
    whole = chain(AdaScale(), Observe())
    assert Averaged(whole).init()[1] == whole.init()


def test_a_rule_that_reads_no_moments_is_refused_by_name() -> None:
    for rule in (LinearScaling(), AdaScale(statistic="preconditioned_moments")):
        with pytest.raises(ValueError, match=f"but {type(rule).__name__} does not read"):
            Averaged(rule)


def test_the_preconditioned_moments_are_averaged_where_they_are_named() -> None:
    moments = see(2.0, 1.0, step=0).moments
    rule = Averaged(
        AdaScale(statistic="preconditioned_moments"),
        statistic="preconditioned_moments",
    )
    seen = replace(see(9.0, 9.0, step=0), preconditioned_moments=moments)
    (_, decision), _ = run(rule, [seen, seen])
    plain = AdaScale(statistic="preconditioned_moments")
    _, expected = plain.update(plain.init(), seen, Decision(next_batch_size=64, base_steps=4.0))
    assert decision.lr_multiplier == pytest.approx(expected.lr_multiplier)


def test_a_rule_that_reads_the_other_moments_is_refused_with_a_line_to_paste() -> None:
    for rule, other in (
        (AdaScale(statistic="preconditioned_moments"), "preconditioned_moments"),
        (AdaScale(), "moments"),
    ):
        wrong = "moments" if other != "moments" else "preconditioned_moments"
        with pytest.raises(ValueError, match=rf'Averaged\(rule, statistic="{other}"\)'):
            Averaged(rule, statistic=wrong)  # type: ignore[arg-type]


def test_averages_show_the_squared_norm_of_the_batch_in_hand() -> None:
    """Means 2 and 1.5 in units of 1, and the level went from 1 to the mean of 1 and 3."""
    shown, _ = run(Averaged(Keep(), window=1e12), [see(1, 1, step=0), see(3, 2, step=1)])[-1]
    assert isinstance(shown, GradientMoments)
    assert shown.batch_sqnorm == pytest.approx(2.0 * (1.5 + 2.0 / 64))


@pytest.mark.parametrize("window", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_window_is_refused(window: float) -> None:
    with pytest.raises(ValueError, match="window must be above 0"):
        Averaged(AdaScale(), window=window)
