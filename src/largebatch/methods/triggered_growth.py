"""Build methods whose batch grows in stages when a measurement of the gradient allows it."""

from __future__ import annotations

from largebatch.core.rule import Chain, Rule
from largebatch.methods.chains import SQRT, argument_error, bounded, check_counts, spaced
from largebatch.rules import AdaptiveGrowth, FullGradientGrowth
from largebatch.rules.covering_stages import covering_stages
from largebatch.rules.sizes import Statistic


def adaptive_growth(
    *,
    delta: float = 2.0,
    scaling: Rule | None = SQRT,
    kappa: float = 1.0,
    patience: int = 3,
    max: int | None = None,
    every: int = 10,
    statistic: Statistic = "moments",
) -> Chain:
    """Multiply the batch size by delta when the noise scale has reached the batch size of the next
    stage.

    The learning rate grows as the square root of the batch size. The batch returns to the previous
    stage if the interval of the noise scale lies below the batch size.

    Umeda, Iiduka, 2025, arXiv 2508.05302, but with the noise scale of the training steps instead of
    passes over the data set; McCandlish et al., 2018, arXiv 1812.06162.

    >>> adaptive_growth(every=1).rules[0].patience
    3

    Args:
        delta: Factor on the batch size from stage to stage, above 1.
        scaling: Rule by which the learning rate follows the batch size; None keeps the learning
            rate.
        kappa: Largest useful batch size divided by the noise scale, above 0.
        patience: Number of tests in a row that must ask for a change.
        max: Largest batch size in samples; None for the size of the data set.
        every: Optimizer steps from one test to the next. The first `every` steps, but at most ten,
            are all tested.
        statistic: "moments" for the raw gradient, or "preconditioned_moments" for the gradient
            divided as the optimizer divides it (Adam, Adagrad).

    Raises:
        ValueError: If an argument is out of its range.
    """
    check_counts("adaptive_growth", every=every, max=max)
    if not 1.0 < delta <= 1024.0:
        raise argument_error("adaptive_growth", "delta", delta, "above 1 and at most 1024", "2.0")
    table = covering_stages(delta=delta)
    test = AdaptiveGrowth(stages=table, kappa=kappa, patience=patience, statistic=statistic)
    return bounded(spaced(test, every), max=max, then=(scaling,))


def full_gradient_growth(
    *,
    eps0: float = 0.5,
    delta: float = 2.0,
    gamma: float = 1.4,
    max: int | None = None,
    check: int = 1000,
    consistent: bool = False,
) -> Chain:
    """Multiply batch size and learning rate when the full gradient's norm is small enough.

    The threshold of the norm is eps0 * sqrt(first batch size / batch size). Each check costs a pass
    over the data set. The meter needs the data set: `lb.Meter(model, full=lb.FullGradient(dataset,
    loss))`. The method `adaptive_growth` needs no passes over the data set.

    Umeda, Iiduka, 2025, arXiv 2508.05302.

    >>> full_gradient_growth(check=500).rules[0].check
    500

    Args:
        eps0: Threshold at the first batch size, above 0, in units of the gradient.
        delta: Factor on the batch size from stage to stage, above 0.
        gamma: Factor on the learning rate from stage to stage, above 0.
        max: Largest batch size in samples, at which the learning rate also stops growing; None for
            the size of the data set.
        check: Optimizer steps from one check to the next.
        consistent: Whether the threshold also follows the learning rate. If the learning rate grows
            and `consistent` is False, the run may remain in one stage. `consistent` is our own
            derivation, as described in `FullGradientGrowth`.

    Raises:
        ValueError: If an argument is out of its range.
    """
    table = covering_stages(delta=delta, gamma=gamma)
    rule = FullGradientGrowth(eps0=eps0, stages=table, max=max, check=check, consistent=consistent)
    return bounded(rule, max=max, then=())
