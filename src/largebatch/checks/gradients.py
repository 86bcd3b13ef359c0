"""Check what one backward pass shows: an invalid loss, unused parameters, reentrant checkpoints."""

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
"""Name of the autograd node of `torch.utils.checkpoint.checkpoint(use_reentrant=True)`."""


def check_gradients(subject: CheckedRun, loss: Loss, micro_batch: Any) -> list[Finding]:
    """Check the loss, and find parameters without a gradient and reentrant checkpoints.

    The loss must be a scalar with an autograd graph. The check writes no `.grad` and fires no hook
    of the run.
    """
    model = bare(subject.model)
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.training = False  # in training mode, it would wait for the other ranks
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
    """Find the trainable parameters that have no gradient in the current step."""
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
        what += "" if value.requires_grad else " without an autograd graph"
    return Finding(
        name="loss",
        level="error",
        seen=f"loss(model, micro_batch) returned {what}.",
        why="The backward call needs a scalar tensor with its autograd graph.",
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
        seen="Activation checkpointing uses torch's reentrant variant"
        + (f", and {tied} parameters are tied." if tied else "."),
        why="A parameter that is used both inside and outside of a checkpoint gets several "
        "gradients in one backward call, so the gradient of a micro-batch cannot be measured. "
        "The check did not search for unused parameters.",
        remedy="Use torch.utils.checkpoint.checkpoint(function, x, use_reentrant=False).",
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
        why="The loss function does not use the model that it is given."
        if every
        else "These parameters are not trained"
        + (", and DistributedDataParallel waits for their gradients." if fails else "."),
        remedy="Compute the loss with the model that is passed as the first argument: "
        "lb.check(control, lambda model, batch: loss_fn(model(batch[0]), batch[1]))."
        if every
        else "If no micro-batch uses these parameters, freeze them: "
        f"model.get_parameter({names[0]!r}).requires_grad_(False). If other micro-batches use "
        + (
            "them, pass DistributedDataParallel(model, find_unused_parameters=True)."
            if fails
            else "them, nothing needs to change."
        ),
    )
