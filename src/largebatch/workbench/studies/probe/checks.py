"""What the probe looks at besides the noise: the loss, the model and the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import nn

from largebatch.checks.finding import named
from largebatch.checks.losses import loss_when_repeated
from largebatch.checks.models import BATCH_NORMS, DROPOUTS, frozen_in, tied_in
from largebatch.checks.subject import Loss
from largebatch.measure.parameters import bare


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Args:
        sound: whether nothing needs doing.
        text: what was found, and what follows.
    """

    sound: bool
    text: str


def check_loss(model: nn.Module, loss: Loss, batch: Any) -> Check:
    """Whether the loss is a mean: then repeating every sample of a batch leaves it as it is.

    Raises:
        ValueError: the loss doubles, so it is a sum.
    """
    ratio = loss_when_repeated(model, loss, batch)
    if abs(ratio - 1.0) < 0.01:
        text = "The loss is a mean: the same samples twice give the same loss."
        return Check(sound=True, text=text)
    if abs(ratio - 2.0) < 0.02:
        raise ValueError(
            "The loss doubles when every sample of a batch is repeated, so it is a sum over "
            "samples. A larger batch would then also mean a larger step, and noise could not be "
            "told from size. Return the mean: loss.sum() / len(x), or reduction='mean'; and "
            "multiply the learning rate by the batch that it was tuned with."
        )
    return Check(
        sound=False,
        text=f"The loss changes by a factor {ratio:.3g} when every sample of a batch is repeated. "
        "It depends on which samples are together, or it is random; then the noise scale holds "
        "for this size of micro-batch only.",
    )


def check_model(model: nn.Module) -> list[Check]:
    """Frozen and tied parameters, batch normalization, dropout, and the model's mode."""
    model = bare(model)
    found = [_frozen(model), _tied(model)]
    norms = sum(isinstance(module, BATCH_NORMS) for module in model.modules())
    found.append(
        Check(
            sound=False,
            text=f"{norms} layers of batch normalization: they see one micro-batch at a time, "
            "so the noise scale depends on its size. Group or layer normalization does not.",
        )
        if norms
        else Check(sound=True, text="No batch normalization.")
    )
    rates = {module.p for module in model.modules() if isinstance(module, DROPOUTS) and module.p}
    if rates:
        listed = ", ".join(f"{rate:g}" for rate in sorted(rates))
        text = f"Dropout ({listed}): its randomness counts as noise of the gradient."
    else:
        text = "No dropout layers."
    found.append(Check(sound=True, text=text))
    if not model.training:
        text = "The model is in evaluation mode. Call model.train() before the probe."
        found.append(Check(sound=False, text=text))
    return found


def check_unused(model: nn.Module) -> Check:
    """Which trainable parameters got no gradient from the step in hand."""
    unused = [
        name
        for name, parameter in bare(model).named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    if not unused:
        return Check(sound=True, text="Every trainable parameter gets a gradient.")
    return Check(
        sound=False,
        text=f"{named(unused)} got no gradient in the first step: the loss does not depend on "
        "what is never used. Freeze it, .requires_grad_(False), if that is meant.",
    )


def check_data(fingerprints: Sequence[int], *, ranks: int) -> Check:
    """Whether the micro-batches of the first step, those of all ranks, hold different samples.

    Args:
        fingerprints: of this rank's micro-batches.
        ranks: processes that share the batch.
    """
    everyone: list[Any] = [list(fingerprints)]
    if ranks > 1:
        everyone = [None] * ranks
        dist.all_gather_object(everyone, list(fingerprints))
    counts = Counter(code for one in everyone for code in one)
    total = sum(counts.values())
    again = total - len(counts)
    where = f" of {ranks} ranks" if ranks > 1 else ""
    if not again:
        text = f"The {total} micro-batches{where} hold different samples."
        return Check(sound=True, text=text)
    remedy = (
        "Give each rank its own samples: DataLoader(dataset, sampler=DistributedSampler(dataset))."
        if ranks > 1
        else "Look at how the loader chooses its samples."
    )
    return Check(
        sound=False,
        text=f"{again} of the first step's {total} micro-batches{where} repeat the samples of "
        f"another one, so less noise is measured than there is. {remedy}",
    )


def _frozen(model: nn.Module) -> Check:
    frozen = frozen_in(model)
    if not frozen:
        return Check(sound=True, text="No frozen parameters.")
    return Check(
        sound=True, text=f"{named(frozen)} frozen: left out, as they have no noise of their own."
    )


def _tied(model: nn.Module) -> Check:
    tied = tied_in(model)
    if not tied:
        return Check(sound=True, text="No tied parameters.")
    return Check(
        sound=True,
        text=f"{tied} parameters are tied to another one: each tensor counts once, with the sum of "
        "its gradients.",
    )
