"""Check the parameters and modules of a model."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import Optimizer

from largebatch.checks.checked_run import CheckedRun
from largebatch.checks.finding import Finding, named
from largebatch.measure.parameters import bare

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
DROPOUTS = (nn.modules.dropout._DropoutNd,)


def frozen_in(model: nn.Module) -> list[str]:
    """Return the names of the parameters that are not trained."""
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def tied_in(model: nn.Module) -> int:
    """Return how many parameter names refer to a parameter that also has another name."""
    return len(list(model.named_parameters(remove_duplicate=False))) - len(list(model.parameters()))


def check_parameters(subject: CheckedRun) -> list[Finding]:
    """Report frozen parameters, tied parameters, and parameters that only the optimizer knows."""
    model = bare(subject.model)
    frozen, tied = frozen_in(model), tied_in(model)
    foreign = _foreign(model, subject.optimizer)
    found = []
    if frozen:
        seen = f"Frozen parameters have no gradient, so they are not measured: {named(frozen)}."
        found.append(Finding(name="frozen parameters", level="ok", seen=seen))
    if tied:
        seen = f"{tied} parameters are tied to another parameter; each tensor counts once."
        found.append(Finding(name="tied parameters", level="ok", seen=seen))
    if foreign:
        found.append(_foreign_finding(len(foreign), ranks=subject.ranks))
    return found


def check_modes(subject: CheckedRun) -> list[Finding]:
    """Report a model that is in evaluation mode."""
    model = bare(subject.model)
    found = []
    if not model.training:
        found.append(
            Finding(
                name="training mode",
                level="warning",
                seen="The model is in evaluation mode.",
                why="Dropout and batch statistics are then inactive during training.",
                remedy="Call model.train().",
            )
        )
    return found


def check_norms(
    model: nn.Module, *, micro_batch: int | None, base: int, ranks: int
) -> list[Finding]:
    """Report batch normalization, whose statistics depend on the micro-batch.

    Args:
        model: Model without wrappers.
        micro_batch: Number of samples in one micro-batch of this rank; None if unknown.
        base: Base batch size in samples, for which the learning rate was tuned.
        ranks: Number of processes that share the batch.
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
                name="synchronized batch normalization",
                level="warning",
                seen=f"The model has {len(together)} SyncBatchNorm layer(s): {named(together)}.",
                why="The gradient of each rank then depends on the samples of the other ranks, so "
                "the gradients are not independent and the measured noise is too small.",
                remedy="Normalize within each sample, nn.GroupNorm(8, channels), or within each "
                "rank, nn.BatchNorm2d(channels).",
            )
        )
    apart = len(norms) - (len(together) if ranks > 1 else 0)
    if apart:
        same = micro_batch == base
        found.append(
            Finding(
                name="batch normalization",
                level="note" if same else "warning",
                seen=f"The model has {apart} batch normalization layer(s), the first of which is "
                f"{next(iter(norms))!r}. The layers normalize over one micro-batch {size}"
                + (
                    ", which equals the base batch size."
                    if same
                    else f", but the base batch size is {base}."
                ),
                why="Gradients, gradient noise and running statistics change with the micro-batch "
                "size. With several ranks, only the first rank's running statistics are kept.",
                remedy="Use the micro-batch size for which the learning rate was tuned, "
                f"max_micro_batch_size={base}, or use group or layer normalization.",
            )
        )
    return found


def check_dropout(model: nn.Module) -> list[Finding]:
    """Report the probabilities of dropout layers."""
    rates = {module.p for module in model.modules() if isinstance(module, DROPOUTS) and module.p}
    if not rates:
        return []
    listed = ", ".join(f"{rate:g}" for rate in sorted(rates))
    seen = f"The model has dropout with probability {listed}."
    why = "The randomness of dropout counts as gradient noise."
    return [Finding(name="dropout", level="ok", seen=seen, why=why)]


def _foreign(model: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    ours = set(model.parameters())
    held = {p: None for group in optimizer.param_groups for p in group["params"]}
    return [p for p in held if p not in ours and p.requires_grad]


def _foreign_finding(count: int, *, ranks: int) -> Finding:
    return Finding(
        name="parameters outside the model",
        level="error" if ranks > 1 else "note",
        seen=f"The optimizer moves {count} parameters that do not belong to the model.",
        why="DistributedDataParallel does not average the gradients of these parameters, so the "
        "ranks' weights drift apart."
        if ranks > 1
        else "These parameters are measured like the others if the loss uses them, but the "
        "model's state_dict does not contain them.",
        remedy="Add these parameters to the model before the optimizer is built: model.head = "
        "head.",
    )
