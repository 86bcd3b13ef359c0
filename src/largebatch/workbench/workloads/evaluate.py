"""The loss and the metrics of a model on a whole split."""

from __future__ import annotations

import torch
from torch import nn

from largebatch.workbench.workloads.data import Split, in_batches
from largebatch.workbench.workloads.workload import Workload


@torch.no_grad()
def evaluate(model: nn.Module, workload: Workload, split: Split) -> dict[str, float]:
    """Means over all samples of a split, such as {"loss": .28, "accuracy": .9}, in eval mode.

    Every module is left in the mode it was in. Give the bare module, not one wrapped for DDP.

    Args:
        model: on any device; batches follow it there.
        workload: whose loss and metrics are computed, `micro_batch_size` samples at a time.
        split: `data.validation` to choose by, `data.test` to report.

    Raises:
        ValueError: the split is empty.
    """
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    totals: dict[str, float] = {}
    samples = 0
    try:
        model.eval()
        for batch in in_batches(split, workload.micro_batch_size):
            batch = tuple(tensor.to(device) for tensor in batch)
            if workload.metrics is None:
                means = {"loss": workload.loss(model, batch)}
            else:
                means = dict(workload.metrics(model, batch))
            count = len(batch[0])
            samples += count
            for name, mean in means.items():
                totals[name] = totals.get(name, 0.0) + float(mean) * count
    finally:
        for module, training in modes:
            module.training = training
    if not samples:
        raise ValueError("The split is empty: evaluate(model, workload, data.validation).")
    return {name: total / samples for name, total in totals.items()}
