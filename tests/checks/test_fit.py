"""The largest micro-batch that fits is found without a trace, kept by a run that goes on, and the
same on every rank."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_check_changes_nothing import Busy, Failing, same
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import largebatch as lb
from distributed import run_on_ranks
from largebatch.checks import fit, size_search
from largebatch.checks.size_search import MicroBatchFit, SizeTrials, largest
from largebatch.measure import memory
from largebatch.workbench.runs.train import train
from largebatch.workbench.workloads import load
from small_runs import class_data, classifier, mean_loss

GB = 10**9
CPU = torch.device("cpu")


def control_of(
    model: nn.Module | None = None,
    *,
    rule: Any = None,
    batch_size: int = 32,
    most: Any = "auto",
    examples: lb.PerExample | None = None,
) -> lb.Controller:
    torch.manual_seed(0)
    model = model if model is not None else classifier()
    if dist.is_initialized():
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    batches = lb.BatchLoader(
        class_data(512), batch_size=batch_size, max_micro_batch_size=most, seed=0
    )
    rule = rule or lb.methods.adasgd(eta=0.05, every=2)
    meter = lb.Meter(model, examples=examples)
    return lb.Controller(model, optimizer, rule, batches, base_batch_size=16, meter=meter)


def go(control: lb.Controller, *, steps: int, sizes: list[int] | None = None) -> None:
    for batch in control.steps(samples=4000):
        for x, y in batch:
            if sizes is not None:
                sizes.append(len(x))
            control.backward(mean_loss(control.model, (x, y)))
        if control.optimizer_steps + 1 == steps:
            control.stop()
        control.step()


class Limited:
    """A loss for which no more than so many samples fit, as an accelerator tells it."""

    def __init__(self, most: int) -> None:
        self.most, self.asked = most, list[int]()

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        self.asked.append(len(batch[0]))
        loss = mean_loss(model, batch)
        if len(batch[0]) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        return loss


@pytest.mark.parametrize("fits", [1, 2, 3, 4, 5, 8, 9, 10, 19, 20, 31, 38, 39])
@pytest.mark.parametrize("most", [1, 2, 3, 7, 16, 31])
def test_the_search_ends_at_the_last_power_of_two_that_fits_with_a_quarter_more(
    fits: int, most: int
) -> None:
    powers = [2**k for k in range(1, 10) if 2**k < most]
    naive = [1] + [size for size in (*powers, most) if size + size // 4 <= fits]
    found = largest(lambda n: None if n <= fits else "too large", most=most)
    assert found.size == naive[-1]
    assert found.tried == (tuple(naive[1:]) or (1,))
    assert found.reason == ("too large" if naive[-1] < most else NEVER_LARGER)


NEVER_LARGER = "no step of this run needs a larger micro-batch"


def test_a_sample_that_does_not_fit_is_an_error_with_the_remedy() -> None:
    with pytest.raises(
        lb.LargeBatchError, match=r"one sample fits into memory: no room(.|\n)*limit"
    ):
        largest(lambda n: "no room", most=8)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("constant", [0, GB])
@pytest.mark.parametrize("a_sample", [1_000, 3_000_000])
def test_a_size_is_run_only_if_those_before_it_say_that_it_fits(
    power: int, constant: int, a_sample: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a memory of which everything is known; `constant` is what any size takes."""
    rest, ran = 2 * GB, list[int]()

    def needs(samples: int) -> int:
        return rest + constant + a_sample * samples**power

    def peak(work: Any) -> int:
        work()
        return needs(ran[-1])

    monkeypatch.setattr(size_search, "resident", lambda: rest)
    monkeypatch.setattr(size_search, "peak_of", peak)
    for limit in (4 * GB, 8 * GB, 20 * GB):
        ran.clear()
        found = largest(SizeTrials(ran.append, limit=limit, device=CPU), most=1_000_000)
        assert needs(max(ran)) <= limit
        twice = 2 * found.size + found.size // 2
        assert found.size == 1_000_000 or needs(twice) > limit - constant
        assert f"may hold only {limit / GB:.3g} GB" in found.reason or found.size == 1_000_000


def test_the_memory_that_a_process_takes_is_measured() -> None:
    def work() -> None:
        held = torch.ones(25_000_000)  # 100 MB
        held.add_(1.0)

    work()
    before = memory.resident()
    for _ in range(2):
        took = memory.peak_of(work) - before
        assert 0.9e8 < took < 1.3e8
    assert memory.peak_of(lambda: None) - before < 0.3e8
    left = memory.available()
    assert left is not None
    assert 0 < left < 2**50


def test_fitting_a_micro_batch_respects_a_memory_limit_in_bytes() -> None:
    """A sample takes 4 MB forward and as much again or more backward."""

    def heavy(model: nn.Module, batch: Any) -> Tensor:
        large = torch.ones(len(batch[0]), 1_000_000, requires_grad=True)
        return mean_loss(model, batch) + 0.0 * large.sum()

    control = control_of()
    limit = memory.resident() + 250_000_000
    found = lb.fit_micro_batch(control, heavy, memory_limit=limit)
    assert found.size in (4, 8, 16)
    assert "would need about" in found.reason
    assert "GB" in found.reason or "MB" in found.reason


def test_the_size_is_that_of_the_error_and_every_micro_batch_keeps_to_it() -> None:
    control, loss = control_of(), Limited(45)
    found = lb.fit_micro_batch(control, loss)
    assert (found.size, found.tried) == (32, (2, 4, 8, 16, 32))
    assert (
        str(found)
        == "The largest micro-batch that fits has 32 samples: 80 samples ran out of memory."
    )
    assert control.batches.max_micro_batch_size == 32
    sizes: list[int] = []
    go(control, steps=12, sizes=sizes)
    assert max(sizes) == 32
    assert control.batch_size > 64
    assert lb.fit_micro_batch(control, loss) == MicroBatchFit(
        size=32, reason="this size was found before"
    )


def test_no_larger_size_is_tried_than_the_run_can_need() -> None:
    def most(control: lb.Controller) -> int:
        loss = Limited(10**6)
        return lb.fit_micro_batch(control, loss).size

    assert most(control_of()) == 256  # the data set in two parts
    assert most(control_of(rule=lb.methods.adasgd(max=100))) == 50
    assert most(control_of(rule=lb.AdaScale())) == 16
    assert most(control_of(rule=lb.LinearScaling())) == 32  # nothing is measured
    assert most(control_of(examples=lb.PerExample())) == 512
    assert lb.fit_micro_batch(control_of(), Limited(10**6), most=64).size == 64


@pytest.mark.parametrize("call", [None, 1, 3, 5])
@pytest.mark.parametrize("steps", [0, 3])
def test_fitting_a_micro_batch_changes_no_bit_of_the_run(call: int | None, steps: int) -> None:
    ends = []
    for look in (False, True):
        torch.manual_seed(1), random.seed(1)
        control = control_of(Busy())
        control.batches.fit(16)
        if steps:
            go(control, steps=steps)
        for parameter in control.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        if look:
            control.batches._most = None  # to be found once more
            failing = Failing(call)
            if call is None:
                lb.fit_micro_batch(control, failing)
            else:
                with pytest.raises(RuntimeError, match="in the middle"):
                    lb.fit_micro_batch(control, failing)
            control.batches.fit(16)
        assert all(p.grad.eq(1.0).all() for p in control.model.parameters())  # type: ignore[union-attr]
        control.optimizer.zero_grad()
        go(control, steps=6)
        state = [control.model.state_dict(), control.optimizer.state_dict(), control.state_dict()]
        ends.append(copy.deepcopy([*state, random.getstate(), torch.get_rng_state()]))
    assert same(*ends)


def test_single_examples_are_measured_in_the_tries_by_hooks_that_are_gone_afterwards() -> None:
    rule = lb.methods.adasgd(eta=0.05, every=1)
    ends = []
    for look in (False, True):
        control = control_of(rule=rule, examples=lb.PerExample())
        if look:
            assert lb.fit_micro_batch(control, Limited(25)).size == 16
            assert not any(m._forward_hooks for m in control.model.modules())
        else:
            control.batches.fit(16)
        go(control, steps=5)
        ends.append([control.model.state_dict(), control.state_dict()])
    assert same(*ends)


@pytest.mark.parametrize("cut", [1, 2, 5, 9])
def test_a_resumed_run_keeps_the_size_and_ends_with_the_same_bits(cut: int) -> None:
    whole = control_of()
    lb.fit_micro_batch(whole, Limited(25))
    go(whole, steps=10)
    first = control_of()
    lb.fit_micro_batch(first, Limited(25))
    go(first, steps=cut)
    state = copy.deepcopy(
        [first.model.state_dict(), first.optimizer.state_dict(), first.state_dict()]
    )
    second = control_of()
    second.load_state_dict(state[2])
    assert lb.fit_micro_batch(second, Limited(400)).size == 16  # a larger machine keeps the cuts
    second.model.load_state_dict(state[0])
    second.optimizer.load_state_dict(state[1])
    go(second, steps=10)
    assert same(second.state_dict(), whole.state_dict())
    assert same(second.model.state_dict(), whole.model.state_dict())


def test_wrong_uses_are_refused_with_the_line_to_paste() -> None:
    loss = mean_loss
    with pytest.raises(ValueError, match='max_micro_batch_size="auto"'):
        lb.fit_micro_batch(control_of(most=16), loss)
    with pytest.raises(lb.LargeBatchError, match=r"lb\.fit_micro_batch\(control, lambda model"):
        go(control_of(), steps=1)
    for limit in (0, -5):
        with pytest.raises(ValueError, match=r"memory_limit=8 \* 10\*\*9"):
            lb.fit_micro_batch(control_of(), loss, memory_limit=limit)
    with pytest.raises(ValueError, match="most=512"):
        lb.fit_micro_batch(control_of(), loss, most=0)
    with pytest.raises(ValueError, match="did not return a scalar tensor"):
        lb.fit_micro_batch(control_of(), lambda m, b: mean_loss(m, b).detach())
    with pytest.raises(ValueError, match=r"given a Linear.* Build one: lb\.Controller"):
        lb.fit_micro_batch(nn.Linear(1, 1), loss)  # type: ignore[arg-type]
    for wrong in ("automatic", 0, 2.5):
        with pytest.raises(ValueError, match="max_micro_batch_size=64"):
            control_of(most=wrong)
    with pytest.raises(ValueError, match="Remove max_micro_batch_size"):
        lb.BatchLoader(iter([class_data(4)]), batch_size=4, max_micro_batch_size="auto")
    control = control_of()
    control.batches.fit(16)
    for _ in control.steps(samples=100):
        with pytest.raises(lb.LargeBatchError, match="while a step is in progress"):
            lb.fit_micro_batch(control, loss)
        break


def test_fitting_a_micro_batch_asks_for_a_limit_where_memory_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fit, "available", lambda: None)
    with pytest.raises(ValueError, match=r"memory_limit=8 \* 10\*\*9"):
        lb.fit_micro_batch(control_of(), mean_loss)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("you can't allocate memory: 9")])
def test_each_sign_of_a_full_memory_ends_the_search(error: Exception) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        if len(batch[0]) > 5:
            raise error
        return mean_loss(model, batch)

    assert lb.fit_micro_batch(control_of(), loss).size == 4


def test_running_out_of_memory_in_training_raises_an_error_with_the_remedy() -> None:
    control = control_of(most=16)

    class Full(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError) as caught:
        for batch in control.steps(samples=100):
            for x, y in batch:
                control.backward(Full.apply(mean_loss(control.model, (x, y))))
    (note,) = caught.value.__notes__
    assert "A micro-batch of 16 samples" in note
    assert "max_micro_batch_size=8" in note


def on_a_rank(case: str) -> tuple[Any, Any]:
    control = control_of(rule=lb.methods.adasgd(eta=0.05, every=2))
    fits = 100 if dist.get_rank() == 0 else 25
    loss: Any = Limited(0 if case == "one has no room" and dist.get_rank() == 1 else fits)
    try:
        found = lb.fit_micro_batch(control, loss)
    except lb.LargeBatchError as error:
        return str(error), None
    sizes: list[int] = []
    go(control, steps=8, sizes=sizes)
    return found.size, (max(sizes), control.batches.max_micro_batch_size)


@pytest.mark.distributed
def test_all_ranks_take_the_least_of_what_fits_on_any() -> None:
    assert run_on_ranks(on_a_rank, 2, "both fit") == [(16, (16, 16)), (16, (16, 16))]


@pytest.mark.distributed
def test_a_rank_on_which_nothing_fits_stops_all() -> None:
    first, second = run_on_ranks(on_a_rank, 2, "one has no room")
    assert "on rank 1" in first[0]
    assert "Not even one sample fits" in first[0]
    assert "Not even one sample fits" in second[0]


def test_train_fits_the_micro_batch_reports_the_size_and_resumes_with_the_same_size(
    tmp_path: Path,
) -> None:
    said: list[Any] = []
    options: dict[str, Any] = {"method": "adasgd", "budget": "2ep", "evaluations": 1}
    options |= {"checkpoint": tmp_path, "max_micro_batch_size": "auto"}
    train("digits", progress=said.append, **options)
    assert "The largest micro-batch that fits has 536 samples" in str(
        said[0]
    )  # the data set in two parts
    state = lb.Checkpoints(tmp_path).load().state["control"]["batches"]
    assert state["max_micro_batch_size"] == 536
    train("digits", progress=said.append, resume=True, **options)
    assert "this size was found before" in str(said)
    with pytest.raises(lb.errors.CheckpointError, match="max_micro_batch_size"):
        train("digits", resume=True, **{**options, "max_micro_batch_size": 8})
    with pytest.raises(ValueError, match="Pass max_micro_batch_size=64"):
        train("digits", max_micro_batch_size="all")


def test_memory_that_ends_in_a_command_is_one_line_with_the_option() -> None:
    workload = replace(load("digits"), loss=lambda model, batch: Limited(4)(model, batch))
    with pytest.raises(
        lb.LargeBatchError, match=r"max_micro_batch_size=8\. The value 'auto' finds"
    ):
        train(workload, method="linear", budget="64")
