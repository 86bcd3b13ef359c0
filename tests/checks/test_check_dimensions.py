"""A check tells the dimension of the samples from the one that is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from runs_with_faults import alarms
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import largebatch as lb
from largebatch.checks.finding import CheckUp
from largebatch.checks.samples import cut, leading_shape, repeated

TIME, BATCH = 50, 8

Loss = Callable[[nn.Module, Any], Tensor]


class Recurrent(nn.Module):
    """Of `[T, B, 3]`, the last step alone or every step, in torch's default layout or with the
    samples first."""

    def __init__(self, *, every: bool = False, batch_first: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.RNN(3, 5, batch_first=batch_first)
        self.out = nn.Linear(5, 1)
        self.every, self.batch_first = every, batch_first

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.cell(x)[0]
        if not self.every:
            hidden = hidden[:, -1] if self.batch_first else hidden[-1]
        out: Tensor = self.out(hidden).squeeze(-1)
        return out


class Batches(IterableDataset[Any]):
    """Ready batches, as `make` draws them."""

    def __init__(self, make: Callable[[torch.Generator], Any]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(40):
            yield self.make(generator)


def one_target(generator: torch.Generator) -> Any:
    x = torch.randn(TIME, BATCH, 3, generator=generator)
    return x, x.mean(0).sum(1)


def target_of_each_step(generator: torch.Generator) -> Any:
    x = torch.randn(TIME, BATCH, 3, generator=generator)
    return {"text": ["a"] * BATCH, "x": x, "y": x.sum(2).roll(1, 0)}


def samples_first(generator: torch.Generator) -> Any:
    x = torch.randn(BATCH, TIME, 3, generator=generator)
    return x, x.mean(1).sum(1)


def tokens(generator: torch.Generator | None) -> Any:
    x = torch.randn(16, 10, 3, generator=generator)
    return x, x.sum(2, keepdim=True)


def summed_over_samples(model: nn.Module, batch: Any) -> Tensor:
    return mse_loss(model(batch[0]), batch[1], reduction="none").mean(1).sum()


def of_pair(model: nn.Module, batch: Any) -> Tensor:
    return mse_loss(model(batch[0]), batch[1])


def of_mapping(model: nn.Module, batch: Any) -> Tensor:
    return mse_loss(model(batch["x"]), batch["y"])


def checked(
    model: nn.Module, make: Callable[[torch.Generator], Any], loss: Loss, **options: Any
) -> CheckUp:
    loader = DataLoader(Batches(make), batch_size=None)
    batches = lb.BatchLoader(loader, batch_size=64, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    control = lb.Controller(model, optimizer, lb.LinearScaling(), batches, base_batch_size=8)
    return lb.check(control, loss, seconds=0)


def dimension_findings(found: CheckUp) -> list[Any]:
    return [finding for finding in found.findings if finding.name == "first dimension"]


def test_time_steps_that_are_counted_as_samples_are_named() -> None:
    (finding,) = dimension_findings(checked(Recurrent(), one_target, of_pair))
    assert finding.level == "warning"
    assert "counts 50 samples" in finding.seen
    assert "first dimension" in finding.seen
    assert "probably has 8 samples" in finding.seen
    assert "size_of=lambda batch: batch[0].shape[1]" in finding.remedy


def test_they_are_named_if_every_step_has_a_target() -> None:
    (finding,) = dimension_findings(checked(Recurrent(every=True), target_of_each_step, of_mapping))
    assert "mean over the second dimension" in finding.seen
    assert "size_of=lambda batch: batch['x'].shape[1]" in finding.remedy


def test_the_remedy_is_enough() -> None:
    found = checked(Recurrent(), one_target, of_pair, size_of=lambda batch: batch[0].shape[1])
    assert alarms(found) == []


@pytest.mark.parametrize("every", [False, True])
def test_samples_in_the_first_dimension_have_no_alarm(every: bool) -> None:
    model = Recurrent(every=every, batch_first=True)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return mse_loss(model(x), y[:, None].expand(-1, x.shape[1]) if every else y)

    assert alarms(checked(model, samples_first, loss)) == []


def test_a_model_of_single_tokens_has_no_alarm_in_either_layout() -> None:
    torch.manual_seed(0)
    assert alarms(checked(nn.Linear(3, 1), tokens, of_pair)) == []


def test_a_loss_that_is_coupled_over_the_samples_is_not_taken_for_another_layout() -> None:
    def coupled(model: nn.Module, batch: Any) -> Tensor:
        views = model(batch[0][:, 0]), model(batch[0][:, 1])
        return cross_entropy(views[0] @ views[1].T, torch.arange(len(batch[0])))

    def pairs(generator: torch.Generator) -> Any:
        return (torch.randn(16, 2, 3, generator=generator),)

    torch.manual_seed(0)
    found = checked(nn.Linear(3, 4), pairs, coupled)
    assert dimension_findings(found) == []
    assert alarms(found) == ["mean loss"]


def test_a_sum_over_the_samples_is_called_a_sum() -> None:
    torch.manual_seed(0)
    found = checked(nn.Linear(3, 1), tokens, summed_over_samples)
    assert dimension_findings(found) == []
    assert any("it is a sum" in finding.seen for finding in found.findings)


class Normalized(Recurrent):
    """Batches are coupled by the loss, so it can be cut along no dimension."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out / out.square().mean().sqrt()


def test_the_models_output_tells_where_the_loss_cannot() -> None:
    (finding,) = dimension_findings(checked(Normalized(), one_target, of_pair))
    assert "the model's output has the length 8" in finding.seen


def test_the_loaders_batch_size_tells_where_the_model_cannot() -> None:
    class Whole(Normalized):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[None]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return mse_loss(model(batch[0])[0], batch[1])

    def time_first(items: list[Any]) -> Any:
        x, y = zip(*items, strict=True)
        return torch.stack(x, 1), torch.stack(y)

    torch.manual_seed(0)
    x = torch.randn(64, TIME, 3)
    data = TensorDataset(x, x.mean(1).sum(1))
    model = Whole()
    loader = DataLoader(data, batch_size=BATCH, collate_fn=time_first)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    control = lb.Controller(
        model,
        optimizer,
        lb.LinearScaling(),
        lb.BatchLoader(loader, batch_size=64),
        base_batch_size=8,
    )
    (finding,) = dimension_findings(lb.check(control, loss, seconds=0))
    assert "the DataLoader makes batches of 8" in finding.seen
    # a data set's samples are counted before they are collated, in whatever layout
    counted = lb.BatchLoader(data, batch_size=64, max_micro_batch_size=8, collate=time_first)
    model = Recurrent()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    control = lb.Controller(model, optimizer, lb.LinearScaling(), counted, base_batch_size=8)
    assert alarms(lb.check(control, of_pair, seconds=0)) == []


def test_under_attach_the_loss_is_cut_where_it_can_be() -> None:
    model = Recurrent()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with lb.attach(
        model, optimizer, lb.LinearScaling(), batch_size=64, base_batch_size=8
    ) as control:
        batch = one_target(torch.Generator().manual_seed(0))
        assert alarms(lb.check(control, of_pair, batch, seconds=0)) == []
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with lb.attach(
        model, optimizer, lb.LinearScaling(), batch_size=64, base_batch_size=8
    ) as control:
        found = lb.check(control, summed_over_samples, tokens(None), seconds=0)
    assert any("it is a sum" in finding.seen for finding in found.findings)


def test_a_batch_that_is_too_small_for_the_steps_that_are_counted_names_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"holds 50 samples.* are 50, 8\..*batch\[0\]\.shape\[1\]"):
        checked_batch(16)
    assert checked_batch(16, size_of=lambda batch: batch[0].shape[1]) == 16


def checked_batch(size: int, **options: Any) -> int:
    loader = DataLoader(Batches(one_target), batch_size=None)
    batches = lb.BatchLoader(loader, batch_size=size, **options)
    batches.bind(rank=0, ranks=1, least_parts=1)
    step = batches.next_step()
    assert step is not None
    return sum(samples for _, samples in step)


@pytest.mark.parametrize(("time", "batch"), [(5, 3), (3, 5), (4, 4)])
def test_pieces_along_the_second_dimension_are_those_of_the_transposed_batch(
    time: int, batch: int
) -> None:
    x, y, names = torch.randn(time, batch, 2), torch.randn(batch), ["n"] * batch
    first = {"x": x.transpose(0, 1), "y": y, "names": names}
    second = {"x": x, "y": y, "names": names}
    part = slice(1, 3)
    ours = cut(second, part, lead=leading_shape(second, 1))
    theirs = cut(first, part, lead=leading_shape(first))
    assert torch.equal(ours["x"].transpose(0, 1), theirs["x"])
    assert torch.equal(ours["y"], theirs["y"])
    assert ours["names"] == theirs["names"]
    assert torch.equal(repeated(second, 1)["x"].transpose(0, 1), repeated(first)["x"])
