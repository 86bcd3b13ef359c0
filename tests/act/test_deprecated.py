"""The methods of 0.1 that are functions now warn once with the line to paste, and still work."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Literal

import pytest
from torch import Tensor, nn

import largebatch as lb
from small_runs import data, loss_of, sgd, small_model


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return loss_of(model, *batch)


def controller(*, most: int | Literal["auto"] = 4) -> lb.Controller:
    model = small_model()
    batches = lb.BatchLoader(data(), batch_size=8, max_micro_batch_size=most)
    return lb.Controller(model, sgd(model), lb.AdaScale(), batches, base_batch_size=4)


def points_here(caught: Sequence[warnings.WarningMessage]) -> bool:
    """Whether there is one warning, which names the line of this file that calls the method."""
    return [warning.filename for warning in caught] == [__file__]


def test_a_controllers_check_warns_and_finds_what_the_function_finds() -> None:
    control = controller()
    text = (
        "control.check is deprecated and will be removed in 0.3. "
        "Call lb.check(control, loss) instead."
    )
    with pytest.warns(DeprecationWarning, match=f"^{re.escape(text)}$") as caught:
        found = control.check(mean_loss, seconds=0.0)
    assert points_here(list(caught))
    assert found == lb.check(control, mean_loss, seconds=0.0)


def test_an_attached_runs_check_warns_and_finds_what_the_function_finds() -> None:
    model = small_model()
    with lb.attach(
        model, sgd(model), lb.AdaScale(), batch_size=8, base_batch_size=4, micro_batches=2
    ) as control:
        batch = tuple(tensor[:4] for tensor in data())
        text = re.escape("Call lb.check(control, loss, batch) instead.")
        with pytest.warns(DeprecationWarning, match=text) as caught:
            found = control.check(mean_loss, batch, seconds=0.0)
        assert points_here(list(caught))
        assert found == lb.check(control, mean_loss, batch, seconds=0.0)


def test_a_controllers_fit_micro_batch_warns_and_finds_what_the_function_finds() -> None:
    control = controller(most="auto")
    text = re.escape("Call lb.fit_micro_batch(control, loss) instead.")
    with pytest.warns(DeprecationWarning, match=text) as caught:
        found = control.fit_micro_batch(mean_loss, most=2)
    assert points_here(list(caught))
    assert found.size == 2
    assert control.batches.max_micro_batch_size == 2
