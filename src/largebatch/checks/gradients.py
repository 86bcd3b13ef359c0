"""What one backward says: a loss that is none, unused parameters, reentrant checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.checks.checked_run import CheckedRun, Loss
from largebatch.checks.finding import Finding, named
from largebatch.checks.models import tied_in
from largebatch.measure.parameters import bare, replica

REENTRANT = "CheckpointFunctionBackward"
"""The node of `torch.utils.checkpoint.checkpoint(use_reentrant=True)`."""


def check_gradients(subject: CheckedRun, loss: Loss, micro_batch: Any) -> list[Finding]:
    """Whether the loss is a scalar with a graph, which parameters get no gradient, and reentrant
    checkpoints. No `.grad` is written and no hook of a run fires."""
    model = bare(subject.model)
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.training = False  # its statistics would need the other ranks
    with torch.enable_grad():
        value = loss(model, micro_batch)
    wrong = _no_loss(value)
    if wrong:
        return [wrong]
    if any(node.name() == REENTRANT for node in _nodes(value)):
        return [_reentrant(tied=tied_in(model))]
    parameters = subject.meter.parameters.tensors
    return _usage(subject, torch.autograd.grad(value, parameters, allow_unused=True))


def check_unused(subject: CheckedRun) -> list[Finding]:
    """Find the trainable parameters that got no gradient in the step in hand."""
    return _usage(subject, [tensor.grad for tensor in subject.meter.parameters.tensors])


def _usage(subject: CheckedRun, gradients: Sequence[Tensor | None]) -> list[Finding]:
    parameters = subject.meter.parameters
    pairs = zip(parameters.names, gradients, strict=True)
    unused = [name for name, gradient in pairs if gradient is None]
    if not unused:
        seen = f"Each of {len(parameters)} trainable parameters gets a gradient."
        return [Finding(name="unused parameters", level="ok", seen=seen)]
    return [_unused(unused, total=len(parameters), subject=subject)]


def _no_loss(value: Any) -> Finding | None:
    if isinstance(value, Tensor) and value.dim() == 0 and value.requires_grad:
        return None
    what = type(value).__name__
    if isinstance(value, Tensor):
        what = f"a tensor of shape {tuple(value.shape)}"
        what += "" if value.requires_grad else " without a graph"
    return Finding(
        name="loss",
        level="error",
        seen=f"loss(model, micro_batch) gives {what}.",
        why="A backward needs one number and the graph that made it.",
        remedy="Return loss.mean(), without .item(), .detach() and torch.no_grad().",
    )


def _nodes(value: Tensor) -> Iterator[Any]:
    waiting, seen = [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [following for following, _ in node.next_functions]


def _reentrant(*, tied: int) -> Finding:
    return Finding(
        name="activation checkpointing",
        level="warning" if tied else "note",
        seen="Activations are checkpointed by the reentrant variant"
        + (f", and {tied} parameters are tied." if tied else "."),
        why="A parameter that is used inside and outside of a checkpoint gets several gradients in "
        "one backward, of which no micro-batch's gradient can be measured; unused parameters "
        "were not looked for.",
        remedy="torch.utils.checkpoint.checkpoint(function, x, use_reentrant=False)",
    )


def _unused(names: list[str], *, total: int, subject: CheckedRun) -> Finding:
    wrapper = replica(subject.model)
    fails = wrapper is not None and not wrapper.find_unused_parameters
    every = len(names) == total
    return Finding(
        name="unused parameters",
        level="error" if fails or every else "warning",
        seen=f"{len(names)} of {total} trainable parameters get no gradient from the loss: "
        f"{named(names)}.",
        why="The loss does not use the model that it is given."
        if every
        else "They are never trained"
        + (", and DistributedDataParallel waits for their gradients." if fails else "."),
        remedy="Compute the loss with its first argument: "
        "lb.check(control, lambda model, batch: loss_fn(model(batch[0]), batch[1]))"
        if every
        else f"Freeze them, model.get_parameter({names[0]!r}).requires_grad_(False), or, where "
        "only some micro-batches use them, leave it so"
        + (": DistributedDataParallel(model, find_unused_parameters=True)." if fails else "."),
    )
