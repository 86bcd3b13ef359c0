"""fairscale 0.4.13's AdaScale has the faults that test_fairscale_faults.py finds absent here."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from small_runs import data, loss_of, small_model

optim = pytest.importorskip("fairscale.optim")


def wrapped(model: nn.Module, **options: Any) -> Any:
    """Two micro-batches a step."""
    optimizer = torch.optim.SGD([*model.parameters()], lr=0.1)
    return optim.AdaScale(optimizer, world_size=1, num_gradients_to_accumulate=2, **options)


def measure(model: nn.Module, *, times: float = 0.5) -> None:
    """Two backward calls on four samples each."""
    x, y = data(8)
    for rows in torch.arange(8).split(4):
        (loss_of(model, x[rows], y[rows]) * times).backward()


def averages(control: Any) -> tuple[float, float]:
    return control._grad_var_avg(), control._grad_sqr_avg()


def test_a_frozen_parameter_is_refused() -> None:
    model = small_model()
    model[0].weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match="doesn't require gradient"):
        wrapped(model)


def test_a_parameter_without_a_gradient_ends_the_step() -> None:
    model = small_model()
    model.register_parameter("unused", nn.Parameter(torch.ones(5)))
    control = wrapped(model)
    with pytest.raises(AttributeError):
        measure(model)
        control.step()


def test_zero_grad_takes_no_argument() -> None:
    with pytest.raises(TypeError):
        wrapped(small_model()).zero_grad(set_to_none=True)


def test_fairscales_checkpoint_does_not_load_with_weights_only() -> None:
    model = small_model()
    control = wrapped(model)
    measure(model)
    control.step()
    file = io.BytesIO()
    torch.save(control.state_dict(), file)
    file.seek(0)
    with pytest.raises(Exception, match=r"[Ww]eights.?only"):
        torch.load(file, weights_only=True)


def test_one_infinite_loss_makes_fairscales_gain_nan_for_good() -> None:
    model = small_model()
    control = wrapped(model)
    measure(model, times=math.inf)
    control.zero_grad()  # the step is not taken
    for _ in range(3):
        measure(model)
        control.zero_grad()
    assert math.isnan(control.gain())


def test_an_option_slips_into_another() -> None:
    control = optim.AdaScaleWrapper(
        small_model().parameters(), optim_cls=torch.optim.SGD, lr=0.1, world_size=2,
        debias_ewma=False,
    )  # fmt: skip
    assert control._debias_ewma
    assert not control._is_scaled_loss


def test_fairscales_estimate_of_the_variance_falls_with_another_scale() -> None:
    model = small_model()
    control = wrapped(model)
    measure(model)
    before, _ = averages(control)
    control.set_scale(8)
    assert averages(control)[0] == pytest.approx(before / 4)


def test_moments_depend_on_how_the_loss_is_divided() -> None:
    moments = []
    for times in (0.5, 1.0):
        model = small_model()
        control = wrapped(model)
        measure(model, times=times)
        moments.append(averages(control))
    (variance, sqnorm), others = moments
    assert others == pytest.approx((4 * variance, 4 * sqnorm))


def test_two_losses_of_one_micro_batch_are_two_micro_batches() -> None:
    model = small_model()
    control = wrapped(model)
    x, y = data(8)
    loss_of(model, x[:4], y[:4]).backward()
    loss_of(model, x[:4], y[:4]).backward()
    assert control.gain() == pytest.approx(1.0, abs=1e-4), "no variance between them"


def test_gradients_computed_aside_leave_it_in_a_backward() -> None:
    model = small_model()
    control = wrapped(model)
    x, y = data(8)
    torch.autograd.grad(loss_of(model, x, y), list(model.parameters()))
    with pytest.raises(AssertionError):
        control.step()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_copies_of_fairscales_optimizer_recurse_without_end_when_deleted() -> None:
    found: list[type[BaseException]] = []
    before, sys.unraisablehook = sys.unraisablehook, lambda seen: found.append(seen.exc_type)
    try:
        with contextlib.suppress(RecursionError):
            copy.deepcopy(wrapped(small_model()))
        gc.collect()
    finally:
        sys.unraisablehook = before
    assert RecursionError in found


def test_scale_one_is_refused() -> None:
    with pytest.raises(RuntimeError, match="single worker"):
        optim.AdaScale(torch.optim.SGD(small_model().parameters(), lr=0.1), world_size=1)


def test_several_losses_in_one_backward_never_complete_a_measurement() -> None:
    model = small_model()
    control = wrapped(model)
    x, y = data(8)
    parts: list[Tensor] = [loss_of(model, x[rows], y[rows]) for rows in torch.arange(8).split(4)]
    torch.stack(parts).sum().backward()
    assert control.gain() == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(AssertionError):
        control.step()
