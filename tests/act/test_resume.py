"""A run that goes on from its state is the run that was never interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from tests.distributed import run_on_ranks
from torch import nn

import largebatch as lb
from largebatch.core.codec import checksum
from largebatch.core.run_state import RunState
from largebatch.record import MemoryRecord
from round_trips import through_a_file
from small_rules import Growing
from small_runs import adamw, data, loss_of, sgd, small_model, weights

X, Y = data(48)


def build(
    *, rule: Any = None, base_batch_size: int = 8, samples: int = 48, seed: int = 0, **options: Any
) -> tuple[nn.Module, torch.optim.Optimizer, lb.Controller, MemoryRecord]:
    model = small_model()
    optimizer = sgd(model)
    record = MemoryRecord()
    batches = lb.BatchLoader(
        (X[:samples], Y[:samples]), batch_size=8, max_micro_batch_size=4, seed=seed
    )
    rule = rule or lb.chain(lb.AdaScale(), lb.Schedule(factor=lb.Cosine()))
    control = lb.Controller(
        model,
        optimizer,
        rule,
        batches,
        base_batch_size=base_batch_size,
        record=record,
        **options,
    )
    return model, optimizer, control, record


def go(control: lb.Controller, *, stop_after: int | None = None, samples: int = 400) -> None:
    for batch in control.steps(samples=samples):
        for x, y in batch:
            control.backward(loss_of(control.model, x, y))
        if control.optimizer_steps + 1 == stop_after:
            control.stop()
        control.step()
        if control.optimizer_steps % 7 == 3:
            control.resize(8 + 2 * (control.optimizer_steps % 5))


@pytest.mark.parametrize("cut", [1, 2, 5, 13, 30])
def test_at_any_cut_the_bits_are_those_of_the_uninterrupted_run(cut: int) -> None:
    whole, _, control, record = build()
    go(control)
    first, optimizer, control, before = build()
    go(control, stop_after=cut)
    assert control.optimizer_steps == cut
    state = through_a_file(
        {"m": first.state_dict(), "o": optimizer.state_dict(), "c": control.state_dict()}
    )
    second, optimizer, control, after = build()
    control.load_state_dict(state["c"])
    second.load_state_dict(state["m"])
    optimizer.load_state_dict(state["o"])
    go(control)
    assert before.steps + after.steps == record.steps
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(second), strict=True))


def test_a_loaded_control_reports_the_same_clocks_batch_and_decision() -> None:
    _, _, control, _ = build()
    go(control, stop_after=9)
    _, _, again, _ = build()
    again.load_state_dict(control.state_dict())
    for name in (
        "samples", "base_steps", "optimizer_steps", "skipped", "lr_multiplier", "batch_size",
        "finished", "decision", "decider",
    ):  # fmt: skip
        assert getattr(again, name) == getattr(control, name), name
    assert again.batches.position == control.batches.position > 0
    scheduler = torch.optim.lr_scheduler.StepLR(again.optimizer, step_size=1)
    assert (
        again.advance(scheduler) == 0
    )  # of the base steps before, the scheduler's own state tells


def other_rule() -> dict[str, Any]:
    return {"rule": lb.AdaScale()}


def other_base() -> dict[str, Any]:
    return {"base_batch_size": 4}


def other_data() -> dict[str, Any]:
    return {"samples": 40}


def other_seed() -> dict[str, Any]:
    return {"seed": 1}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (other_rule, "rule"),
        (other_base, "base_batch_size"),
        (other_data, "dataset_size"),
        (other_seed, "seed"),
    ],
)
def test_the_state_of_another_run_is_refused_and_changes_nothing(
    options: Callable[[], dict[str, Any]], named: str
) -> None:
    _, _, control, _ = build()
    go(control, stop_after=3)
    _, _, other, _ = build(**options())
    before = other.state_dict()
    with pytest.raises(lb.errors.CheckpointError, match=named):
        other.load_state_dict(control.state_dict())
    assert other.state_dict() == before


def test_a_resumed_run_with_another_budget_is_refused_by_name() -> None:
    _, _, control, _ = build()
    go(control, stop_after=3)
    _, _, again, _ = build()
    again.load_state_dict(control.state_dict())
    with pytest.raises(ValueError, match="samples=400"):
        again.steps(samples=401)


def test_a_state_of_an_unknown_version_is_refused_by_that_version() -> None:
    _, _, control, _ = build()
    with pytest.raises(lb.errors.CheckpointError, match="version 3"):
        control.load_state_dict({**control.state_dict(), "version": 3})


def test_each_missing_or_changed_value_is_refused() -> None:
    _, _, control, _ = build()
    go(control, stop_after=3)
    state = control.state_dict()
    for name in state:
        cut = {key: value for key, value in state.items() if key != name}
        with pytest.raises(lb.errors.CheckpointError):
            control.load_state_dict(cut)
        for wrong in (None, -1, 10**400, float("nan"), "[" * 10_000, b"\0", [], True):
            if wrong is None and name == "dataset_size":
                continue
            with pytest.raises(lb.errors.CheckpointError):
                control.load_state_dict({**state, name: wrong})
    for wrong in (None, [], "text", 3):
        with pytest.raises(lb.errors.CheckpointError):
            control.load_state_dict(wrong)  # type: ignore[arg-type]
    control.load_state_dict(state)


def test_in_the_middle_of_a_step_nothing_is_saved_or_loaded() -> None:
    _, _, control, _ = build()
    state = control.state_dict()
    for _batch in control.steps(samples=40):
        with pytest.raises(lb.errors.CheckpointError, match="between two steps"):
            control.state_dict()
        with pytest.raises(lb.errors.CheckpointError, match="between two steps"):
            control.load_state_dict(state)
        break


def test_a_run_goes_back_to_an_earlier_state() -> None:
    _, _, control, record = build()
    go(control, stop_after=4)
    state = control.state_dict()
    model, optimizer = control.model.state_dict(), control.optimizer.state_dict()
    model = {name: tensor.clone() for name, tensor in model.items()}
    optimizer = through_a_file(optimizer)
    _, _, control, record = build()
    control.load_state_dict(state)
    control.model.load_state_dict(model)
    control.optimizer.load_state_dict(through_a_file(optimizer))
    go(control)
    once = list(record.steps)
    control.load_state_dict(state)
    control.model.load_state_dict(model)
    control.optimizer.load_state_dict(through_a_file(optimizer))
    kept = []
    for batch in control.steps(samples=400):
        for x, y in batch:
            control.backward(loss_of(control.model, x, y))
        kept.append(control.step())
        if control.optimizer_steps % 7 == 3:
            control.resize(8 + 2 * (control.optimizer_steps % 5))
    assert kept == [step.decision for step in once]


def attached(
    model: nn.Module, optimizer: torch.optim.Optimizer, control: Any, *, first: int, last: int
) -> None:
    for step in range(first, last):
        for part in range(4):
            rows = [(step * 16 + part * 4 + i) % 48 for i in range(4)]
            (loss_of(model, X[rows], Y[rows]) / 4).backward()
        optimizer.step()
        optimizer.zero_grad()
        control.advance()


def attach(**options: Any) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    model = small_model()
    optimizer = adamw(model)
    control = lb.attach(
        model, optimizer, lb.AdaScale(), batch_size=16, base_batch_size=4, **options
    )
    return model, optimizer, control


def test_an_attached_run_resumes_with_the_same_bits() -> None:
    whole, optimizer, control = attach()
    attached(whole, optimizer, control, first=0, last=20)
    model, optimizer, control = attach()
    attached(model, optimizer, control, first=0, last=8)
    state = through_a_file(
        {"m": model.state_dict(), "o": optimizer.state_dict(), "c": control.state_dict()}
    )
    control.close()
    model, optimizer, again = attach()
    again.load_state_dict(state["c"])
    model.load_state_dict(state["m"])
    optimizer.load_state_dict(state["o"])
    attached(model, optimizer, again, first=8, last=20)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(model), strict=True))
    assert again.optimizer_steps == 20


def test_the_state_of_an_attached_run_is_not_that_of_a_controller() -> None:
    _, _, control, _ = build(rule=lb.AdaScale(), base_batch_size=4)
    _, _, own = attach(dataset_size=48)
    with pytest.raises(lb.errors.CheckpointError, match="no position in the data"):
        control.load_state_dict(own.state_dict())
    with pytest.raises(lb.errors.CheckpointError, match="batches"):
        own.load_state_dict(control.state_dict())


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_state_goes_through_distributed_checkpoint_into_a_fresh_run(tmp_path: Path) -> None:
    _, _, control, _ = build()
    go(control, stop_after=11)
    dcp.save({"control": control}, checkpoint_id=str(tmp_path), no_dist=True)
    _, _, again, _ = build()
    dcp.load({"control": again}, checkpoint_id=str(tmp_path), no_dist=True)
    assert again.decider == control.decider
    assert again.state_dict() == control.state_dict()


def _resumed_here(state: dict[str, Any]) -> tuple[int, list[Any]]:
    rank = dist.get_rank()
    model = nn.parallel.DistributedDataParallel(small_model())
    batches = lb.BatchLoader((X, Y), batch_size=8, max_micro_batch_size=4)
    record = MemoryRecord()
    control = lb.Controller(
        model, sgd(model), Growing(first=8, after_samples=100), batches,
        base_batch_size=8, record=record,
    )  # fmt: skip
    changed = dict(state)
    if rank == 1 and state.get("spoil"):
        del changed["spoil"]
        changed = _other_step(changed)
    changed.pop("spoil", None)
    try:
        control.load_state_dict(changed)
    except lb.errors.RanksDisagree as error:
        return -1, [str(error)]
    for batch in control.steps(samples=200):
        for x, y in batch:
            control.backward(loss_of(model, x, y))
        control.step()
        if rank == 1 and control.samples >= 150:
            control.stop()
    return control.samples, [step.seen.batch_size for step in record.steps]


def _other_step(state: dict[str, Any]) -> dict[str, Any]:
    moved = {key: value for key, value in state.items() if key != "batches"}
    moved["step"] += 1
    whole = RunState(**moved)
    return {**moved, "digest": checksum(whole), "batches": state["batches"]}


def _saved_on_one() -> dict[str, Any]:
    model = small_model()
    batches = lb.BatchLoader((X, Y), batch_size=8, max_micro_batch_size=4)
    control = lb.Controller(
        model, sgd(model), Growing(first=8, after_samples=100), batches, base_batch_size=8
    )
    for batch in control.steps(samples=200):
        for x, y in batch:
            control.backward(loss_of(model, x, y))
        control.step()
        if control.samples >= 80:
            break
    return control.state_dict()


@pytest.mark.distributed
def test_two_ranks_resume_the_state_of_one_rank_and_a_stop_on_one_rank_stops_both() -> None:
    (samples, sizes), (other, _) = run_on_ranks(_resumed_here, 2, _saved_on_one())
    assert samples == other
    assert sizes[:2] == [8, 8]
    assert 80 + sum(sizes) == samples < 200


@pytest.mark.distributed
def test_ranks_that_loaded_different_states_raise_an_error_with_the_first_difference() -> None:
    (_, errors), _ = run_on_ranks(_resumed_here, 2, {**_saved_on_one(), "spoil": True})
    assert "disagree about step (rank 0: 10, rank 1: 11)" in errors[0]


def test_an_attached_run_whose_budget_is_a_whole_number_is_resumed_more_than_once() -> None:
    state = None
    for _ in range(3):
        model = small_model()
        control = lb.attach(
            model,
            sgd(model),
            lb.AdaScale(),
            batch_size=8,
            base_batch_size=4,
            budget=lb.Budget(base_steps=100),
        )
        if state is not None:
            control.load_state_dict(through_a_file(state))
        state = control.state_dict()


def test_a_resumed_attached_run_keeps_the_batch_size_that_attach_was_given() -> None:
    _, _, control = attach()
    model = small_model()
    other = lb.attach(model, adamw(model), lb.AdaScale(), batch_size=32, base_batch_size=4)
    other.load_state_dict(control.state_dict())
    assert other.state_dict()["batch_size"] == 32


@pytest.mark.parametrize("wrong", [{}, {"weight": 1.0}, {"control": {"version": 1}}, None, 3])
def test_loading_something_that_is_no_state_names_the_keys_it_has(wrong: Any) -> None:
    _, _, control, _ = build()
    _, _, own = attach()
    for one in (control, own):
        with pytest.raises(lb.errors.CheckpointError, match=r"Expected the result of") as told:
            one.load_state_dict(wrong)
        assert "control.state_dict()" in str(told.value)
        assert all(key in str(told.value) for key in (wrong if isinstance(wrong, dict) else ()))


def test_the_state_of_a_controller_is_refused_by_an_attached_run_by_name() -> None:
    _, _, control, _ = build(rule=lb.AdaScale(), base_batch_size=4)
    _, _, own = attach(dataset_size=48)
    with pytest.raises(lb.errors.CheckpointError, match=r"so lb\.Controller saved it"):
        own.load_state_dict(control.state_dict())
