"""Methods refuse wrong arguments by their own names, not by those of the rules within."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

import largebatch as lb

COUNTED: list[Callable[..., Any]] = [
    lb.methods.adasgd,
    lb.methods.adadagrad_norm,
    lb.methods.adadagrad,
    lb.methods.adadam,
    lb.methods.adaptive_growth,
    lb.methods.seesaw,
    lb.methods.smith,
]


@pytest.mark.parametrize("method", COUNTED, ids=lambda method: method.__name__)
@pytest.mark.parametrize("wrong", [{"every": 0}, {"every": 2.5}, {"max": 0}, {"max": 64.5}])
def test_counts_of_a_method_are_refused_by_its_name(
    method: Callable[..., Any], wrong: dict[str, Any]
) -> None:
    ((name, value),) = wrong.items()
    call = f"lb.methods.{method.__name__}"
    with pytest.raises(ValueError, match=re.escape(f"{call}({name}={value}) was given")) as refused:
        method(**wrong)
    line = str(refused.value).rpartition("Example: ")[2]
    assert line.startswith(f"{call}({name}=")
    eval(line, {"lb": lb})


def test_the_steps_of_adascale_are_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match=r"^lb\.methods\.adascale\(every=0\) was given"):
        lb.methods.adascale(every=0)
