"""Check that a run can provide what its rule needs."""

from __future__ import annotations

from largebatch.core.decider import Decider
from largebatch.core.measurement import FACTS, STATISTICS
from largebatch.core.rule import require
from largebatch.measure.meter import Meter


def check_needs(decider: Decider, *, meter: Meter) -> None:
    """Check that the meter provides every statistic that the rule needs.

    Raises:
        ValueError: A statistic is missing; the message names the rule and the statistic.
    """
    missing = decider.rule.needs - meter.provides
    remedy = "Use meter=lb.Meter(model)."
    if "preconditioned_moments" in missing:
        plain = "lb.methods.adasgd()" if "batch" in decider.rule.changes else "lb.AdaScale()"
        remedy = (
            "Preconditioned moments are available for the Adam family, such as "
            "torch.optim.AdamW(model.parameters()), for torch.optim.Adagrad(model.parameters()), "
            "and for torch.optim.SGD, which does not divide the gradient. For any other optimizer, "
            f"use a rule that needs only the moments of the raw gradient: {plain}."
        )
    elif "inner_product_variance" in missing:
        remedy = (
            "The variance of inner products needs the gradients of single samples. Pass "
            "meter=lb.Meter(model, examples=lb.PerExample()), or use the norm test, which needs "
            "only the moments: lb.NormTest(eta=0.5)."
        )
    elif "coordinate_noise_scale" in missing:
        more = "statistics=[lb.measure.SquaredNorms(), lb.measure.CoordinateNoiseScale()]"
        if "inner_product_variance" in meter.provides:
            more = "examples=lb.PerExample(), statistics=[lb.measure.CoordinateNoiseScale()]"
        remedy = f"Add the statistic to the meter: meter=lb.Meter(model, {more})."
    elif "full_sqnorm" in missing:
        remedy = (
            "The gradient of the whole data set needs passes over the data set. Pass the data set "
            "and the loss: meter=lb.Meter(model, full=lb.FullGradient(dataset, lambda model, "
            "batch: loss_fn(model(batch[0]), batch[1]))). A method that uses only the gradients of "
            "the training steps is lb.methods.adaptive_growth()."
        )
    require(
        decider.rule,
        meter.provides | FACTS,
        by=f"this meter, with {sorted(meter.provides)},",
        remedy=remedy,
    )


def check_budget(decider: Decider) -> None:
    """Check that a rule that depends on the length of the run knows this length.

    Raises:
        ValueError: The rule needs a budget and the run has none; the message names the rule.
    """
    if decider.budget is None:
        require(
            decider.rule,
            (STATISTICS | FACTS) - {"budget"},
            by="a run without a length",
            remedy=(
                "Pass the length of the run: lb.attach(..., budget=lb.Budget(base_steps=10_000))."
            ),
        )
