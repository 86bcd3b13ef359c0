"""Check that the dimension whose length a loader counts is the dimension of the samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader

from largebatch.act.fetch import MapStyle
from largebatch.checks.checked_run import CheckedRun, Loss
from largebatch.checks.finding import Finding
from largebatch.checks.losses import FINE, check_mean, evaluating
from largebatch.checks.samples import tensors_in
from largebatch.measure.parameters import bare

APART, SAME = 1e-4, 1e-5
"""Relative differences of two losses in full precision. Two losses whose relative difference is
above `APART` count as different; two losses whose relative difference is below `SAME` count as
equal.
"""


def check_sample_dimension(
    subject: CheckedRun, loss: Loss, batch: Any, *, close: float
) -> list[Finding]:
    """Check that the loss is a mean over the samples, and that the counted dimension is the
    dimension of the samples.

    A mean over samples is the weighted mean of the losses of two slices, wherever the batch is cut.
    Assume that a batch has the shape `[T, B, ...]`, and that T is counted as the number of samples.
    If the loss cannot be computed from slices along T, the samples are along B if one of these
    conditions holds:

    - The loss can be computed from slices along B.
    - The first dimension of the model's output has the length B.
    - The DataLoader makes batches of B samples.

    Args:
        subject: Run to check.
        loss: Loss function of the user.
        batch: Micro-batch of the run.
        close: These arguments have the same meaning as in `check_mean`.
    """
    model = bare(subject.model)
    lead = _leading_two(batch)
    if lead is None or lead[0] == lead[1]:
        return check_mean(model, loss, batch, close=close)
    if subject.samples == lead[1]:
        return check_mean(model, loss, batch, close=close, dimension=1)
    found = check_mean(model, loss, batch, close=close)
    if subject.samples is None:  # the user's own loop does not count a dimension
        if not _changes(found):
            return found
        along_second = _along_second(model, loss, batch, close=close)
        return along_second if _is_mean(along_second) else found
    if subject.samples != lead[0] or _reads_a_data_set(subject):
        return found
    evidence = _evidence(subject, loss, batch, lead=lead, found=found, close=close)
    return found if evidence is None else [_other_dimension(lead, batch, evidence=evidence)]


def _reads_a_data_set(subject: CheckedRun) -> bool:
    """Return whether the samples are counted before they are collated, so that the layout is
    irrelevant.
    """
    return subject.batches is not None and isinstance(subject.batches.source, MapStyle)


def _leading_two(batch: Any) -> tuple[int, int] | None:
    """Return the lengths of the first two dimensions of the batch's first tensor; None if the
    tensor has fewer than two dimensions.
    """
    first = next((tensor for tensor in tensors_in(batch) if tensor.ndim), None)
    return None if first is None or first.ndim < 2 else (first.shape[0], first.shape[1])


def _is_mean(found: list[Finding]) -> bool:
    return all(finding.level == "ok" for finding in found)


def _changes(found: list[Finding]) -> bool:
    """Return whether the loss changes with the position of the cut, but is neither a sum nor
    random.
    """
    return all(finding.level == "warning" for finding in found)


def _along_second(model: nn.Module, loss: Loss, batch: Any, *, close: float) -> list[Finding]:
    try:
        return check_mean(model, loss, batch, close=close, dimension=1)
    except Exception as error:  # a model may reject a batch with fewer features, for example
        return [Finding(name="mean loss", level="note", seen=f"{type(error).__name__}: {error}")]


def _evidence(
    subject: CheckedRun,
    loss: Loss,
    batch: Any,
    *,
    lead: tuple[int, int],
    found: list[Finding],
    close: float,
) -> str | None:
    """Return the evidence that the samples are along the second dimension; None if no evidence is
    found.

    Args:
        subject, loss, batch, close: These arguments have the same meaning as in
            `check_sample_dimension`.
        lead: Lengths of the first two dimensions.
        found: Findings of `check_mean` along the first dimension.
    """
    model = bare(subject.model)
    if _is_mean(found):
        # A recurrent model forgets early inputs, so the pieces of a long sequence may have nearly
        # the same mean loss as the whole sequence.
        if close > FINE or _is_mean(check_mean(model, loss, batch, close=APART)):
            return None
        close = SAME
    elif not _changes(found):
        return None
    if _is_mean(_along_second(model, loss, batch, close=close)):
        return "the loss is a mean over the second dimension"
    if _is_mean(found):
        return None
    if _made_by_loader(subject) == lead[1]:
        return f"the DataLoader makes batches of {lead[1]}"
    if _output_length(model, loss, batch) == lead[1]:
        return f"the model's output has the length {lead[1]}"
    return None


def _made_by_loader(subject: CheckedRun) -> int | None:
    loader = subject.batches.source if subject.batches is not None else None
    batches = loader.batch_sampler if isinstance(loader, DataLoader) else None
    return batches.batch_size if type(batches) is BatchSampler else None


@torch.no_grad()
def _output_length(model: nn.Module, loss: Loss, batch: Any) -> int | None:
    """Return the length of the first dimension of the first tensor that the model returns; None if
    the model returns no such tensor.
    """
    outputs: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        outputs.extend(tensor for tensor in tensors_in(output) if tensor.ndim)

    handle = model.register_forward_hook(note)
    try:
        with evaluating(model):
            loss(model, batch)
    finally:
        handle.remove()
    return outputs[0].shape[0] if outputs else None


def _other_dimension(lead: tuple[int, int], batch: Any, *, evidence: str) -> Finding:
    counted, samples = lead
    return Finding(
        name="first dimension",
        level="warning",
        seen=f"The run counts {counted} samples in a micro-batch: the first dimension of its first "
        f"tensor, whose shape begins with {list(lead)}. But the loss is not a mean over this "
        f"dimension, and {evidence}. The micro-batch probably has {samples} samples.",
        why="The batch size, the scale, the learning rate and the number of base steps all depend "
        "on the number of samples in a micro-batch.",
        remedy="Pass a function that counts the samples: lb.BatchLoader(loader, batch_size=64, "
        f"size_of=lambda batch: batch{_path_of_first(batch)}.shape[1]).",
    )


def _path_of_first(batch: Any) -> str:
    """Return the expression that selects the first tensor of a batch, for example `[0]["x"]`."""
    if isinstance(batch, Tensor):
        return ""
    items = batch.items() if isinstance(batch, Mapping) else enumerate(batch)
    for key, item in items:
        if next((tensor for tensor in tensors_in(item) if tensor.ndim), None) is not None:
            return f"[{key!r}]{_path_of_first(item)}"
    raise AssertionError("the batch has a tensor")
