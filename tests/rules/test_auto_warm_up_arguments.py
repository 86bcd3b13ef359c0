"""AutoWarmUp refuses wrong arguments by name, with a line to paste."""

from __future__ import annotations

import math
from typing import Any

import pytest

import largebatch as lb

WRONG = [
    {"growth": "exp"},
    {"growth": None},
    {"patience": 0},
    {"patience": 2.5},
    {"patience": True},
    {"decay": 3},
    {"decay": "cosine"},
    {"low": "a"},
    {"low": None},
    {"low": 0.0},
    {"low": 2.0},
    {"high": "1"},
    {"high": None},
    {"high": 1e-6},
    {"high": math.inf},
    {"high": math.nan},
    {"fraction": 0.0},
    {"fraction": 1.0},
    {"fraction": "half"},
    {"cooldown": 0.0},
    {"cooldown": 1.5},
    {"cooldown": None},
    {"confidence": 0.4},
    {"confidence": 1.0},
    {"confidence": math.nan},
    {"backoff": 0.0},
    {"backoff": "1"},
    {"backoff_at_high": 1.5},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_argument_is_refused_by_its_name_and_value(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    shown = repr(value).replace("'", "[']")
    with pytest.raises(ValueError, match=rf"{name}={shown}.* (was|were) given, but") as refused:
        lb.AutoWarmUp(**wrong)
    line = str(refused.value).rpartition("Example: ")[2]
    assert line.startswith("lb.AutoWarmUp(")
    assert f"{name}=" in line
    eval(line, {"lb": lb})


def test_what_lies_on_a_bound_is_accepted() -> None:
    lb.AutoWarmUp(cooldown=1, confidence=0.5, patience=1, backoff=1.0, backoff_at_high=None)
    lb.AutoWarmUp(decay=lambda x: 1.0 - x, low=1, high=2, fraction=0.999)
