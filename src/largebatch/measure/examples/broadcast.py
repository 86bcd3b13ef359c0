"""What the examples of a batch share: a parameter added to all of them, or the output of a module
that was called once for all (an embedding of positions).

Its gradient arrives summed over the examples, so it is taken where the sum has not been formed yet:
before the operation in the graph that spread the shared tensor over the examples, whose output has
them as its first dimension. Between that operation and the shared tensor may be views and
arithmetic that all examples have in common; they are passed with all examples' gradients at once.
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
"""Gets each example's gradient of the shared tensor, [rows, *its shape]."""

Consumers = dict[Node, list[tuple[Node, int]]]
"""A node -> the nodes that use its output, and as which of their inputs."""

SPREADS = ("ExpandBackward0", "RepeatBackward0")
"""Operations that spread one tensor and reduce its gradient themselves."""


def consumers_of(outputs: Sequence[Tensor]) -> Consumers:
    """All nodes below these outputs."""
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
    """Puts hooks where a shared tensor of this shape is spread over the examples; False where one
    of the ways out of it is not understood."""
    places = _places(source.node, shape, consumers, rows)
    for node, at in places or ():
        node.register_prehook(errors.guard(_hook(node, at, source, shape, rows, arrive)))
    return places is not None


def _places(
    source: Node, shape: torch.Size, consumers: Consumers, rows: int
) -> list[tuple[Node, int]] | None:
    """The nodes that spread it, and as which input they have it; None for a way without one."""
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
    """Whether the output's first dimension is the examples and the input had none."""
    if above == shape or not above or above[0] != rows:
        return False
    missing = len(above) > len(shape) or shape[0] == 1
    pairs = zip(reversed(shape), reversed(above), strict=False)
    fits = len(shape) <= len(above) and all(a in (1, b) for a, b in pairs)
    return missing and fits and not any(view in node.name() for view in ("View", "Unsqueeze"))


def _shape(node: Node, number: int = 0) -> torch.Size | None:
    """Of one of a node's outputs; None without a number where there are several."""
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
    """The gradient of one input of an elementwise operation, before it is reduced to its shape,
    which is the engine's work after the node's."""
    if node.name() in SPREADS:
        return gradient
    apply: Any = node
    found = apply(gradient)
    each: Tensor = found[at] if isinstance(found, tuple) else found
    if each.shape != gradient.shape:
        raise LargeBatchError(
            f"A parameter that all examples share enters {node.name()}, which gives its gradient "
            "summed over them. Put it into a module of its own that gets the examples."
        )
    return each


def _summed_to(gradient: Tensor, rows: int, shape: torch.Size) -> Tensor:
    """[rows, ...] summed to [rows, *shape]."""
    padded = (rows, *(1,) * (gradient.dim() - 1 - len(shape)), *shape)
    if len(padded) > gradient.dim():  # the shared tensor had a first dimension of 1 for them
        padded = (rows, *shape[1:])
    return gradient.sum_to_size(padded).reshape(rows, *shape)


def _below(edge: GradientEdge, source: GradientEdge, each: Tensor) -> Tensor:
    """Through what lies between the operation and the shared tensor, for all examples at once."""
    (found,) = torch.autograd.grad(
        (edge,), (source,), grad_outputs=(each,), is_grads_batched=True, retain_graph=True
    )
    return found
