"""Whether a loss is a mean over the micro-batch, and is what `backward` takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler

from largebatch.checks.checked_run import Loss
from largebatch.checks.finding import Finding
from largebatch.checks.samples import cut, leading_shape, repeated, samples_in

DRAWS = 8
"""Over how many draws a loss is averaged that is random even in evaluation mode."""

COARSE, FINE = 0.01, 0.001
"""Relative difference below which two losses count as the same, in half precision and else."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; every module goes back to the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def check_mean(
    model: nn.Module, loss: Loss, batch: Any, *, close: float = FINE, dimension: int = 0
) -> list[Finding]:
    """Whether repeating every sample leaves the loss as it is, and whether the losses of two
    pieces, weighted by their samples, give the whole's, wherever it is cut.

    Args:
        model: bare.
        loss: of the user.
        batch: whose samples can be counted.
        close: relative difference below which two losses count as the same.
        dimension: of the batch's first tensor, that of the samples.
    """
    draw = 0

    def value(part: Any, *, seed: int | None = None) -> float:
        nonlocal draw
        draw += 1
        torch.default_generator.manual_seed(draw if seed is None else seed)
        return float(loss(model, part))

    with evaluating(model):
        whole = value(batch, seed=0)
        if not math.isfinite(whole):
            return [_not_finite(whole)]
        random = abs(value(batch, seed=1) - whole) > 1e-6 * abs(whole)
        mean = _mean_over(value, draws=DRAWS if random else 1)
        whole, twice = mean(batch), mean(repeated(batch, dimension))
        ratio = twice / whole if whole else 1.0 + abs(twice)
        if abs(ratio - 2.0) < (0.5 if random else 2 * COARSE):
            return [_sum(ratio, samples_in(batch, dimension))]
        if random:
            return [_random()]
        if abs(ratio - 1.0) > COARSE:
            return [_neighbours(ratio)]
        for first, second in _cut_in_two(batch, dimension):
            sizes = samples_in(first, dimension), samples_in(second, dimension)
            parts = (sizes[0] * mean(first) + sizes[1] * mean(second)) / sum(sizes)
            if abs(parts - whole) > close * abs(whole):
                return [_other_weights(whole, parts, sizes)]
    text = "The loss is a mean over samples: the same ones twice, and pieces, give the same."
    return [Finding(name="mean loss", level="ok", seen=text)]


@torch.no_grad()
def check_scaled(
    model: nn.Module, loss: Loss, batch: Any, scaler: GradScaler | None
) -> list[Finding]:
    """Whether the loss carries the scaler's factor already; the caller restores the scaler."""
    if scaler is None or not scaler.is_enabled():
        return []
    state = scaler.state_dict()
    with evaluating(model):
        losses = []
        for factor in (1.0, 2.0):
            scaler.load_state_dict({**state, "scale": factor * state["scale"]})
            torch.default_generator.manual_seed(0)
            losses.append(float(loss(model, batch)))
    scaler.load_state_dict(state)
    if not losses[0] or abs(losses[1] / losses[0] - 2.0) > COARSE:
        return []
    return [
        Finding(
            name="gradient scaler",
            level="error",
            seen=f"The loss doubles with the scaler's factor, {state['scale']:g}: it is scaled.",
            why="The Controller scales it once more, so gradients overflow and steps are skipped.",
            remedy="Give the true loss: control.backward(loss) instead of scaler.scale(loss).",
        )
    ]


def _cut_in_two(batch: Any, dimension: int) -> Iterator[tuple[Any, Any]]:
    lead = leading_shape(batch, dimension)
    length = lead[-1]
    for at in sorted({length // 4, length // 2, 3 * length // 4} - {0}):
        yield cut(batch, slice(at), lead=lead), cut(batch, slice(at, None), lead=lead)


def _mean_over(value: Callable[[Any], float], *, draws: int) -> Callable[[Any], float]:
    return lambda part: sum(value(part) for _ in range(draws)) / draws


def _not_finite(value: float) -> Finding:
    return Finding(
        name="finite loss",
        level="error",
        seen=f"The loss of the first micro-batch is {value}.",
        why="A run that begins so is ended at its first step.",
        remedy="Look for NaN in the data, and for a logarithm or a division in the loss: "
        "torch.autograd.set_detect_anomaly(True) names it.",
    )


def _sum(ratio: float, samples: int) -> Finding:
    return Finding(
        name="mean loss",
        level="error",
        seen=f"The loss is {ratio:.3g} times as large when each of {samples} samples stands twice: "
        "it is a sum.",
        why="A larger micro-batch is then also a larger step, and noise cannot be told from size.",
        remedy="Return the mean, reduction='mean' or loss.sum() / len(x), and multiply the "
        "learning rate by the batch that it was tuned with.",
    )


def _random() -> Finding:
    return Finding(
        name="mean loss",
        level="note",
        seen="The loss differs from call to call on the same samples, even in evaluation mode; "
        f"over {DRAWS} draws it is no sum.",
        why="What it draws counts as noise of the gradient; whether it is exactly a mean over "
        "samples cannot be seen.",
    )


def _neighbours(ratio: float) -> Finding:
    return Finding(
        name="mean loss",
        level="warning",
        seen=f"The loss changes by a factor {ratio:.3g} when every sample stands twice: it depends "
        "on which samples are together.",
        why="The mean of micro-batches' gradients is then not the gradient of the batch, and the "
        "noise scale holds for this size of micro-batch only.",
        remedy="Keep the micro-batch size where it was tuned: "
        "lb.BatchLoader(dataset, batch_size=512, max_micro_batch_size=64).",
    )


def _other_weights(whole: float, parts: float, sizes: tuple[int, int]) -> Finding:
    return Finding(
        name="mean loss",
        level="warning",
        seen=f"The loss of {sum(sizes)} samples is {whole:.4g}, but cut into {sizes[0]} and "
        f"{sizes[1]}, the mean of both losses, weighted by their samples, is {parts:.4g}.",
        why="It averages over something else than samples, such as tokens or class weights, or "
        "depends on which samples are together; weighted by samples, the step's gradient is then "
        "not the mean that one large batch would have.",
        remedy="Tell what each loss averages over, unless the loop does already: "
        "control.backward(loss, weight=mask.sum()).",
    )
