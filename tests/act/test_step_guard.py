"""What an exception in `optimizer.step` leaves behind, and which of nested steps is the step."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

import largebatch as lb
from largebatch.act.step_guard import StepGuard

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(64, 3, generator=GENERATOR), torch.randn(64, 1, generator=GENERATOR)


class Breaking(SGD):
    """SGD that moves its weights and then raises `error`, where it is set."""

    error: BaseException | None = None

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        if self.error is not None:
            raise self.error


class Nested(AdamW):
    """AdamW whose step calls that of its parent class, as many research optimizers do."""

    error: BaseException | None = None

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        if self.error is not None:
            raise self.error
        return loss


def attached(
    kind: type[Optimizer] = Breaking, *, lr: float | Tensor = 0.1, **options: Any
) -> tuple[nn.Module, Any, lb.Attached]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = kind(model.parameters(), lr=lr)
    return model, optimizer, rule_of(model, optimizer, **options)


def rule_of(model: nn.Module, optimizer: Optimizer, **options: Any) -> lb.Attached:
    rule = lb.LinearScaling()
    return lb.attach(model, optimizer, rule, batch_size=8, base_batch_size=2, **options)


def accumulate(model: nn.Module, step: int = 0, *, factor: float = 1.0) -> None:
    for at in (8 * step, 8 * step + 4):
        (factor * mse_loss(model(X[at : at + 4]), Y[at : at + 4]) / 2).backward()


def rates(optimizer: Optimizer) -> list[float]:
    saved = optimizer.state_dict()["param_groups"]
    return [float(group["lr"]) for group in (*optimizer.param_groups, *saved)]


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), SystemExit()])
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)])
def test_after_any_exception_in_the_step_the_rate_is_the_users(
    error: BaseException, lr: float | Tensor
) -> None:
    model, optimizer, control = attached(lr=copy.copy(lr))
    accumulate(model)
    optimizer.error = error
    with pytest.raises(type(error)):
        optimizer.step()
    assert rates(optimizer) == pytest.approx([0.1, 0.1])
    assert control.lr_multiplier == 4.0


def test_an_exception_of_a_users_own_hook_leaves_the_rate_too() -> None:
    for register in ("register_step_pre_hook", "register_step_post_hook"):
        model, optimizer, _ = attached()
        accumulate(model)

        def broken(*_: Any) -> None:
            raise RuntimeError("broken")

        getattr(optimizer, register)(broken)
        with pytest.raises(RuntimeError, match="broken"):
            optimizer.step()
        assert rates(optimizer) == [0.1, 0.1]


def test_after_an_exception_the_run_goes_on_with_a_step_that_is_measured_afresh() -> None:
    record = lb.MemoryRecord()
    model, optimizer, control = attached(Nested, record=record)
    for step in range(4):
        accumulate(model, step)
        optimizer.error = RuntimeError("broken") if step == 1 else None
        try:
            optimizer.step()
        except RuntimeError:
            assert step == 1
        optimizer.zero_grad()
    assert [seen.step for seen, _ in record.steps] == [0, 1, 2, 3]
    assert control.optimizer_steps == 4
    assert rates(optimizer) == [0.1, 0.1]


def test_a_scaled_step_that_raises_leaves_the_rate() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    model, optimizer, _ = attached(scaler=scaler)
    accumulate(model, factor=float(scaler.get_scale()))
    optimizer.error = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        scaler.step(optimizer)
    assert rates(optimizer) == [0.1, 0.1]


@pytest.mark.parametrize("scheduled", ["before", "after", "both"])
def test_schedulers_built_before_or_after_do_not_warn_and_count_the_step(scheduled: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = Breaking(model.parameters(), lr=0.1)
    schedulers = []
    if scheduled != "after":
        schedulers.append(LambdaLR(optimizer, lambda _: 1.0))
    control = rule_of(model, optimizer)
    if scheduled != "before":
        schedulers.append(LambdaLR(optimizer, lambda _: 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(2):
            accumulate(model, step)
            optimizer.step()
            optimizer.zero_grad()
            for scheduler in schedulers:
                scheduler.step()
    assert control.optimizer_steps == 2
    accumulate(model)
    optimizer.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert rates(optimizer) == [0.1, 0.1]
    control.close()
    optimizer.error = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        schedulers[0].step()
    assert control.optimizer_steps == 3  # the last one was the user's alone


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
@pytest.mark.parametrize("how", ["function", "method"])
def test_a_compiled_step_that_raises_leaves_the_rate(how: str) -> None:
    torch._dynamo.reset()
    model, optimizer, control = attached(lr=torch.tensor(0.1))
    step: Callable[[], Any] = torch.compile(
        optimizer.step if how == "method" else lambda: optimizer.step(), backend="aot_eager"
    )
    for at in range(3):
        accumulate(model, at)
        optimizer.error = RuntimeError("broken") if at == 1 else None
        before = model.weight.detach().clone()
        gradient = model.weight.grad.clone()
        try:
            step()
        except RuntimeError:
            assert at == 1
        assert torch.allclose(model.weight, before - 0.4 * gradient)
        assert rates(optimizer) == pytest.approx([0.1, 0.1])
        optimizer.zero_grad()
    assert control.optimizer_steps == 3


@pytest.mark.parametrize("nested", [False, True])
def test_a_step_taken_before_attach_is_restored_when_the_state_is_saved(nested: bool) -> None:
    class Own(Breaking):  # its step calls the hooks, and that of its parent as well if it has any
        pass

    if nested:
        SGD([torch.zeros(1)], lr=0.1)
        Breaking([torch.zeros(1)], lr=0.1)
        Own.step = lambda self: Breaking.step(self)
    model = nn.Linear(3, 1)
    optimizer = Own(model.parameters(), lr=0.1)
    step = optimizer.step  # as accelerate keeps it, with a scaler
    control = rule_of(model, optimizer)
    for at in range(3):
        accumulate(model, at)
        optimizer.error = RuntimeError("broken") if at == 1 else None
        try:
            step()
        except RuntimeError:
            assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.1
        optimizer.zero_grad()
    assert control.optimizer_steps == 3
    assert rates(optimizer) == [0.1, 0.1]


def test_nested_steps_are_one_step() -> None:
    SGD([torch.zeros(1)], lr=0.1)
    AdamW([torch.zeros(1)], lr=0.1)  # from now on the parents' steps run the hooks, too
    model, optimizer, control = attached(Nested)
    twin = copy.deepcopy(model)
    plain = AdamW(twin.parameters(), lr=0.4)
    for step in range(3):
        for each, moves in ((model, optimizer), (twin, plain)):
            accumulate(each, step)
            moves.step()
            moves.zero_grad()
    assert control.optimizer_steps == 3
    assert control.samples == 24
    torch.testing.assert_close(model.weight, twin.weight)
    accumulate(model)
    optimizer.error = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        optimizer.step()
    optimizer.error = None
    optimizer.zero_grad()
    accumulate(model)
    optimizer.step()
    assert control.optimizer_steps == 5
    assert rates(optimizer) == [0.1, 0.1]


def test_closing_gives_the_step_back_as_it_was() -> None:
    model, optimizer, control = attached()
    control.close()
    assert "step" not in vars(optimizer)
    LambdaLR(optimizer, lambda _: 1.0)
    wrapped = optimizer.step
    control = rule_of(model, optimizer)
    assert optimizer.step is not wrapped
    control.close()
    assert optimizer.step is wrapped


def test_a_guard_below_another_wrapper_does_nothing_after_it_is_closed() -> None:
    calls: list[str] = []
    optimizer = Breaking(nn.Linear(3, 1).parameters(), lr=0.1)
    guard = StepGuard(optimizer, lambda: calls.append("abandoned"))
    LambdaLR(optimizer, lambda _: 1.0)
    wrapper = optimizer.step
    optimizer.error = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        optimizer.step()
    assert calls == ["abandoned"]
    guard.close()
    assert optimizer.step is wrapper
    with pytest.raises(RuntimeError, match="broken"):
        optimizer.step()
    optimizer.state_dict()
    assert calls == ["abandoned"]


def test_the_signature_of_step_and_copies_of_the_optimizer_stay() -> None:
    free = Breaking(nn.Linear(3, 1).parameters(), lr=0.1)
    _, optimizer, _ = attached()
    assert inspect.signature(optimizer.step) == inspect.signature(free.step)
    assert optimizer.step.__name__ == "step"
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert "step" not in vars(other)


def test_a_record_that_cannot_be_written_costs_no_more_than_its_line() -> None:
    class Full(lb.MemoryRecord):
        full = False

        def write(self, *values: Any) -> None:
            if self.full:
                raise OSError("no space left on device")
            super().write(*values)

    record = Full()
    model, optimizer, control = attached(record=record)
    for step in range(3):
        record.full = step == 1
        accumulate(model, step)
        if record.full:
            with pytest.raises(OSError, match="no space"):
                optimizer.step()
        else:
            optimizer.step()
        assert rates(optimizer) == [0.1, 0.1]
        optimizer.zero_grad()
    assert control.optimizer_steps == 3
    assert [seen.step for seen, _ in record.steps] == [0, 2]


def test_a_run_whose_patience_ended_may_go_on_with_the_next_step() -> None:
    record = lb.MemoryRecord()
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    control = lb.attach(
        model, optimizer, lb.AdaScale(), batch_size=8, base_batch_size=2, patience=1, record=record
    )
    for factor in (1.0, float("nan"), 1.0):
        accumulate(model, factor=factor)
        if factor == 1.0:
            optimizer.step()
        else:
            with pytest.raises(lb.errors.NotFinite):
                optimizer.step()
        optimizer.zero_grad()
    assert (control.optimizer_steps, control.skipped) == (2, 1)
    assert [seen.finite for seen, _ in record.steps] == [True, False, True]
