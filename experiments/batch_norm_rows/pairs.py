"""Measure gradient noise from pairs of consecutive steps that all start at the same weights.

If single examples cannot be measured, `lb.watch` takes two consecutive steps as two parts of one
batch. The weights move between the two steps, so the estimate is biased. Here each pair starts with
the weights and the momentum for which the true noise was measured. The only difference from the
truth is therefore the movement of one step.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from experiments.batch_norm_rows.setup import LR, SCALES, trained
from experiments.lab import workloads
from experiments.lab.run import Extra, Result, Run
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

import largebatch as lb
from largebatch.rules.adascale import gain

PACES = (1.0, 0.1)
"""Factors on the learning rate of the step between the two gradients of a pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsOfSteps(Run):
    """Describe a measurement from pairs of steps, for each learning-rate factor of `PACES`.

    The budget is the number of pairs per factor. All factors use the same samples.

    Args:
        model: Name of the model, as in `MODELS`.
        batch_size: Number of samples in each of the two steps.
        trained: Number of training steps before the pairs.
    """

    model: str
    batch_size: int
    trained: int

    def make(self) -> Result:
        torch.set_num_threads(1)
        began = time.perf_counter()
        count, size = self.budget.steps, self.batch_size
        assert count is not None
        model, optimizer = trained(self.model, seed=self.seed, steps=self.trained)
        data = workloads.data(self.workload).train
        notes: dict[str, float] = {}
        forecast = []
        for pace in PACES:
            generator = torch.Generator().manual_seed(1000 + self.seed)
            drawn = torch.randint(len(data[0]), (count, 2, size), generator=generator)
            found = values(pairs(model, optimizer, data, drawn=drawn, lr=LR * pace), size=size)
            notes |= {noted(name, pace): float(f"{value:.6g}") for name, value in found.items()}
            forecast += [(float(s), found[f"gain {s}"], 0.0, 0.0) for s in SCALES]
        return Result(
            steps=2 * count * len(PACES),
            samples=2 * count * len(PACES) * size,
            base_steps=0.0,
            mean_gain=forecast[0][1],
            mean_multiplier=1.0,
            diverged=False,
            train={},
            validation={},
            test={},
            forecast=tuple(forecast),
            extra=Extra(notes=notes),
            seconds=time.perf_counter() - began,
        )


def noted(name: str, pace: float) -> str:
    """Return the name under which a run notes a quantity for one learning-rate factor.

    >>> noted("variance", 0.1)
    'variance, lr x 0.1'
    """
    return f"{name}, lr x {pace:g}"


def pairs(
    model: nn.Module,
    optimizer: Optimizer,
    data: tuple[Tensor, Tensor],
    *,
    drawn: Tensor,
    lr: float,
) -> list[lb.GradientMoments]:
    """Return the moments of each pair of steps, and restore the model and the optimizer.

    Args:
        model: Model with the weights of the first step of each pair.
        optimizer: Optimizer with the momentum of the first step of each pair.
        data: Inputs and labels.
        drawn: Indices of the samples of the pairs, [pairs, 2, batch size].
        lr: Learning rate of the step between the two gradients.
    """
    x, y = data
    meter = lb.Meter(model, statistics=[lb.measure.TemporalMoments()])
    meter.bind(optimizer)
    weights, momentum = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    found = []
    for pair in drawn:
        for at in pair:
            optimizer.zero_grad()
            meter.open(frozenset({"moments"}))
            loss, size = cross_entropy(model(x[at]), y[at]), len(at)
            meter.backward(loss, share=1.0, weight=size, samples=size, last=True)
            moments = meter.close(planned_weight=size).moments
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
        assert moments is not None
        found.append(moments)
        model.load_state_dict(weights)
        # Without the copy, the next optimizer step would change the saved momentum.
        optimizer.load_state_dict(copy.deepcopy(momentum))
    return found


def values(moments: Sequence[lb.GradientMoments], *, size: int) -> dict[str, float]:
    """Return mean variance and mean squared norm with standard errors, noise scale and gains.

    Args:
        moments: Moments of the pairs.
        size: Batch size of one step in samples.
    """
    of_each = {
        "variance": [one.variance for one in moments],
        "sqnorm": [one.sqnorm for one in moments],
    }
    n = len(moments)
    found: dict[str, float] = {}
    for name, each in of_each.items():
        mean = found[name] = math.fsum(each) / n
        spread = math.fsum((one - mean) ** 2 for one in each) / (n - 1)
        found[f"{name} +-"] = math.sqrt(spread / n)
    variance, sqnorm = found["variance"], found["sqnorm"]
    found["noise scale"] = variance / sqnorm
    for scale in SCALES:
        found[f"gain {scale}"] = gain(scale=scale, variance=variance * scale / size, sqnorm=sqnorm)
    return found
