"""The usual schedules that a plan is compared with, within the same bounds."""

from __future__ import annotations

from largebatch.core.rule import Rule, chain
from largebatch.methods import growth
from largebatch.workbench.planner.model import QuadraticModel
from largebatch.workbench.planner.schedule_names import schedule_named
from largebatch.workbench.planner.table import ClockSchedule, clock_schedule


def baselines(
    *, budget: int, base_batch_size: int, largest: int, max_lr: float, noise_scale: float
) -> dict[str, ClockSchedule]:
    """Return constant, cosine, Seesaw and the growth relation by name.

    Args:
        budget: in samples.
        base_batch_size: B0, in samples.
        largest: batch, in samples.
        max_lr: largest factor on the base rate.
        noise_scale: in samples, at which Seesaw's growth ends.
    """
    rules: dict[str, Rule] = {
        "constant": chain(),
        "cosine": schedule_named("cosine", base_batch_size=base_batch_size),
        "seesaw": schedule_named(
            "seesaw", base_batch_size=base_batch_size, noise_scale=noise_scale, most=largest
        ),
        "growth": growth(most=max(largest / base_batch_size, 1.0), max_lr=max_lr),
    }
    return {
        name: clock_schedule(rule, budget=budget, base_batch_size=base_batch_size)
        for name, rule in rules.items()
    }


def late_noise_scale(model: QuadraticModel, *, budget: int, base_batch_size: int) -> float:
    """Return the noise scale of the last steps of a run with base batch and rate, at least 1."""
    constant = (base_batch_size, 1.0, budget // base_batch_size)
    return max(model.forecast([constant]).noise_scale[-1], 1.0)
