"""The part of a squared norm that noise keeps up, told from the fall of the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from largebatch.rules.factors import Cosine
from largebatch.studies.measured_steps import ProbeTarget, measure_steps
from largebatch.studies.useful_signal import effective_lr, moving_means, useful_signal

CURVATURE = 1.0 / np.arange(1, 11)


def quadratic(
    *, lr: float, momentum: float = 0.0, start: float, steps: int, noise: float = 4.0, seed: int = 0
) -> tuple[np.ndarray, list[float]]:
    """Return (variance, sqnorm) and the true losses of SGD on curvature 1 / i, batch 1."""
    generator = np.random.default_rng(seed)
    w, v = np.full(10, start), np.zeros(10)
    series, losses = [], []
    for _ in range(steps):
        gradient = CURVATURE * w
        losses.append(float(0.5 * (CURVATURE * w**2).sum()))
        series.append((10 * noise**2, float((gradient**2).sum())))
        v = momentum * v + gradient + noise * generator.standard_normal(10)
        w = w - lr * v
    return np.array(series), losses


@pytest.mark.parametrize("steps", [10, 11, 25, 60])
def test_the_moving_means_are_those_of_a_plain_loop(steps: int) -> None:
    losses = np.random.default_rng(steps).normal(size=steps).tolist()
    naive = []
    for at in range(steps + 1):
        reach = min(max(min(at, steps - at), 5), 10)
        naive.append(np.mean([losses[i] for i in range(steps) if at - reach <= i < at + reach]))
    assert moving_means(losses) == pytest.approx(naive)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_once_the_loss_has_settled_noise_keeps_up_the_whole_norm(momentum: float) -> None:
    """By hand, for small lr: the kept part is effective lr / 2 times the sum of h sigma^2."""
    effective = 0.02
    series, losses = quadratic(
        lr=effective * (1 - momentum), momentum=momentum, start=0.0, steps=40_000
    )
    series, losses = series[10_000:], losses[10_000:]
    useful = useful_signal(series, losses=losses, lrs=[effective] * len(series))
    assert useful is not None
    kept = float((series[:, 1] - useful).mean())
    assert kept == pytest.approx(effective / 2 * CURVATURE.sum() * 16.0, rel=0.1)
    assert abs(useful.mean()) < 0.01 * kept


def test_without_noise_the_useful_part_is_the_norm() -> None:
    series, losses = quadratic(lr=0.01, start=3.0, steps=400, noise=0.0)
    useful = useful_signal(np.add(series, [0.0, 0.1]), losses=losses, lrs=[0.01] * 400)
    assert useful is not None
    assert useful[20:380] == pytest.approx(series[20:380, 1], rel=0.02)


def test_a_falling_learning_rate_divides_each_step_by_its_own() -> None:
    lrs = np.linspace(0.02, 0.01, 200)
    losses = (3.0 - np.concatenate([[0.0], np.cumsum(0.5 * lrs)[:-1]])).tolist()
    useful = useful_signal([(8.0, 2.0)] * 200, losses=losses, lrs=lrs.tolist())
    assert useful is not None
    assert useful[20:180] == pytest.approx(np.full(160, 0.5), rel=0.02)


def test_if_the_loss_says_nothing_about_it_there_is_no_kept_part() -> None:
    losses = (1.0 + 0.3 * np.random.default_rng(0).normal(size=100)).tolist()
    pairs = [(8.0, 0.5)] * 100
    assert useful_signal(pairs, losses=losses, lrs=[1e-3] * 100) is None
    assert useful_signal(pairs, losses=losses, lrs=[1.0] * 100) is not None
    assert useful_signal(pairs, losses=losses, lrs=[1.0] * 99 + [0.0]) is None
    assert useful_signal(pairs, losses=losses, lrs=[]) is None
    assert useful_signal(pairs[:9], losses=losses[:9], lrs=[1.0] * 9) is None


def optimizer_of(kind: Any = torch.optim.SGD, **options: Any) -> torch.optim.Optimizer:
    return kind([torch.zeros(2, requires_grad=True)], **options)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (optimizer_of(lr=0.1), 0.1),
        (optimizer_of(lr=0.1, momentum=0.75), 0.4),
        (optimizer_of(lr=0.1, momentum=0.75, nesterov=True), 0.4),
        (optimizer_of(lr=0.1, momentum=0.75, dampening=0.5), 0.2),
        (optimizer_of(lr=torch.tensor(0.5)), 0.5),
        (optimizer_of(lr=0.1, momentum=1.0), None),
        (optimizer_of(lr=0.1, maximize=True), None),
        (optimizer_of(torch.optim.Adam, lr=0.1), None),
    ],
)
def test_the_effective_learning_rate_is_that_of_sgd(
    optimizer: torch.optim.Optimizer, expected: float | None
) -> None:
    assert effective_lr(optimizer) == (None if expected is None else pytest.approx(expected))


def test_groups_with_two_learning_rates_have_no_effective_one() -> None:
    optimizer = optimizer_of(lr=0.1)
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 0.2})
    assert effective_lr(optimizer) is None


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_probe_notes_the_learning_rate_of_each_step(kind: Any) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    target = ProbeTarget(
        name="line",
        model=model,
        optimizer=kind(model.parameters(), lr=0.1),
        loss=lambda model, x: model(x).square().mean(),
        batches=torch.randn(64, 3),
        base_batch_size=8,
        run_steps=20,
        schedule=Cosine(),
    )
    trace = measure_steps(target, steps=12, batch_size=8)
    expected = [0.1 * Cosine()(step / 20) for step in range(12)]
    assert trace.lrs == (pytest.approx(expected) if kind is torch.optim.SGD else [])
