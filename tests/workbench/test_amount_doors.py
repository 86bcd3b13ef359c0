"""The three doors of amounts: lengths of runs, numbers of samples, strings of steps."""

from __future__ import annotations

import pytest

from largebatch.rules.batch_steps import parse_steps
from largebatch.workbench.amounts import (
    MAX_SAMPLES,
    Length,
    parse_length,
    parse_noise_scales,
    parse_samples,
)

SPELLINGS = {
    "1": 1, "10k": 10_000, "10K": 10_000, "0.1M": 100_000, "2m": 2_000_000, "1.5B": 1_500_000_000,
    "1.5b": 1_500_000_000, "2G": 2 * 10**9, "2g": 2 * 10**9, "1T": 10**12, "10t": 10**13,
    "1e6": 10**6, "1E6": 10**6, "1e12": 10**12, "2.5e+3": 2500, "25000e-1": 2500, "1e3K": 10**6,
    "1_000": 1000, "1_0.5K": 10_500, ".5K": 500, "5.": 5, "+7": 7, "007": 7, "1_": 1, "1__0": 10,
    "4.35K": 4350, "1.2_5K": 1250, "1e0_3": 1000,
}  # fmt: skip
"""A number of samples, in each form -> the number."""


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_number_is_the_same_through_every_door(text: str) -> None:
    samples = SPELLINGS[text]
    assert parse_length(text) == Length(amount=float(samples), unit="samples")
    assert parse_samples(text) == samples
    assert parse_noise_scales(text) == (float(samples),)
    assert parse_steps(f"0:8 {text}:16") == ((0, 8), (samples, 16))
    assert parse_steps(f"0:8 7:{text}") == ((0, 8), (7, samples))


@pytest.mark.parametrize(
    "text",
    ["", "five", "-1", "nan", "inf", "_5", "1e9999", "0x10", "\u0663", "9" * 1001, "5 epochs"],
)
def test_what_is_no_amount_of_samples_is_refused_at_every_door(text: str) -> None:
    with pytest.raises(ValueError, match=r"^budget="):
        parse_length(text)
    with pytest.raises(ValueError, match=r"^memory_limit="):
        parse_samples(text, argument="memory_limit")
    with pytest.raises(ValueError, match=r"^noise_scales="):
        parse_noise_scales(text)
    with pytest.raises(ValueError, match="0:768 250B:1536"):
        parse_steps(f"0:8 {text}:16")


@pytest.mark.parametrize("text", ["5ep", "500steps", "300base", "1.5Kbase"])
def test_only_a_length_of_a_run_has_a_unit(text: str) -> None:
    assert parse_length(text).unit != "samples"
    with pytest.raises(ValueError, match=f"^base_batch_size='{text}' is not a whole number"):
        parse_samples(text, argument="base_batch_size")
    with pytest.raises(ValueError, match="noise scales"):
        parse_noise_scales(text)
    with pytest.raises(ValueError, match="is not of the form threshold:batch"):
        parse_steps(f"0:8 {text}:16")


@pytest.mark.parametrize(
    "text", ["0", "1.5", "11T", "1e999", "1.0001k", "M", "1e-3", f"{MAX_SAMPLES}1"]
)
def test_a_number_of_samples_is_whole_and_can_be_counted(text: str) -> None:
    with pytest.raises(ValueError, match="is not a whole number of samples from 1 to"):
        parse_samples(text)


def test_noise_scales_are_one_or_two() -> None:
    assert parse_noise_scales("12.5") == (12.5,)
    assert parse_noise_scales("500, 2M") == (500.0, 2e6)


@pytest.mark.parametrize(
    "text", ["", "0", "-5", "nan", "inf", "1,2,3", "a", "1,", "K", "1e400", "1e-999"]
)
def test_noise_scales_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="each a number of samples above 0"):
        parse_noise_scales(text, argument="noise_scale")


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r"^checkpoint_every='x' is not the length of a run"):
        parse_length("x", argument="checkpoint_every")
    with pytest.raises(ValueError, match=r"^noise_scale='x' is not one or two noise scales"):
        parse_noise_scales("x", argument="noise_scale")
