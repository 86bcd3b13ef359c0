"""Compute the losses and metrics of one batch.

Each value is a mean over samples. The mean over the whole batch therefore equals the mean over its
micro-batches, weighted by their sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch.workbench.workloads.data import Batch


def classification_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy in nats of the model on inputs [B, ...] and classes [B].

    >>> import torch
    >>> batch = (torch.zeros(2, 3), torch.tensor([0, 2]))
    >>> round(float(classification_loss(nn.Identity(), batch)), 4)
    1.0986
    """
    x, y = batch
    return cross_entropy(model(x), y)


def classification_metrics(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    """Return the mean cross-entropy `loss` in nats, and the `accuracy` in [0, 1].

    >>> import torch
    >>> batch = (torch.eye(3), torch.tensor([0, 1, 0]))
    >>> round(float(classification_metrics(nn.Identity(), batch)["accuracy"]), 4)
    0.6667
    """
    x, y = batch
    logits = model(x)
    return {
        "loss": cross_entropy(logits, y),
        "accuracy": (logits.argmax(-1) == y).float().mean(),
    }


def next_byte_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy in nats per byte of byte sequences [B, T].

    The batch holds the sequences and, for each position, the following byte [B, T]. All sequences
    have the same length, so the mean over bytes is also a mean over samples.

    >>> import torch
    >>> model = nn.Embedding.from_pretrained(torch.zeros(256, 256))
    >>> batch = (torch.zeros(2, 4, dtype=torch.long), torch.ones(2, 4, dtype=torch.uint8))
    >>> round(float(next_byte_loss(model, batch)), 4)
    5.5452
    """
    x, y = batch
    return cross_entropy(model(x).flatten(0, 1), y.flatten().long())


def next_byte_metrics(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    """Return the mean cross-entropy as `loss` in nats per byte and as `bits_per_byte`.

    >>> import torch
    >>> model = nn.Embedding.from_pretrained(torch.zeros(256, 256))
    >>> batch = (torch.zeros(2, 4, dtype=torch.long), torch.ones(2, 4, dtype=torch.uint8))
    >>> round(float(next_byte_metrics(model, batch)["bits_per_byte"]), 4)
    8.0
    """
    loss = next_byte_loss(model, batch)
    return {"loss": loss, "bits_per_byte": loss / math.log(2.0)}
