"""What a model's parameters and modules say about a run."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import Optimizer

from largebatch.checks.checked_run import CheckedRun
from largebatch.checks.finding import Finding, named
from largebatch.measure.parameters import bare

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
DROPOUTS = (nn.modules.dropout._DropoutNd,)


def frozen_in(model: nn.Module) -> list[str]:
    """Names of the parameters that are not trained."""
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def tied_in(model: nn.Module) -> int:
    """How many parameters are another one under a second name."""
    return len(list(model.named_parameters(remove_duplicate=False))) - len(list(model.parameters()))


def check_parameters(subject: CheckedRun) -> list[Finding]:
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


def check_modes(subject: CheckedRun) -> list[Finding]:
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


def check_dropout(model: nn.Module) -> list[Finding]:
    """Report the probabilities of dropout layers."""
    rates = {module.p for module in model.modules() if isinstance(module, DROPOUTS) and module.p}
    if not rates:
        return []
    listed = ", ".join(f"{rate:g}" for rate in sorted(rates))
    seen = f"The model has dropout with probability {listed}."
    why = "Its randomness counts as noise of the gradient."
    return [Finding(name="dropout", level="ok", seen=seen, why=why)]


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
