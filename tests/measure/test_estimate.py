"""The pure formulas: unbiased for any sizes and shares, by hand, and as McCandlish wrote them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.measure.estimate import Parts, moments_of_parts, source_of


def parts_of(shares, units, *, samples=None) -> Parts:
    """Parts written out from the shares p_i (any scale) and the units u_i."""
    w, u = np.asarray(shares, float), np.asarray(units, float)
    return Parts(
        count=len(w),
        samples=u.sum() if samples is None else samples,
        units=u.sum(),
        weight=w.sum(),
        weight_per_unit=(w / u).sum(),
        squared_weight_per_unit=(w**2 / u).sum(),
    )


def estimate(parts: Parts, gradients, shares):
    p = np.asarray(shares, float) / np.sum(shares)
    g = np.asarray(gradients, float)
    return moments_of_parts(
        parts, mean_sqnorm=float(p @ (g**2).sum(-1)), batch_sqnorm=float(((p @ g) ** 2).sum())
    )


def test_two_parts_by_hand():
    # g = (3, 0) and (1, 2) of four samples each: L = (9 + 5) / 2, mean (2, 1), B = 5
    moments = moments_of_parts(
        Parts.proportional(count=2, samples=8, weight=8), mean_sqnorm=7.0, batch_sqnorm=5.0
    )
    assert moments.variance == pytest.approx(16.0)  # 8 (7 - 5) / (2 - 1)
    assert moments.sqnorm == pytest.approx(3.0)  # 5 - 16 / 8, which is <g_1, g_2>
    assert moments.batch_size == 8
    assert moments.parts == 2


def test_a_single_part_has_no_variance():
    one = Parts.proportional(count=1, samples=8, weight=8)
    assert moments_of_parts(one, mean_sqnorm=1.0, batch_sqnorm=1.0) is None


def test_parts_without_noise_have_variance_zero():
    parts = Parts.proportional(count=3, samples=9, weight=9)
    moments = moments_of_parts(parts, mean_sqnorm=2.0, batch_sqnorm=2.0)
    assert (moments.variance, moments.sqnorm, moments.noise_scale) == (0.0, 2.0, 0.0)


@pytest.mark.parametrize(
    ("shares", "units"),
    [
        ((1, 1), (1, 1)),
        ((2, 1), (2, 1)),  # proportional
        ((1, 1), (2, 1)),  # equal shares of unequal parts
        ((3, 1), (1, 2)),  # any shares
    ],
)
def test_exact_over_all_ways_to_draw_the_samples_of_a_step(shares, units):
    data = np.array([[1.0, 2.0], [-2.0, 0.5], [4.0, 1.0]])  # three samples' gradients
    mean = data.mean(0)
    variance = ((data - mean) ** 2).sum(1).mean()
    parts, found = parts_of(shares, units), []
    for drawn in itertools.product(range(3), repeat=sum(units)):
        cuts = np.split(np.array(drawn), np.cumsum(units)[:-1])
        found.append(estimate(parts, [data[cut].mean(0) for cut in cuts], shares))
    assert np.mean([m.variance for m in found]) == pytest.approx(variance, rel=1e-12)
    assert np.mean([m.sqnorm for m in found]) == pytest.approx((mean**2).sum(), rel=1e-12)


@pytest.mark.parametrize(
    ("shares", "units"),
    [((7, 2, 11), (7, 2, 11)), ((1, 1, 1), (7, 2, 11)), ((5, 5, 5, 5), (5, 5, 5, 5))],
    ids=["proportional", "equal shares", "equal"],
)
def test_unbiased_with_known_noise(shares, units):
    rng, draws, dim = np.random.default_rng(0), 40_000, 6
    mean = np.linspace(-1, 1, dim)
    noise = rng.normal(size=(draws, len(units), dim)) * 2.0
    g = mean + noise / np.sqrt(np.array(units))[:, None]
    p = np.array(shares) / sum(shares)
    sqnorms, batch = ((g**2).sum(-1) @ p), ((np.einsum("k,nkd->nd", p, g)) ** 2).sum(-1)
    parts = parts_of(shares, units)
    moments = moments_of_parts(
        parts, mean_sqnorm=float(sqnorms.mean()), batch_sqnorm=float(batch.mean())
    )  # linear in both, so the mean of the estimates
    assert moments.variance == pytest.approx(4.0 * dim, rel=0.02)
    assert moments.sqnorm == pytest.approx((mean**2).sum(), rel=0.03)


def test_tokens_as_weights_give_the_variance_of_one_sample():
    # a sample is two tokens on average: 3 samples of 1, 2, 3 tokens in two parts of 3 tokens
    rng, draws = np.random.default_rng(1), 60_000
    tokens = rng.normal(size=(draws, 6)) * 3.0 + 0.5  # variance 9 a token
    g = tokens.reshape(draws, 2, 3).mean(-1)
    parts = Parts.proportional(count=2, samples=3, weight=6)
    moments = moments_of_parts(
        parts,
        mean_sqnorm=float((g**2).mean()),
        batch_sqnorm=float((g.mean(-1) ** 2).mean()),
    )
    assert moments.variance == pytest.approx(4.5, rel=0.02)  # of the mean over two tokens
    assert moments.sqnorm == pytest.approx(0.25, rel=0.1)
    assert moments.batch_size == pytest.approx(3.0)
    assert moments.variance / moments.batch_size == pytest.approx(9 / 6, rel=0.02)


@given(st.integers(2, 6), st.integers(1, 9), st.integers(0, 10**6))
def test_equal_parts_are_mccandlishs_two_batch_sizes(count, each, seed):
    g = np.random.default_rng(seed).normal(0.3, 1.0, size=(count, 4))
    big, small = count * each, each
    large = float((np.mean(g, 0) ** 2).sum())
    little = float(np.mean((g**2).sum(1)))
    moments = estimate(parts_of([each] * count, [each] * count), g, [1] * count)
    sqnorm = (big * large - small * little) / (big - small)
    assert moments.sqnorm == pytest.approx(sqnorm, rel=1e-9, abs=1e-9)
    assert moments.variance == pytest.approx(
        (little - large) / (1 / small - 1 / big), rel=1e-9, abs=1e-9
    )


@given(st.lists(st.integers(1, 20), min_size=2, max_size=6))
def test_proportional_is_the_general_form_with_weights_equal_to_units(units):
    written, short = (
        parts_of(units, units),
        Parts.proportional(count=len(units), samples=sum(units), weight=sum(units)),
    )
    a = moments_of_parts(written, mean_sqnorm=3.0, batch_sqnorm=2.0)
    b = moments_of_parts(short, mean_sqnorm=3.0, batch_sqnorm=2.0)
    assert a.variance == pytest.approx(b.variance)
    assert a.batch_size == pytest.approx(b.batch_size) == sum(units)


@given(st.floats(0.01, 100.0), st.lists(st.integers(1, 20), min_size=2, max_size=5))
def test_only_the_ratios_of_the_weights_matter(factor, units):
    shares = [1.0 + i for i in range(len(units))]
    a = moments_of_parts(parts_of(shares, units), mean_sqnorm=3.0, batch_sqnorm=2.0)
    b = moments_of_parts(
        parts_of([factor * s for s in shares], units), mean_sqnorm=3.0, batch_sqnorm=2.0
    )
    assert a.variance == pytest.approx(b.variance, rel=1e-9)
    assert a.batch_size == pytest.approx(b.batch_size, rel=1e-9)


def test_moments_add_over_blocks_of_parameters():
    rng = np.random.default_rng(2)
    g, units = rng.normal(size=(3, 8)), (7, 2, 11)
    parts = parts_of(units, units)
    whole = estimate(parts, g, units)
    added = estimate(parts, g[:, :3], units) + estimate(parts, g[:, 3:], units)
    assert added.variance == pytest.approx(whole.variance)
    assert added.sqnorm == pytest.approx(whole.sqnorm)


def test_equal_shares_of_unequal_parts_are_a_smaller_batch():
    parts = parts_of((1, 1, 1), (7, 2, 11))
    moments = moments_of_parts(parts, mean_sqnorm=2.0, batch_sqnorm=1.0)
    assert moments.batch_size == pytest.approx(9 / (1 / 7 + 1 / 2 + 1 / 11))
    assert moments.batch_size < 20


def test_micro_batches_and_ranks_are_interchangeable_and_named():
    assert source_of(ranks=1, parts=4) == "micro-batches"
    assert source_of(ranks=4, parts=4) == "ranks"
    assert source_of(ranks=2, parts=4) == "micro-batches x ranks"
    found = [
        moments_of_parts(
            Parts.proportional(
                count=4, samples=8, weight=8, source=source_of(ranks=ranks, parts=4)
            ),
            mean_sqnorm=2.0,
            batch_sqnorm=1.5,
        )
        for ranks in (1, 2, 4)
    ]
    assert len({(m.variance, m.batch_size, m.sqnorm) for m in found}) == 1
    assert math.isclose(found[0].variance, 8 * 0.5 / 3)
