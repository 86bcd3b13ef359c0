"""Compute the examples' gradients of convolutions in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv2d, conv3d, pad
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from largebatch.measure.examples.layer import (
    Piece,
    PlainLayer,
    SavedTensors,
    blocks_are_cheaper,
    examples_at_once,
)
from largebatch.measure.squares import squared_norm

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

WIDE = 48
"""Least number of matrix columns for which patches over the kernel's last dimension alone are fast.

A convolution with fewer matrix columns lays out patches over all dimensions of the kernel.
"""


MANY = 4
"""Least number of rows in a group of examples for which one call computes the group's gradient."""


class ConvolutionLayer(PlainLayer):
    """Treat a convolution as a linear layer over patches of its input.

    Patches are laid out in memory only over the last dimension of the kernel. So the number of
    copies of the input is the length of the kernel's last dimension, not the number of the kernel's
    elements. Over the other dimensions of the kernel, a patch is a shifted view of the input. One
    matrix product per shift gives some of the elements of each example's gradient.
    """

    can_replace = True

    def replaces(self, module: Convolution, shape: torch.Size, *, rows: int, squares: bool) -> bool:
        length = prod(_output_size(module, shape[2:]))
        return squares or shape[0] != rows or self._blocks(module, length)

    def sqnorm(
        self,
        module: Convolution,
        names: Collection[str],
        kept: SavedTensors,
        delta: Tensor,
        rows: int,
    ) -> list[Tensor] | None:
        (x,), length = kept, delta.shape[2:].numel()
        if "weight" not in names or len(x) != rows or self._blocks(module, length):
            return None
        elements = length * (module.weight[0].numel() * module.groups + 2 * length * module.groups)
        step = examples_at_once(rows, elements=elements, like=x)
        dims = len(module.kernel_size)
        scalars, space = [], _Space()
        for part, d in zip(x.split(step), delta.split(step), strict=True):
            patches, grads = next(_products(module, part, d, dims, space))
            of_input = torch.bmm(patches.transpose(1, 2), patches)
            of_output = torch.bmm(grads.transpose(1, 2), grads)
            scalars.append(torch.dot(of_input.view(-1), of_output.view(-1)))
        if "bias" in names:
            scalars.append(squared_norm(delta.flatten(2).sum(2)))
        return scalars

    def pieces(
        self,
        module: Convolution,
        names: Collection[str],
        kept: SavedTensors,
        delta: Tensor,
        rows: int,
    ) -> Iterator[Piece]:
        (x,) = kept
        channels, times = module.weight.shape[1], len(x) // rows
        if times >= MANY:
            yield from _of_groups(module, names, x, delta, rows)
            return
        dims = 1 if channels * module.kernel_size[-1] >= WIDE else len(module.kernel_size)
        laid_out = x[0].numel() * prod(module.kernel_size[-dims:])
        step = times * examples_at_once(rows, elements=times * laid_out, like=x)
        space = _Space()
        for part, d in zip(x.split(step), delta.split(step), strict=True):
            examples = len(part) // times
            if "weight" in names:
                yield "weight", _per_example(_matrices(module, part, d, dims, space), examples)
            if "bias" in names:
                yield "bias", _per_example(d.flatten(2).sum(2), examples)

    def along(
        self, module: Convolution, values: dict[str, Tensor], kept: SavedTensors
    ) -> Tensor | None:
        if "weight" not in values:
            return None
        convolve = (conv1d, conv2d, conv3d)[len(module.kernel_size) - 1]
        return convolve(
            _padded(module, kept[0]),
            values["weight"],
            values.get("bias"),
            stride=module.stride,
            dilation=module.dilation,
            groups=module.groups,
        )

    def _blocks(self, module: Convolution, length: int) -> bool:
        outputs, inputs = len(module.weight) // module.groups, module.weight[0].numel()
        return blocks_are_cheaper(
            length=length, inputs=inputs, outputs=outputs, replace=self._replace
        )


def _of_groups(
    module: Convolution, names: Collection[str], x: Tensor, delta: Tensor, rows: int
) -> Iterator[Piece]:
    """Yield the gradients of groups with many rows, computed by torch's own function per group."""
    weight_of: Any = (conv1d_weight, conv2d_weight, conv3d_weight)[len(module.kernel_size) - 1]
    if "bias" in names:
        yield "bias", _per_example(delta.flatten(2).sum(2), rows)
    if "weight" not in names:
        return
    few = len(x) // rows
    for part, d in zip(_padded(module, x).split(few), delta.split(few), strict=True):
        found = weight_of(
            part,
            module.weight.shape,
            d,
            stride=module.stride,
            dilation=module.dilation,
            groups=module.groups,
        )
        yield "weight", found.unsqueeze(0)


class _Space:
    """Hold memory that is reused for the next examples, because new memory is slow at first use.

    Mutable: holds the reused memory.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def of(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return an uninitialized tensor of the given shape."""
        there = self._tensors.get(name)
        if there is None or there.numel() < prod(shape):
            there = self._tensors[name] = like.new_empty(prod(shape))
        return there[: prod(shape)].view(*shape)


def _matrices(module: Convolution, x: Tensor, delta: Tensor, dims: int, space: _Space) -> Tensor:
    """Return the weight's gradient for each row of x, in the shape [rows, *weight.shape]."""
    lead, last = module.kernel_size[:-dims], module.kernel_size[-dims:]
    out, channels = module.weight.shape[:2]
    shape = (prod(lead), len(x) * module.groups, out // module.groups, channels * prod(last))
    found = space.of("matrices", shape, x)
    products = _products(module, x, delta, dims, space)
    for place, (patches, grads) in zip(found, products, strict=True):
        torch.bmm(grads, patches.transpose(1, 2), out=place)
    by_shift = found.view(*lead, len(x), out, channels, *last)
    n = len(lead)
    order = (n, n + 1, n + 2, *range(n), *range(n + 3, n + 3 + dims))
    return by_shift.permute(order)


def _products(
    module: Convolution, x: Tensor, delta: Tensor, dims: int, space: _Space
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield patches and the output's gradient for each shift over the kernel's leading dimensions.

    The patches have the shape [rows * groups, columns, L] and are laid out over the last `dims`
    dimensions of the kernel. The output's gradient has the shape [rows * groups, outputs, L].
    """
    groups, kernel = module.groups, module.kernel_size
    lead = len(kernel) - dims
    sizes = delta.shape[2:]
    grads = delta.reshape(len(x) * groups, -1, sizes.numel())
    x = _padded(module, x)
    for at in range(lead, len(kernel)):
        reach = module.dilation[at] * (kernel[at] - 1) + 1
        x = x.unfold(2 + at, reach, module.stride[at])[..., :: module.dilation[at]]
    axes = range(2, 2 + len(kernel))
    order = (0, 1, *range(2 + len(kernel), x.dim()), *axes)  # dimensions of the patches first
    x = x.permute(order)
    x = space.of("patches", x.shape, x).copy_(x)
    x = x.view(len(x) * groups, -1, *x.shape[2 + dims :])
    for shift in product(*map(range, kernel[:lead])):
        view = x
        for at, offset in enumerate(shift):
            start, stride = offset * module.dilation[at], module.stride[at]
            stop = start + stride * (sizes[at] - 1) + 1
            view = view[(slice(None),) * (2 + at) + (slice(start, stop, stride),)]
        yield view.reshape(*x.shape[:2], -1), grads


def _padded(module: Convolution, x: Tensor) -> Tensor:
    sides: list[int] = []
    for at in reversed(range(len(module.kernel_size))):  # pad() lists the last dimension first
        if module.padding == "same":
            both = module.dilation[at] * (module.kernel_size[at] - 1)
            sides += [both // 2, both - both // 2]
        else:
            sides += [0 if module.padding == "valid" else int(module.padding[at])] * 2
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return pad(x, sides, mode=mode) if any(sides) else x


def _output_size(module: Convolution, sizes: torch.Size) -> list[int]:
    found = []
    for at, size in enumerate(sizes):
        if module.padding == "same":
            found.append(size)
            continue
        sides = 0 if module.padding == "valid" else 2 * int(module.padding[at])
        reach = module.dilation[at] * (module.kernel_size[at] - 1)
        found.append((size + sides - reach - 1) // module.stride[at] + 1)
    return found


def _per_example(by_row: Tensor, rows: int) -> Tensor:
    times = len(by_row) // rows
    return by_row if times == 1 else by_row.unflatten(0, (rows, times)).sum(1)
