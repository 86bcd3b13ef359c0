"""Whole models, and what models do with their parameters, against the loop over examples."""

from __future__ import annotations

import copy

import pytest
import torch
from example_twin import ALL, WANTS, check, naive, squared_loss, watched
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, linear
from torch.utils.checkpoint import checkpoint

from largebatch.core.errors import LargeBatchError
from largebatch.measure.examples.per_example import PerExample
from largebatch.workbench.workloads.models import ByteTransformer, cnn, logistic, mlp, resnet8

B = 6


def class_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y)


def token_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logits = model(x)
    return cross_entropy(logits.flatten(0, 1), y.flatten())


MODELS = {
    "logistic": (lambda: logistic(inputs=16, classes=5), (1, 4, 4)),
    "mlp": (lambda: mlp(inputs=9, width=7, classes=5), (9,)),
    "cnn": (lambda: cnn(width=4, classes=5), (1, 28, 28)),
    "resnet8": (lambda: resnet8(width=8, classes=5), (1, 8, 8)),
}


@pytest.mark.parametrize("want", WANTS, ids=["norm", "squares", "all"])
@pytest.mark.parametrize("name", MODELS)
def test_the_workloads_models(name, want):
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model, x, y = build(), torch.randn(B, *shape), torch.arange(B) % 5
    check(model, class_loss, x, y, rel=1e-5, want=want)
    check(model.double(), class_loss, x.double(), y, rel=1e-10, want=want)


@pytest.mark.parametrize("length", [9, B, 2 * B], ids=["", "as long as the batch", "twice"])
@pytest.mark.parametrize("want", WANTS, ids=["norm", "squares", "all"])
def test_a_transformer_whose_positions_are_embedded_once_for_all_examples(want, length):
    torch.manual_seed(0)
    model = ByteTransformer(layers=2, width=16, heads=2, context=16)
    x, y = torch.randint(0, 256, (2, B, length)).unbind()
    check(model, token_loss, x, y, rel=1e-5, want=want)
    check(model.double(), token_loss, x, y, rel=1e-10, want=want)


def test_torchs_own_transformer_layer():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    x = torch.randn(B, 5, 8, dtype=torch.float64)
    check(model, squared_loss, x, torch.ones(B, dtype=torch.float64))


class Tied(nn.Module):
    """Words in and out by the same matrix, and one layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.inside = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x)
        return self.head(self.inside(torch.tanh(self.inside(x))))


@pytest.mark.parametrize("want", WANTS, ids=["norm", "squares", "all"])
def test_a_weight_that_several_calls_share_is_added_up_within_each_example(want):
    torch.manual_seed(0)
    x, y = torch.randint(0, 11, (2, B, 7)).unbind()
    check(Tied().double(), token_loss, x, y, want=want)


def test_a_convolution_that_is_called_twice():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Conv2d(3, 3, 3, padding=1)
            self.norm = nn.GroupNorm(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.inside(torch.tanh(self.norm(self.inside(x)))))

    torch.manual_seed(0)
    x = torch.randn(B, 3, 5, 4, dtype=torch.float64)
    check(Twice().double(), squared_loss, x, torch.ones(B, dtype=torch.float64))


class LstmTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out, (hidden, cell) = self.inside(x)
        return self.inside(out, (hidden, cell))[1][0].transpose(0, 1)


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_a_recurrent_layer_that_is_called_twice(dtype, rel):
    torch.manual_seed(0)
    x, y = torch.randn(B, 3, 4, dtype=dtype), torch.ones(B, dtype=dtype)
    check(LstmTwice().to(dtype), squared_loss, x, y, rel=rel)


class Bare(nn.Module):
    """Parameters of the model's own beside its modules, spread over the examples in many ways."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, length + 3, 4))
        self.table = nn.Parameter(torch.randn(length, 4))
        self.first = nn.Parameter(torch.randn(1, 1, 4))
        self.scale = nn.Parameter(torch.randn(4))
        self.number = nn.Parameter(torch.randn(()))
        self.several = nn.ParameterList([nn.Parameter(torch.randn(4)) for _ in range(2)])
        self.inside = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions[:, : x.shape[1]]
        x = self.inside(x) - 2.0 * torch.tanh(self.table)
        x = torch.cat([self.first.expand(len(x), -1, -1), x * self.number], 1)
        x = x * self.scale + self.several[0] / (2.0 + self.several[1].square())
        return self.inside(x * self.scale)


@pytest.mark.parametrize("length", [5, B], ids=["", "as long as the batch"])
@pytest.mark.parametrize("want", WANTS, ids=["norm", "squares", "all"])
def test_parameters_outside_of_modules(want, length):
    torch.manual_seed(0)
    x = torch.randn(B, length, 4, dtype=torch.float64)
    y = torch.ones(B, dtype=torch.float64)
    check(Bare(length).double(), squared_loss, x, y, want=want)


class Flattened(nn.Module):
    """Examples and positions in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 5), nn.LayerNorm(5), nn.Conv1d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(torch.tanh(self.first(x.reshape(-1, 4))))
        return self.last(rows.unsqueeze(2)).reshape(len(x), -1)


@pytest.mark.parametrize("want", WANTS, ids=["norm", "squares", "all"])
def test_several_rows_for_each_example(want):
    torch.manual_seed(0)
    x = torch.randn(B, 7, 4, dtype=torch.float64)
    check(Flattened().double(), squared_loss, x, torch.ones(B, dtype=torch.float64), want=want)


@pytest.mark.parametrize("groups", [2, 3])
def test_groups_of_examples_in_whole_models(groups):
    torch.manual_seed(0)
    words, y = torch.randint(0, 11, (2, B, 7)).unbind()
    check(Tied().double(), token_loss, words, y, groups=groups)
    ones = torch.ones(B, dtype=torch.float64)
    x = torch.randn(B, 5, 4, dtype=torch.float64)
    check(Bare(5).double(), squared_loss, x, ones, groups=groups)
    check(Flattened().double(), squared_loss, x, ones, groups=groups)
    check(LstmTwice().double(), squared_loss, x, ones, groups=groups)
    model = ByteTransformer(layers=1, width=16, heads=2, context=16).double()
    words, y = torch.randint(0, 256, (2, B, 9)).unbind()
    check(model, token_loss, words, y, groups=groups)


def test_a_number_of_groups_that_does_not_divide_the_examples_is_lowered():
    torch.manual_seed(0)
    model = mlp(inputs=4, width=5, classes=3).double()
    x, y = torch.randn(B, 4, dtype=torch.float64), torch.ones(B, dtype=torch.float64)
    for asked, taken in ((4, 3), (5, 3), (6, 6), (100, 6)):
        expected = check(model, squared_loss, x, y, groups=taken)
        found = watched(model, squared_loss, x, y, groups=asked)
        torch.testing.assert_close(found.sqnorm, expected.sqnorm)
    found = watched(model, squared_loss, x[:5], y[:5], groups=3)  # a prime number: each by itself
    torch.testing.assert_close(found.sqnorm, watched(model, squared_loss, x[:5], y[:5]).sqnorm)


@pytest.mark.parametrize("groups", [1, 0, -4, 2.5, "4"])
def test_one_group_and_what_is_no_number_of_groups_are_refused(groups):
    with pytest.raises(
        ValueError, match=r"one group has no variance(.|\n)*lb\.PerExample\(groups=4\)"
    ):
        PerExample(groups=groups)


def test_dropout_counts_with_the_mask_that_was_drawn():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 1)).double()
    x, y = torch.ones(1, 4, dtype=torch.float64).expand(8, 4), torch.ones(8, dtype=torch.float64)
    seen = watched(model, squared_loss, x, y)
    variance = seen.sqnorm - 8 * sum(g.square().sum() for g in seen.gradients)
    assert variance > 0.1 * seen.sqnorm  # although all examples are the same
    model.eval()
    seen = watched(model, squared_loss, x, y)
    assert abs(seen.sqnorm - 8 * sum(g.square().sum() for g in seen.gradients)) < 1e-9 * seen.sqnorm


def test_the_models_randomness_and_buffers_are_left_alone():
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.BatchNorm1d(6).eval())

    x, y = torch.randn(B, 4), torch.ones(B)
    plain, model = build(), build()
    torch.manual_seed(5)
    squared_loss(plain, x, y).backward()
    torch.manual_seed(5)
    seen = watched(model, squared_loss, x, y, steps=1)
    for ours, theirs in zip(seen.gradients, plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad)
    assert model[0].training
    assert not model[2].training


def test_activations_that_overwrite_their_input():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(27, 4),
        nn.ReLU(inplace=True), nn.Linear(4, 2),
    ).double()  # fmt: skip
    x = torch.randn(B, 2, 5, 5, dtype=torch.float64)
    check(model, squared_loss, x, torch.ones(B, dtype=torch.float64))


@pytest.mark.parametrize("want", WANTS, ids=["norm", "squares", "all"])
def test_checkpointed_activations(want):
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inside, x, use_reentrant=False)

    torch.manual_seed(0)
    x = torch.randn(B, 7, 4, dtype=torch.float64)
    check(Checkpointed().double(), squared_loss, x, torch.ones(B, dtype=torch.float64), want=want)


def test_frozen_and_unused_parameters_have_no_part_in_it():
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.used, self.unused = (nn.Linear(4, 4) for _ in range(3))
            self.frozen.requires_grad_(False)
            self.used.bias.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(torch.tanh(self.frozen(x)))

    torch.manual_seed(0)
    for shape in ((4,), (5, 4)):
        x = torch.randn(B, *shape, dtype=torch.float64)
        model = Partly().double()
        check(model, squared_loss, x, torch.ones(B, dtype=torch.float64))
        assert not model.used.bias.requires_grad
        assert model.used.weight.requires_grad


def test_a_weight_alone_or_a_bias_alone():
    torch.manual_seed(0)
    x, y = torch.randn(B, 5, 4, 4, dtype=torch.float64), torch.ones(B, dtype=torch.float64)
    for build in (lambda: nn.Linear(4, 3), lambda: nn.Conv2d(5, 3, 2), lambda: nn.LayerNorm(4)):
        for name in ("weight", "bias"):
            for want in WANTS:
                model = build().double()
                model.get_parameter(name).requires_grad_(False)
                check(model, squared_loss, x, y, want=want)


def test_forwards_without_a_backward_and_backwards_out_of_turn():
    torch.manual_seed(0)
    model = mlp(inputs=4, width=5, classes=3).double()
    x, y = torch.randn(B, 4, dtype=torch.float64), torch.ones(B, dtype=torch.float64)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        before = squared_loss(model, 2.0 * x, y)  # only looked at
        value = squared_loss(model, x, y)
        torch.autograd.grad(before, list(model.parameters()))
        return value

    seen = watched(model, loss, x, y)
    expected = sum(g.square().sum() for g in naive(model, squared_loss, x, y))
    torch.testing.assert_close(seen.sqnorm, expected)


def test_two_forwards_for_one_backward():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2)).double()
    x, y = torch.randn(B, 2, 4, dtype=torch.float64), torch.ones(B, dtype=torch.float64)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return (model(x) - model(-x)).square().sum(1).mean()

    check(model, loss, x, y)


def test_a_forward_that_fails_leaves_the_parameters_as_they_were():
    model = nn.Sequential(nn.Linear(4, 3))
    x = torch.randn(B, 5, 4)
    seen = watched(model, squared_loss, x, torch.ones(B))

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with pytest.raises(RuntimeError):
            model(x[..., :2].expand(B, 5, 2))
        return squared_loss(model, x, y)

    again = watched(model, loss, x, torch.ones(B))
    torch.testing.assert_close(again.sqnorm, seen.sqnorm)
    assert all(p.requires_grad for p in model.parameters())


def test_half_precision_by_autocast():
    torch.manual_seed(0)
    model = mlp(inputs=16, width=32, classes=3)
    x, y = torch.randn(B, 16), torch.arange(B) % 3

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return cross_entropy(model(x).float(), y)

    seen = watched(model, loss, x, y)
    expected = sum(g.square().sum() for g in naive(model, class_loss, x, y))
    torch.testing.assert_close(seen.sqnorm, expected, rtol=0.05, atol=0.0)
    assert seen.squares[0].dtype is torch.float32


class Coupled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x - x.mean(0))


class Outside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.words(x), self.words.weight)


class Matrix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.ones(4, 4))
        self.inside = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x @ self.own)


class Drawing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.ones(64))

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x.repeat(1, 16) * self.own, 0.5)


class Reentrant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        for _ in range(2):
            x = checkpoint(self.inside, x, use_reentrant=True)
        return x


WORDS = torch.arange(4 * B).view(B, 4) % 5
NUMBERS = torch.randn(B, 4, generator=torch.Generator().manual_seed(0))
REFUSED = {
    "coupled": (Coupled, NUMBERS, "depend on each other"),
    "tied by hand": (Outside, WORDS, "do not add up to the gradient of the parameter words.weight"),
    "a matrix outside of modules": (Matrix, NUMBERS, "own got a gradient that does not come"),
    "its own dropout": (Drawing, NUMBERS, "draws random numbers"),
    "sequence first": (
        lambda: nn.Sequential(nn.Flatten(0, 0), First()),
        NUMBERS[:, :, None].expand(B, 4, 4),
        "batch_first=True",
    ),
}


class First(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_apart_by_examples_is_refused_by_name(name):
    torch.manual_seed(0)
    build, x, message = REFUSED[name]
    model = build()
    if name == "its own dropout":
        model.train()
    with pytest.raises(LargeBatchError, match=message):
        watched(model, squared_loss, x, torch.ones(B))


def test_reentrant_checkpoints_with_a_weight_in_common_are_refused():
    with pytest.raises(LargeBatchError, match="use_reentrant=False"):
        watched(Reentrant(), squared_loss, NUMBERS.clone(), torch.ones(B))


def test_examples_of_two_numbers_in_one_backward_are_refused():
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return squared_loss(model, x, y) + squared_loss(model, x[:3], y[:3])

    with pytest.raises(
        LargeBatchError, match="with 6 examples, but other modules were called with 3"
    ):
        watched(nn.Linear(4, 3), loss, NUMBERS, torch.ones(B))


@pytest.mark.parametrize(
    ("module", "cause", "remedy"),
    [
        (nn.BatchNorm1d(4), "in training mode", r"get_submodule\('1'\).eval\(\), or normalize"),
        (nn.BatchNorm1d(4, track_running_stats=False), "without running", "Normalize by groups"),
    ],
)
def test_batch_normalization_over_the_batch_is_refused(module, cause, remedy):
    model = nn.Sequential(nn.Linear(4, 4), module)
    with pytest.raises(ValueError, match=rf"'1' is batch normalization {cause}.*{remedy}"):
        watched(model, squared_loss, NUMBERS, torch.ones(B))
    with pytest.raises(ValueError, match=rf"The model is batch normalization {cause}"):
        watched(module, squared_loss, NUMBERS, torch.ones(B))


def test_batch_normalization_that_goes_to_training_mode_later_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return squared_loss(model.train(), x, y)

    with pytest.raises(LargeBatchError, match=r"get_submodule\('1'\).eval\(\)"):
        watched(model, loss, NUMBERS, torch.ones(B))


def test_an_embedding_scaled_by_frequency_is_refused():
    model = nn.Sequential(nn.Embedding(5, 4, scale_grad_by_freq=True))
    with pytest.raises(ValueError, match="scale_grad_by_freq"):
        watched(model, squared_loss, WORDS, torch.ones(B))


def test_the_loss_may_be_a_sum():
    torch.manual_seed(0)
    model = mlp(inputs=4, width=5, classes=3).double()
    x, y = torch.randn(B, 4, dtype=torch.float64), torch.ones(B, dtype=torch.float64)

    def total(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return len(x) * squared_loss(model, x, y)

    mean, summed = watched(model, squared_loss, x, y), watched(model, total, x, y)
    torch.testing.assert_close(summed.sqnorm, B**2 * mean.sqnorm)
    torch.testing.assert_close(summed.products, B**2 * mean.products)


def test_weights_and_gradients_are_those_of_a_plain_backward():
    torch.manual_seed(0)
    model = ByteTransformer(layers=1, width=16, heads=2, context=16)
    plain = copy.deepcopy(model)
    x, y = torch.randint(0, 256, (2, B, 9)).unbind()
    token_loss(plain, x, y).backward()
    seen = watched(model, token_loss, x, y, want=ALL)
    for ours, theirs in zip(seen.gradients, plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad)
