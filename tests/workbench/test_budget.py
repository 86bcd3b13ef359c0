from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.measurement import Budget
from largebatch.workbench.amounts import FORMS, Length, parse_length

SIZES = {"dataset_size": 320, "base_batch_size": 16}


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("5ep", 5, "epochs"),
        ("0.25ep", 0.25, "epochs"),
        ("10000", 10_000, "samples"),
        ("10k", 10_000, "samples"),
        ("1.5k", 1_500, "samples"),
        ("2M", 2_000_000, "samples"),
        ("2m", 2_000_000, "samples"),
        ("1e6", 1_000_000, "samples"),
        ("1G", 1_000_000_000, "samples"),
        ("1B", 1_000_000_000, "samples"),
        ("1T", 10**12, "samples"),
        ("1.001k", 1001, "samples"),
        ("2Ksteps", 2000, "steps"),
        ("500steps", 500, "steps"),
        (" 300 base ", 300, "base_steps"),
        ("0.5base", 0.5, "base_steps"),
    ],
)
def test_each_form_is_read(text: str, amount: float, unit: str) -> None:
    assert parse_length(text) == Length(amount=amount, unit=unit)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "ep", "5 epochs", "five", "5ep5", "nan", "inf"])
def test_a_budget_of_an_unknown_form_is_refused_with_all_forms(text: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_length(text)
    assert repr(text) in str(error.value)
    assert FORMS in str(error.value)


@pytest.mark.parametrize("text", ["0", "-5ep", "0ep", "-1k", "0base"])
def test_a_budget_that_is_not_positive_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="above 0"):
        parse_length(text)


@pytest.mark.parametrize("text", ["0.5", "1.5steps", "0.0005k"])
def test_half_a_sample_or_step_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="whole number"):
        parse_length(text)


def test_an_epoch_is_counted_in_base_steps() -> None:
    assert parse_length("5ep").budget(**SIZES) == Budget(base_steps=100.0)


def test_budgets_in_samples_steps_and_base_steps_stay_in_their_unit() -> None:
    assert parse_length("2k").budget(**SIZES) == Budget(samples=2000)
    assert parse_length("7steps").budget(**SIZES) == Budget(steps=7)
    assert parse_length("7base").budget(**SIZES) == Budget(base_steps=7.0)


@given(epochs=st.integers(1, 99), n=st.integers(1, 10**6), b=st.integers(1, 10**4))
def test_at_scale_one_all_units_name_the_same_length(epochs: int, n: int, b: int) -> None:
    sizes = {"dataset_size": n, "base_batch_size": b}
    in_epochs = Length(amount=epochs, unit="epochs").base_steps(**sizes)
    assert Length(amount=epochs * n, unit="samples").base_steps(**sizes) == in_epochs
    assert Length(amount=in_epochs, unit="steps").base_steps(**sizes) == in_epochs
    assert Length(amount=in_epochs, unit="base_steps").base_steps(**sizes) == in_epochs


@pytest.mark.parametrize("text", ["_5", "__0ep", "_.5base", "1.5.", "5e"])
def test_what_is_no_number_is_refused_with_all_forms(text: str) -> None:
    with pytest.raises(ValueError, match="is not the length of a run") as error:
        parse_length(text)
    assert FORMS in str(error.value)


@pytest.mark.parametrize("text", ["9" * 400, "9" * 308 + "G", "9" * 400 + "ep"])
def test_a_budget_beyond_every_float_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="finite"):
        parse_length(text)


def test_groups_of_digits_may_be_parted() -> None:
    assert parse_length("1_000_000").amount == 1e6
    assert parse_length(".5ep").amount == 0.5
