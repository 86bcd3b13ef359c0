"""Variance and squared norm are unbiased for parts with known Gaussian gradients.

The loss of a part of u units (samples or tokens) is <w, g>, where g is the mean of u gradients with
the mean MEAN and the standard deviation SPREAD in each of `len(MEAN)` coordinates. The mean over
the steps may differ from the truth by four standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import largebatch as lb
from small_runs import Seen

DRAWS = 20_000
MEAN, SPREAD = torch.tensor([0.5, 0.0, -0.5, 1.0, 0.2, -0.8]), 1.7
SQNORM, VARIANCE = float(MEAN.square().sum()), len(MEAN) * SPREAD**2

Units = Sequence[int]
Told = Callable[[Any, int, int], Any]
"""(control, samples, units) tells of the coming part, or gives a block."""


def gradients(units: Sequence[Units], *, seed: int = 0) -> Iterator[list[Tensor]]:
    """The gradient of each part of each step."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.tensor([u for step in units for u in step], dtype=torch.float32)
    noise = torch.randn(len(flat), len(MEAN), generator=generator)
    rows = iter(MEAN + SPREAD * noise / flat.sqrt()[:, None])
    for step in units:
        yield [next(rows) for _ in step]


def attached(
    units: Sequence[Units],
    *,
    weighted: bool,
    samples: Units | None = None,
    told: Told | None = None,
    losses: int = 1,
) -> list[Any]:
    """Each step's moments under `lb.attach`; shares are by units if weighted, else equal."""
    weight = nn.Parameter(torch.zeros(len(MEAN)))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    model, seen = nn.ParameterList([weight]), Seen()
    sizes = samples or units[0]
    control = lb.attach(
        model, optimizer, lb.Observe(), batch_size=sum(sizes), base_batch_size=1, record=seen
    )
    for step, rows in zip(units, gradients(units), strict=True):
        total = sum(step)
        for size, unit, row in zip(samples or step, step, rows, strict=True):
            share = unit / total if weighted else 1 / len(step)
            with (told(control, size, unit) if told else None) or nullcontext():
                for _ in range(losses):
                    (weight @ row * (share / losses)).backward()
        optimizer.step()
        optimizer.zero_grad()
    control.close()
    return [one.moments for one in seen.steps]


def check(found: Sequence[float], true: float) -> None:
    """Compare a mean of independent values with the truth, within four standard errors."""
    mean = math.fsum(found) / len(found)
    spread = math.sqrt(math.fsum((one - mean) ** 2 for one in found) / (len(found) - 1))
    error = spread / math.sqrt(len(found))
    assert error < 0.05 * true  # the test can see a bias of 20 %
    assert mean == pytest.approx(true, abs=4 * error)


def check_moments(moments: Sequence[Any], *, variances: Sequence[float]) -> None:
    """Compare with the variance of one sample in each step, which may differ between steps."""
    true = math.fsum(variances) / len(variances)
    check([m.variance - v + true for m, v in zip(moments, variances, strict=True)], true)
    check([m.sqnorm for m in moments], SQNORM)


def equal_steps(*units: int) -> list[Units]:
    return [units] * (DRAWS // len(units))


def token_steps(parts: int = 4, longest: int = 20) -> list[Units]:
    generator = torch.Generator().manual_seed(9)
    shape = (DRAWS // parts, parts)
    return torch.randint(1, longest, shape, generator=generator).tolist()


def by_units(control: Any, samples: int, units: int) -> None:
    control.micro_batch(samples, weight=units)


def in_block(control: Any, samples: int, units: int) -> Any:
    return control.part(samples=samples, weight=units)


def test_equal_shares() -> None:
    steps = equal_steps(4, 4, 4, 4)
    check_moments(attached(steps, weighted=False), variances=[VARIANCE] * len(steps))


def test_equal_shares_of_unequal_samples() -> None:
    steps = equal_steps(7, 2, 11, 4)
    moments = attached(
        steps, weighted=False, told=lambda control, n, _: control.micro_batch(n, weight=1)
    )
    check_moments(moments, variances=[VARIANCE] * len(steps))


@pytest.mark.parametrize("sizes", [(16, 16, 16, 2), (40, 4, 2, 2)])
def test_unequal_samples_that_are_their_weights(sizes) -> None:
    steps = equal_steps(*sizes)
    moments = attached(steps, weighted=True, told=by_units)
    check_moments(moments, variances=[VARIANCE] * len(steps))


@pytest.mark.parametrize("told", [by_units, in_block])
def test_token_weights_that_differ_in_each_step(told) -> None:
    steps = token_steps()
    moments = attached(steps, weighted=True, samples=(1,) * 4, told=told)
    check_moments(moments, variances=[VARIANCE * 4 / sum(step) for step in steps])


def test_token_weights_of_micro_batches_with_several_samples() -> None:
    steps = [step for step in token_steps(longest=200) if len(set(step)) > 1]
    moments = attached(steps, weighted=True, samples=(3, 1, 2, 5), told=by_units)
    check_moments(moments, variances=[VARIANCE * 11 / sum(step) for step in steps])


def test_two_losses_in_a_block() -> None:
    steps = equal_steps(4, 4, 4, 4)
    moments = attached(
        steps, weighted=False, told=lambda control, n, _: control.part(samples=n), losses=2
    )
    check_moments(moments, variances=[VARIANCE] * len(steps))


def test_two_losses_in_a_block_with_token_weights() -> None:
    steps = token_steps()
    moments = attached(steps, weighted=True, samples=(1,) * 4, told=in_block, losses=2)
    check_moments(moments, variances=[VARIANCE * 4 / sum(step) for step in steps])


def test_token_weights_under_the_controller() -> None:
    steps, seen = token_steps(), Seen()
    weight = nn.Parameter(torch.zeros(len(MEAN)))
    control = lb.Controller(
        nn.ParameterList([weight]),
        torch.optim.SGD([weight], lr=0.0),
        lb.Observe(),
        lb.BatchLoader((torch.zeros(4),), batch_size=4, max_micro_batch_size=1, shuffle=False),
        base_batch_size=1,
        record=seen,
    )
    batches = control.steps(steps=len(steps))
    for batch, step, rows in zip(batches, steps, gradients(steps), strict=True):
        for (_,), unit, row in zip(batch, step, rows, strict=True):
            control.backward(weight @ row, weight=unit)
        control.step()
    moments = [one.moments for one in seen.steps]
    check_moments(moments, variances=[VARIANCE * 4 / sum(step) for step in steps])


def test_a_wrong_formula_would_be_seen() -> None:
    """Token weights that are not told are off by far more than the tolerance."""
    steps = token_steps()
    moments = attached(steps, weighted=True, samples=(1,) * 4)
    with pytest.raises(AssertionError):
        check_moments(moments, variances=[VARIANCE * 4 / sum(step) for step in steps])
