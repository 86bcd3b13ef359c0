"""A run equals a plain loop; budgets end where they say; a loop that is left leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from largebatch.act.attached import attach
from largebatch.act.controller import Controller
from largebatch.act.loader import BatchLoader
from largebatch.core.decision import Decision
from largebatch.core.errors import LargeBatchError, MicroBatchMissed, NotFinite
from largebatch.core.measurement import Measurement
from largebatch.core.rule import Rule, chain
from largebatch.measure.meter import Meter
from largebatch.measure.taps import Detached, Flat, LeafHooks
from largebatch.measure.temporal import TemporalMoments
from largebatch.rules.adascale import AdaScale
from largebatch.rules.scaling import LinearScaling, SqrtScaling
from naive_runs import NaiveAdaScale, chunk_sizes, naive_steps, step_with
from small_rules import Factor, Falling, Growing, Shrinking
from small_runs import Optimize, adamw, data, loss_of, sgd, small_model, train, weights


def controller(
    model: nn.Module,
    rule: Rule | None = None,
    *,
    optimize: Optimize = sgd,
    samples: int = 48,
    batch_size: int = 12,
    most: int = 4,
    base_batch_size: int = 4,
    **options: Any,
) -> Controller:
    batches = BatchLoader(
        data(samples), batch_size=batch_size, max_micro_batch_size=most, shuffle=False
    )
    rule = rule or AdaScale()
    return Controller(
        model, optimize(model), rule, batches, base_batch_size=base_batch_size, **options
    )


# Against a plain loop


@pytest.mark.parametrize("optimize", [sgd, adamw])
def test_without_a_rule_the_weights_are_those_of_plain_accumulation_bit_for_bit(
    optimize: Optimize,
) -> None:
    ours, theirs = small_model(), small_model()
    train(controller(ours, chain(), optimize=optimize), samples=60)
    optimizer = optimize(theirs)
    for _ in naive_steps(theirs, *data(), [[4, 4, 4]] * 5):
        optimizer.step()
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("clip_norm", [None, 0.7])
@pytest.mark.parametrize("optimize", [sgd, adamw])
def test_adascale_equals_a_loop_with_the_gain_in_plain_floats(
    optimize: Optimize, clip_norm: float | None
) -> None:
    ours, theirs = small_model(), small_model()
    control = controller(ours, optimize=optimize, batch_size=14)
    decisions = train(control, samples=132, clip_norm=clip_norm)
    optimizer, adascale, base_steps = optimize(theirs), NaiveAdaScale(4), 0.0
    chunks = [chunk_sizes(b, 4, least=2) for b in [14] * 9 + [6]]
    steps = naive_steps(theirs, *data(), chunks)
    for decision, (squares, sizes, square) in zip(decisions, steps, strict=True):
        gain = adascale.gain(squares, sizes, square)
        assert decision.lr_multiplier == pytest.approx(gain, rel=1e-4)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm)
        step_with(optimizer, gain)
        base_steps += gain
    assert control.base_steps == pytest.approx(base_steps, rel=1e-4)
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rule", "factor"), [(LinearScaling(), 3.0), (SqrtScaling(), math.sqrt(3)), (Factor(), 3.0)]
)
def test_a_fixed_factor_equals_the_plain_loop_at_that_rate(rule: Rule, factor: float) -> None:
    ours, theirs = small_model(), small_model()
    train(controller(ours, rule), steps=6)
    optimizer = sgd(theirs)
    for _ in naive_steps(theirs, *data(), [[4, 4, 4]] * 6):
        step_with(optimizer, factor)
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        assert torch.equal(a, b)


def test_a_schedule_is_read_before_the_step_that_it_scales() -> None:
    ours, theirs = small_model(), small_model()
    decisions = train(controller(ours, Falling()), samples=48)
    assert [d.lr_multiplier for d in decisions] == [1.0, 0.75, 0.5, 0.25]
    optimizer = sgd(theirs)
    for at, _ in enumerate(naive_steps(theirs, *data(), [[4, 4, 4]] * 4)):
        step_with(optimizer, 1.0 - at / 4)
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        assert torch.equal(a, b)


def test_batch_and_rate_change_in_the_same_step() -> None:
    ours, theirs = small_model(), small_model()
    control = controller(ours, Growing(first=8, after_samples=24), batch_size=8)
    seen = []
    for batch in control.steps(samples=72):
        for x, y in batch:
            control.backward(loss_of(ours, x, y))
        before = control.samples
        control.step()
        seen.append((before, batch.batch_size, control.lr_multiplier))
    assert seen == [(0, 8, 1), (8, 8, 1), (16, 8, 1), (24, 16, 2), (40, 16, 2), (56, 16, 2)]
    optimizer = sgd(theirs)
    chunks = [[4, 4]] * 3 + [[4] * 4] * 3
    for sizes, _ in zip(chunks, naive_steps(theirs, *data(), chunks), strict=True):
        step_with(optimizer, sum(sizes) / 8)
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("tap", [Detached, Flat])
def test_the_choice_of_tap_changes_neither_weights_nor_decisions(tap: type[LeafHooks]) -> None:
    models = small_model(), small_model()
    usual = train(controller(models[0]), steps=4)
    other = train(controller(models[1], meter=Meter(models[1], tap=tap())), steps=4)
    gains = [d.lr_multiplier for d in usual]
    assert [d.lr_multiplier for d in other] == pytest.approx(gains, rel=1e-5)
    for a, b in zip(*map(weights, models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_token_weights_give_the_mean_over_all_tokens() -> None:
    ours, theirs = small_model(), small_model()
    control, tokens = controller(ours, chain()), (1.0, 5.0, 2.0)
    for batch in control.steps(steps=1):
        for (x, y), weight in zip(batch, tokens, strict=True):
            control.backward(loss_of(ours, x, y), weight=weight)
        control.step()
    x, y = data()
    parts = [(x[4 * i : 4 * i + 4], y[4 * i : 4 * i + 4]) for i in range(3)]
    (sum(loss_of(theirs, *p) * w for p, w in zip(parts, tokens, strict=True)) / 8.0).backward()
    sgd(theirs).step()
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        torch.testing.assert_close(a, b)


def test_own_clipping_after_measure_leaves_the_statistics_unclipped() -> None:
    model = small_model()
    control = controller(model)
    for batch in control.steps(steps=1):
        for x, y in batch:
            control.backward(loss_of(model, x, y))
        reading = control.measure()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        decision = control.step()
    twin = train(controller(small_model()), steps=1)
    assert decision == twin[0]
    assert reading.batch_sqnorm is not None
    assert reading.batch_sqnorm > 1e-3**2


# Budgets


def test_the_last_step_is_cut_to_the_samples_left() -> None:
    control = controller(small_model())
    sizes = [batch.batch_size for batch in _stepping(control, samples=31)]
    assert sizes == [12, 12, 7]
    assert (control.samples, control.finished) == (31, True)


def test_epochs_are_counted_in_samples_of_the_data_set() -> None:
    control = controller(small_model(), samples=20)
    sizes = [batch.batch_size for batch in _stepping(control, epochs=2.5)]
    assert sizes == [12, 12, 12, 12, 2]


def test_a_budget_in_steps_counts_optimizer_steps() -> None:
    control = controller(small_model())
    assert len(list(_stepping(control, steps=3))) == 3 == control.optimizer_steps


def test_a_budget_in_base_steps_ends_at_the_first_step_that_reaches_it() -> None:
    control = controller(small_model())
    train(control, base_steps=10)
    gains, last = control.base_steps, control.decision
    assert last is not None
    assert gains - last.base_steps < 10 <= gains


def test_ten_steps_worth_a_tenth_are_one_base_step() -> None:
    control = controller(small_model(), chain(), batch_size=4, base_batch_size=40)
    train(control, base_steps=1)
    assert control.optimizer_steps == 10


def test_a_data_set_smaller_than_the_batch_is_read_again() -> None:
    ours, theirs = small_model(), small_model()
    train(controller(ours, chain(), samples=5), steps=2)
    optimizer = sgd(theirs)
    for _ in naive_steps(theirs, *data(5), [[4, 4, 4]] * 2):
        optimizer.step()
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "budget",
    [{}, {"epochs": 0}, {"epochs": -1}, {"samples": 0}, {"steps": math.inf},
     {"epochs": 1, "samples": 48}, {"epochs": 1, "base_steps": 3}],
)  # fmt: skip
def test_a_budget_that_is_not_one_amount_above_zero_is_refused(budget: dict[str, float]) -> None:
    control = controller(small_model())
    with pytest.raises(ValueError, match=r"one amount above 0.*control\.steps\(epochs=90\)"):
        control.steps(**budget)
    train(control, samples=12.0)  # nothing was begun, and 1.2e1 samples are 12
    assert control.samples == 12


def test_epochs_of_data_without_a_size_are_refused() -> None:
    model = small_model()
    x, y = data(12)
    batches = BatchLoader(iter([(x[:4], y[:4])] * 9), batch_size=12)
    control = Controller(model, sgd(model), AdaScale(), batches, base_batch_size=4)
    with pytest.raises(ValueError, match=r"control\.steps\(samples="):
        control.steps(epochs=1)
    assert len(train(control, samples=1000)) == 3  # the iterator ends
    assert not control.finished


def test_the_budget_is_given_once() -> None:
    control = controller(small_model())
    train(control, samples=24)
    with pytest.raises(ValueError, match=r"budget samples=24, .*control\.steps\(samples=24\)"):
        control.steps(samples=25)
    assert train(control, samples=24) == []


# Leaving a loop


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one, so that a model can be in DistributedDataParallel."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class _Stop(Exception):
    pass


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("where", ["before backward", "after backward", "after the micro-batches"])
@pytest.mark.parametrize("how", ["break", "exception"])
def test_leaving_the_loop_restores_everything_and_the_next_loop_reads_the_same_samples(
    where: str, how: str
) -> None:
    model = DistributedDataParallel(small_model())
    control = controller(model)
    train_some(control, model, where="after the step", how="break")
    before = weights(model)
    train_some(control, model, where=where, how=how)
    assert model.require_backward_grad_sync
    assert all(p.grad is None for p in model.parameters())
    assert control.optimizer.param_groups[0]["lr"] == 0.05
    assert hooks_of(control) == 0
    for a, b in zip(before, weights(model), strict=True):
        assert torch.equal(a, b)
    train(control, samples=48)
    twin = small_model()
    other = controller(twin)
    train(other, samples=48)
    assert control.base_steps == pytest.approx(other.base_steps, rel=1e-6)
    for a, b in zip(weights(model), weights(twin), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def train_some(control: Controller, model: nn.Module, *, where: str, how: str) -> None:
    """Leaves the documented loop at one place."""

    def leave(here: str) -> bool:
        if here == where and how == "exception":
            raise _Stop
        return here == where

    try:
        for batch in control.steps(samples=48):
            for x, y in batch:
                if leave("before backward"):
                    break
                control.backward(loss_of(model, x, y))
                if leave("after backward"):
                    break
            else:
                if leave("after the micro-batches"):
                    break
                control.step()
                if leave("after the step"):
                    break
                continue
            break
    except _Stop:
        pass


def hooks_of(control: Controller) -> int:
    tap = control.meter.tap
    assert isinstance(tap, LeafHooks)
    return len(tap._handles)


def test_an_abandoned_loop_that_is_still_referenced_does_not_disturb_the_next_loop() -> None:
    model, twin = small_model(), small_model()
    control = controller(model)
    held = control.steps(samples=36)
    batch = next(held)
    x, y = next(iter(batch))
    control.backward(loss_of(model, x, y))
    steps = control.steps(samples=36)
    for at, batch in enumerate(steps):
        if at == 1:
            held.close()
        for x, y in batch:
            control.backward(loss_of(model, x, y))
        control.step()
    train(controller(twin), samples=36)
    for a, b in zip(weights(model), weights(twin), strict=True):
        assert torch.equal(a, b)


def test_gradients_from_before_the_run_do_not_enter_its_first_step() -> None:
    model, twin = small_model(), small_model()
    control = controller(model)
    loss_of(model, *data()).backward()
    assert train(control, steps=2) == train(controller(twin), steps=2)


class _FailsAt(torch.autograd.Function):
    """Breaks one backward off, half through the model."""

    fail = False

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if _FailsAt.fail:
            raise _Stop
        return gradient


def test_a_backward_that_was_broken_off_leaves_no_trace() -> None:
    model, twin = small_model(), small_model()
    control = controller(model)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return (model[2](_FailsAt.apply(model[1](model[0](x)))) - y).square().mean()

    def run() -> list[Decision]:
        decisions = []
        for batch in control.steps(steps=2):
            for x, y in batch:
                control.backward(loss(x, y))
            assert hooks_of(control) == 4
            decisions.append(control.step())
        return decisions

    _FailsAt.fail = True
    with pytest.raises(_Stop):
        run()
    _FailsAt.fail = False
    assert run() == train(controller(twin), steps=2)


def test_the_rate_is_restored_when_the_optimizer_raises() -> None:
    model = small_model()
    control = controller(model, Factor())
    seen = []

    def fail(*_: Any) -> None:
        seen.append(control.optimizer.param_groups[0]["lr"])
        raise _Stop

    control.optimizer.register_step_pre_hook(fail)
    with pytest.raises(_Stop):
        train(control, steps=1)
    assert seen == [pytest.approx(0.15)]
    assert control.optimizer.param_groups[0]["lr"] == 0.05
    assert (control.samples, control.optimizer_steps) == (0, 0)


# Values that are not finite


def poisoned(at: int, value: float = math.nan) -> tuple[Tensor, Tensor]:
    x, y = data()
    y[at] = value
    return x, y


def controller_on(source: Any, model: nn.Module, **options: Any) -> Controller:
    batches = BatchLoader(source, batch_size=12, max_micro_batch_size=4, shuffle=False)
    return Controller(model, sgd(model), AdaScale(), batches, base_batch_size=4, **options)


def test_a_first_loss_that_is_not_finite_ends_training_before_a_weight_moves() -> None:
    model = small_model()
    control = controller_on(poisoned(5), model)
    with pytest.raises(NotFinite, match="changed no weight"):
        train(control, steps=3)
    for a, b in zip(weights(model), weights(small_model()), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_skipped_and_counted(value: float) -> None:
    model, twin = small_model(), small_model()
    control = controller_on(poisoned(14, value), model)
    seen = []
    for batch in control.steps(samples=36):
        for x, y in batch:
            control.backward(loss_of(model, x, y))
        control.step()
        seen.append((control.samples, control.base_steps, control.decider.state, weights(model)))
    assert [samples for samples, *_ in seen] == [12, 24, 36]
    assert seen[0][1:3] == seen[1][1:3]
    assert (control.skipped, control.optimizer_steps) == (1, 2)
    assert all(map(torch.equal, seen[0][3], seen[1][3]))
    assert 1.0 <= control.lr_multiplier <= 3.0
    x, y = data()
    clean = torch.cat([x[:12], x[24:]]), torch.cat([y[:12], y[24:]])
    other = controller_on(clean, twin)
    for batch in other.steps(samples=36):
        for x, y in batch:
            other.backward(loss_of(twin, x, y))
        other.step()
        if other.optimizer_steps == 1:  # the lost step's samples count
            other.decider = replace(other.decider, samples=24)
    for a, b in zip(weights(model), weights(twin), strict=True):
        torch.testing.assert_close(a, b)


def test_one_infinite_gradient_does_not_spoil_the_temporal_estimate() -> None:
    model = small_model()
    meter = Meter(model, statistics=[TemporalMoments()])
    batches = BatchLoader(poisoned(14, math.inf), batch_size=12, shuffle=False)
    control = Controller(model, sgd(model), AdaScale(), batches, base_batch_size=4, meter=meter)
    train(control, samples=60)
    assert (control.skipped, control.optimizer_steps) == (1, 4)


def test_too_many_steps_in_a_row_that_are_not_finite_end_training() -> None:
    model = small_model()
    control = controller_on(data(), model, patience=2)

    def run() -> None:
        for batch in control.steps(steps=9):
            bad = control.optimizer_steps > 0
            for x, y in batch:
                control.backward(loss_of(model, x, y) * (math.nan if bad else 1.0))
            control.step()

    with pytest.raises(NotFinite, match=r"2 step\(s\) in a row"):
        run()
    assert (control.optimizer_steps, control.skipped) == (1, 2)


def test_lost_steps_that_are_not_in_a_row_do_not_end_training() -> None:
    model = small_model()
    x, y = data()
    y[[14, 38]] = math.nan
    control = controller_on((x, y), model, patience=2)
    train(control, samples=48)
    assert control.skipped == 2


# Refusals


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan])
def test_a_clip_norm_that_is_not_above_zero_is_refused(clip_norm: float) -> None:
    model = small_model()
    with pytest.raises(ValueError, match=r"clip_norm=1\.0"):
        train(controller(model), steps=1, clip_norm=clip_norm)
    for a, b in zip(weights(model), weights(small_model()), strict=True):
        assert torch.equal(a, b)


def test_patience_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        controller(small_model(), patience=0)


def test_a_loss_that_is_not_a_scalar_is_refused() -> None:
    model = small_model()
    control = controller(model)
    for batch in control.steps(steps=1):
        for x, _ in batch:
            with pytest.raises(ValueError, match=r"loss\.mean\(\)"):
                control.backward(model(x))
            break
        break


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_that_is_not_above_zero_is_refused(weight: float) -> None:
    model = small_model()
    control = controller(model)
    steps = control.steps(steps=1)
    x, y = next(iter(next(steps)))
    with pytest.raises(ValueError, match="above 0"):
        control.backward(loss_of(model, x, y), weight=weight)


def test_parameters_added_or_released_during_the_run_are_refused() -> None:
    model = small_model()
    model[0].bias.requires_grad_(False)
    control = controller(model)
    steps = _stepping(control, steps=2)
    next(steps)
    model[0].bias.requires_grad_(True)
    with pytest.raises(LargeBatchError, match=r"had 3 trainable parameters .* now it has 4"):
        next(steps)
    assert control.optimizer_steps == 1


def test_an_attached_optimizer_is_refused() -> None:
    model = small_model()
    control = controller(model)
    control.close()
    with attach(model, control.optimizer, Factor(), batch_size=4, base_batch_size=4):
        batches = BatchLoader(data(), batch_size=4)
        with pytest.raises(ValueError, match=r"control\.close\(\)"):
            Controller(model, control.optimizer, Factor(), batches, base_batch_size=4)


def test_a_rule_may_bound_the_batch() -> None:
    control = controller(small_model(), Shrinking(), batch_size=16)
    assert [batch.batch_size for batch in _stepping(control, steps=3)] == [16, 8, 8]


def test_a_batch_set_by_hand_is_taken_by_the_next_step() -> None:
    control = controller(small_model())
    sizes = []
    for batch in _stepping(control, steps=3):
        sizes.append(batch.batch_size)
        control.resize(20)
    assert sizes == [12, 20, 20]


# The record


class _Kept:
    """A record that remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.steps: list[tuple[Measurement, Decision]] = []

    def start(self, facts: Any) -> None:
        self.calls.append("start")

    def write(self, seen: Measurement, decision: Decision) -> None:
        self.steps.append((seen, decision))

    def close(self) -> None:
        self.calls.append("close")


def test_the_record_is_closed_once_when_the_budget_is_used_up() -> None:
    record = _Kept()
    control = controller(small_model(), record=record)
    for _ in _stepping(control, samples=36):
        if control.samples == 12:
            break
    assert record.calls == ["start"]
    train(control, samples=36)
    control.close()
    assert record.calls == ["start", "close"]
    assert [seen.samples for seen, _ in record.steps] == [0, 12, 24]
    assert [seen.batch_size for seen, _ in record.steps] == [12, 12, 12]


def test_close_ends_a_run_that_was_left_early() -> None:
    record = _Kept()
    control = controller(small_model(), record=record)
    next(control.steps(samples=36))
    control.close()
    assert record.calls == ["start", "close"]
    with pytest.raises(MicroBatchMissed, match="No step is in progress"):
        control.step()


def _stepping(control: Controller, **budget: float) -> Iterator[Any]:
    """The steps of a run that takes each of them before the next."""
    for batch in control.steps(**budget):
        for x, y in batch:
            control.backward(loss_of(control.model, x, y))
        control.step()
        yield batch


def test_a_clipping_norm_whose_square_is_no_float_clips_nothing() -> None:
    bounded, free = small_model(), small_model()
    train(controller(bounded), samples=24, clip_norm=1e200)
    train(controller(free), samples=24)
    assert all(torch.equal(a, b) for a, b in zip(weights(bounded), weights(free), strict=True))
