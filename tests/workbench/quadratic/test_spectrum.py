"""Test the properties of a spectrum, and which values are rejected."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from largebatch.workbench.quadratic import Phase, Spectrum, forecast

SPECTRUM = Spectrum(
    curvature=[2.0, 0.5], noise=[3.0, 1.0], second_moment=[1.0, 4.0], weight=[1.0, 2.0], floor=0.5
)


def test_a_spectrums_numbers_are_sums_by_hand() -> None:
    assert SPECTRUM.loss == 0.5 + 0.5 * (2.0 * 1.0 + 2.0 * 0.5 * 4.0)
    assert SPECTRUM.sqnorm == 4.0 * 1.0 + 2.0 * 0.25 * 4.0
    assert SPECTRUM.variance == 3.0 + 2.0 * 1.0
    assert SPECTRUM.noise_scale == 5.0 / 6.0
    assert SPECTRUM.curvature_noise_scale == (6.0 + 2.0 * 0.5) / (8.0 + 2.0 * 0.125 * 4.0)
    assert SPECTRUM.max_lr == 1.0


def test_a_bin_of_weight_two_is_two_directions() -> None:
    single = Spectrum(
        curvature=[2.0, 0.5, 0.5], noise=[3.0, 1.0, 1.0], second_moment=[1.0, 4.0, 4.0], floor=0.5
    )
    for name in ("loss", "sqnorm", "variance", "noise_scale", "curvature_noise_scale"):
        assert getattr(single, name) == pytest.approx(getattr(SPECTRUM, name))


def test_the_noise_of_a_power_law_follows_its_curvature_or_a_power_of_its_own() -> None:
    same = Spectrum.power_law(9, curvature_exponent=1.2, start_exponent=0.5, noise=3.0)
    assert same.noise == pytest.approx(3.0 * same.curvature)
    white = Spectrum.power_law(
        9, curvature_exponent=1.2, start_exponent=0.5, noise=3.0, noise_exponent=0.0
    )
    assert white.noise == pytest.approx(np.full(9, 3.0))
    assert white.second_moment == pytest.approx(np.arange(1, 10) ** -0.5)


def test_bins_stand_for_all_directions() -> None:
    """The error of sharing bins is below 0.1 %, at the start and along a run."""
    law = {"curvature_exponent": 1.0, "start_exponent": 0.3, "noise": 2.0, "floor": 0.1}
    every = Spectrum.power_law(100_000, bins=100_000, **law)
    binned = Spectrum.power_law(100_000, bins=1000, **law)
    assert len(binned.curvature) <= 1000 < len(every.curvature)
    assert binned.weight.sum() == 100_000
    for name in ("loss", "sqnorm", "variance"):
        assert getattr(binned, name) == pytest.approx(getattr(every, name), rel=1e-3)
    schedule = [Phase(batch_size=32, lr=0.5, steps=10.0**m) for m in range(5)]
    found, exact = forecast(binned, schedule), forecast(every, schedule)
    assert found.loss == pytest.approx(exact.loss, rel=1e-3)


def test_a_spectrums_arrays_are_read_only_copies() -> None:
    given = np.array([1.0, 2.0])
    spectrum = Spectrum(curvature=given, noise=given, second_moment=given)
    given[0] = 7.0
    assert spectrum.curvature[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        spectrum.curvature[0] = 7.0
    assert replace(spectrum, floor=1.0).loss == spectrum.loss + 1.0


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"curvature": [1.0, 0.0]}, "curvature holds the number 0.0, but .* above 0"),
        ({"noise": [1.0, -1.0]}, "noise holds the number -1.0, but .* at least 0"),
        ({"second_moment": [1.0, math.nan]}, "second_moment holds the number nan"),
        ({"weight": 0.0}, "weight holds the number 0.0, but .* above 0"),
        ({"noise": [1.0]}, "one-dimensional arrays of the same length"),
        (
            {"curvature": [], "noise": [], "second_moment": []},
            "one-dimensional arrays of the same length",
        ),
        ({"floor": math.inf}, "loss at the minimum must be finite"),
    ],
)
def test_a_spectrum_out_of_range_is_refused(wrong: dict[str, object], match: str) -> None:
    good = {"curvature": [1.0, 2.0], "noise": [1.0, 1.0], "second_moment": [1.0, 1.0]}
    with pytest.raises(ValueError, match=match):
        Spectrum(**{**good, **wrong})


def test_a_power_law_without_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match="dimensions=0 and bins"):
        Spectrum.power_law(0, curvature_exponent=1.0, start_exponent=0.0)
