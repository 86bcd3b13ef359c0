"""Runs whose batch grows by the full gradient: on one process and two, interrupted and not."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import largebatch as lb
from distributed import run_on_ranks
from largebatch.record import read_record
from round_trips import through_a_file
from small_runs import data, loss_of, sgd, small_model, train, weights

DATA = data(96)
STEPS = 14


def loss(model: nn.Module, batch: Any) -> Tensor:
    return loss_of(model, *batch)


def build(
    *, over: Any = DATA, record: Any = None, **more: Any
) -> tuple[nn.Module, torch.optim.Optimizer, lb.Controller, Any]:
    """A run whose gradient falls below a threshold several times."""
    model = small_model()
    if dist.is_initialized():
        model = DistributedDataParallel(model)
    optimizer, record = sgd(model), record or lb.MemoryRecord()
    options = {"eps0": 2.0, "max": 24, "check": 3, "gamma": 1.2, **more}
    control = lb.Controller(
        model,
        optimizer,
        lb.methods.full_gradient_growth(**options),
        lb.BatchLoader(DATA, batch_size=8, max_micro_batch_size=4, seed=0),
        base_batch_size=8,
        meter=lb.Meter(model, full=lb.FullGradient(over, loss, micro_batch_size=20)),
        record=record,
    )
    return model, optimizer, control, record


def test_the_batch_grows_at_the_thresholds_and_every_pass_is_counted() -> None:
    _, _, control, record = build()
    train(control, steps=STEPS)
    sizes = [seen.batch_size for seen, _ in record.steps]
    assert sizes == sorted(sizes)
    assert sizes[0] == 8
    assert sizes[-1] == 24
    for at, (seen, decision) in enumerate(record.steps):
        checked = at % 3 == 2 and seen.batch_size < 24
        assert seen.extra_samples == (96 if checked else 0)
        assert ("full gradient" in decision.reason) == checked
        stage = {8: 0, 16: 1, 24: 2}[seen.batch_size]
        assert decision.lr_multiplier == pytest.approx(1.2**stage)
        if checked:
            level = 2.0 * (8 / seen.batch_size) ** 0.5
            grows = seen.full_sqnorm**0.5 <= level  # type: ignore[operator]
            assert (decision.next_batch_size > seen.batch_size) == grows
        else:
            assert decision.next_batch_size == seen.batch_size


def test_the_record_of_a_run_replays() -> None:
    _, _, control, record = build()
    decisions = train(control, steps=STEPS)
    assert lb.replay(control.decider.rule, record) == decisions


def pieces(cuts: tuple[int, ...]) -> tuple[nn.Module, list[Any]]:
    """A run that is built anew after each of these steps; its model and its record."""
    model, optimizer, control, record = build()
    steps: list[Any] = []
    for stop in (*cuts, STEPS):
        for batch in control.steps(steps=STEPS):
            for x, y in batch:
                control.backward(loss_of(model, x, y))
            if control.optimizer_steps + 1 == stop:
                control.stop()
            control.step()
        steps += record.steps
        if stop < STEPS:
            state = {"m": model.state_dict(), "o": optimizer.state_dict()}
            state = through_a_file({**state, "c": control.state_dict()})
            model, optimizer, control, record = build()
            control.load_state_dict(state["c"])
            model.load_state_dict(state["m"])
            optimizer.load_state_dict(state["o"])
    return model, steps


def test_stopped_at_any_step_the_bits_are_those_of_the_whole_run() -> None:
    whole, seen = pieces(())
    assert len({step.batch_size for step, _ in seen}) >= 3
    for cuts in [*[(step,) for step in range(1, STEPS)], tuple(range(1, STEPS))]:
        model, also = pieces(cuts)
        assert also == seen
        assert all(map(torch.equal, weights(whole), weights(model)))


def spoiled(value: float) -> tuple[Tensor, Tensor]:
    """The data, with one sample's target replaced: on two processes only one of them passes it."""
    x, y = DATA
    return x, torch.cat([y[:-1], torch.full_like(y[-1:], value)])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_a_full_gradient_that_is_not_finite_ends_no_stage_and_the_record_says_so(
    value: float, tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl"
    model, _, control, _ = build(over=spoiled(value), record=lb.JsonlRecord(path))
    decisions = train(control, steps=STEPS)
    steps = read_record(path).steps
    for at, (seen, decision) in enumerate(steps):
        checked = at % 3 == 2
        assert seen.finite, "the step itself is sound"
        assert (seen.batch_size, decision.lr_multiplier) == (8, 1.0)
        assert seen.extra_samples == (96 if checked else 0)
        assert decision.reason == ("full gradient's norm is not finite" if checked else "")
        if checked:
            assert not math.isfinite(seen.full_sqnorm)  # type: ignore[arg-type]
    assert [decision for _, decision in steps] == decisions
    assert lb.replay(control.decider.rule, read_record(path)) == decisions
    sound, _, without, _ = build(eps0=1e-9)
    train(without, steps=STEPS)
    assert all(map(torch.equal, weights(model), weights(sound))), "and moves no weight"


def a_run(over: Any = DATA) -> list[Any]:
    model, _, control, _ = build(over=over)
    decisions = train(control, steps=STEPS)
    return [
        [(d.next_batch_size, d.lr_multiplier, d.reason) for d in decisions],
        [w.tolist() for w in weights(model)],
    ]


@pytest.mark.distributed
def test_two_processes_decide_as_one_does() -> None:
    first, second = run_on_ranks(a_run, 2)
    assert first == second
    decisions, moved = a_run()
    assert len({size for size, _, _ in decisions}) >= 3
    assert first[0] == decisions
    for a, b in zip(moved, first[1], strict=True):
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-3, atol=1e-5)


@pytest.mark.distributed
def test_two_processes_find_together_what_one_of_them_sees_is_not_finite() -> None:
    first, second = run_on_ranks(partial(a_run, spoiled(math.nan)), 2)
    assert first == second
    assert first[0] == a_run(spoiled(math.nan))[0]
    assert {reason for _, _, reason in first[0]} == {"", "full gradient's norm is not finite"}


def test_a_cap_below_the_start_is_refused() -> None:
    with pytest.raises(ValueError, match=r"8 samples, but the rule caps the batch size at 4"):
        build(max=4)
