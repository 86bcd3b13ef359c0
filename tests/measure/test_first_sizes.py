"""The sizes of the first step are compared with what was told; right loops are left alone."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import largebatch as lb
from largebatch.core.errors import LargeBatchError

B = 32


class Loop:
    """A small model under attach with `batch_size=32`."""

    def __init__(self, model: nn.Module | None = None, **options) -> None:
        torch.manual_seed(0)
        self.model = model or nn.Linear(5, 2)
        self.record = lb.MemoryRecord()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        options = {"batch_size": B, "base_batch_size": 8, **options}
        self.control = lb.attach(
            self.model, self.optimizer, lb.AdaScale(), record=self.record, **options
        )

    def step(self, backward, sizes) -> list[str]:
        """One step of so many samples in each micro-batch; the warnings that it gave."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for size in sizes:
                backward(self, torch.randn(size, 5), len(sizes))
            self.optimizer.step()
        self.optimizer.zero_grad()
        return [str(one.message) for one in caught]


def one_loss(loop, x, parts):
    (loop.model(x).square().mean() / parts).backward()


def by_samples(loop, x, parts):
    (loop.model(x).square().mean() * len(x) / B).backward()


def two_views(loop, x, parts):
    ((loop.model(x) - loop.model(x + 1)).square().mean() / parts).backward()


def two_backwards(loop, x, parts):
    (loop.model(x).square().mean() / parts).backward()
    ((loop.model(x.flip(1)) - 1).square().mean() / parts).backward()


def in_a_block(backward, *, samples: bool = False):
    def run(loop, x, parts):
        with loop.control.part(samples=len(x) if samples else None):
            backward(loop, x, parts)

    return run


@pytest.mark.parametrize("sizes", [[16, 16], [8] * 4])
@pytest.mark.parametrize(
    "backward",
    [
        one_loss,
        two_views,
        in_a_block(two_views),
        in_a_block(two_views, samples=True),
        in_a_block(two_backwards),
        in_a_block(two_backwards, samples=True),
    ],
)
def test_a_right_loop_hears_nothing_and_counts_its_samples_once(backward, sizes) -> None:
    loop = Loop()
    assert not [text for _ in range(3) for text in loop.step(backward, sizes)]
    assert loop.control.samples == 3 * B
    assert {one.seen.moments.parts for one in loop.record.steps} == {len(sizes)}


def test_a_batch_size_without_the_micro_batches_names_the_block_first() -> None:
    loop = Loop(batch_size=16)
    with pytest.raises(LargeBatchError, match="and 2 is the number of") as caught:
        loop.step(one_loss, [16, 16])
    text = str(caught.value)
    assert "received 32 samples in the first step" in text
    assert text.index("with control.part(samples=len(x)):") < text.index("pass batch_size=32")


def test_two_backward_calls_of_a_micro_batch_are_refused_and_the_remedy_is_right() -> None:
    with pytest.raises(LargeBatchError, match=r"control\.part\(samples=len\(x\)\)"):
        Loop(batch_size=16).step(two_backwards, [16])
    warned = Loop().step(two_backwards, [8] * 4)
    assert "control.part(samples=len(x))" in warned[0]


@pytest.mark.parametrize("sizes", [[26, 2, 2, 2], [9, 9, 9, 5]])
def test_unequal_micro_batches_are_named_once_and_the_remedy_is_right(sizes) -> None:
    loop = Loop()
    (text,) = loop.step(by_samples, sizes)
    assert f"have {', '.join(map(str, sizes))} samples, and no weight was passed" in text
    assert "weight=len(x)" in text
    assert loop.step(by_samples, sizes) == []

    def with_weights(loop, x, parts):
        loop.control.micro_batch(len(x), weight=len(x))
        by_samples(loop, x, parts)

    assert Loop().step(with_weights, sizes) == []


def test_a_later_short_micro_batch_is_not_looked_at() -> None:
    loop = Loop()
    assert loop.step(one_loss, [8] * 4) == []
    assert loop.step(one_loss, [8, 8, 8, 3]) == []
    assert loop.control.samples == 2 * B


def test_samples_that_do_not_add_up_to_the_batch_are_named_once() -> None:
    def doubled(loop, x, parts):
        loop.control.micro_batch(2 * len(x))
        one_loss(loop, x, parts)

    loop = Loop()
    (text,) = loop.step(doubled, [8] * 4)
    assert "batch_size=32 was given" in text
    assert "64 samples were passed for the micro-batches of the first step over all ranks" in text
    assert loop.step(doubled, [8] * 4) == []


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(5, 4)
        self.heads = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])

    def forward(self, x, task):
        return self.heads[task](self.trunk(x))


def test_a_head_for_each_task_is_named_once_and_a_block_is_silent() -> None:
    def tasks(loop, x, parts):
        for task, half in enumerate(x.chunk(2)):
            loop.model(half, task).square().mean().backward()

    loop = Loop(Heads())
    (text,) = loop.step(tasks, [32])
    assert "use different parameters" in text
    assert loop.step(tasks, [32]) == []
    blocks = Loop(Heads())
    assert blocks.step(in_a_block(tasks, samples=True), [16, 16]) == []


@pytest.mark.parametrize("told", ["nothing", "a bare block", "samples"])
def test_the_number_of_micro_batches_may_grow(told) -> None:
    backward = {
        "nothing": one_loss,
        "a bare block": in_a_block(one_loss),
        "samples": in_a_block(one_loss, samples=True),
    }[told]
    loop = Loop()
    for sizes in ([16] * 2, [16] * 2, [16] * 4, [16] * 3):
        assert loop.step(backward, sizes) == []
    assert [one.seen.moments.parts for one in loop.record.steps] == [2, 2, 4, 3]
    assert [one.seen.batch_size for one in loop.record.steps] == [32, 32, 64, 48]
