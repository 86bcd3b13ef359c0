"""With `exact_training` a measured step leaves the training as it is, to the last bit."""

from __future__ import annotations

import contextlib
import copy
import random
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from example_twin import NAMED_WANTS, token_loss
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

import largebatch as lb
from largebatch.core.errors import LargeBatchError
from largebatch.measure.examples.example_gradients import ExampleGradients
from largebatch.measure.examples.tally import WantedSums
from largebatch.measure.parameters import Parameters
from largebatch.measure.ranks import Ranks
from largebatch.measure.taps import LeafHooks

B, STEPS = 6, 5


class Sequences(nn.Module):
    """A small transformer: tied weights, dropout, positions embedded once for all examples."""

    def __init__(self, *, checkpointed: bool = False) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.words, self.positions = nn.Embedding(11, 8), nn.Embedding(9, 8)
        self.first, self.last = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.Linear(8, 24)
        self.inside = nn.Sequential(
            nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(16, 8)
        )
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.words.weight

    def block(self, x: Tensor) -> Tensor:
        query, key, value = self.attention(self.first(x)).chunk(3, -1)
        scores = (query @ key.transpose(1, 2)).softmax(-1)
        x = x + nn.functional.dropout(scores, 0.2, self.training) @ value
        return x + self.inside(self.last(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x) + self.positions(torch.arange(x.shape[1]))
        for _ in range(2):
            x = checkpoint(self.block, x, use_reentrant=False) if self.checkpointed else (
                self.block(x)
            )  # fmt: skip
        return self.head(x)


class Recurrent(nn.Module):
    """Its two layers draw their own dropout; only one of its outputs is used."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.LSTM(4, 5, num_layers=2, dropout=0.4, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inside(x)[0][:, -1])


class Normed(nn.Module):
    """A weight whose buffers move in each forward, and an unknown module before a ReLU in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = spectral_norm(nn.Linear(4, 8))
        self.unknown = nn.PReLU(8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return self.last(torch.relu_(self.unknown(x)))


class Counting(nn.Module):
    """Draws of every generator, in evaluation mode, too, and puts new tensors into its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        scale = random.random() + np.random.rand() + torch.rand(())
        return self.inside(x) * scale


class TwoHeads(nn.Module):
    """An unknown module with two outputs; the parameter of the second has no gradient."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.ones(4))
            self.two = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * self.one, x * self.two

    def __init__(self) -> None:
        super().__init__()
        self.both, self.last = TwoHeads.Both(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.both(x)[0])


class Cut(torch.autograd.Function):
    """Gives its input no gradient at all."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, delta: Tensor) -> None:
        return None


class Unreached(nn.Module):
    """A layer that the backward reaches without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.cut = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x) + Cut.apply(self.cut(x))


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 7), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.LayerNorm(7), nn.Linear(7, 3)
    )


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3),
        nn.ReLU(inplace=True), nn.BatchNorm2d(4).eval(), nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip


def numbers(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(STEPS, B, *shape), torch.randint(0, 3, (STEPS, B))


def words() -> tuple[Tensor, Tensor]:
    x, y = torch.randint(0, 11, (2, STEPS, B, 9)).unbind()
    return x, y


def class_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x).float(), y)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]] = {
    "perceptron": (perceptron, lambda: numbers(4)),
    "convolutions": (convolutions, lambda: numbers(1, 8, 8)),
    "transformer": (Sequences, words),
    "checkpointed": (lambda: Sequences(checkpointed=True), words),
    "recurrent": (Recurrent, lambda: numbers(5, 4)),
    "moving buffers": (Normed, lambda: numbers(4)),
    "other generators": (Counting, lambda: numbers(4)),
    "an output without use": (TwoHeads, lambda: numbers(4)),
    "a gradient that is cut": (Unreached, lambda: numbers(4)),
}


def trained(
    name: str, *, want: WantedSums | None, bf16: bool = False, groups: int | None = None
) -> tuple[nn.Module, list[Tensor | None], tuple, list[str]]:
    """A model after some steps of AdamW; all gradients on the way, the generators' states at the
    end, and what could not be measured."""
    torch.manual_seed(0)
    build, data = CASES[name]
    model, (xs, ys) = build(), data()
    loss = token_loss if name in ("transformer", "checkpointed") else class_loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    parameters = Parameters.of(model, optimizer)
    examples, hooks = ExampleGradients(groups=groups, exact_training=True), LeafHooks()
    examples.bind(model, parameters)
    hooks.bind(parameters, Ranks())
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(1)
    gradients, failed = [], []
    for x, y in zip(xs, ys, strict=True):
        optimizer.zero_grad()
        examples.open(want or WantedSums())
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            value = loss(model, x, y)
        if want is not None:
            examples.begin()
            hooks.begin(examples.see)
        value.backward()
        if want is not None:
            hooks.end(last=True)
            try:
                part = examples.end()
                assert part.rows == B
            except LargeBatchError as error:
                failed.append(str(error))
        gradients += [None if p.grad is None else p.grad.clone() for p in parameters.tensors]
        optimizer.step()
    states = random.random(), float(np.random.rand()), torch.rand(3).tolist()
    return model, gradients, states, failed


@pytest.mark.parametrize("bf16", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("want", NAMED_WANTS)
@pytest.mark.parametrize("name", CASES)
def test_no_bit_of_the_training_differs(name, want, bf16):
    model, gradients, states, failed = trained(name, want=NAMED_WANTS[want], bf16=bf16)
    twin, expected, drawn, _ = trained(name, want=None, bf16=bf16)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)
    pairs = zip(model.state_dict().items(), twin.state_dict().values(), strict=True)
    assert [key for (key, ours), theirs in pairs if not torch.equal(ours, theirs)] == []
    assert states == drawn
    refused = {"recurrent": True, "moving buffers": not bf16}  # which is compared more loosely
    assert bool(failed) == refused.get(name, False), failed


@pytest.mark.parametrize("name", ["convolutions", "transformer", "perceptron"])
def test_nor_with_groups(name):
    _, gradients, states, _ = trained(name, want=WantedSums(sqnorm=True), groups=3)
    _, expected, drawn, _ = trained(name, want=None)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
    assert states == drawn


class Transposed(nn.Module):
    """A layer whose examples are not in its first dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x.transpose(0, 1)).transpose(0, 1)


class Late(nn.Module):
    """Normalizes over the batch from the first call on."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.BatchNorm1d(4).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.inside.train()(x)


class Overwritten(nn.Module):
    """Overwrites the input of an unknown module that autograd does not need."""

    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.own

    def __init__(self) -> None:
        super().__init__()
        self.inside = Overwritten.Shift()

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        y = self.inside(x)
        x.zero_()
        return y


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (Transposed, (B, 5, 4), "batch_first=True"),
        (Late, (B, 4), "depend on each other"),
        (Overwritten, (B, 4), "overwritten before the backward"),
    ],
)
def test_an_error_waits_for_the_end_of_the_backward_and_comes_once(model, shape, message):
    torch.manual_seed(0)
    model, x = model(), torch.randn(shape)
    twin = copy.deepcopy(model)
    parameters = Parameters.of(model, torch.optim.SGD(model.parameters(), lr=0.1))
    examples = ExampleGradients(exact_training=True)
    examples.bind(model, parameters)
    examples.open(WantedSums(sqnorm=True))
    examples.begin()
    model(x).square().sum().backward()  # raises nothing
    assert all(p.grad is not None for p in parameters.tensors)
    twin(x).square().sum().backward()
    for name, value in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    with pytest.raises(LargeBatchError, match=message):
        examples.end()
    examples.end()
    examples.rest()


def test_what_an_unknown_module_was_given_is_released_when_its_step_is_over():
    model = nn.Sequential(nn.PReLU())
    examples = ExampleGradients(exact_training=True)
    examples.bind(model, Parameters.of(model, torch.optim.SGD(model.parameters(), lr=0.1)))
    examples.open(WantedSums(sqnorm=True))
    x = torch.randn(B, 4)
    storage = weakref.ref(x.untyped_storage())
    loss = model(x).sum()  # the graph lives on
    examples.begin()
    loss.backward()
    examples.end()
    del x
    assert storage() is not None
    examples.open(WantedSums())
    assert storage() is None, loss


@pytest.mark.parametrize("name", ["perceptron", "convolutions", "transformer", "checkpointed"])
def test_a_loop_under_attach_trains_to_the_same_bits(name):
    states = []
    for measured in (True, False):
        torch.manual_seed(0)
        build, data = CASES[name]
        model, (xs, ys) = build(), data()
        loss = token_loss if name in ("transformer", "checkpointed") else class_loss
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        record = lb.MemoryRecord()
        if measured:
            meter = lb.Meter(model, examples=lb.PerExample(exact_training=True))
            options = {"batch_size": B, "base_batch_size": B, "meter": meter, "record": record}
            lb.attach(model, optimizer, lb.rules.Observe(), **options)
        for x, y in zip(xs, ys, strict=True):
            loss(model, x, y).backward()
            optimizer.step()
            optimizer.zero_grad()
        states.append((model.state_dict(), torch.rand(3)))
        assert len(record.steps) == STEPS * measured
        assert all(seen.moments.source == "examples" for seen, _ in record.steps)
    (ours, drawn), (theirs, expected) = states
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert torch.equal(drawn, expected)
