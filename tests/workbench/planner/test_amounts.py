from __future__ import annotations

import pytest

from largebatch.workbench.planner.amounts import noise_scales_of, samples_of


@pytest.mark.parametrize(
    ("text", "samples"),
    [
        ("1", 1), ("10M", 10**7), ("1.5B", 1_500_000_000), ("2g", 2 * 10**9), ("10T", 10**13),
        ("1e12", 10**12), ("1_000", 1000), (" 5k ", 5000), ("0.1M", 100_000), ("2.5e+3", 2500),
    ],
)  # fmt: skip
def test_amounts_are_read_to_the_last_sample(text: str, samples: int) -> None:
    assert samples_of(text) == samples


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1.5", "11T", "1e999", "nan", "5ep", "1.0001k", "٣", "M", "1e-3"]
)
def test_amounts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--out is a whole number of samples"):
        samples_of(text, option="--out")


def test_noise_scales_are_one_or_two() -> None:
    assert noise_scales_of("12.5") == (12.5,)
    assert noise_scales_of("500, 2M") == (500.0, 2e6)


@pytest.mark.parametrize("text", ["", "0", "-5", "nan", "inf", "1,2,3", "a", "1,", "K", "1e400"])
def test_noise_scales_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="A noise scale is a number of samples above 0"):
        noise_scales_of(text)
