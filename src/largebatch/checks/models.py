"""What a model's parameters, modules and gradients say about a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from largebatch.checks.finding import Finding, named
from largebatch.checks.subject import Loss, Subject
from largebatch.measure.parameters import bare, replica

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
DROPOUTS = (nn.modules.dropout._DropoutNd,)
REENTRANT = "CheckpointFunctionBackward"
"""The node of `torch.utils.checkpoint.checkpoint(use_reentrant=True)`."""


def frozen_in(model: nn.Module) -> list[str]:
    """Names of the parameters that are not trained."""
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def tied_in(model: nn.Module) -> int:
    """How many parameters are another one under a second name."""
    return len(list(model.named_parameters(remove_duplicate=False))) - len(list(model.parameters()))


def check_parameters(subject: Subject) -> list[Finding]:
    """Frozen and tied parameters, and those that only the optimizer knows."""
    model = bare(subject.model)
    frozen, tied = frozen_in(model), tied_in(model)
    foreign = _foreign(model, subject.optimizer)
    found = []
    if frozen:
        seen = f"{named(frozen)} frozen: left out, as they have no noise of their own."
        found.append(Finding(name="frozen parameters", level="ok", seen=seen))
    if tied:
        seen = f"{tied} parameters are tied to another one: each tensor counts once."
        found.append(Finding(name="tied parameters", level="ok", seen=seen))
    if foreign:
        found.append(_foreign_finding(len(foreign), ranks=subject.ranks))
    return found


def check_modes(subject: Subject) -> list[Finding]:
    """Evaluation mode, and batch normalization beside the size of a micro-batch."""
    model = bare(subject.model)
    found = []
    if not model.training:
        found.append(
            Finding(
                name="training mode",
                level="warning",
                seen="The model is in evaluation mode.",
                why="Dropout and batch statistics are then off in training.",
                remedy="model.train()",
            )
        )
    return found


def check_norms(
    model: nn.Module, *, micro_batch: int | None, base: int, ranks: int
) -> list[Finding]:
    """Batch normalization, whose statistics are those of a micro-batch.

    Args:
        model: bare.
        micro_batch: samples in one of this rank, where known.
        base: batch in samples for which the learning rate was tuned.
        ranks: processes that share the batch.
    """
    norms = {n: m for n, m in model.named_modules() if isinstance(m, BATCH_NORMS)}
    if not norms:
        return []
    together = [n for n, m in norms.items() if isinstance(m, nn.SyncBatchNorm)]
    size = "of unknown size" if micro_batch is None else f"of {micro_batch} samples"
    found = []
    if together and ranks > 1:
        found.append(
            Finding(
                name="synchronised batch normalization",
                level="warning",
                seen=f"{len(together)} layers of SyncBatchNorm: {named(together)}.",
                why="A rank's gradient then depends on the other ranks' samples, so the parts of a "
                "step are not independent and less noise is measured than there is.",
                remedy="Normalize within a sample, as with nn.GroupNorm(8, channels), or within "
                "the rank: nn.BatchNorm2d(channels).",
            )
        )
    apart = len(norms) - (len(together) if ranks > 1 else 0)
    if apart:
        same = micro_batch == base
        found.append(
            Finding(
                name="batch normalization",
                level="note" if same else "warning",
                seen=f"{apart} layers of batch normalization, first {next(iter(norms))!r}: their "
                f"statistics are those of one micro-batch {size}, as large as the base batch."
                if same
                else f"{apart} layers of batch normalization, first {next(iter(norms))!r}: their "
                f"statistics are those of one micro-batch {size}; the base batch has {base}.",
                why="Gradients, their noise and the running statistics change with the size of the "
                "micro-batch; of several ranks, the first one's running statistics are kept.",
                remedy="Keep the micro-batch at what the learning rate was tuned with, "
                f"max_micro_batch_size={base}, or use group or layer normalization.",
            )
        )
    return found


def check_gradients(subject: Subject, loss: Loss, micro_batch: Any) -> list[Finding]:
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
    parameters = subject.meter.parameters
    gradients = torch.autograd.grad(value, parameters.tensors, allow_unused=True)
    pairs = zip(parameters.names, gradients, strict=True)
    unused = [name for name, gradient in pairs if gradient is None]
    if not unused:
        seen = f"Each of {len(parameters)} trainable parameters gets a gradient."
        return [Finding(name="unused parameters", level="ok", seen=seen)]
    return [_unused(unused, total=len(parameters), subject=subject)]


def _foreign(model: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    ours = set(model.parameters())
    held = {p: None for group in optimizer.param_groups for p in group["params"]}
    return [p for p in held if p not in ours and p.requires_grad]


def _foreign_finding(count: int, *, ranks: int) -> Finding:
    return Finding(
        name="parameters outside the model",
        level="error" if ranks > 1 else "note",
        seen=f"The optimizer moves {count} parameters that are not the model's.",
        why="DistributedDataParallel does not average their gradients, so ranks drift apart."
        if ranks > 1
        else "They are measured as the others are, if the loss uses them; what is not in the model "
        "is also not in its state_dict.",
        remedy="Put them into the model, model.head = head, before the optimizer is built.",
    )


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
        level="error" if tied else "warning",
        seen="Activations are checkpointed by the reentrant variant"
        + (f", and {tied} parameters are tied." if tied else "."),
        why="A parameter that is used inside and outside of a checkpoint gets several gradients in "
        "one backward, of which no micro-batch's gradient can be measured; unused parameters "
        "were not looked for.",
        remedy="torch.utils.checkpoint.checkpoint(function, x, use_reentrant=False)",
    )


def _unused(names: list[str], *, total: int, subject: Subject) -> Finding:
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
        "control.check(lambda model, batch: loss_fn(model(batch[0]), batch[1]))"
        if every
        else f"Freeze them, model.get_parameter({names[0]!r}).requires_grad_(False), or, where "
        "only some micro-batches use them, leave it so"
        + (": DistributedDataParallel(model, find_unused_parameters=True)." if fails else "."),
    )
