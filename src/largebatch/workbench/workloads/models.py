"""Define small models without batch normalization.

With batch normalization, the gradient of a sample depends on its micro-batch. Batch normalization
therefore has three effects: the mean of the micro-batch gradients is not the gradient of the batch,
the measured variance depends on the micro-batch size, and each rank has its own running statistics.
The models in this file use group or layer normalization, which works within one sample. With group
or layer normalization, every division of a batch into micro-batches gives the same gradient.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, scaled_dot_product_attention


def logistic(*, inputs: int, classes: int) -> nn.Module:
    """Return a logistic regression with `inputs` values per sample and logits [B, classes]."""
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))


def mlp(*, inputs: int, width: int, classes: int) -> nn.Module:
    """Return a network with two hidden layers of `width` units.

    The network maps inputs [B, inputs] to logits [B, classes].
    """
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def cnn(*, width: int, classes: int) -> nn.Module:
    """Return a convolutional network, which maps images [B, 1, 28, 28] to logits [B, classes].

    The network has two convolutions with pooling and a linear layer.
    """
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * 7 * 7, classes),
    )


class ResidualBlock(nn.Module):
    """Add the output of two normalized convolutions to a shortcut.

    The shortcut is a convolution if the number of channels changes, and the identity otherwise.

    Reference: He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2015, arXiv
    1512.03385, section 3.3; Wu, He, Group Normalization, 2018, arXiv 1803.08494.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.GroupNorm(8, outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.norm1(self.conv1(x)))
        return relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet8(*, width: int, classes: int) -> nn.Module:
    """Return a ResNet-8, which maps images [B, 1, H, W] to logits [B, classes].

    The three residual blocks have `width`, `2 * width` and `4 * width` channels. `width` must be a
    multiple of 8, the number of groups of the normalization layers.
    """
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(1, width, 3, padding=1, bias=False),
            norm=nn.GroupNorm(8, width),
            relu=nn.ReLU(),
            block1=ResidualBlock(width, width, stride=1),
            block2=ResidualBlock(width, 2 * width, stride=2),
            block3=ResidualBlock(2 * width, 4 * width, stride=2),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            head=nn.Linear(4 * width, classes),
        )
    )


class TransformerBlock(nn.Module):
    """Apply causal self-attention and a two-layer network, each after layer normalization."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.attention(self.norm1(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.projection(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))


class ByteTransformer(nn.Module):
    """Predict the next byte: map byte sequences [B, T] to logits [B, T, 256], T <= `context`.

    The output layer does not share its weights with the embedding. A shared weight would receive
    the sum of two gradients with different noise. Sharing would save little memory, because the two
    matrices are a small part of the model.

    Reference: Vaswani et al., Attention Is All You Need, 2017, arXiv 1706.03762; normalization
    before each layer as in Xiong et al., 2020, arXiv 2002.04745.
    """

    def __init__(self, *, layers: int, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads=heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256, bias=False)
        for embedding in (self.bytes, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.bytes(tokens.long()) + self.positions(positions)
        return self.head(self.norm(self.blocks(x)))
