"""Define the baseline schedules that a plan is compared with."""

from __future__ import annotations

from largebatch.core.rule import Rule, chain
from largebatch.methods import growth
from largebatch.workbench.planner.model import QuadraticModel
from largebatch.workbench.planner.schedule_names import schedule_named
from largebatch.workbench.planner.table import ClockSchedule, clock_schedule


def baselines(
    *, budget: int, base_batch_size: int, largest: int, max_lr: float, noise_scale: float
) -> dict[str, ClockSchedule]:
    """Return the constant, cosine, Seesaw and growth schedules by name.

    Args:
        budget: Number of training samples of the run.
        base_batch_size: Base batch size B0, in samples.
        largest: Largest batch size, in samples.
        max_lr: Largest factor on the base learning rate.
        noise_scale: Gradient noise scale in samples, up to which Seesaw increases the batch size.
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
    """Return the noise scale at the end of a run at the base batch size and base learning rate.

    The result is at least 1 sample.

    Args:
        model: Quadratic that models the run.
        budget: Number of training samples of the run.
        base_batch_size: Base batch size B0, in samples.
    """
    constant = (base_batch_size, 1.0, budget // base_batch_size)
    return max(model.forecast([constant]).noise_scale[-1], 1.0)
