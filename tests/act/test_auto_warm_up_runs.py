"""A warm-up that ends itself, in training: under both doors, on ranks, resumed, and when losses or
gradients are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.distributed import run_on_ranks
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

import largebatch as lb
from largebatch.record import MemoryRecord
from largebatch.rules.auto_warm_up.rule import BACKOFF, WarmUpState, warm_up_rate
from round_trips import through_a_file
from small_runs import adamw, data, loss_of, small_model, weights

STEPS = 160
LOW, HIGH = 1e-3, 100.0
RULE = lb.AutoWarmUp(low=LOW, high=HIGH)
X, Y = data()

Spoil = Callable[[int], float]
"""Optimizer steps and lost ones so far -> a factor on the loss."""


def plain_sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def two_groups(model: nn.Module) -> torch.optim.Optimizer:
    first, *others = model.parameters()
    return torch.optim.AdamW([{"params": [first], "lr": 0.2}, {"params": others}], lr=0.05)


@dataclass(kw_only=True)
class Run:
    """A run in hand, which may be left and gone on with under the Controller."""

    control: Any
    record: MemoryRecord

    @property
    def reasons(self) -> list[str]:
        return [step.decision.reason for step in self.record.steps]

    @property
    def rates(self) -> list[float]:
        """Of the first group, in each step that was taken."""
        return [
            s.decision.lr_multiplier * s.seen.base_lr for s in self.record.steps if s.seen.finite
        ]

    @property
    def search(self) -> WarmUpState:
        return search_of(self.control)

    def go(
        self, *, steps: int = STEPS, until: int | None = None, spoil: Spoil | None = None
    ) -> Run:
        """Trains, to the end or until so many optimizer steps were taken."""
        control = self.control
        for batch in control.steps(steps=steps):
            factor = 1.0 if spoil is None else spoil(control.optimizer_steps + control.skipped)
            for x, y in batch:
                control.backward(loss_of(control.model, x, y) * factor)
            control.step()
            if control.optimizer_steps == until:
                break
        return self


def search_of(control: Any) -> WarmUpState:
    search = control.decider.state[0][0]
    assert isinstance(search, WarmUpState)
    return search


def build(
    rule: Any = RULE,
    *,
    optimize: Any = adamw,
    samples: int = 48,
    batch_size: int = 8,
    base_batch_size: int = 8,
    seed: int = 0,
    record: Any = None,
    **options: Any,
) -> Run:
    model: nn.Module = small_model(seed)
    optimizer = optimize(model)
    if dist.is_initialized():
        model = DistributedDataParallel(model)
    batches = lb.BatchLoader(
        (X[:samples], Y[:samples]), batch_size=batch_size, max_micro_batch_size=4, shuffle=False
    )
    kept = MemoryRecord()
    control = lb.Controller(
        model,
        optimizer,
        rule,
        batches,
        base_batch_size=base_batch_size,
        record=kept if record is None else record,
        **options,
    )
    return Run(control=control, record=kept)


def attach(rule: Any = RULE, *, steps: int = STEPS, optimize: Any = adamw, **options: Any) -> Any:
    """The same run with a loop of its own."""
    model: nn.Module = small_model()
    optimizer = optimize(model)
    if dist.is_initialized():
        model = DistributedDataParallel(model)
    settings: dict[str, Any] = {"batch_size": 8, "base_batch_size": 8, "record": MemoryRecord()}
    settings["budget"] = lb.Budget(steps=steps)
    control = lb.attach(model, optimizer, rule, **(settings | options))
    return model, control


def micro_batches(step: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's part of a step: the data in their order, four samples at a time."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    for part in range(rank, 2, ranks):
        rows = (torch.arange(4) + 8 * step + 4 * part) % 48
        yield X[rows], Y[rows]


def take(
    model: nn.Module, control: Any, steps: range, *, spoil: Spoil | None = None
) -> list[float]:
    """The rates of steps of an attached run."""
    rates = []
    for step in steps:
        parts = list(micro_batches(step))
        for x, y in parts:
            loss = loss_of(model, x, y) * (1.0 if spoil is None else spoil(step))
            control.loss(loss)
            (loss / len(parts)).backward()
        control.optimizer.step()
        control.optimizer.zero_grad()
        control.advance()
        rates.append(control.lr_multiplier * control.optimizer.param_groups[0]["lr"])
    return rates


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def switch(reasons: list[str]) -> int:
    """The step, counted from 0, in which the warm-up ended."""
    (step,) = [i for i, reason in enumerate(reasons) if "warm-up ended" in reason]
    return step


@cache
def whole() -> Run:
    """The run that others are compared with."""
    return build().go()


def test_a_rising_loss_ends_the_warm_up_and_training_continues() -> None:
    run = whole()
    at = switch(run.reasons)
    assert 40 < at < 75
    assert "the loss rises with probability " in run.reasons[at]
    assert run.rates[:at] == pytest.approx(
        [warm_up_rate(x=step / 80, low=LOW, high=HIGH) for step in range(at)], rel=1e-12
    )
    assert LOW < run.rates[at] < 0.3 * run.rates[at - 1]
    assert 0.0 < run.rates[-1] < 0.01 * run.rates[at]
    assert loss_of(run.control.model, X, Y) < 0.3 * loss_of(small_model(), X, Y)


def test_auto_warm_up_decides_alike_under_attach_and_the_controller() -> None:
    model, control = attach()
    rates = take(model, control, range(STEPS))
    assert rates == pytest.approx(whole().rates, rel=1e-12)
    for a, b in zip(weights(model), weights(whole().control.model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("optimize", [adamw, plain_sgd, two_groups])
def test_groups_keep_the_ratio_of_their_rates(optimize: Any) -> None:
    run = build(optimize=optimize)
    groups = run.control.optimizer.param_groups
    before, seen = [group["lr"] for group in groups], []
    run.control.optimizer.register_step_pre_hook(
        lambda *_: seen.append([group["lr"] for group in groups])
    )
    run.go(until=100)
    assert [rates[0] for rates in seen] == pytest.approx(run.rates, rel=1e-12)
    for rates in seen:
        assert [r / rates[0] for r in rates] == pytest.approx([b / before[0] for b in before])
    assert [group["lr"] for group in groups] == before


@pytest.mark.parametrize("seed", range(4))
def test_a_loss_that_doubles_each_step_ends_the_warm_up_before_the_run_diverges(
    seed: int,
) -> None:
    run = build(lb.AutoWarmUp(low=1e-4, high=10.0), optimize=plain_sgd, seed=seed).go(steps=200)
    assert run.control.finished
    assert " is far above the losses before it, " in run.reasons[switch(run.reasons)]


# The loss it sees


def test_auto_warm_up_sees_the_mean_loss_over_the_samples_of_unequal_micro_batches() -> None:
    run, expected, sizes = build(batch_size=14), [], set()
    for batch in run.control.steps(steps=STEPS):
        with torch.no_grad():
            rows = (torch.arange(14) + run.control.samples) % 48
            expected.append(loss_of(run.control.model, X[rows], Y[rows]).item())
        for x, y in batch:
            sizes.add(len(x))
            run.control.backward(loss_of(run.control.model, x, y))
        run.control.step()
        if run.control.optimizer_steps == 12:
            break
    assert sizes == {3, 4}
    assert [step.seen.loss for step in run.record.steps] == pytest.approx(expected, rel=1e-6)
    assert run.search.losses.means == pytest.approx(expected, rel=1e-6)


def test_a_constant_loss_takes_the_whole_warm_up_and_decays_from_the_last_rate() -> None:
    run = build()

    def train() -> None:
        for batch in run.control.steps(steps=STEPS):
            for x, _ in batch:
                run.control.backward((run.control.model(x) * 0.0).sum() + 2.3)
            run.control.step()

    with pytest.warns(RuntimeWarning, match=r"hardly changed.*lb\.AutoWarmUp\(high=") as warned:
        train()
    assert len(warned) == 1
    assert switch(run.reasons) == 80
    assert "the loss has hardly changed" in run.reasons[80]
    assert run.rates[80] == pytest.approx(run.rates[79])


def test_auto_warm_up_attached_without_a_loss_is_refused_with_a_line_to_paste() -> None:
    model, control = attach()
    loss_of(model, X, Y).backward()
    with pytest.raises(
        lb.LargeBatchError, match=r"AutoWarmUp needs the loss.*control\.loss\(loss\)"
    ):
        control.optimizer.step()
    assert same_weights(model, small_model())


def test_auto_warm_up_attached_without_a_budget_is_refused_with_a_line_to_paste() -> None:
    with pytest.raises(ValueError, match=r"^AutoWarmUp needs 'budget'.*budget=lb\.Budget\("):
        attach(budget=None)


@pytest.mark.parametrize("end", [0.0, 0.1])
def test_auto_warm_up_attached_beyond_its_budget_keeps_the_last_factor(end: float) -> None:
    rule = lb.AutoWarmUp(low=LOW, high=HIGH, decay=lb.Cosine(end=end))
    model, control = attach(rule)
    rates = take(model, control, range(STEPS + 5))
    assert control.finished
    assert rates[STEPS:] == pytest.approx([end * search_of(control).rate] * 5)


# Lost steps


def test_a_step_that_a_scaler_skips_does_not_count() -> None:
    """Neither does one in which it looks for its scale, 2^100 being too high for float32."""
    scaler = GradScaler("cpu", init_scale=2.0**100, backoff_factor=2.0**-6, growth_interval=1000)
    run = build(scaler=scaler).go()
    finite = [step.seen.finite for step in run.record.steps]
    assert finite.count(False) == finite.index(True) >= 5
    assert run.control.optimizer_steps == STEPS
    assert run.rates[:50] == pytest.approx(whole().rates[:50], rel=1e-12)
    assert 50 < switch(run.reasons) - finite.count(False) < 75


def overflows(step: int) -> float:
    """Makes some losses infinite: two together, and some alone."""
    return math.inf if step in (5, 20, 21, 40) else 1.0


def test_steps_that_are_lost_here_and_there_leave_the_warm_up_as_it_is() -> None:
    run = build().go(until=45, spoil=overflows)
    assert run.control.skipped == 4
    assert run.rates == pytest.approx(whole().rates[:45], rel=1e-12)
    assert run.search.losses.recorded == 45
    model, control = attach()
    take(model, control, range(49), spoil=overflows)
    assert control.skipped == 4
    assert search_of(control).losses.means == pytest.approx(run.search.losses.means, rel=1e-4)


def test_attached_a_step_that_the_users_scaler_skips_does_not_count() -> None:
    scaler = GradScaler("cpu", init_scale=2.0**20, growth_interval=1000)
    model, control = attach(scaler=scaler)
    for step in range(40):
        for x, y in micro_batches(step):
            loss = loss_of(model, x, y)
            control.loss(loss)
            spoiled = (
                loss / 2 * (2.0**127 if step in (7, 30) else 1.0)
            )  # beyond float32 once scaled
            scaler.scale(spoiled).backward()
        scaler.step(control.optimizer)
        scaler.update()
        control.optimizer.zero_grad()
        control.advance()
    assert (control.skipped, control.optimizer_steps) == (2, 38)
    assert search_of(control).losses.recorded == 38
    assert search_of(control).rate == pytest.approx(warm_up_rate(x=37 / 80, low=LOW, high=HIGH))


def test_a_loss_that_is_nan_from_the_first_step_ends_the_run_at_once() -> None:
    run = build()
    with pytest.raises(lb.errors.NotFinite, match="first step"):
        run.go(spoil=lambda step: math.nan)
    model, control = attach()
    with pytest.raises(lb.errors.NotFinite, match="first step"):
        take(model, control, range(1), spoil=lambda step: math.nan)
    for trained in (run.control.model, model):
        assert same_weights(trained, small_model())
    assert (run.control.skipped, control.skipped) == (1, 1)


@pytest.mark.parametrize("door", ["controller", "attach"])
def test_three_infinite_losses_end_the_warm_up_and_decay_starts_at_a_safe_rate(door: str) -> None:
    def spoil(step: int) -> float:
        return math.inf if step in (40, 41, 42) else 1.0

    if door == "controller":
        run = build().go(spoil=spoil)
        control, reasons, rates = run.control, run.reasons, run.rates
    else:
        record = MemoryRecord()
        model, control = attach(record=record)
        take(model, control, range(STEPS + 3), spoil=spoil)
        attached = Run(control=control, record=record)
        reasons, rates = attached.reasons, attached.rates
    assert switch(reasons) == 43
    assert "3 losses in a row were not finite" in reasons[43]
    assert rates[40] <= 0.5 * BACKOFF * rates[39]
    assert (control.skipped, control.optimizer_steps) == (3, STEPS)
    assert control.finished


def test_losses_that_stay_infinite_end_the_run_and_leave_the_weights() -> None:
    run = build(patience=6).go(until=50)
    before = weights(run.control.model)
    with pytest.raises(lb.errors.NotFinite, match=r"^6 step\(s\) in a row"):
        run.go(spoil=lambda step: math.inf)
    assert all(map(torch.equal, before, weights(run.control.model)))
    assert all(bool(w.isfinite().all()) for w in before)
    assert run.control.optimizer_steps == 50


# What it refuses


def test_a_resize_in_the_warm_up_is_refused_before_a_weight_moves_and_may_be_taken_back() -> None:
    run = build().go(until=10)
    before = weights(run.control.model)
    run.control.resize(16)
    with pytest.raises(lb.LargeBatchError, match=r"from 8 to 16 samples.*after=AdaScale\(\)"):
        run.go()
    assert all(map(torch.equal, before, weights(run.control.model)))
    assert run.control.optimizer_steps == 10
    run.control.resize(8)
    run.go()
    assert run.rates == whole().rates
    assert same_weights(run.control.model, whole().control.model)


def test_a_resize_after_the_warm_up_is_followed() -> None:
    run = build(lb.AutoWarmUp(low=LOW, high=HIGH, after=lb.AdaScale())).go(until=100)
    assert run.search.ended is not None
    run.control.resize(32)
    run.go(until=110)
    last = run.record.steps[-1]
    assert last.seen.batch_size == 32
    assert "at scale 4" in last.decision.reason
    assert 1.0 <= last.decision.base_steps <= 4.0


@pytest.mark.parametrize("door", [lambda: build().go(steps=60), lambda: attached_for(60)])
def test_a_budget_too_short_is_refused_before_the_first_step(door: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"30 steps for its warm-up.*at least 80 optimizer steps"):
        door()


def attached_for(steps: int) -> None:
    model, control = attach(steps=steps)
    try:
        take(model, control, range(1))
    finally:
        assert same_weights(model, small_model())


def test_an_optimizer_without_a_rate_is_refused_before_the_first_step() -> None:
    run = build(optimize=lambda model: torch.optim.SGD(model.parameters(), lr=0.0))
    with pytest.raises(ValueError, match=r"torch\.optim\.SGD\(model\.parameters\(\), lr=0\.1\)"):
        run.go()
    assert same_weights(run.control.model, small_model())


def test_a_scheduler_that_brings_the_rate_to_zero_is_refused() -> None:
    model, control = attach()
    scheduler = torch.optim.lr_scheduler.LambdaLR(control.optimizer, lambda at: 1.0 - at / 5)
    with pytest.raises(ValueError, match="use no scheduler"):
        for step in range(6):
            take(model, control, range(step, step + 1))
            control.advance(scheduler)


@pytest.mark.parametrize(
    "other",
    [
        lb.AdaScale(), lb.LinearScaling(), lb.SqrtScaling(), lb.WarmUp(), lb.Schedule(),
        lb.Legw(warmup_epochs=1.0), lb.AutoWarmUp(), lb.Every(lb.AdaScale()),
    ],
    ids=lambda rule: type(rule).__name__,
)  # fmt: skip
def test_an_auto_warm_up_refuses_another_rule_for_the_rate_with_both_names(other: lb.Rule) -> None:
    for rules in ((RULE, other), (other, RULE)):
        with pytest.raises(ValueError) as told:
            lb.chain(*rules)
        names = str(told.value).split(" cannot be in")[0].split(" and ")
        assert sorted(name.partition("(")[0] for name in names) == sorted(
            ["AutoWarmUp", type(other).__name__]
        )


# Stopping and going on


def test_an_auto_warm_up_resumed_after_every_step_equals_the_whole_run_bit_for_bit() -> None:
    state, steps = None, []
    for step in range(1, STEPS + 1):
        run = build()
        control = run.control
        if state is not None:
            control.load_state_dict(state["control"])
            control.model.load_state_dict(state["model"])
            control.optimizer.load_state_dict(state["optimizer"])
        run.go(until=step)
        steps += run.record.steps
        state = through_a_file(
            {
                "model": control.model.state_dict(),
                "optimizer": control.optimizer.state_dict(),
                "control": control.state_dict(),
            }
        )
    assert steps == whole().record.steps
    assert same_weights(run.control.model, whole().control.model)


def test_an_attached_auto_warm_up_resumes_with_the_same_bits() -> None:
    model, control = attach()
    expected = take(model, control, range(STEPS))
    rates: list[float] = []
    state: Any = None
    for first in range(0, STEPS, 16):
        other, control = attach()
        if state is not None:
            control.load_state_dict(state["control"])
            other.load_state_dict(state["model"])
            control.optimizer.load_state_dict(state["optimizer"])
        rates += take(other, control, range(first, first + 16))
        state = through_a_file(
            {
                "model": other.state_dict(),
                "optimizer": control.optimizer.state_dict(),
                "control": control.state_dict(),
            }
        )
    assert rates == expected
    assert same_weights(model, other)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"samples": 40}, "dataset_size"),
        ({"base_batch_size": 4}, "base_batch_size"),
        ({"rule": lb.AutoWarmUp(low=2 * LOW, high=HIGH)}, "rule"),
    ],
)
def test_the_state_of_another_run_is_refused(changed: dict[str, Any], named: str) -> None:
    state = build().go(until=40).control.state_dict()
    with pytest.raises(lb.errors.CheckpointError, match=named):
        build(**changed).control.load_state_dict(state)


def test_the_state_of_a_run_of_another_length_is_refused() -> None:
    state = build().go(until=40).control.state_dict()
    begun = build()
    begun.control.steps(steps=2 * STEPS)
    with pytest.raises(lb.errors.CheckpointError, match="budget"):
        begun.control.load_state_dict(state)
    resumed = build()
    resumed.control.load_state_dict(state)
    with pytest.raises(ValueError, match="steps=160"):
        resumed.control.steps(steps=2 * STEPS)
    _, one = attach()
    _, other = attach(steps=2 * STEPS)
    with pytest.raises(lb.errors.CheckpointError, match="budget"):
        other.load_state_dict(one.state_dict())


def test_a_record_replayed_gives_its_decisions_and_names_the_switch(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    build(record=lb.JsonlRecord(path)).go()
    record = lb.read_record(path)
    decisions = lb.replay(RULE, record)
    assert decisions == [decision for _, decision in record.steps]
    reasons = [decision.reason for decision in decisions]
    assert reasons == whole().reasons
    assert "warm-up ended at" in reasons[switch(reasons)]


# On two ranks


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """What one rank came to."""

    rates: list[float]
    losses: list[float]
    weights: list[float]
    search: WarmUpState


def ranked(control: Any, rates: list[float], losses: list[float]) -> Ranked:
    parameters = [p for group in control.optimizer.param_groups for p in group["params"]]
    return Ranked(
        rates=rates,
        losses=losses,
        weights=torch.cat([p.detach().reshape(-1) for p in parameters]).tolist(),
        search=search_of(control),
    )


def seen_of(control: lb.Controller, until: int = STEPS) -> tuple[list[float], list[float]]:
    """Rates and losses of a run, which every rank looks at by itself."""
    rates, losses = [], []
    for batch in control.steps(steps=STEPS):
        for x, y in batch:
            control.backward(loss_of(control.model, x, y))
        decision = control.step()
        assert control.reading is not None
        assert control.reading.loss is not None
        rates.append(decision.lr_multiplier * control.optimizer.param_groups[0]["lr"])
        losses.append(control.reading.loss)
        if control.optimizer_steps == until:
            break
    return rates, losses


def here(state: Any) -> dict[str, Ranked]:
    """All runs on one rank, or on the only one."""
    results = {}
    control = build().control
    results["controller"] = ranked(control, *seen_of(control))
    control = build(batch_size=14).control
    results["unequal"] = ranked(control, *seen_of(control, until=20))
    model, attached = attach()
    results["attach"] = ranked(attached, take(model, attached, range(STEPS)), [])
    attached.close()
    control = build().control
    state = through_a_file(state)  # processes share the memory of what they were handed
    control.load_state_dict(state["control"])
    bare = control.model.module if dist.is_initialized() else control.model
    bare.load_state_dict(state["model"])
    control.optimizer.load_state_dict(state["optimizer"])
    results["resumed"] = ranked(control, *seen_of(control))
    return results


def saved() -> Any:
    """The state of a run of one process, amid its warm-up."""
    control = build().go(until=30).control
    return {
        "model": control.model.state_dict(),
        "optimizer": control.optimizer.state_dict(),
        "control": control.state_dict(),
    }


@cache
def on_two_ranks() -> list[dict[str, Ranked]]:
    return run_on_ranks(here, 2, saved())


@cache
def alone() -> dict[str, Ranked]:
    return here(saved())


every_run = pytest.mark.parametrize("name", ["controller", "unequal", "attach", "resumed"])


@pytest.mark.distributed
@every_run
def test_two_ranks_decide_with_the_same_bits(name: str) -> None:
    first, second = (results[name] for results in on_two_ranks())
    assert first == second


@pytest.mark.distributed
@every_run
def test_two_ranks_decide_as_one_process_and_end_their_warm_up(name: str) -> None:
    together, by_one = on_two_ranks()[0][name], alone()[name]
    assert together.rates == pytest.approx(by_one.rates, rel=1e-9)
    assert together.losses == pytest.approx(by_one.losses, rel=1e-2)
    assert together.losses[:20] == pytest.approx(by_one.losses[:20], rel=1e-4)
    assert together.weights == pytest.approx(by_one.weights, rel=1e-2, abs=1e-3)
    assert (together.search.ended is None) == (name == "unequal")
