"""Check that a loss is a mean over the micro-batch, and that it is unscaled."""

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
"""Number of draws over which a loss is averaged if it is random even in evaluation mode."""

COARSE, FINE = 0.01, 0.001
"""Relative differences below which two losses count as equal: `COARSE` in half precision, `FINE` in
full precision.
"""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode for the `with` block, then restore each module's mode."""
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
    """Check that the loss is a mean over the samples.

    The check tests two properties. Repeating every sample must not change the loss. If the batch is
    cut into two slices, the mean of the slices' losses, weighted by their numbers of samples, must
    be the loss of the whole batch; several cuts are tried.

    Args:
        model: Model without wrappers.
        loss: Loss function of the user.
        batch: Micro-batch whose samples can be counted.
        close: Relative difference below which two losses count as equal.
        dimension: Dimension of the samples in the batch's first tensor.
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
    text = (
        "The loss is a mean over the samples: the loss does not change if the samples are "
        "repeated, and the loss of a batch is the mean of the losses of its slices."
    )
    return [Finding(name="mean loss", level="ok", seen=text)]


@torch.no_grad()
def check_scaled(
    model: nn.Module, loss: Loss, batch: Any, scaler: GradScaler | None
) -> list[Finding]:
    """Check that the loss does not already contain the scaler's factor; the caller restores the
    scaler.
    """
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
            seen=f"The loss is already multiplied by the GradScaler's factor, {state['scale']:g}.",
            why="lb.Controller scales the loss a second time, so gradients overflow and steps are "
            "skipped.",
            remedy="Pass the unscaled loss: control.backward(loss) instead of "
            "control.backward(scaler.scale(loss)).",
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
        why="The run would stop with an error at its first step.",
        remedy="Search for NaN in the data, and for a logarithm or a division in the loss. "
        "torch.autograd.set_detect_anomaly(True) names the operation.",
    )


def _sum(ratio: float, samples: int) -> Finding:
    return Finding(
        name="mean loss",
        level="error",
        seen=f"The loss is {ratio:.3g} times as large if each of {samples} samples is repeated, so "
        "it is a sum.",
        why="With a sum, a larger micro-batch also moves the weights further, and the gradient "
        "noise cannot be measured.",
        remedy="Return the mean, with reduction='mean' or loss.sum() / len(x), and multiply the "
        "learning rate by the batch size for which it was tuned.",
    )


def _random() -> Finding:
    return Finding(
        name="mean loss",
        level="note",
        seen="The loss differs from call to call on the same samples, even in evaluation mode. "
        f"Averaged over {DRAWS} calls, the loss is not a sum over the samples.",
        why="The loss function's random numbers count as gradient noise. Because of these "
        "random numbers, the check cannot show that the loss is exactly a mean over the samples.",
    )


def _neighbours(ratio: float) -> Finding:
    return Finding(
        name="mean loss",
        level="warning",
        seen=f"The loss changes by a factor of {ratio:.3g} if every sample is repeated, so it "
        "depends on which samples are in one micro-batch.",
        why="The mean of the micro-batches' gradients is then not the gradient of the batch, and "
        "the measured noise scale is valid only for this micro-batch size.",
        remedy="Keep the micro-batch size for which the run was tuned: "
        "lb.BatchLoader(dataset, batch_size=512, max_micro_batch_size=64).",
    )


def _other_weights(whole: float, parts: float, sizes: tuple[int, int]) -> Finding:
    return Finding(
        name="mean loss",
        level="warning",
        seen=f"The loss of {sum(sizes)} samples is {whole:.4g}. If the samples are cut into pieces "
        f"of {sizes[0]} and {sizes[1]}, the mean of the pieces' losses, weighted by the numbers of "
        f"samples, is {parts:.4g}.",
        why="The loss is a mean over something other than samples, such as tokens or class "
        "weights, or it depends on which samples are in one micro-batch. If micro-batches are "
        "weighted by their numbers of samples, the step's gradient is then not the gradient of one "
        "large batch.",
        remedy="Pass the number of items that each loss is a mean over, unless your loop already "
        "does: control.backward(loss, weight=mask.sum()).",
    )
