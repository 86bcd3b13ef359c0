"""Each kind of layer against the loop over examples."""

from __future__ import annotations

import pytest
import torch
from example_twin import WANTS, check, squared_loss
from torch import nn

from largebatch.measure.examples import convolution, layer

B = 6


def case(module: nn.Module, *shape: int, words: int = 0) -> tuple[nn.Module, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    if words:
        return module, torch.randint(0, words, (B, *shape), generator=generator)
    return module, torch.randn(B, *shape, generator=generator, dtype=torch.float64)


def fixed_batch_norm() -> nn.Module:
    module = nn.BatchNorm2d(4).eval()
    module.running_mean.normal_()
    module.running_var.uniform_(0.5, 2.0)
    return module


CASES = {
    "linear": lambda: case(nn.Linear(5, 7), 5),
    "linear without bias": lambda: case(nn.Linear(5, 7, bias=False), 5),
    "linear on a sequence": lambda: case(nn.Linear(5, 7), 9, 5),
    "linear on a long sequence": lambda: case(nn.Linear(3, 4), 60, 3),
    "linear on a grid": lambda: case(nn.Linear(5, 7), 2, 3, 5),
    "convolution": lambda: case(nn.Conv2d(3, 4, 3, padding=1), 3, 6, 5),
    "convolution of many channels": lambda: case(nn.Conv2d(20, 4, 3), 20, 6, 5),
    "convolution without bias": lambda: case(nn.Conv2d(3, 4, 3, bias=False), 3, 6, 5),
    "strides and dilation": lambda: case(nn.Conv2d(3, 4, (3, 2), (2, 1), (1, 2), (1, 2)), 3, 8, 7),
    "strides, many channels": lambda: case(nn.Conv2d(18, 4, 3, 2, 1), 18, 9, 8),
    "groups": lambda: case(nn.Conv2d(4, 6, 3, groups=2), 4, 6, 5),
    "depthwise": lambda: case(nn.Conv2d(4, 4, 3, groups=4, padding=1), 4, 6, 5),
    "padding to the same size": lambda: case(nn.Conv2d(3, 4, (5, 3), padding="same"), 3, 6, 5),
    "no padding": lambda: case(nn.Conv2d(3, 4, 3, padding="valid"), 3, 6, 5),
    "reflected padding": lambda: case(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), 3, 6, 5
    ),
    "convolution of a sequence": lambda: case(nn.Conv1d(3, 4, 3, padding=1), 3, 9),
    "convolution of a volume": lambda: case(nn.Conv3d(2, 3, (2, 3, 2), padding=1), 2, 4, 5, 4),
    "wide convolution of a volume": lambda: case(nn.Conv3d(17, 3, (2, 2, 3)), 17, 3, 4, 4),
    "layer norm": lambda: case(nn.LayerNorm(5), 5),
    "layer norm on a sequence": lambda: case(nn.LayerNorm(5), 9, 5),
    "layer norm over two dimensions": lambda: case(nn.LayerNorm((4, 5)), 3, 4, 5),
    "layer norm without bias": lambda: case(nn.LayerNorm(5, bias=False), 9, 5),
    "root mean square norm": lambda: case(nn.RMSNorm(5, eps=1e-6), 9, 5),
    "group norm": lambda: case(nn.GroupNorm(2, 6), 6, 4, 3),
    "group norm without positions": lambda: case(nn.GroupNorm(2, 6), 6),
    "batch norm with fixed statistics": lambda: case(fixed_batch_norm(), 4, 3, 2),
    "embedding": lambda: case(nn.Embedding(4, 5), 7, words=4),
    "embedding of one word": lambda: case(nn.Embedding(4, 5), words=4),
    "embedding with padding": lambda: case(nn.Embedding(4, 5, padding_idx=1), 7, words=4),
    "sparse embedding": lambda: case(nn.Embedding(4, 5, sparse=True), 7, words=4),
    "bilinear, unknown": lambda: case(Both(), 5),
    "transposed convolution, unknown": lambda: case(nn.ConvTranspose2d(3, 2, 3), 3, 4, 4),
    "activation with a parameter, unknown": lambda: case(nn.PReLU(), 4),
    "instance norm, unknown": lambda: case(nn.InstanceNorm1d(3, affine=True), 3, 8),
    "recurrent, unknown": lambda: case(nn.LSTM(4, 3, batch_first=True), 5, 4),
    "attention, unknown": lambda: case(Attention(), 5, 4),
    "parametrized, unknown": lambda: case(
        nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)), 5
    ),
}


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Bilinear(5, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inside(x, input2=2.0 * x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inside(x, x, x)[0]


def built(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    module, x = CASES[name]()
    return module.double(), x, torch.linspace(-1.0, 2.0, B, dtype=torch.float64)


@pytest.mark.parametrize("want", WANTS, ids=["norm", "squares", "all"])
@pytest.mark.parametrize("name", CASES)
def test_a_layer_gives_what_the_loop_over_examples_gives(name, want):
    module, x, y = built(name)
    check(module, squared_loss, x, y, want=want)


@pytest.mark.parametrize("name", [n for n in CASES if "unknown" not in n])
def test_a_layer_behind_another_one_in_float32(name):
    module, x, y = built(name)
    model = nn.Sequential(module.float())
    if x.is_floating_point():
        x = x.float()
    check(model, squared_loss, x, y.float(), rel=1e-5)


@pytest.mark.parametrize("many", [1, 99], ids=["at once", "row by row"])
@pytest.mark.parametrize("want", WANTS, ids=["norm", "squares", "all"])
@pytest.mark.parametrize("name", CASES)
def test_groups_of_examples(name, want, many, monkeypatch):
    monkeypatch.setattr(convolution, "MANY", many)
    module, x, y = built(name)
    check(module, squared_loss, x, y, want=want, groups=3)


@pytest.mark.parametrize("cost", [0.0, 1e9], ids=["blocks", "Gram"])
@pytest.mark.parametrize("name", [n for n in CASES if "linear" in n or "conv" in n or "group" in n])
def test_matrices_and_gram_matrices_give_the_same(name, cost, monkeypatch):
    monkeypatch.setattr(layer, "BLOCK_COST", cost)
    module, x, y = built(name)
    check(module, squared_loss, x, y, want=WANTS[0])


@pytest.mark.parametrize("wide", [1, 10**6], ids=["last dimension", "all dimensions"])
@pytest.mark.parametrize("name", [n for n in CASES if "conv" in n or "strides" in n])
def test_both_layouts_of_a_convolutions_patches_give_the_same(name, wide, monkeypatch):
    monkeypatch.setattr(convolution, "WIDE", wide)
    module, x, y = built(name)
    check(module, squared_loss, x, y)


@pytest.mark.parametrize("name", ["linear on a sequence", "convolution", "embedding", "groups"])
def test_a_layer_gives_the_same_one_example_at_a_time(name, monkeypatch):
    monkeypatch.setattr(layer, "CPU_BYTES", 1)
    module, x, y = built(name)
    check(module, squared_loss, x, y)


def test_inputs_that_are_not_contiguous():
    torch.manual_seed(0)
    x = torch.randn(5, 6, 4, 3, dtype=torch.float64).permute(1, 2, 3, 0)
    assert not x.is_contiguous()
    y = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64)
    check(nn.Linear(5, 2).double(), squared_loss, x, y)
    check(nn.Conv2d(4, 2, 2).double(), squared_loss, x, y)
    image = torch.randn(6, 4, 5, 3, dtype=torch.float64).to(memory_format=torch.channels_last)
    check(nn.Conv2d(4, 2, 2).double(), squared_loss, image, y)
    words = torch.randint(0, 4, (1, 7)).expand(6, 7)
    check(nn.Embedding(4, 3).double(), squared_loss, words, y)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_padding_to_the_same_size_with_an_even_kernel():
    torch.manual_seed(0)
    x = torch.randn(6, 3, 6, 5, dtype=torch.float64)
    module = nn.Conv2d(3, 4, (2, 4), padding="same").double()
    check(module, squared_loss, x, torch.linspace(-1.0, 1.0, 6, dtype=torch.float64))


def test_the_squares_of_a_linear_layer_by_hand():
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    x, y = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1.0, -1.0])
    # loss_i = (w x_i - y_i)^2, so g_i = -2 y_i x_i: (-2, -4) and (6, 0)
    seen = check(model, squared_loss, x, y)
    assert seen.sqnorm == 56.0
    torch.testing.assert_close(seen.squares[0], torch.tensor([[40.0, 16.0]]))
    torch.testing.assert_close(seen.products, torch.tensor([4.0, 12.0]))  # g = (2, -2)
