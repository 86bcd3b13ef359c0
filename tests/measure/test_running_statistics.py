"""The running statistics of a skipped step are restored, whatever layer keeps them."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import spectral_norm

import largebatch as lb
from distributed import run_on_ranks
from largebatch.measure.running_statistics import LIMIT, RunningStatistics

NAN = float("nan")


class OwnAverage(nn.Module):
    """Keeps a moving average of its input, in place or as a new tensor."""

    average: Tensor

    def __init__(self, *, assigns: bool, size: int = 4) -> None:
        super().__init__()
        self.assigns = assigns
        self.register_buffer("average", torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            mean = x.mean()
            if self.assigns:
                self.average = 0.9 * self.average + 0.1 * mean
            else:
                self.average.mul_(0.9).add_(0.1 * mean)
        return x


MODELS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm1d": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
    "BatchNorm2d": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, momentum=None),
        nn.Flatten(), nn.Linear(8, 1),
    ),
    "InstanceNorm": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, track_running_stats=True),
        nn.Flatten(), nn.Linear(4, 1),
    ),
    "spectral_norm": lambda: nn.Sequential(
        nn.BatchNorm1d(4), spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 1)
    ),
    "old spectral_norm": lambda: nn.Sequential(
        nn.utils.spectral_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4), nn.Linear(4, 1)
    ),
    "in place": lambda: nn.Sequential(OwnAverage(assigns=False), nn.Linear(4, 1)),
    "assigned": lambda: nn.Sequential(OwnAverage(assigns=True), nn.Linear(4, 1)),
}  # fmt: skip


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_buffers()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def data(*, lost: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(96, 4, generator=generator), torch.randn(96, 1, generator=generator)
    x[32 * lost + 20] = NAN
    return x, y


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().mean()


def with_attach(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> list[dict[str, Tensor]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    control = lb.attach(
        model, optimizer, lb.AdaScale(), batch_size=32, base_batch_size=16, **options
    )
    seen = []
    for at in range(0, 96, 32):
        for part in (at, at + 16):
            (loss_of(model, x[part : part + 16], y[part : part + 16]) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(buffers(model))
    assert control.skipped == 1
    control.close()
    return seen


def with_controller(model: nn.Module, x: Tensor, y: Tensor) -> list[dict[str, Tensor]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batches = lb.BatchLoader((x, y), batch_size=32, max_micro_batch_size=16, shuffle=False)
    control = lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=16)
    seen = []
    for batch in control.steps(steps=2, epochs=None):
        for a, b in batch:
            control.backward(loss_of(model, a, b))
        control.step()
        seen.append(buffers(model))
    assert control.skipped == 1
    return seen


DOORS = [with_attach, with_controller]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", MODELS)
def test_a_skipped_step_leaves_the_buffers_as_the_step_before_did(
    name: str, door: Callable[..., list[dict[str, Tensor]]]
) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    after_first, after_lost, after_last = door(model, *data(lost=1))
    assert same(after_first, after_lost)
    assert not same(after_lost, after_last)
    assert all(tensor.isfinite().all() for tensor in after_last.values())
    assert model(torch.randn(8, 4)).isfinite().all()


@pytest.mark.parametrize("door", DOORS)
def test_a_run_with_a_skipped_step_equals_one_that_never_saw_its_data(
    door: Callable[..., list[dict[str, Tensor]]],
) -> None:
    torch.manual_seed(0)
    model = MODELS["BatchNorm1d"]()
    twin = copy.deepcopy(model)
    x, y = data(lost=1)
    lost = door(model, x, y)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.0)
    for at in (0, 16):
        loss_of(twin, x[at : at + 16], y[at : at + 16]).backward()
    optimizer.step()
    torch.testing.assert_close(lost[1], buffers(twin))


def test_what_is_loaded_between_two_steps_stays() -> None:
    torch.manual_seed(0)
    model = MODELS["BatchNorm1d"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    control = lb.attach(model, optimizer, lb.AdaScale(), batch_size=8, base_batch_size=4)
    state = {name: torch.full_like(t, 3) for name, t in model.state_dict().items()}
    for step, assign in enumerate((None, False, True)):
        if assign is not None:
            model.load_state_dict(copy.deepcopy(state), assign=False)
            for name, tensor in model[1].named_buffers() if assign else ():
                model[1]._buffers[name] = tensor.clone()
        for _ in range(2):
            loss = loss_of(model, torch.randn(4, 4), torch.zeros(4, 1)) / 2
            (loss if step == 0 else loss * NAN).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step:
            assert (model[1].running_mean == 3.0).all()
            assert model[1].num_batches_tracked == 3
    assert control.skipped == 2


def test_forwards_that_do_not_train_are_not_where_a_step_begins() -> None:
    torch.manual_seed(0)
    model = nn.BatchNorm1d(2)
    statistics = RunningStatistics(model)
    statistics.open()
    model(torch.randn(8, 2))
    statistics.open()
    with torch.no_grad():
        model(torch.randn(8, 2))  # as torch.optim.swa_utils.update_bn does
    before = buffers(model)
    model(torch.full((8, 2), NAN))
    statistics.restore()
    assert same(buffers(model), before)


def test_submodules_that_are_called_directly_are_saved_when_the_step_begins() -> None:
    torch.manual_seed(0)
    model = MODELS["BatchNorm1d"]()
    statistics = RunningStatistics(model)
    for _ in range(3):
        statistics.open()
        before = buffers(model)
        model[1](torch.randn(8, 4))
    statistics.restore()
    assert same(buffers(model), before)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
@pytest.mark.parametrize("compiled_first", [True, False])
def test_a_compiled_model_is_restored_and_its_graph_stays_whole(compiled_first: bool) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = MODELS["BatchNorm1d"]()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    if compiled_first:
        compiled(torch.randn(8, 4))
    for outer in (model, compiled):
        statistics = RunningStatistics(outer)
        for _ in range(2):
            statistics.open()
            before = buffers(model)
            compiled(torch.randn(8, 4))
        statistics.restore()
        assert same(buffers(model), before)
        statistics.close()


def test_saving_takes_one_launch_for_each_type_and_no_host_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(*[nn.BatchNorm1d(4) for _ in range(20)])
    statistics = RunningStatistics(model)
    calls: list[int] = []
    copy_ = torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda a, b: calls.append(len(a)) or copy_(a, b))
    statistics.open()
    model(torch.randn(8, 4))
    calls.clear()
    statistics.open()
    statistics.open()  # a second one without a forward between
    calls.clear()
    model(torch.randn(8, 4))
    model(torch.randn(8, 4))
    assert sorted(calls) == [20, 40]
    meta = nn.BatchNorm1d(4, device="meta")
    reads = RunningStatistics(meta)  # reading a value of the meta device raises
    reads.open()
    reads.save()


def test_a_large_buffer_that_changed_is_named_once_and_a_constant_one_never() -> None:
    large = OwnAverage(assigns=False, size=LIMIT // 4 + 1)
    model = nn.Sequential(nn.BatchNorm1d(4), large, nn.Linear(4, 1))
    model.register_buffer("mask", torch.zeros(LIMIT + 1, dtype=torch.bool))
    statistics = RunningStatistics(model)
    statistics.open()
    model(torch.randn(8, 4))
    with pytest.warns(UserWarning, match=r"changed the buffers 1\.average\."):
        statistics.restore()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        statistics.open()
        model(torch.randn(8, 4))
        statistics.restore()


def test_after_a_step_that_only_the_loss_scale_broke_finite_statistics_stay() -> None:
    model = nn.BatchNorm1d(4)
    statistics = RunningStatistics(model)
    statistics.open()
    model(torch.randn(8, 4))
    after = buffers(model)
    statistics.repair()
    assert same(buffers(model), after)
    statistics.open()
    model(torch.full((8, 4), NAN))
    statistics.repair()
    assert same(buffers(model), after)


@pytest.mark.parametrize("broken", ["scale", "data"])
def test_a_step_that_the_scaler_skips_under_attach(broken: str) -> None:
    torch.manual_seed(0)
    model = MODELS["BatchNorm1d"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    control = lb.attach(
        model, optimizer, lb.AdaScale(), batch_size=8, base_batch_size=4, scaler=scaler
    )
    for step in range(2):
        before = buffers(model)
        for _ in range(2):
            x = torch.randn(4, 4) * (NAN if step and broken == "data" else 1.0)
            loss = scaler.scale(loss_of(model, x, torch.zeros(4, 1)) / 2)
            (loss * (float("inf") if step and broken == "scale" else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        control.advance()
    assert control.skipped == 1
    assert same(buffers(model), before) == (broken == "data")
    assert all(tensor.isfinite().all() for tensor in buffers(model).values())


def test_a_copied_or_saved_model_has_the_hook_without_its_effect() -> None:
    model = MODELS["BatchNorm1d"]()
    statistics = RunningStatistics(model)
    statistics.open()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(torch.full((8, 4), NAN))
    statistics.close()
    assert not model._forward_pre_hooks


def test_a_model_without_buffers_gets_no_hook() -> None:
    model = nn.Linear(4, 1)
    RunningStatistics(model).open()
    assert not model._forward_pre_hooks


def on_one_rank(door: str) -> tuple[list[dict[str, Any]], bool]:
    rank = dist.get_rank()
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), OwnAverage(assigns=False))
    bare.append(nn.Linear(4, 1))
    model = DistributedDataParallel(bare)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = data(lost=1)
    x[32 + 20] = 0.0
    seen = []
    if door == "attach":
        if rank == 1:
            x[32 + 24] = NAN
        control: Any = lb.attach(model, optimizer, lb.AdaScale(), batch_size=32, base_batch_size=16)
        for at in range(0, 96, 32):
            for part in (at + 16 * rank, at + 16 * rank + 8):
                (loss_of(model, x[part : part + 8], y[part : part + 8]) / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(buffers(bare))
    else:
        batches = lb.BatchLoader((x, y), batch_size=32, max_micro_batch_size=8, shuffle=False)
        control = lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=16)
        for batch in control.steps(steps=2):
            for a, b in batch:
                if rank == 1 and control.samples == 32:
                    a = a * NAN
                control.backward(loss_of(model, a, b))
            control.step()
            seen.append(buffers(bare))
    plain = [{name: tensor.tolist() for name, tensor in each.items()} for each in seen]
    return plain, control.skipped == 1


@pytest.mark.parametrize("door", ["attach", "controller"])
def test_one_ranks_skipped_step_leaves_all_ranks_with_equal_finite_buffers(door: str) -> None:
    (first, skipped), (second, also) = run_on_ranks(on_one_rank, 2, door)
    assert skipped
    assert also
    assert first[1] == second[1]
    assert first[0] == first[1]  # what DDP took from the first rank
    for seen in (*first, *second):
        assert all(torch.tensor(values).isfinite().all() for values in seen.values())


def test_synchronised_batch_norm_is_a_known_layer() -> None:
    norm = nn.SyncBatchNorm(4)  # its own forward needs an accelerator
    wide = torch.zeros(LIMIT + 1, dtype=torch.bool)
    norm.register_buffer("own", wide)
    before = buffers(norm)
    statistics = RunningStatistics(norm)
    statistics.open()
    assert norm.running_mean is not None
    norm.running_mean.fill_(NAN)
    statistics.restore()
    assert same(buffers(norm), before)
