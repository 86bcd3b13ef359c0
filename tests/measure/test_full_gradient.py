"""The full gradient is that of the mean loss over all samples, and its pass leaves no trace."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, TensorDataset

import largebatch as lb
from distributed import run_on_ranks
from largebatch.core.errors import LargeBatchError
from largebatch.measure.full_gradient import FullGradient
from largebatch.measure.parameters import Parameters
from largebatch.measure.ranks import Ranks
from small_runs import adamw, data, loss_of, sgd, small_model

DATA = data(53)


def loss(model: nn.Module, batch: Any) -> Tensor:
    return loss_of(model, *batch)


def naive(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """|grad f|^2 in float64 from each sample's own gradient, one after the other."""
    model = copy.deepcopy(model).double()
    total = [torch.zeros_like(p) for p in model.parameters()]
    for row in range(len(x)):
        model.zero_grad()
        loss_of(model, x[row : row + 1].double(), y[row : row + 1].double()).backward()
        for sum_, p in zip(total, model.parameters(), strict=True):
            assert p.grad is not None
            sum_ += p.grad / len(x)
    return sum(float(t.square().sum()) for t in total)


def sqnorm(full: FullGradient, model: nn.Module) -> float:
    return full.sqnorm(model, Parameters.of(model, sgd(model)), Ranks())


class Pairs(Dataset[Any]):
    def __len__(self) -> int:
        return len(DATA[0])

    def __getitem__(self, index: int) -> Any:
        return DATA[0][index], DATA[1][index]


@pytest.mark.parametrize("dataset", [DATA, TensorDataset(*DATA), Pairs()], ids=type)
@pytest.mark.parametrize("most", [1, 7, 52, 53, 1000])
def test_the_full_gradient_is_the_mean_of_all_samples_gradients(dataset: Any, most: int) -> None:
    model = small_model()
    full = FullGradient(dataset, loss, micro_batch_size=most)
    assert full.samples == 53
    assert sqnorm(full, model) == pytest.approx(naive(model, *DATA), rel=1e-5)


def test_frozen_and_unused_parameters_do_not_count() -> None:
    model = small_model()
    model[0].requires_grad_(False)
    model.add_module("unused", nn.Linear(2, 2))
    parameters = Parameters.of(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def without(model: nn.Module, batch: Any) -> Tensor:
        return loss_of(nn.Sequential(*list(model.children())[:3]), *batch)

    found = FullGradient(DATA, without).sqnorm(model, parameters, Ranks())
    out = without(model, DATA)
    gradients = torch.autograd.grad(out, list(model[2].parameters()))
    assert found == pytest.approx(sum(float(g.square().sum()) for g in gradients), rel=1e-5)


class Busy(nn.Module):
    """Draws, normalizes, and has buffers that a forward changes in place and by a new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 1)
        )
        self.still = nn.BatchNorm1d(3).eval()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1.0
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        random.random(), np.random.rand()
        out: Tensor = self.body(self.still(x))
        return out


def everything(model: nn.Module) -> list[Any]:
    tensors = [*model.parameters(), *model.buffers()]
    return [
        [t.detach().clone() for t in tensors],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [module.training for module in model.modules()],
        torch.get_rng_state(),
        random.getstate(),
        tuple(map(str, np.random.get_state())),
    ]


def busy() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Busy()


@pytest.mark.parametrize("fails", [False, True])
def test_a_pass_leaves_every_bit_as_it_was(fails: bool) -> None:
    model = busy()
    loss(model, DATA).backward()
    before, held = everything(model), [p.grad for p in model.parameters()]
    buffers = [id(buffer) for buffer in model.buffers()]
    calls = 0

    def counted(model: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if fails and calls == 3:
            model.eval()
            raise RuntimeError("in the middle")
        return loss(model, batch)

    full = FullGradient(DATA, counted, micro_batch_size=10)
    if fails:
        with pytest.raises(RuntimeError, match="in the middle"):
            sqnorm(full, model)
    else:
        assert sqnorm(full, model) == sqnorm(full, model), "the same draws in each pass"
    assert str(everything(model)) == str(before)
    for now, then in zip(everything(model)[0], before[0], strict=True):
        assert torch.equal(now, then)
    assert all(p.grad is g for p, g in zip(model.parameters(), held, strict=True))
    assert [id(buffer) for buffer in model.buffers()] == buffers


def test_no_micro_batch_is_a_single_left_over_sample() -> None:
    sizes: list[int] = []

    def counted(model: nn.Module, batch: Any) -> Tensor:
        sizes.append(len(batch[0]))
        return loss(model, batch)

    sqnorm(FullGradient(DATA, counted, micro_batch_size=52), busy())
    assert sizes == [26, 27]


METERS: dict[str, Any] = {
    "leaf hooks": {},
    "detached": {"tap": lb.measure.Detached},
    "flat": {"tap": lb.measure.Flat},
    "examples": {"examples": lb.PerExample},
}


def run_of(
    meter: str, statistics: tuple[str, ...], *, optimize: Any = sgd, every: int = 2
) -> tuple[nn.Module, Any]:
    """Ten steps that measure these statistics; the model and its steps."""
    model = small_model()
    more = {name: build() for name, build in METERS[meter].items()}
    full = FullGradient(DATA, loss, micro_batch_size=10)
    record = lb.MemoryRecord()
    control = lb.Controller(
        model,
        optimize(model),
        lb.Every(lb.Observe(statistics=statistics), steps=every),
        lb.BatchLoader(DATA, batch_size=8, max_micro_batch_size=4, seed=1),
        base_batch_size=8,
        meter=lb.Meter(model, full=full, **more),
        record=record,
    )
    for batch in control.steps(steps=10):
        for x, y in batch:
            control.backward(loss_of(model, x, y))
        before = copy.deepcopy(model)
        control.step()
        seen = record.steps[-1][0]
        asked = "full_sqnorm" in statistics and seen.step > 0 and seen.step % every == 0
        assert seen.extra_samples == (53 if asked else 0)
        assert (seen.full_sqnorm is not None) == asked
        if asked:
            assert seen.full_sqnorm == pytest.approx(naive(before, *DATA), rel=1e-5)
    return model, record.steps


@pytest.mark.parametrize("meter", METERS)
@pytest.mark.parametrize("optimize", [sgd, adamw])
def test_measuring_the_full_gradient_changes_no_bit_of_a_run(meter: str, optimize: Any) -> None:
    model, steps = run_of(meter, ("moments",), optimize=optimize)
    also, there = run_of(meter, ("moments", "full_sqnorm"), optimize=optimize)
    assert all(map(torch.equal, model.state_dict().values(), also.state_dict().values()))
    for (seen, _), (same, _) in zip(steps, there, strict=True):
        assert seen.moments == same.moments
        assert seen.batch_sqnorm == same.batch_sqnorm


def test_the_hooks_of_the_meter_do_not_see_a_pass_taken_while_they_wait() -> None:
    model = small_model()
    calls: list[int] = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: calls.append(1))
    sqnorm(FullGradient(DATA, loss), model)
    assert calls == []


def test_the_full_gradient_is_measured_under_attach_too() -> None:
    model, record = small_model(), lb.MemoryRecord()
    optimizer = sgd(model)
    lb.attach(
        model,
        optimizer,
        lb.Observe(statistics=("full_sqnorm",)),
        batch_size=8,
        base_batch_size=8,
        meter=lb.Meter(model, full=lb.FullGradient(DATA, loss)),
        record=record,
    )
    for _ in range(3):
        before = copy.deepcopy(model)
        loss(model, (DATA[0][:8], DATA[1][:8])).backward()
        optimizer.step()
        optimizer.zero_grad()
    seen = record.steps[-1][0]
    assert seen.full_sqnorm == pytest.approx(naive(before, *DATA), rel=1e-5)
    assert [s.extra_samples for s, _ in record.steps] == [0, 53, 53]


def on_ranks() -> list[Any]:
    """The norm of a model that draws and normalizes, and what DDP's reducer and the run saw."""
    model = DistributedDataParallel(busy())
    optimizer, record = sgd(model), lb.MemoryRecord()
    control = lb.Controller(
        model,
        optimizer,
        lb.Observe(statistics=("full_sqnorm",)),
        lb.BatchLoader(DATA, batch_size=8, max_micro_batch_size=4, seed=1),
        base_batch_size=8,
        meter=lb.Meter(model, full=lb.FullGradient(DATA, loss, micro_batch_size=10)),
        record=record,
    )
    for batch in control.steps(steps=3):
        for x, y in batch:
            control.backward(loss_of(model, x, y))
        control.step()
    fresh = busy()
    full = FullGradient(DATA, loss, micro_batch_size=10)
    alone = full.sqnorm(fresh, Parameters.of(fresh, sgd(fresh)), Ranks())
    return [alone, [s.full_sqnorm for s, _ in record.steps], [s.extra_samples for s, _ in
            record.steps], [p.tolist() for p in model.parameters()]]  # fmt: skip


@pytest.mark.distributed
def test_two_processes_share_the_full_pass_and_find_the_norm_of_one_process() -> None:
    first, second = run_on_ranks(on_ranks, 2)
    assert (first[0], first[3]) == (second[0], second[3]), "the same bits"
    assert second[1] == [], "the first rank records"
    alone = sqnorm(FullGradient(DATA, loss, micro_batch_size=10), busy())
    assert first[0] == pytest.approx(alone, rel=1e-6)
    assert first[1][0] is None
    assert all(norm > 0.0 for norm in first[1][1:])
    assert first[2] == [0, 53, 53]


@pytest.mark.parametrize(
    ("dataset", "more"),
    [
        ((), {}),
        (torch.zeros(0, 3), {}),
        ((torch.zeros(0, 3), torch.zeros(0)), {}),
        (iter([1]), {}),
        (DATA, {"micro_batch_size": 0}),
        (DATA, {"loss": "mse"}),
    ],
)
def test_a_full_pass_over_data_that_cannot_be_repeated_is_refused(dataset: Any, more: Any) -> None:
    with pytest.raises(ValueError, match=r"lb\.FullGradient\("):
        FullGradient(dataset, **{"loss": loss, **more})


def test_a_loss_that_is_no_mean_of_the_model_is_refused() -> None:
    for wrong in (
        lambda model, batch: (model(batch[0]) - batch[1]).square(),
        lambda model, batch: loss(model, batch).item(),
        lambda model, batch: loss(model, batch).detach(),
    ):
        with pytest.raises(ValueError, match="did not return a scalar with a graph"):
            sqnorm(FullGradient(DATA, wrong), small_model())
    other = small_model(1)
    with pytest.raises(LargeBatchError, match="No parameter of the optimizer got a gradient"):
        sqnorm(FullGradient(DATA, lambda model, batch: loss(other, batch)), small_model())


def test_a_rule_that_needs_it_is_refused_without_the_data_with_a_line_that_works() -> None:
    model = small_model()
    batches = lb.BatchLoader(DATA, batch_size=8)
    rule = lb.rules.FullGradientGrowth()
    with pytest.raises(ValueError, match="FullGradientGrowth needs 'full_sqnorm'") as refused:
        lb.Controller(model, sgd(model), rule, batches, base_batch_size=8)
    line = str(refused.value).partition("meter=")[2].partition(". A method")[0]
    loss_fn = nn.functional.mse_loss
    meter = eval(line, {"lb": lb, "model": model, "dataset": DATA, "loss_fn": loss_fn})
    lb.Controller(
        model, sgd(model), rule, lb.BatchLoader(DATA, batch_size=1), base_batch_size=1, meter=meter
    )


def test_a_step_that_is_lost_has_no_pass() -> None:
    model, record = small_model(), lb.MemoryRecord()
    control = lb.Controller(
        model,
        sgd(model),
        lb.Observe(statistics=("full_sqnorm",)),
        lb.BatchLoader(DATA, batch_size=8),
        base_batch_size=8,
        meter=lb.Meter(model, full=lb.FullGradient(DATA, loss)),
        record=record,
    )
    for at, batch in enumerate(control.steps(steps=3)):
        for x, y in batch:
            control.backward(loss_of(model, x, y) * (math.nan if at == 1 else 1.0))
        control.step()
    assert [s.extra_samples for s, _ in record.steps] == [0, 0, 53, 53]
