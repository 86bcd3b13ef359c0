"""Compute the loss and the metrics of a model on a whole data split."""

from __future__ import annotations

import torch
from torch import nn

from largebatch.workbench.workloads.data import Split, in_batches
from largebatch.workbench.workloads.workload import Workload


@torch.no_grad()
def evaluate(model: nn.Module, workload: Workload, split: Split) -> dict[str, float]:
    """Return the mean of each metric over all samples of a split.

    The model is evaluated in eval mode. Afterwards, every module is in its former mode again.

    >>> from largebatch.workbench.workloads import load
    >>> workload = load("digits")
    >>> model, _ = workload.fresh(seed=0)
    >>> sorted(evaluate(model, workload, workload.data().validation))
    ['accuracy', 'loss']

    Args:
        model: Model without a DistributedDataParallel wrapper. Batches are moved to the model's
            device.
        workload: Workload whose metrics are computed, `micro_batch_size` samples at a time.
        split: Data split. Use `data.validation` to choose settings and `data.test` to report.

    Raises:
        ValueError: The split is empty.
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
        raise ValueError(
            "The split has no samples. Pass a split with samples: "
            "evaluate(model, workload, data.validation)"
        )
    return {name: total / samples for name, total in totals.items()}
