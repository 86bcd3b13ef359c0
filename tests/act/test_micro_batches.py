"""Each micro-batch is seen exactly once, or the optimizer does not move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from largebatch.act.controller import Controller
from largebatch.act.loader import BatchLoader
from largebatch.act.micro_batches import MicroBatches
from largebatch.core.errors import MicroBatchMissed
from largebatch.core.rule import chain
from small_runs import data, loss_of, sgd, small_model, weights


def controller() -> Controller:
    model = small_model()
    batches = BatchLoader(data(), batch_size=12, max_micro_batch_size=4)
    return Controller(model, sgd(model), chain(), batches, base_batch_size=4)


def lists(control: Controller, batch: MicroBatches) -> None:
    for x, y in list(batch):
        control.backward(loss_of(control.model, x, y))
    control.step()


def prefetches(control: Controller, batch: MicroBatches) -> None:
    micro_batches = iter(batch)
    ahead = next(micro_batches)
    for following in micro_batches:
        control.backward(loss_of(control.model, *ahead))
        ahead = following


def skips_one(control: Controller, batch: MicroBatches) -> None:
    for at, (x, y) in enumerate(batch):
        if at != 1:
            control.backward(loss_of(control.model, x, y))
    control.step()


def skips_the_last(control: Controller, batch: MicroBatches) -> None:
    for at, (x, y) in enumerate(batch):
        if at != 2:
            control.backward(loss_of(control.model, x, y))
    control.step()


def goes_backward_twice(control: Controller, batch: MicroBatches) -> None:
    for x, y in batch:
        control.backward(loss_of(control.model, x, y))
        control.backward(loss_of(control.model, x, y))


def goes_backward_after_the_loop(control: Controller, batch: MicroBatches) -> None:
    for x, y in batch:
        loss = loss_of(control.model, x, y)
        control.backward(loss)
    control.backward(loss)


def steps_before_all(control: Controller, batch: MicroBatches) -> None:
    for x, y in batch:
        control.backward(loss_of(control.model, x, y))
        control.step()


def measures_before_all(control: Controller, batch: MicroBatches) -> None:
    for x, y in batch:
        control.backward(loss_of(control.model, x, y))
        control.measure()


def steps_without_the_loop(control: Controller, batch: MicroBatches) -> None:
    control.step()


def does_not_step(control: Controller, batch: MicroBatches) -> None:
    for x, y in batch:
        control.backward(loss_of(control.model, x, y))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lists, "Micro-batch 1 of 3 had no control"),
        (prefetches, "Micro-batch 1 of 3 had no control"),
        (skips_one, "Micro-batch 2 of 3 had no control"),
        (skips_the_last, "Micro-batch 3 of 3 had no control"),
        (goes_backward_twice, r"control\.backward\(loss_a \+ loss_b\)"),
        (goes_backward_after_the_loop, "outside the loop over the micro-batches"),
        (steps_before_all, "after 1 of 3 micro-batches"),
        (measures_before_all, "after 1 of 3 micro-batches"),
        (steps_without_the_loop, "after 0 of 3 micro-batches"),
        (does_not_step, r"next step before control\.step\(\)"),
    ],
)
def test_a_micro_batch_not_seen_exactly_once_is_refused_before_a_weight_moves(
    wrong: Callable[[Controller, MicroBatches], None], message: str
) -> None:
    control = controller()

    def run() -> None:
        for batch in control.steps(samples=36):
            wrong(control, batch)

    with pytest.raises(MicroBatchMissed, match=message):
        run()
    for a, b in zip(weights(control.model), weights(small_model()), strict=True):
        assert torch.equal(a, b)
    assert (control.samples, control.batches.position) == (0, 0)
    assert all(p.grad is None for p in control.model.parameters())


def test_a_second_step_on_one_batch_is_refused() -> None:
    control = controller()
    for batch in control.steps(steps=1):
        for x, y in batch:
            control.backward(loss_of(control.model, x, y))
        control.step()
        with pytest.raises(MicroBatchMissed, match="No step is in progress"):
            control.step()
    assert control.optimizer_steps == 1


def test_backward_and_step_outside_a_run_are_refused() -> None:
    control = controller()
    with pytest.raises(MicroBatchMissed, match=r"for batch in control\.steps\(samples=\.\.\.\)"):
        control.backward(loss_of(control.model, *data()))
    with pytest.raises(MicroBatchMissed, match="No step is in progress"):
        control.step()


def test_a_step_may_be_taken_inside_the_loop_over_its_last_micro_batch() -> None:
    control, twin = controller(), controller()
    for batch in control.steps(steps=2):
        for x, y in batch:
            last = batch.last
            control.backward(loss_of(control.model, x, y))
            if last:
                control.step()
    for batch in twin.steps(steps=2):
        for x, y in batch:
            twin.backward(loss_of(twin.model, x, y))
        twin.step()
    for a, b in zip(weights(control.model), weights(twin.model), strict=True):
        assert torch.equal(a, b)


def test_a_step_says_its_samples_and_its_micro_batches() -> None:
    control = controller()
    for batch in control.steps(samples=11):
        assert (batch.batch_size, batch.accumulation) == (11, 3)
        sizes = []
        for x, y in batch:
            sizes.append((len(x), batch.size, batch.last))
            control.backward(loss_of(control.model, x, y))
        assert sizes == [(4, 4, False), (4, 4, False), (3, 3, True)]
        control.step()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_replicas_are_synchronised_in_the_last_micro_batch_alone() -> None:
    model = DistributedDataParallel(small_model())
    batches = BatchLoader(data(), batch_size=12, max_micro_batch_size=4)
    control = Controller(model, sgd(model), chain(), batches, base_batch_size=4)
    flags = []
    for batch in control.steps(steps=2):
        for x, y in batch:
            loss = loss_of(model, x, y)
            flags.append(model.require_backward_grad_sync)
            control.backward(loss)
        assert model.require_backward_grad_sync
        control.step()
    assert flags == [False, False, True] * 2
