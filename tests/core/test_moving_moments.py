"""Test running averages of the gradient's moments: forgetting, weights and ignored values."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.average import Average
from largebatch.core.codec import decode, encode
from largebatch.core.measurement import GradientMoments, Measurement
from largebatch.core.moving_moments import (
    JUMP,
    MOST,
    MovingMoments,
    averaged_moments,
    information,
)
from round_trips import through_json

BASE = 16
Numbers = list[tuple[float, float]]
NUMBERS = st.lists(
    st.tuples(
        st.floats(1e-3, 1e3),
        st.just(0.0) | st.floats(1e-6, 1e3) | st.floats(-1e3, -1e-6),
    ),
    min_size=1, max_size=12,
)  # (variance, sqnorm), which stay normal floats in other units  # fmt: skip


def moments_of(
    variance: float, sqnorm: float, *, batch_size: int = 64, parts: int = 4, source: Any = None
) -> GradientMoments:
    return GradientMoments(
        batch_size=batch_size,
        parts=parts,
        batch_sqnorm=sqnorm + variance / batch_size,
        variance=variance,
        source=source or "micro-batches",
    )


def seen_at(samples: int, *, batch_size: int = 64) -> Measurement:
    return Measurement(
        step=0, samples=samples, base_steps=0.0, batch_size=batch_size, base_batch_size=BASE
    )


def run(numbers: Numbers, *, batch_size: int = 64, parts: int = 4, **options: Any) -> MovingMoments:
    """Return the averages after steps that all measured moments."""
    state = MovingMoments()
    for at, (variance, sqnorm) in enumerate(numbers):
        m = moments_of(variance, sqnorm, batch_size=batch_size, parts=parts)
        state = state.add(m, seen_at(at * batch_size, batch_size=batch_size), **options)
    return state


@pytest.mark.parametrize("k", [2, 8, 32])
def test_the_averages_of_the_same_data_are_unbiased_whatever_the_parts(k: int) -> None:
    """Batches of 32 in k parts: mean squared norm 1, variance of one sample 20."""
    generator, steps, batch, d = np.random.default_rng(0), 4000, 32, 5
    true = np.zeros(d)
    true[0] = 1.0
    state, seen = MovingMoments(), []
    for step in range(steps):
        g = true + generator.normal(size=(batch, d)) * 2.0
        mean, of_parts = g.mean(axis=0), g.reshape(k, batch // k, d).mean(axis=1)
        variance = ((of_parts - mean) ** 2).sum() / (k - 1) * batch / k
        m = GradientMoments(
            batch_size=batch, parts=k, batch_sqnorm=float(mean @ mean), variance=float(variance)
        )
        seen.append((m.variance, m.sqnorm))
        state = state.add(
            m, seen_at(step * batch), window=1e12, relative=False, averaging="mean-then-ema"
        )
    errors = np.std(seen, axis=0) / math.sqrt(steps)
    for found, exact, error in zip(state.average.values, (20.0, 1.0), errors, strict=True):
        assert abs(found - exact) < 4.0 * error


@given(numbers=NUMBERS, power=st.integers(-30, 30))
def test_the_loss_times_a_constant_changes_no_bit(numbers: Numbers, power: int) -> None:
    unit = 4.0**power
    plain, other = run(numbers), run([(v * unit, s * unit) for v, s in numbers])
    assert other.noise_scale() == plain.noise_scale()
    assert (other.average, other.level) == (plain.average, plain.level * unit)


@given(numbers=NUMBERS, quiet=st.integers(1, 5), power=st.integers(-20, 20))
def test_steps_without_noise_do_not_bind_the_averages_to_a_unit(
    numbers: Numbers, quiet: int, power: int
) -> None:
    unit = 4.0**power
    both = [[(0.0, abs(numbers[0][1]))] * quiet + numbers, numbers + [(0.0, 1.0)] * quiet]
    for series in both:
        other = run([(v * unit, s * unit) for v, s in series])
        assert other.noise_scale() == run(series).noise_scale()


def test_a_thousand_steps_without_noise_leave_the_averages_finite() -> None:
    state = run([(1.0, 2.0)] + [(0.0, 2.0)] * 3000)
    assert all(math.isfinite(value) for value in state.average.values)
    assert state.level == pytest.approx(2.0), "that of the squared norm"
    tiny = run([(5e-324, 2.0)] * 3000)
    assert all(math.isfinite(value) for value in tiny.average.values)
    assert tiny.noise_scale() is not None


@given(
    before=st.integers(1, 20), skipped=st.integers(1, 40), batch=st.sampled_from([16, 48, 64, 4096])
)
def test_the_past_is_forgotten_by_base_batches_and_not_by_measurements(
    before: int, skipped: int, batch: int
) -> None:
    """A step that measures forgets as much after one large unmeasured step as after many small."""
    start = run([(1.0, 1.0)] * before)
    at = start.measured_at + skipped * batch
    m = moments_of(3.0, 3.0)
    after = start.add(m, seen_at(at))
    share = min((skipped * batch + 64) / BASE / 100.0, MOST)
    expected = max(1.0 / ((1.0 - share) * start.average.weight / information(m) + 1.0), share)
    assert after.average.values[1] == pytest.approx(1.0 + expected * 2.0, rel=1e-9)
    assert after.measured_at == at + 64


@given(factor=st.integers(1, 50), parts=st.integers(2, 64))
def test_how_a_step_is_measured_does_not_change_what_is_forgotten(factor: int, parts: int) -> None:
    steps = [(1.0, 1.0)] * 5 + [(2.0, 3.0)]
    kept = [run(steps, parts=k).average.values for k in (2, parts)]
    assert kept[0] == pytest.approx(kept[1], rel=1e-9)
    shares = [
        run(steps, batch_size=BASE * size, window=1000.0, relative=False) for size in (1, factor)
    ]
    forgets = [min(size / 1000.0, MOST) for size in (1, factor)]
    for state, forget in zip(shares, forgets, strict=True):
        weights = [(1.0 - forget) ** age for age in range(6)]
        assert state.average.values[0] == pytest.approx(1.0 + 1.0 / sum(weights), rel=1e-9)


@given(batch=st.sampled_from([64, 1600, 10**6]), count=st.integers(11, 30))
def test_the_averages_hold_eight_measurements_at_least(batch: int, count: int) -> None:
    state = run([(1.0, 0.0)] * count + [(1.0, 1.0)], batch_size=batch)
    full = 1.0 - (1.0 - MOST) ** (count + 1)
    assert 0.04 <= state.average.values[1] <= MOST / full + 1e-9
    held = state.average.weight / (batch**2 * 3 / 4)
    assert held == pytest.approx(full / MOST) or batch == 64
    assert MOST == 1 / 8


def test_a_window_below_a_hundred_base_batches_is_taken_as_it_is() -> None:
    numbers = [(9.0, 9.0), (2.0, 1.0)]
    assert run(numbers, window=4.0, relative=False).average.values == (2.0, 1.0)
    half = run(numbers, window=8.0, relative=False).average.values
    assert half == pytest.approx(((0.5 * 9.0 + 2.0) / 1.5, (0.5 * 9.0 + 1.0) / 1.5))
    whole = run(numbers, window=100.0, relative=False).average.values
    assert whole[0] == pytest.approx((0.96 * 9.0 + 2.0) / 1.96)


@given(parts=st.integers(2, 64), batch=st.integers(2, 5000))
def test_a_measurement_weighs_by_what_noise_leaves_of_its_squared_norm(
    parts: int, batch: int
) -> None:
    """Two simultaneous estimates are averaged with the weights batch^2 (parts - 1) / parts."""
    first = moments_of(1.0, 0.0, batch_size=64, parts=2)
    second = moments_of(1.0, 1.0, batch_size=batch, parts=parts)
    state = MovingMoments().add(first, seen_at(0), window=1e15)
    state = state.add(second, seen_at(0), window=1e15)
    weights = 64**2 / 2, batch**2 * (parts - 1) / parts
    assert state.average.values[1] == pytest.approx(weights[1] / sum(weights), rel=1e-6)


def test_the_weight_is_the_inverse_of_the_variance_of_a_squared_norm_of_noise() -> None:
    """The variance of sqnorm over noise alone, times the weight, is the same for all batches."""
    generator, d, runs = np.random.default_rng(1), 3, 40_000
    found = []
    for batch, parts in ((8, 2), (8, 8), (32, 2), (32, 4)):
        g = generator.normal(size=(runs, parts, d)) / math.sqrt(batch / parts)
        mean = g.mean(axis=1)
        variance = ((g - mean[:, None]) ** 2).sum(axis=(1, 2)) / (parts - 1) * batch / parts
        sqnorm = (mean**2).sum(axis=1) - variance / batch
        m = moments_of(1.0, 1.0, batch_size=batch, parts=parts)
        found.append(float(sqnorm.var()) * information(m))
    assert found == pytest.approx([sum(found) / 4] * 4, rel=0.06)


def test_a_true_estimate_replaces_the_temporal_ones() -> None:
    rough = moments_of(9.0, 9.0, source="temporal")
    state = MovingMoments().add(rough, seen_at(0))
    assert state.temporal
    state = state.add(moments_of(2.0, 1.0), seen_at(64))
    assert (state.average.values, state.average.count) == ((1.0, 0.5), 1)
    state = state.add(rough, seen_at(128))
    assert state.average.count == 2, "but a rough one does not discard the true ones"


def test_averages_of_0_1_0_are_read_and_begin_anew() -> None:
    """Averages of version 0.1 counted their window in parts, and their weights sum to 1."""
    old = {
        "average": {"values": [640.0, 2.0], "weight": 0.25, "count": 9},
        "measured_at": 40,
        "temporal": False,
    }
    state = decode(MovingMoments, old)
    assert state.outdated
    assert not state.known
    assert state.noise_scale() is None
    anew = state.add(moments_of(8.0, 2.0), seen_at(640))
    assert anew == MovingMoments().add(moments_of(8.0, 2.0), seen_at(640))
    assert anew.known
    assert not anew.outdated


@pytest.mark.parametrize(
    "lost", [(math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (1.0, math.inf)]
)
def test_moments_that_are_not_finite_are_left_out(lost: tuple[float, float]) -> None:
    state = run([(1.0, 2.0), (3.0, 4.0)])
    assert state.add(moments_of(*lost), seen_at(640)) == state
    assert MovingMoments().add(moments_of(*lost), seen_at(0)) == MovingMoments()


@given(
    first=st.floats(5e-324, 1e300), variance=st.floats(0.0, 1e300), sqnorm=st.floats(-1e300, 1e300)
)
def test_a_jump_beyond_all_floats_counts_as_one_of_four_times_the_level(
    first: float, variance: float, sqnorm: float
) -> None:
    state = run([(first, 0.0), (variance, sqnorm), (variance, sqnorm)])
    assert all(math.isfinite(value) for value in (*state.average.values, state.level))
    assert state.average.values[0] <= JUMP


def test_a_measurement_of_one_part_tells_nothing() -> None:
    """One part has no variance, so its weight is 0."""
    state = run([(1.0, 2.0), (3.0, 4.0)])
    for past in (state, MovingMoments()):
        assert past.add(moments_of(5.0, 6.0, parts=1), seen_at(640)) == past


@given(numbers=NUMBERS)
def test_moments_that_are_averages_take_the_place_of_these(numbers: Numbers) -> None:
    past = run(numbers)
    shown = averaged_moments(moments_of(1.0, 1.0), past=past)
    assert run([(5.0, 5.0)] * 3).add(shown, seen_at(640)) is past


@given(variance=st.floats(0, 1e6), sqnorm=st.floats(-1e3, 1e6), batch_size=st.integers(1, 10**5))
def test_averaged_moments_have_the_averaged_numbers(
    variance: float, sqnorm: float, batch_size: int
) -> None:
    past = MovingMoments(average=Average(values=(variance, sqnorm), weight=1.0, count=1))
    found = averaged_moments(moments_of(1.0, 1.0, batch_size=batch_size), past=past)
    assert found.variance == variance
    assert found.sqnorm == pytest.approx(sqnorm, rel=1e-9, abs=1e-9 * (1 + variance))


def test_while_gradient_and_noise_shrink_together_the_recent_steps_decide() -> None:
    """The variance falls by 10,000 in 100 steps, in which the noise scale rises from 10 to 1000."""
    parts = [at / 100 for at in range(101)]
    numbers = [(1e4**-x, 1e4**-x / (10.0 * 100.0**x)) for x in parts]
    levelled, absolute = (run(numbers, batch_size=640, relative=r) for r in (True, False))
    recent = 1000.0 / 100.0 ** (10 / 100)  # ten steps before the end
    noise = levelled.noise_scale()
    assert noise is not None
    assert noise.value == pytest.approx(recent, rel=0.2)
    variance, sqnorm = absolute.average.values
    assert variance / sqnorm < 0.6 * recent, "the large gradients before them rule"


@given(
    numbers=st.lists(st.tuples(st.floats(0.5, 2.0), st.floats(-1.0, 3.0)), min_size=4, max_size=20)
)
def test_the_noise_scale_is_the_inverse_of_the_ratio_and_its_ends(numbers: Numbers) -> None:
    state = run(numbers)
    signal, noise = state.average.ratio(), state.noise_scale()
    assert signal is not None
    assert noise is not None
    assert noise.low <= noise.value <= noise.high
    for one, end in (
        (signal.value, noise.value),
        (signal.high, noise.low),
        (signal.low, noise.high),
    ):
        assert end == (1.0 / one if one > 0.0 else math.inf)
    inside = state.noise_scale(dataset_size=50)
    assert inside is not None
    for one, end in ((noise.value, inside.value), (noise.low, inside.low)):
        if math.isfinite(one):
            assert end == pytest.approx(one / (1.0 + one / 50), rel=1e-9)


def test_four_measurements_are_needed_and_no_noise_is_a_noise_scale_of_zero() -> None:
    for variance, expected in ((3.0, 3.0), (0.0, 0.0)):
        assert run([(variance, 1.0)] * 3).noise_scale() is None
        found = run([(variance, 1.0)] * 4).noise_scale()
        assert found is not None
        assert found.low == found.value == found.high == pytest.approx(expected)
    assert run([(0.0, 0.0)] * 9).noise_scale() is None, "neither gradient nor noise"


@given(numbers=NUMBERS)
def test_the_averages_come_back_from_json(numbers: Numbers) -> None:
    state = run(numbers)
    assert decode(MovingMoments, through_json(encode(state))) == state


def test_a_step_that_lies_before_the_last_one_forgets_nothing() -> None:
    state = run([(1.0, 1.0)] * 3)
    again = state.add(moments_of(1.0, 1.0), replace(seen_at(0)))
    assert again.average.weight == pytest.approx(
        state.average.weight + information(moments_of(1, 1))
    )
