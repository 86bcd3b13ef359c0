"""What a rule needs, and whether a run can provide it."""

from __future__ import annotations

from largebatch.core.decider import Decider
from largebatch.core.measurement import FACTS, STATISTICS
from largebatch.core.rule import require
from largebatch.measure.meter import Meter


def check_needs(decider: Decider, *, meter: Meter) -> None:
    """Refuses a rule whose statistic the meter lacks.

    Raises:
        ValueError: naming the rule and what it lacks.
    """
    missing = decider.rule.needs - meter.provides
    remedy = "Use meter=lb.Meter(model)."
    if "preconditioned_moments" in missing:
        plain = "lb.methods.adasgd()" if "batch" in decider.rule.changes else "lb.AdaScale()"
        remedy = (
            "They exist for the Adam family, torch.optim.AdamW(model.parameters()), for "
            "torch.optim.Adagrad(model.parameters()) and for torch.optim.SGD, which does not "
            "divide the gradient. Any other optimizer has the moments of the bare gradient: "
            f"{plain}."
        )
    elif "inner_product_variance" in missing:
        remedy = (
            "It takes the gradients of single samples: meter=lb.Meter(model, "
            "examples=lb.PerExample()). The norm test takes the moments alone: "
            "lb.NormTest(eta=0.5)."
        )
    elif "coordinate_noise_scale" in missing:
        more = "statistics=[lb.measure.SquaredNorms(), lb.measure.CoordinateNoiseScale()]"
        if "inner_product_variance" in meter.provides:
            more = "examples=lb.PerExample(), statistics=[lb.measure.CoordinateNoiseScale()]"
        remedy = f"Add it: meter=lb.Meter(model, {more})."
    elif "full_sqnorm" in missing:
        remedy = (
            "It takes passes over the data set. Say over which, and with which loss: "
            "meter=lb.Meter(model, full=lb.FullGradient(dataset, lambda model, batch: "
            "loss_fn(model(batch[0]), batch[1]))). From the step's own gradients: "
            "lb.methods.adaptive_growth()."
        )
    require(
        decider.rule,
        meter.provides | FACTS,
        by=f"this meter, with {sorted(meter.provides)},",
        remedy=remedy,
    )


def check_budget(decider: Decider) -> None:
    """Refuses a rule over the run's length when that is not known.

    Raises:
        ValueError: naming the rule.
    """
    if decider.budget is None:
        require(
            decider.rule,
            (STATISTICS | FACTS) - {"budget"},
            by="a run without a length",
            remedy="Say it: lb.attach(..., budget=lb.Budget(base_steps=10_000)).",
        )
