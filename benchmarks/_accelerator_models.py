"""Define the models that `accelerator.py` trains: a residual network of convolutions and a GPT.

The normalization layers of both models work within one example, so that the gradient of a single
example can be measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention


class Bottleneck(nn.Module):
    """Add three convolutions with group normalization to the input.

    Args:
        inputs: Number of input channels.
        width: Number of inner channels. The output has 4 * width channels.
        stride: Stride of the 3x3 convolution.
    """

    def __init__(self, inputs: int, width: int, *, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), nn.GroupNorm(8, width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(8, width), nn.ReLU(),
            nn.Conv2d(width, outputs, 1, bias=False), nn.GroupNorm(8, outputs),
        )  # fmt: skip
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.GroupNorm(8, outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def residual_network(*, width: int, blocks: tuple[int, ...], classes: int) -> nn.Module:
    """Return a residual network of several stages of bottleneck blocks.

    Each stage has twice the width and half the resolution of the previous stage. Width 64 with
    (3, 4, 6, 3) blocks is ResNet-50 with group normalization.
    """
    stem = [nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), nn.GroupNorm(8, width)]
    layers: list[nn.Module] = [*stem, nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]
    channels = width
    for stage, count in enumerate(blocks):
        for block in range(count):
            stride = 2 if stage and not block else 1
            layers.append(Bottleneck(channels, width * 2**stage, stride=stride))
            channels = 4 * width * 2**stage
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*layers, *head)


class Block(nn.Module):
    """Add causal attention and then a two-layer network to the input, each after a LayerNorm."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(torch.nn.functional.gelu(self.up(self.second_norm(x))))


class GPT(nn.Module):
    """Predict the next token as GPT-2 does; the output layer and the embedding share weights.

    A model with 12 layers, width 768 and 12 heads has 124M parameters.

    Args:
        words: Number of words in the vocabulary.
        length: Number of tokens in one sequence.
        layers: Number of transformer layers.
        width: Width of the transformer.
        heads: Number of attention heads per layer.
    """

    def __init__(self, *, words: int, length: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList([Block(width, heads=heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Describe a model with its optimizer and data.

    Args:
        name: Name in the table.
        model: Function that makes the model.
        optimizer: Function that makes the optimizer.
        micro_batch: Number of samples in one backward call.
        shape: Shape of one sample.
        classes: Number of classes, or of words in the vocabulary of a sequence model.
        sequences: Whether each sample is a sequence of tokens with one target per token.
    """

    name: str
    model: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    micro_batch: int
    shape: tuple[int, ...]
    classes: int
    sequences: bool

    def data(self, samples: int) -> tuple[Tensor, Tensor]:
        """Return random inputs and targets in host memory."""
        generator = torch.Generator().manual_seed(0)
        if self.sequences:
            size = (2, samples, *self.shape)
            x, y = torch.randint(0, self.classes, size, generator=generator).unbind()
            return x, y
        x = torch.randn(samples, *self.shape, generator=generator)
        return x, torch.randint(0, self.classes, (samples,), generator=generator)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over all targets."""
        return cross_entropy(logits.flatten(0, -2), targets.flatten())


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=True)


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)


def workloads(*, tiny: bool) -> tuple[Workload, Workload]:
    """Return the GPT and the residual network, in full size or small enough for a CPU."""
    words, length, layers, width, heads = (96, 16, 2, 32, 2) if tiny else (50304, 1024, 12, 768, 12)
    channels, blocks, pixels, classes = (
        (8, (1, 1), 16, 10) if tiny else (64, (3, 4, 6, 3), 128, 1000)
    )
    gpt = Workload(
        name="GPT",
        model=lambda: GPT(words=words, length=length, layers=layers, width=width, heads=heads),
        optimizer=_adamw,
        micro_batch=2 if tiny else 8,
        shape=(length,),
        classes=words,
        sequences=True,
    )
    network = Workload(
        name="ResNet",
        model=lambda: residual_network(width=channels, blocks=blocks, classes=classes),
        optimizer=_sgd,
        micro_batch=4 if tiny else 64,
        shape=(3, pixels, pixels),
        classes=classes,
        sequences=False,
    )
    return gpt, network
