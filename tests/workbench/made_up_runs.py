"""Make synthetic results of runs, and a small workload."""

from __future__ import annotations

from dataclasses import replace

from largebatch.core.measurement import Budget
from largebatch.workbench.runs.results import Environment, Point, RunResult
from largebatch.workbench.workloads import Workload, load

ENVIRONMENT = Environment(
    largebatch="0", torch="0", python="3", threads=1, device="cpu", ranks=1, data={"corpus": "a"}
)


def made_up(
    *,
    method: str = "any",
    scale: int = 1,
    seed: int = 0,
    loss: float | None = 1.0,
    steps: int = 100,
    budget: Budget | None = None,
) -> RunResult:
    """Return a result with this validation loss; with None, the run diverged."""
    metrics = {} if loss is None else {"loss": loss, "accuracy": 1.0 - loss / 10}
    point = Point(step=steps, samples=16 * steps, base_steps=100.0, train_loss=1.0, validation={})
    return RunResult(
        workload="digits",
        method=method,
        scale=scale,
        seed=seed,
        lr=0.01,
        clip_norm=None,
        budget=budget or Budget(base_steps=100.0),
        base_batch_size=16,
        batch_size=16 * scale,
        steps=steps,
        samples=16 * scale * steps,
        base_steps=100.0,
        mean_gain=100.0 / steps,
        mean_lr_multiplier=100.0 / steps,
        skipped=0,
        diverged=loss is None,
        validation=metrics,
        test=metrics,
        curve=() if loss is None else (replace(point, validation=metrics),),
        seconds=1.0,
        settings=ENVIRONMENT,
    )


def digits(**changes: object) -> Workload:
    """Return the workload "digits" with other settings."""
    return replace(load("digits"), **changes)  # type: ignore[arg-type]
