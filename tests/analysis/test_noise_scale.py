import math

import numpy as np
import pytest
from simulated_gradients import epochs, series

from largebatch.analysis.noise import (
    BELOW_ZERO,
    MIN_STEPS,
    NoiseEstimate,
    NotEnough,
    along,
    estimate_noise,
)


def run(*, steps=400, noise_scale=100.0, seed=0, **options):
    ones = np.ones((1, steps))
    rng = np.random.default_rng(seed)
    return series(rng, variance=noise_scale * ones, sqnorm=ones, **options)[0]


def test_the_simulated_estimates_are_unbiased():
    rng = np.random.default_rng(1)
    pairs = series(rng, variance=np.full((1, 100_000), 50.0), sqnorm=np.full((1, 100_000), 2.0))[0]
    error = pairs.std(axis=0) / math.sqrt(len(pairs))
    assert np.all(np.abs(pairs.mean(axis=0) - [50.0, 2.0]) < 4.0 * error)
    assert np.all(error < [0.05, 0.01])


def test_a_noise_scale_is_the_ratio_of_means_not_the_mean_of_ratios():
    estimate = estimate_noise([(2.0, 1.0), (6.0, 3.0), (4.0, -1.0), (4.0, 1.0)] * 10)
    assert estimate.noise_scale == pytest.approx(4.0)
    assert (estimate.variance, estimate.sqnorm, estimate.steps) == (4.0, 1.0, 40)


def test_many_steps_give_the_true_noise_scale():
    estimate = estimate_noise(run(steps=20_000))
    assert estimate.noise_scale == pytest.approx(100.0, rel=0.05)
    assert estimate.low < 100.0 < estimate.high < 1.1 * estimate.low


@pytest.mark.parametrize("factor", [1e-12, 3.0, 1e12])
def test_the_loss_times_a_constant_changes_nothing(factor):
    pairs = run()
    plain, scaled = estimate_noise(pairs), estimate_noise(pairs * factor)
    assert (scaled.noise_scale, scaled.low, scaled.high) == pytest.approx(
        (plain.noise_scale, plain.low, plain.high), rel=1e-9
    )
    assert scaled.sqnorm == pytest.approx(plain.sqnorm * factor)


def test_counting_each_sample_as_ten_makes_the_noise_scale_ten_times_as_large():
    pairs = run()
    plain, tens = estimate_noise(pairs), estimate_noise(pairs * [10.0, 1.0])
    assert (tens.noise_scale, tens.low, tens.high) == pytest.approx(
        (10 * plain.noise_scale, 10 * plain.low, 10 * plain.high)
    )


def test_an_estimate_prints_three_digits_of_each_number():
    estimate = NoiseEstimate(
        noise_scale=1_241_300.0, low=98.76, high=2.5, steps=7, variance=1.0, sqnorm=1.0, level=0.9
    )
    assert str(estimate) == "noise scale 1240000 [98.8, 2.5] samples (90 % interval, 7 steps)"


def test_an_estimate_without_upper_end_says_at_least():
    estimate = estimate_noise(run(steps=40, noise_scale=30_000.0))
    assert math.isinf(estimate.high)
    assert estimate.low > 1.0
    expected = f"noise scale at least {estimate.low:.0f} samples (95 % interval, 40 steps)"
    assert str(estimate)[:25] == expected[:25]
    assert str(estimate).endswith("samples (95 % interval, 40 steps)")


def test_a_negative_mean_squared_norm_gives_an_infinite_estimate_and_a_finite_lower_end():
    rng = np.random.default_rng(0)
    sqnorm = rng.normal(size=100)
    estimate = estimate_noise(np.stack([np.full(100, 50.0), sqnorm - sqnorm.mean() - 1e-3], axis=1))
    assert estimate.sqnorm < 0.0
    assert math.isinf(estimate.noise_scale)
    assert math.isinf(estimate.high)
    assert 50.0 < estimate.low < 1000.0


def test_a_noise_estimate_needs_a_least_number_of_steps():
    pairs = run()
    short = estimate_noise(pairs[: MIN_STEPS - 1])
    assert str(short) == "not enough signal yet: 15 measured steps; needed: at least 16"
    assert isinstance(estimate_noise(pairs[:MIN_STEPS]), NoiseEstimate)
    assert estimate_noise([]) == NotEnough(reason="0 measured steps", needed="at least 16")


@pytest.mark.parametrize(
    ("variance", "sqnorm"), [(0.0, 1.0), (1e-7, 1.0), (-1e-9, 1.0), (0.0, -1e-9)]
)
def test_identical_data_in_all_parts_are_not_enough(variance, sqnorm):
    verdict = estimate_noise([(variance, sqnorm)] * 50)
    assert "no variance" in verdict.reason
    assert "micro-batches or ranks that have different samples" in verdict.needed


def test_a_gradient_that_is_zero_is_not_enough():
    assert "no variance" in estimate_noise([(0.0, 0.0)] * 50).reason


def test_a_small_but_true_noise_scale_is_reported():
    assert estimate_noise([(0.01, 1.0), (0.03, 1.0)] * 20).noise_scale == pytest.approx(0.02)


def test_a_gradient_lost_in_its_noise_is_not_enough():
    rng = np.random.default_rng(0)
    series = np.stack([np.full(32, 1.0), rng.normal(size=32) * 100.0], axis=1)
    verdict = estimate_noise(series)
    assert "after 32 steps the noise still hides the gradient" in verdict.reason
    assert "more steps, or more samples per step, or, if training takes" in verdict.needed
    assert "lb.watch(..., dataset_size=len(dataset))" in verdict.needed
    assert estimate_noise(series, dataset_size=64).needed == "more steps, or more samples per step"


def test_a_squared_norm_below_zero_beyond_chance_is_not_enough():
    rng = np.random.default_rng(0)
    verdict = estimate_noise(np.stack([np.full(64, 9.0), -1.0 + rng.normal(size=64)], axis=1))
    assert verdict.reason == BELOW_ZERO
    assert "independent" in verdict.needed
    assert "more steps" not in verdict.needed
    assert "lb.watch(..., dataset_size=len(dataset))" in verdict.needed
    given = estimate_noise(np.full((64, 2), [9.0, -1.0]), dataset_size=16)
    assert given.reason == BELOW_ZERO
    assert "a data set of 16 samples drawn without replacement" in given.needed
    assert "weights that change little within an epoch" in given.needed


DATASET = 256


def test_without_replacement_the_squared_norm_lacks_the_variance_over_the_data_set():
    """E|g_B|^2 is |G|^2 + v (1/B - 1/N), for a batch of any size up to the whole data set."""
    for noise_scale in (64.0, 1024.0):
        for batch_size in (32, 128, 256):
            rng = np.random.default_rng(batch_size)
            pairs = epochs(
                rng, samples=DATASET, noise_scale=noise_scale, batch_size=batch_size, steps=4000
            )
            error = pairs.std(axis=0) / math.sqrt(len(pairs))
            expected = [noise_scale, 1.0 - noise_scale / DATASET]
            assert np.all(np.abs(pairs.mean(axis=0) - expected) < 4.0 * error)


def test_the_gain_of_a_larger_batch_has_the_squared_norm_without_a_correction():
    """E|g_b|^2 / E|g_B|^2 without replacement, b = 32 and B = 256, which is the data set."""
    noise_scale, base, batch_size = 512.0, 32, 256
    variance, sqnorm = epochs(
        np.random.default_rng(0),
        samples=DATASET,
        noise_scale=noise_scale,
        batch_size=base,
        steps=20_000,
    ).mean(axis=0)
    squares = [noise_scale * (1 / size - 1 / DATASET) + 1.0 for size in (base, batch_size)]
    predicted = (variance / base + sqnorm) / (variance / batch_size + sqnorm)
    assert predicted == pytest.approx(squares[0] / squares[1], rel=0.1)


@pytest.mark.parametrize("ratio", [0.25, 1.0, 4.0])
def test_the_interval_covers_the_noise_scale_of_a_finite_data_set(ratio):
    runs, covered, known = 100, 0, 0
    for seed in range(runs):
        pairs = epochs(
            np.random.default_rng(seed),
            samples=DATASET,
            noise_scale=ratio * DATASET,
            batch_size=64,
            steps=64,
        )
        estimate = estimate_noise(pairs, dataset_size=DATASET)
        if isinstance(estimate, NoiseEstimate):
            known += 1
            covered += estimate.low <= ratio * DATASET <= estimate.high
    assert known >= 0.95 * runs
    assert covered >= 0.89 * known  # 0.95 less three standard errors


def test_a_noise_scale_above_the_data_set_has_a_finite_estimate():
    pairs = epochs(
        np.random.default_rng(1), samples=DATASET, noise_scale=1000.0, batch_size=64, steps=400
    )
    assert estimate_noise(pairs).reason == BELOW_ZERO
    estimate = estimate_noise(pairs, dataset_size=DATASET)
    assert estimate.low < 1000.0 < estimate.high < math.inf
    assert estimate.noise_scale == pytest.approx(1000.0, rel=0.5)
    assert str(estimate).endswith("(95 % interval, 400 steps, of the data set of 256 samples)")


@pytest.mark.parametrize("size", [50, 256, 10**9])
def test_one_over_the_noise_scale_moves_by_one_over_the_data_set(size):
    """The relation holds for the estimate and for both bounds, because all three are ratios."""
    plain, finite = (estimate_noise(run(), dataset_size=n) for n in (None, size))
    for name in ("noise_scale", "low", "high"):
        moved = 1.0 / getattr(plain, name) + 1.0 / size
        assert 1.0 / getattr(finite, name) == pytest.approx(moved, rel=1e-9)
    assert (finite.variance, finite.dataset_size) == (plain.variance, size)
    assert finite.sqnorm == pytest.approx(plain.sqnorm + plain.variance / size)


def test_pieces_are_of_the_data_set_as_well():
    pairs = run(steps=64)
    (first, second) = along(pairs, 2, dataset_size=DATASET)
    assert first.noise == estimate_noise(pairs[:32], dataset_size=DATASET)
    assert second.noise == estimate_noise(pairs[32:], dataset_size=DATASET)


@pytest.mark.parametrize("size", [0, 1, -5, math.nan])
def test_a_data_set_has_at_least_two_samples(size):
    with pytest.raises(ValueError, match=r"dataset_size=len\(dataset\)"):
        estimate_noise(run(), dataset_size=size)


def test_pieces_follow_a_noise_scale_that_grows_and_cover_it():
    steps = 2000
    truth = np.repeat([20.0, 80.0, 320.0, 1280.0], steps // 4)[None]
    rng = np.random.default_rng(2)
    pairs = series(rng, variance=truth, sqnorm=np.ones_like(truth), part_size=64)[0]
    pieces = along(pairs, 4)
    assert [(p.start, p.stop) for p in pieces] == [
        (0, 500),
        (500, 1000),
        (1000, 1500),
        (1500, 2000),
    ]
    for piece, noise_scale in zip(pieces, (20.0, 80.0, 320.0, 1280.0), strict=True):
        assert piece.noise.low < noise_scale < piece.noise.high < 2.0 * noise_scale


def test_a_piece_is_the_estimate_of_its_own_steps():
    pairs = run(steps=203)
    for piece in along(pairs, 3, seed=4, level=0.8):
        assert piece.noise == estimate_noise(pairs[piece.start : piece.stop], seed=4, level=0.8)


@pytest.mark.parametrize("steps", [0, 1, 16, 31, 33, 127, 500])
def test_pieces_are_long_enough_nearly_equal_and_lose_no_step(steps):
    pieces = along(run(steps=steps) if steps else [])
    lengths = [p.stop - p.start for p in pieces]
    assert sum(lengths) == steps
    assert max(lengths) - min(lengths) <= 1
    assert len(pieces) == max(1, min(8, steps // MIN_STEPS))


@pytest.mark.parametrize(
    ("series_", "options", "message"),
    [
        ([(1.0, math.nan)] * 20, {}, "first is step 0"),
        (
            [(1.0, 2.0)] * 19 + [(math.inf, 1.0)],
            {},
            "1 of 20 training steps have values",
        ),
        ([(1.0, 2.0, 3.0)] * 20, {}, "one pair"),
        ([1.0] * 20, {}, "one pair"),
        ([(1.0, 2.0)] * 20, {"level": 1.0}, "probability"),
        ([(1.0, 2.0)] * 20, {"level": 95}, "probability"),
    ],
)
def test_a_wrong_series_or_level_is_refused_with_its_cause(series_, options, message):
    with pytest.raises(ValueError, match=message):
        estimate_noise(series_, **options)


def test_no_pieces_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        along([(1.0, 2.0)] * 40, 0)
