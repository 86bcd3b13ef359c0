"""A rule inside a loop that the user drives: it multiplies the rate in the step, and only there."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from largebatch.act.attached import Attached, attach
from largebatch.core.codec import encode
from largebatch.core.decision import Decision
from largebatch.core.errors import LargeBatchError, MicroBatchMissed, NotFinite, NoVariance
from largebatch.core.measurement import Budget, Measurement
from largebatch.core.rule import Rule, chain
from largebatch.measure.meter import Meter
from largebatch.measure.taps import LeafHooks
from largebatch.measure.temporal import TemporalMoments
from largebatch.record import MemoryRecord
from largebatch.rules.adascale import AdaScale
from naive_runs import NaiveAdaScale, naive_steps, step_with
from small_rules import Factor, Facts, Falling, Growing, Shrinking
from small_runs import Optimize, adamw, data, loss_of, sgd, small_model, weights


def attached(
    model: nn.Module, rule: Rule | None = None, *, optimize: Optimize = sgd, **options: Any
) -> Attached:
    options = {"batch_size": 12, "base_batch_size": 4, **options}
    return attach(model, optimize(model), rule or AdaScale(), **options)


def accumulate(model: nn.Module, step: int, *, parts: int = 3, size: int = 4) -> None:
    """The backward calls of one step, over the data in their order."""
    x, y = data()
    for part in range(parts):
        rows = torch.arange(size) + step * 12 + part * size
        (loss_of(model, x[rows % 48], y[rows % 48]) / parts).backward()


def take(control: Attached, model: nn.Module, steps: Sequence[int], *, parts: int = 3) -> None:
    for step in steps:
        accumulate(model, step, parts=parts)
        control.optimizer.step()
        control.optimizer.zero_grad()


def hooks_of(control: Attached) -> int:
    tap = control.observer.tap
    assert isinstance(tap, LeafHooks)
    optimizer = control.optimizer
    of_optimizer = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    return len(tap._handles) + sum(map(len, of_optimizer))


# Against a plain loop


@pytest.mark.parametrize("told", [None, 3])
@pytest.mark.parametrize("clip_norm", [None, 0.7])
@pytest.mark.parametrize("optimize", [sgd, adamw])
def test_adascale_equals_a_loop_with_the_gain_in_plain_floats(
    optimize: Optimize, clip_norm: float | None, told: int | None
) -> None:
    ours, theirs = small_model(), small_model()
    control = attached(ours, optimize=optimize, micro_batches=told)
    optimizer, adascale, base_steps = optimize(theirs), NaiveAdaScale(4), 0.0
    for step, seen in enumerate(naive_steps(theirs, *data(), [[4, 4, 4]] * 9)):
        accumulate(ours, step)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(ours.parameters(), clip_norm)
            nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm)
        control.optimizer.step()
        control.optimizer.zero_grad()
        gain = adascale.gain(*seen)
        step_with(optimizer, gain)
        base_steps += gain
        assert control.lr_multiplier == pytest.approx(gain, rel=1e-4)
    assert control.base_steps == pytest.approx(base_steps, rel=1e-4)
    assert (control.samples, control.optimizer_steps) == (108, 9)
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("divisor", [1.0, 3.0, 1000.0])
def test_the_gain_does_not_depend_on_what_the_loss_is_divided_by(divisor: float) -> None:
    model = small_model()
    control = attached(model)
    x, y = data()
    for rows in torch.arange(12).split(4):
        (loss_of(model, x[rows], y[rows]) / divisor).backward()
    control.optimizer.step()
    twin = small_model()
    other = attached(twin)
    take(other, twin, [0])
    assert control.lr_multiplier == pytest.approx(other.lr_multiplier, rel=1e-5)


def test_the_rate_is_multiplied_in_the_step_only() -> None:
    model = small_model()
    control = attached(model, Factor())
    seen = []
    control.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"])
    )
    take(control, model, [0, 1])
    assert seen == [pytest.approx(0.15)] * 2
    assert control.optimizer.param_groups[0]["lr"] == 0.05


def test_a_scheduler_ticks_in_base_steps_and_sees_the_users_rate() -> None:
    model = small_model()
    control = attached(model, chain())
    scheduler = LambdaLR(control.optimizer, lambda at: 0.5**at)
    for step in range(3):
        take(control, model, [step])
        assert control.advance(scheduler) == 3
    assert control.optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.5**9)


def test_a_schedule_follows_the_budget() -> None:
    model = small_model()
    control = attached(model, Falling(), budget=Budget(samples=48))
    multipliers = []
    for step in range(4):
        take(control, model, [step])
        multipliers.append(control.lr_multiplier)
    assert multipliers == [1.0, 0.75, 0.5, 0.25]
    assert control.finished


# Micro-batches


def test_a_shorter_last_window_counts_its_own_samples() -> None:
    model = small_model()
    control = attached(model)
    take(control, model, [0, 1])
    take(control, model, [2], parts=2)
    take(control, model, [3], parts=1)
    assert control.samples == 12 + 12 + 8 + 4
    assert control.lr_multiplier == 1.0  # a batch of 4 is the base batch
    take(control, model, [4])
    assert 1.0 < control.lr_multiplier <= 3.0


def test_fewer_backward_calls_than_micro_batches_are_refused_before_a_weight_moves() -> None:
    model = small_model()
    control = attached(model, micro_batches=3)
    accumulate(model, 0, parts=2)
    with pytest.raises(MicroBatchMissed, match=r"after 2 micro-batches.*lb\.attach\("):
        control.optimizer.step()
    for a, b in zip(weights(model), weights(small_model()), strict=True):
        assert torch.equal(a, b)


def test_more_backward_calls_than_micro_batches_are_refused() -> None:
    model = small_model()
    control = attached(model, micro_batches=2)
    accumulate(model, 0)
    with pytest.raises(LargeBatchError, match=r"3 gradients in this step.*micro_batches="):
        control.optimizer.step()


def test_more_backward_calls_than_in_the_first_step_are_more_micro_batches() -> None:
    model = small_model()
    control = attached(model)
    take(control, model, [0])
    accumulate(model, 1)
    accumulate(model, 2)
    control.optimizer.step()
    assert control.samples == 12 + 24


def test_they_are_refused_where_nothing_shows_the_forward_passes() -> None:
    model = small_model()
    control = attached(model)
    hidden = nn.Sequential(*model.children())  # its own forward pass is not the model's
    take(control, hidden, [0])
    accumulate(hidden, 1)
    accumulate(hidden, 2)
    with pytest.raises(LargeBatchError, match=r"more than in the first.*control\.advance\(\)"):
        control.optimizer.step()


def test_a_step_without_a_backward_is_refused() -> None:
    control = attached(small_model())
    with pytest.raises(MicroBatchMissed, match="without a backward"):
        control.optimizer.step()


def test_gradients_that_were_not_cleared_are_refused() -> None:
    model = small_model()
    control = attached(model)
    accumulate(model, 0)
    control.optimizer.step()
    accumulate(model, 1)
    with pytest.raises(MicroBatchMissed, match=r"optimizer\.zero_grad\(\) after each"):
        control.optimizer.step()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_skipped_step_does_not_leak_into_the_next_one(set_to_none: bool) -> None:
    model, twin = small_model(), small_model()
    control, other = attached(model), attached(twin)
    scheduler = LambdaLR(control.optimizer, lambda at: 1.0)
    gains = []
    for step in range(4):
        accumulate(model, step)
        if step not in (0, 2):  # as a scaler does when it finds an infinite gradient
            control.optimizer.step()
            gains.append(control.lr_multiplier)
        control.optimizer.zero_grad(set_to_none=set_to_none)
        control.advance(scheduler if step % 2 else None)
    take(other, twin, [1])
    first = other.lr_multiplier
    take(other, twin, [3])
    assert gains == pytest.approx([first, other.lr_multiplier], rel=1e-6)
    for a, b in zip(weights(model), weights(twin), strict=True):
        torch.testing.assert_close(a, b)


def test_unequal_micro_batches_are_accepted_if_their_sizes_are_passed() -> None:
    model = small_model()
    control = attached(model)
    x, y = data()
    for rows in torch.arange(12).split([6, 4, 2]):
        control.micro_batch(len(rows), weight=1)
        (loss_of(model, x[rows], y[rows]) / 3).backward()
    control.optimizer.step()
    assert control.samples == 12
    control.optimizer.zero_grad()
    control.micro_batch(4)
    accumulate(model, 1)
    with pytest.raises(MicroBatchMissed, match=r"control\.micro_batch\(len\(x\)\)"):
        control.optimizer.step()


def test_a_micro_batch_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        attached(small_model()).micro_batch(0)


# Variance


def test_one_backward_that_cannot_be_measured_is_refused_with_the_remedies() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    before = [weight.detach().clone() for weight in model.parameters()]
    control = attached(model, batch_size=4, base_batch_size=2)
    accumulate(model, 0, parts=1)
    with pytest.raises(NoVariance) as error:
        control.optimizer.step()
    for remedy in (
        "Split the batch",
        "several processes",
        "statistics=[lb.measure.TemporalMoments()]",
        "batch normalization in training mode",
    ):
        assert remedy in str(error.value)
    for a, b in zip(model.parameters(), before, strict=True):
        assert torch.equal(a, b)


def test_one_backward_per_step_is_measured_by_single_examples() -> None:
    model = small_model()
    control = attached(model, batch_size=4, base_batch_size=2)
    take(control, model, range(20), parts=1)
    assert control.observer.schedule.every == 160
    assert control.meter.examples is not None
    assert 1.0 < control.lr_multiplier <= 2.0


def test_the_temporal_estimate_needs_one_backward_a_step() -> None:
    model = small_model()
    meter = Meter(model, statistics=[TemporalMoments()])
    control = attached(model, meter=meter, batch_size=4, base_batch_size=2)
    take(control, model, range(5), parts=1)
    assert control.lr_multiplier != 1.0
    assert control.optimizer_steps == 5


def test_a_rule_that_measures_nothing_takes_one_backward_a_step() -> None:
    model = small_model()
    control = attached(model, Factor())
    take(control, model, range(3), parts=1)
    assert (control.samples, control.lr_multiplier) == (36, 3.0)


# Refusals


@pytest.mark.parametrize("call", [lambda o, c: o.step(c), lambda o, c: o.step(closure=c)])
def test_a_closure_is_refused_before_it_runs(call: Callable[..., Any]) -> None:
    model = small_model()
    control = attached(model)
    ran = []
    with pytest.raises(LargeBatchError, match=r"closure\(\); optimizer\.step\(\)"):
        call(control.optimizer, lambda: ran.append(1))
    assert not ran


def test_an_optimizer_step_with_closure_none_is_accepted() -> None:
    model = small_model()
    control = attached(model)
    accumulate(model, 0)
    control.optimizer.step(None)
    assert control.optimizer_steps == 1


@pytest.mark.parametrize("rule", [Growing(first=12, after_samples=24), Shrinking()])
def test_a_rule_about_the_batch_is_refused_and_leaves_no_hook(rule: Rule) -> None:
    model = small_model()
    optimizer = sgd(model)
    name = type(rule).__name__
    with pytest.raises(ValueError, match=rf"^{name} changes or bounds the batch.*lb\.Controller"):
        attach(model, optimizer, chain(Factor(), rule), batch_size=12, base_batch_size=4)
    assert not optimizer._optimizer_step_pre_hooks


def test_parameters_that_the_optimizer_lacks_are_refused() -> None:
    model = small_model()
    with pytest.raises(ValueError, match=r"lacks 2 trainable parameters.*'2\.weight'"):
        attached(model, optimize=lambda m: torch.optim.SGD(m[0].parameters(), lr=0.1))


def test_the_optimizer_of_another_model_is_refused() -> None:
    other = small_model()
    with pytest.raises(ValueError, match="contains no parameter of this model"):
        attached(small_model(), optimize=lambda _: sgd(other))


def test_a_model_whose_parameters_are_all_frozen_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.requires_grad_\(True\)"):
        attached(small_model().requires_grad_(False))


def test_a_second_rule_on_one_optimizer_is_refused() -> None:
    model = small_model()
    optimizer = sgd(model)
    first = attach(model, optimizer, Factor(), batch_size=12, base_batch_size=4)
    with pytest.raises(ValueError, match=r"already uses this optimizer.*control\.close\(\)"):
        attach(model, optimizer, Factor(), batch_size=12, base_batch_size=4)
    first.close()
    attach(model, optimizer, Factor(), batch_size=12, base_batch_size=4)


def test_a_parameter_group_added_later_is_refused_at_the_next_step() -> None:
    model = small_model()
    control = attached(model)
    take(control, model, [0])
    control.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    before = weights(model)
    accumulate(model, 1)
    with pytest.raises(LargeBatchError, match=r"had 4 trainable parameters .* now it has 5"):
        control.optimizer.step()
    assert all(map(torch.equal, before, weights(model)))


def test_zero_micro_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        attached(small_model(), micro_batches=0)


@dataclass(frozen=True, kw_only=True)
class ByLoss(Facts):
    """The rate is multiplied by the loss."""

    needs: ClassVar[frozenset[str]] = frozenset({"loss"})

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        assert seen.loss is not None
        return state, proposed.scaled(seen.loss)


def test_a_rule_that_needs_the_loss_gets_the_mean_of_the_losses_passed() -> None:
    model = small_model()
    control = attached(model, ByLoss())
    for loss in (1.0, 2.0, 6.0):
        control.loss(torch.tensor(loss))
    accumulate(model, 0)
    control.optimizer.step()
    assert control.lr_multiplier == pytest.approx(3.0)


def test_a_rule_that_needs_the_loss_is_refused_if_no_loss_was_passed() -> None:
    model = small_model()
    control = attached(model, chain(Factor(), ByLoss()))
    accumulate(model, 0)
    with pytest.raises(LargeBatchError, match=r"^ByLoss needs the loss.*control\.loss\(loss\)"):
        control.optimizer.step()


# Values that are not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("rule", [AdaScale(), Factor()])
def test_a_step_that_is_not_finite_moves_nothing_and_no_rule_sees_it(
    rule: Rule, value: float
) -> None:
    model = small_model()
    control = attached(model, rule)
    take(control, model, [0])
    before = control.decider
    rates = []
    control.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    x, y = data()
    for factor in (1.0, value, 1.0):
        loss_of(model, x[:4] * factor, y[:4]).backward()
    control.optimizer.step()
    control.optimizer.zero_grad()
    after = control.decider
    assert rates == [0.05]
    assert control.lr_multiplier == 1.0
    assert (after.state, after.base_steps, after.step) == (
        before.state, before.base_steps, before.step,
    )  # fmt: skip
    assert (control.skipped, control.samples) == (1, 24)


def test_one_infinite_gradient_does_not_poison_the_averages() -> None:
    model, twin = small_model(), small_model()
    control, other = attached(model), attached(twin)
    take(control, model, [0])
    kept = copy.deepcopy(model.state_dict())
    x, y = data()
    for part in range(3):
        loss_of(model, x[:4] * (math.inf if part == 1 else 1.0), y[:4]).backward()
    control.optimizer.step()
    control.optimizer.zero_grad()
    model.load_state_dict(kept)
    for state in control.optimizer.state.values():
        state["momentum_buffer"].zero_()
    accumulate(model, 2)
    control.optimizer.step()
    take(other, twin, [0])
    for state in other.optimizer.state.values():
        state["momentum_buffer"].zero_()
    other.decider = replace(other.decider, samples=24)  # the lost step's samples count
    take(other, twin, [2])
    assert control.lr_multiplier == pytest.approx(other.lr_multiplier, rel=1e-6)
    assert control.skipped == 1


# Coming and going


def test_close_takes_every_hook_off_and_may_be_called_again() -> None:
    model = small_model()
    control = attached(model)
    take(control, model, [0])
    assert hooks_of(control) == 4 + 3  # three of the optimizer: claim, pre-hook, post-hook
    control.close()
    control.close()
    control.advance()
    assert hooks_of(control) == 0
    samples = control.samples
    take(control, model, [1])
    assert control.samples == samples


def test_leaving_the_context_takes_the_hooks_off_and_restores_the_rate() -> None:
    model = small_model()
    with pytest.raises(RuntimeError, match="broken"), attached(model, Factor()) as control:
        _break_step(control, model)
    assert control.optimizer.param_groups[0]["lr"] == 0.05
    assert hooks_of(control) == 0


def _break_step(control: Attached, model: nn.Module) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    handle = control.optimizer.register_step_pre_hook(broken)
    accumulate(model, 0)
    try:
        control.optimizer.step()
    finally:
        handle.remove()


@pytest.mark.parametrize("how", ["advance", "step"])
def test_a_step_that_raised_restores_the_rate_at_the_next_call(how: str) -> None:
    model = small_model()
    control = attached(model, Factor())
    with pytest.raises(RuntimeError, match="broken"):
        _break_step(control, model)
    control.optimizer.zero_grad()
    if how == "advance":
        control.advance()
        assert control.optimizer.param_groups[0]["lr"] == 0.05
    take(control, model, [0])
    assert control.lr_multiplier == 3.0
    assert control.optimizer.param_groups[0]["lr"] == 0.05


def test_hooks_come_and_go_with_what_a_rule_measures() -> None:
    control = attached(small_model(), Factor())
    assert hooks_of(control) == 3


def test_copies_of_model_and_optimizer_are_free_of_the_rule() -> None:
    model = small_model()
    control = attached(model)
    take(control, model, [0])
    copied = copy.deepcopy(model)
    optimizer = copy.deepcopy(control.optimizer)
    unpickled = pickle.loads(pickle.dumps((model, control.optimizer)))
    before = control.samples
    for other, moves in ((copied, optimizer), unpickled):
        accumulate(other, 1)
        moves.step()
        assert not moves._optimizer_step_pre_hooks
    assert control.samples == before
    take(control, model, [1])
    assert control.samples == before + 12


def test_states_load_with_weights_only() -> None:
    model = small_model()
    control = attached(model)
    take(control, model, [0, 1])
    file = io.BytesIO()
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": control.optimizer.state_dict(),
            "rule": encode(control.decider.state),
        },
        file,
    )
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert loaded["rule"] == encode(control.decider.state)
    assert loaded["optimizer"]["param_groups"][0]["lr"] == 0.05
    control.optimizer.load_state_dict(loaded["optimizer"])
    take(control, model, [2])
    assert control.samples == 36


class _Kept:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def start(self, facts: Any) -> None:
        self.calls.append("start")

    def write(self, seen: Measurement, decision: Decision) -> None:
        self.calls.append((seen.samples, decision.lr_multiplier))

    def close(self) -> None:
        self.calls.append("close")


def test_each_step_is_recorded_once_and_the_record_closed_once() -> None:
    model, record = small_model(), _Kept()
    with attached(model, Factor(), record=record) as control:
        take(control, model, [0, 1])
    control.close()
    assert record.calls == ["start", (0, 3.0), (12, 3.0), "close"]


def test_the_lost_step_that_ends_a_run_is_recorded_too() -> None:
    model, record = small_model(), MemoryRecord()
    control = attached(model, Factor(), record=record, patience=2)
    take(control, model, [0])
    x, y = data()
    with pytest.raises(NotFinite):
        for _ in range(2):
            loss_of(model, x[:4] * math.nan, y[:4]).backward()
            control.optimizer.step()
            control.optimizer.zero_grad()
    assert [seen.finite for seen, _ in record.steps] == [True, False, False]
    assert control.skipped == 2


def test_the_users_own_gradients_are_not_counted() -> None:
    model, twin = small_model(), small_model()
    control, other = attached(model), attached(twin)
    x, y = data()
    accumulate(model, 0)
    penalty = torch.autograd.grad(loss_of(model, x, y), list(model.parameters()))
    assert all(isinstance(g, Tensor) for g in penalty)
    control.optimizer.step()
    take(other, twin, [0])
    assert control.lr_multiplier == other.lr_multiplier


def test_calling_decide_is_refused_if_the_optimizer_step_already_decides() -> None:
    model = small_model()
    with attach(
        model, sgd(model), AdaScale(), batch_size=12, base_batch_size=4, micro_batches=3
    ) as control:
        accumulate(model, 0, parts=3)
        with pytest.raises(LargeBatchError, match=r"decide\(\) would decide a second time"):
            control.decide()
        control.optimizer.step()
        control.complete()  # nothing is left to close
        assert (control.optimizer_steps, control.last_batch_size) == (1, 12)
