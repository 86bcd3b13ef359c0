"""Mean losses and metrics of one batch. Each is a mean over samples, so that the means of
micro-batches, weighted by their sizes, are those of the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch.workbench.workloads.data import Batch


def classification_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy in nats of inputs [B, ...] with classes [B]."""
    x, y = batch
    return cross_entropy(model(x), y)


def classification_metrics(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    """`loss`, and `accuracy` in [0, 1]."""
    x, y = batch
    logits = model(x)
    return {
        "loss": cross_entropy(logits, y),
        "accuracy": (logits.argmax(-1) == y).float().mean(),
    }


def next_byte_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy in nats a byte of sequences [B, T] with the bytes that follow [B, T].

    All sequences are equally long, so the mean over bytes is a mean over samples.
    """
    x, y = batch
    return cross_entropy(model(x).flatten(0, 1), y.flatten().long())


def next_byte_metrics(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    """`loss` in nats a byte, and the same as `bits_per_byte`."""
    loss = next_byte_loss(model, batch)
    return {"loss": loss, "bits_per_byte": loss / math.log(2.0)}
