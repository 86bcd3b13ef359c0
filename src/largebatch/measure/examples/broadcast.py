"""Find each example's gradient of a tensor that all examples of a batch share.

A shared tensor is a parameter that is added to all examples, or the output of a module that is
called once for all examples, such as an embedding of positions. Autograd gives the gradient of the
tensor summed over the examples. So the gradient is read before the sum, at the operation that
expands the shared tensor to all examples. The first dimension of the expanded tensor indexes the
examples. If there are other operations between the shared tensor and the expansion, the gradients
of all examples are passed through these operations in one batched call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from largebatch.core.errors import LargeBatchError
from largebatch.measure.examples.deferred_errors import DeferredErrors

Arrive = Callable[[Tensor], None]
"""Function that receives each example's gradient of the shared tensor, [rows, *shape]."""

Consumers = dict[Node, list[tuple[Node, int]]]
"""Map from a graph node to the nodes that use its output, each with the number of the input."""

SPREADS = ("ExpandBackward0", "RepeatBackward0")
"""Names of operations that expand one tensor, and sum the tensor's gradient themselves."""


def consumers_of(outputs: Sequence[Tensor]) -> Consumers:
    """Return for each node in the graph of `outputs` which nodes use the node's output."""
    found: Consumers = {}
    seen: set[Node] = set()
    open_ = [x.grad_fn for x in outputs if x.grad_fn is not None]
    while open_:
        node = open_.pop()
        if node in seen:
            continue
        seen.add(node)
        for at, (below, _) in enumerate(node.next_functions):
            if below is not None:
                found.setdefault(below, []).append((node, at))
                open_.append(below)
    return found


def watch_shared(
    source: GradientEdge,
    shape: torch.Size,
    consumers: Consumers,
    *,
    rows: int,
    arrive: Arrive,
    errors: DeferredErrors,
) -> bool:
    """Register hooks where a shared tensor is expanded to all examples.

    Returns:
        Whether the expanding operation was found on every path from the shared tensor. If a path
        has no expanding operation, no hook is registered.

    Args:
        source: Graph edge of the shared tensor.
        shape: Shape of the shared tensor.
        consumers: Result of `consumers_of`.
        rows: Number of examples.
        arrive: Function that receives each example's gradient.
        errors: Collector of the errors within the hooks.
    """
    places = _places(source.node, shape, consumers, rows)
    for node, at in places or ():
        node.register_prehook(errors.guard(_hook(node, at, source, shape, rows, arrive)))
    return places is not None


def _places(
    source: Node, shape: torch.Size, consumers: Consumers, rows: int
) -> list[tuple[Node, int]] | None:
    """Return the nodes that expand the shared tensor, each with the number of the input.

    The result is None if a path from the shared tensor has no expanding node.
    """
    places: list[tuple[Node, int]] = []
    seen, open_ = {source}, [(source, shape)]
    while open_:
        node, shape = open_.pop()
        if node not in consumers:
            return None
        for above, at in consumers[node]:
            above_shape = _shape(above)
            if above_shape is None:
                return None
            if _spreads(above, shape, above_shape, rows):
                places.append((above, at))
            elif above not in seen:
                seen.add(above)
                open_.append((above, above_shape))
    return places


def _spreads(node: Node, shape: torch.Size, above: torch.Size, rows: int) -> bool:
    """Return whether a node adds the examples as first dimension to a tensor."""
    if above == shape or not above or above[0] != rows:
        return False
    missing = len(above) > len(shape) or shape[0] == 1
    pairs = zip(reversed(shape), reversed(above), strict=False)
    fits = len(shape) <= len(above) and all(a in (1, b) for a, b in pairs)
    return missing and fits and not any(view in node.name() for view in ("View", "Unsqueeze"))


def _shape(node: Node, number: int = 0) -> torch.Size | None:
    """Return a node's output shape; None if the node has several outputs and `number` is 0."""
    metadata: Any = node._input_metadata
    several = len(metadata) > 1 and not number
    return None if several else torch.Size(metadata[number].shape)


def _hook(
    node: Node, at: int, source: GradientEdge, shape: torch.Size, rows: int, arrive: Arrive
) -> Callable[..., None]:
    def hook(gradients: tuple[Tensor | None, ...]) -> None:
        gradient = gradients[0]
        if gradient is None:
            return
        below, number = node.next_functions[at]
        assert below is not None
        direct = below is source.node
        inner = shape if direct else torch.Size(below._input_metadata[number].shape)
        each = _unreduced(node, at, gradient)
        each = _summed_to(each, rows, inner)
        arrive(each if direct else _below(GradientEdge(below, number), source, each))

    return hook


def _unreduced(node: Node, at: int, gradient: Tensor) -> Tensor:
    """Return the gradient of one input of an elementwise operation before it is summed.

    The autograd engine sums the gradient to the shape of the input after the node has run.
    """
    if node.name() in SPREADS:
        return gradient
    apply: Any = node
    found = apply(gradient)
    each: Tensor = found[at] if isinstance(found, tuple) else found
    if each.shape != gradient.shape:
        raise LargeBatchError(
            f"All examples share a parameter that is an input of the operation {node.name()}, "
            "whose gradient is summed over the examples. Put the parameter into its own module, "
            "and pass the examples to this module: x = self.my_module(x)."
        )
    return each


def _summed_to(gradient: Tensor, rows: int, shape: torch.Size) -> Tensor:
    """Sum a gradient of shape [rows, ...] to the shape [rows, *shape]."""
    padded = (rows, *(1,) * (gradient.dim() - 1 - len(shape)), *shape)
    if len(padded) > gradient.dim():  # the first dimension of the shared tensor was 1
        padded = (rows, *shape[1:])
    return gradient.sum_to_size(padded).reshape(rows, *shape)


def _below(edge: GradientEdge, source: GradientEdge, each: Tensor) -> Tensor:
    """Pass all examples' gradients through the graph from `edge` down to the shared tensor."""
    (found,) = torch.autograd.grad(
        (edge,), (source,), grad_outputs=(each,), is_grads_batched=True, retain_graph=True
    )
    return found
