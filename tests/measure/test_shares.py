"""How parts enter a step's gradient: pure functions, against the definition with every p_i."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.errors import MicroBatchMissed
from largebatch.measure.estimate import Parts, proportional_parts
from largebatch.measure.shares import (
    PassedSizes,
    Shares,
    missing_weights,
    parts_of,
    passed_sizes,
    shares_of,
)

SIZES = st.lists(st.integers(1, 64), min_size=2, max_size=8)
UNITS = st.floats(1e-6, 1e6)


def told(samples: Sequence[float | None], weights: Sequence[float | None]) -> list[PassedSizes]:
    return [PassedSizes(samples=n, weight=w) for n, w in zip(samples, weights, strict=True)]


def parts(
    samples: Sequence[float],
    weights: Sequence[float | None] | None = None,
    *,
    groups: Sequence[int] | None = None,
) -> Parts:
    pairs = told(samples, weights or [None] * len(samples))
    shares = shares_of(pairs, usual=samples, groups=groups or [1] * len(samples))
    return parts_of(shares.numbers(), source="micro-batches")


def by_definition(
    samples: Sequence[float], weights: Sequence[float], groups: Sequence[int], *, by_weight: bool
) -> tuple[float, float]:
    """Sums of p_i / u_i and p_i^2 / u_i over all pieces: k_i pieces share what part i has."""
    pieces = [
        (w / k, (w if by_weight else n) / k)
        for n, w, k in zip(samples, weights, groups, strict=True)
        for _ in range(k)
    ]
    total = sum(w for w, _ in pieces)
    return (
        sum(w / total / u for w, u in pieces),
        sum((w / total) ** 2 / u for w, u in pieces),
    )


def factors(found: Parts) -> tuple[float, float]:
    """What the variance of one unit is multiplied with: see `moments_of_parts`."""
    return (
        found.weight_per_unit / found.weight,
        found.squared_weight_per_unit / found.weight**2,
    )


def of_sample(found: Parts) -> tuple[float, float]:
    """The same factors of the variance of one sample."""
    a, b = factors(found)
    return a * found.units / found.samples, b * found.units / found.samples


def test_shares_of_one_step_computed_by_hand() -> None:
    shares = shares_of(told([2, 3], [10.0, 30.0]), usual=[9, 9], groups=[1, 1])
    assert shares == Shares(samples=[2, 3], weights=[10.0, 30.0], groups=[1, 1])
    assert shares.numbers() == {
        "parts": 2,
        "samples": 5,
        "weight": 40.0,
        "weight squared": 1000.0,
        "weighted": 2,
        "groups": 2,
        "groups per sample": pytest.approx(1 / 2 + 1 / 3),
        "per sample": pytest.approx(1 / 2 + 1 / 3),
    }


def test_what_was_not_told_is_as_usual() -> None:
    assert shares_of([], usual=[4, 4], groups=[1, 1]).samples == [4, 4]
    assert shares_of([], usual=[4, 4], groups=[1, 1]).weight_of_each == [1.0, 1.0]
    only_weights = shares_of(told([None, None], [3.0, 5.0]), usual=[4, 6], groups=[1, 1])
    assert only_weights.samples == [4, 6]
    assert only_weights.weight_of_each == [3.0, 5.0]
    one_size = shares_of(told([None, 7], [None, None]), usual=[4, 4], groups=[1, 1])
    assert one_size.samples == [4, 7]
    assert one_size.weights == []


@given(SIZES, UNITS)
def test_equal_weights_are_as_no_weights_whatever_their_unit(samples, unit) -> None:
    weighted = parts(samples, [unit] * len(samples))
    plain = parts(samples)
    assert weighted.count == plain.count
    assert weighted.samples == weighted.units == plain.units == sum(samples)
    assert factors(weighted) == pytest.approx(factors(plain), rel=1e-9)
    expected = by_definition(samples, [1.0] * len(samples), [1] * len(samples), by_weight=False)
    assert factors(plain) == pytest.approx(expected, rel=1e-9)


@given(SIZES, UNITS)
def test_weights_in_proportion_to_samples_are_the_controllers_formula(samples, unit) -> None:
    found = parts(samples, [unit * n for n in samples])
    expected = proportional_parts(len(samples), sum(samples), sum(samples), "micro-batches")
    assert of_sample(found) == pytest.approx(of_sample(expected), rel=1e-9)
    a, b = of_sample(found)
    assert a - b == pytest.approx((len(samples) - 1) / sum(samples), rel=1e-6)


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 500)), min_size=2, max_size=8))
def test_token_weights_are_the_controllers_formula(pairs) -> None:
    samples, tokens = map(list, zip(*pairs, strict=True))
    found = parts(samples, tokens)
    if len(set(tokens)) == 1:
        return  # equal shares, of the test above
    expected = Parts.proportional(count=len(tokens), samples=sum(samples), weight=sum(tokens))
    assert found == expected
    by_hand = by_definition(samples, tokens, [1] * len(tokens), by_weight=True)
    assert factors(found) == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.parametrize("weights", [None, [4.0, 1.0, 3.0], [2.0, 2.0, 2.0]])
def test_a_part_in_pieces_is_as_many_parts(weights) -> None:
    samples, groups = [8, 2, 6], [4, 2, 3]
    whole = parts(samples, weights, groups=groups)
    pieces = [
        (n / k, w / k)
        for n, w, k in zip(samples, weights or [1.0] * 3, groups, strict=True)
        for _ in range(k)
    ]
    assert whole.count == sum(groups) == len(pieces)
    by_weight = weights == [4.0, 1.0, 3.0]
    expected = by_definition(samples, weights or [1.0] * 3, groups, by_weight=by_weight)
    assert factors(whole) == pytest.approx(expected, rel=1e-12)


def test_ranks_with_other_numbers_of_parts_add_up() -> None:
    first = shares_of(told([2, 3], [10.0, 30.0]), usual=[1, 1], groups=[1, 1]).numbers()
    second = shares_of(told([7], [5.0]), usual=[1], groups=[1]).numbers()
    both = {name: first[name] + second[name] for name in first}
    assert parts_of(both, source="ranks") == Parts.proportional(
        count=3, samples=12, weight=45.0, source="ranks"
    )


@pytest.mark.parametrize("samples", [0, -1, 0.5, math.nan, math.inf])
def test_samples_out_of_range_are_refused(samples) -> None:
    with pytest.raises(ValueError, match=rf"samples={samples:g} was given"):
        passed_sizes(samples, None)


@pytest.mark.parametrize("weight", [0, -2.5, math.nan, math.inf])
def test_a_weight_out_of_range_is_refused_with_the_line_to_write(weight) -> None:
    with pytest.raises(ValueError, match=rf"weight={weight:g} was given") as caught:
        passed_sizes(1, weight)
    assert "control.micro_batch(len(x), weight=tokens)" in str(caught.value)


def test_tensors_are_read_as_numbers() -> None:
    """Tokens are often counted by the device: weight=(labels != -100).sum()."""
    one = passed_sizes(torch.tensor(4), torch.tensor(7))
    assert one == PassedSizes(samples=4.0, weight=7.0)
    assert type(one.samples) is type(one.weight) is float


def test_another_number_of_micro_batches_is_refused_with_both_numbers() -> None:
    for count in (1, 3):
        with pytest.raises(MicroBatchMissed, match=rf"called {count} times .* but 2 micro-batches"):
            shares_of([PassedSizes(samples=4)] * count, usual=[4, 4], groups=[1, 1])


def test_weights_of_some_micro_batches_are_refused_with_both_numbers() -> None:
    with pytest.raises(MicroBatchMissed, match="passed for 1 of the 3 micro-batches"):
        shares_of(told([4, 4, 4], [None, 2.0, None]), usual=[4] * 3, groups=[1] * 3)
    assert "for 1 of the 3" in missing_weights(passed=1, parts=3)
