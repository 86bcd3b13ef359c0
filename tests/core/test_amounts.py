"""Test the parser of numbers with a unit."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.amounts import FACTORS, WORDS, Amount, parse_amount


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [
        ("5ep", 5, "epochs"),
        (" 0.25 ep ", Fraction(1, 4), "epochs"),
        ("500steps", 500, "steps"),
        ("300base", 300, "base_steps"),
        ("3 base", 3, "base_steps"),
        ("3b", 3 * 10**9, "samples"),
        ("3bbase", 3 * 10**9, "base_steps"),
        ("1.5K steps", 1500, "steps"),
        ("1e3ep", 1000, "epochs"),
        ("-7", -7, "samples"),
        ("+7", 7, "samples"),
        ("0", 0, "samples"),
    ],
)
def test_a_number_its_letter_and_its_unit_are_read(text: str, number: Fraction, unit: str) -> None:
    assert parse_amount(text) == Amount(number=Fraction(number), unit=unit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["", " ", "ep", "K", "five", "5 epochs", "5ep5", "nan", "inf", "_5", "1.2.3", "1e", "e5", "5KM",
     "5epK", "1,5", "0x10", "\u0663", "1e9999", "9" * 1001, "--5"],
)  # fmt: skip
def test_parsing_text_that_is_no_amount_returns_none(text: str) -> None:
    assert parse_amount(text) is None


@given(
    digits=st.integers(0, 10**9),
    decimals=st.integers(0, 10**6),
    exponent=st.integers(-20, 20),
    letter=st.sampled_from(sorted(FACTORS)),
    word=st.sampled_from(sorted(WORDS)),
    lower=st.booleans(),
)
def test_a_number_is_exact(
    digits: int, decimals: int, exponent: int, letter: str, word: str, lower: bool
) -> None:
    number = Fraction(f"{digits}.{decimals}") * Fraction(10) ** exponent * FACTORS[letter]
    letter = letter.lower() if lower else letter
    text = f"{digits:_}.{decimals}e{exponent}{letter}{word}"
    assert parse_amount(text) == Amount(number=number, unit=WORDS[word])


def test_a_whole_number_is_known_as_one() -> None:
    assert Amount(number=Fraction(100_000), unit="samples").whole == 100_000
    assert Amount(number=Fraction(1, 2), unit="epochs").whole is None
