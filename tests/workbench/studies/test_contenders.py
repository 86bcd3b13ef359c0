from __future__ import annotations

import pytest

from largebatch.methods import METHODS
from largebatch.workbench.studies.compare.contenders import contenders, same_at_scale_one


def names(*methods: str, at: str = "equal-samples") -> list[str]:
    return [c.name for c in contenders(methods, at=at)]  # type: ignore[arg-type]


def test_a_plus_in_a_method_name_is_preserved_and_duplicates_are_removed() -> None:
    assert names("linear", "adascale", "linear+", "linear") == ["linear", "adascale", "linear+"]


def test_at_equal_steps_every_fixed_clock_gets_a_plus() -> None:
    assert names("adascale", "linear", "none+", at="equal-steps") == [
        "adascale",
        "linear+",
        "none+",
    ]


@pytest.mark.parametrize(
    ("methods", "at", "expected"),
    [
        (["linear", "adascal"], "equal-samples", "Did you mean 'adascale'"),
        (["adascale+"], "equal-samples", "Pass methods=adascale."),
        (["linear+"], "equal-samples", "Pass methods=['adascale', 'linear+']"),
        (["linear", "none"], "equal-steps", "methods=['adascale', 'linear+', 'none+']"),
        ([], "equal-samples", "No method was given"),
        (["linear++"], "equal-samples", "no method 'linear"),
        (["linear"], "equal-epochs", "must be 'equal-samples' or 'equal-steps'"),
    ],
)
def test_what_cannot_be_compared_is_refused(methods: list[str], at: str, expected: str) -> None:
    with pytest.raises(ValueError) as error:
        names(*methods, at=at)
    assert expected in str(error.value)


def test_only_warm_ups_and_growing_batches_do_something_at_scale_one() -> None:
    doing = [name for name in METHODS if not same_at_scale_one(METHODS[name])]
    growing = ["adasgd", "adadagrad-norm", "adadagrad", "adadam"]
    growing += ["growth", "adaptive-growth", "full-gradient-growth", "seesaw", "smith"]
    assert doing == ["legw", "autowu", "autowu-paper", *growing]
