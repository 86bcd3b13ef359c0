"""Batches that grow from stage to stage when the gradient asks for it."""

from __future__ import annotations

from largebatch.core.rule import Chain, Rule
from largebatch.methods.chains import SQRT, bounded, check_counts, spaced
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
    """The batch times delta, and the rate as its root, when the noise scale has reached the batch.

    The batch goes back by a stage when it is certainly above the noise scale.

    Umeda, Iiduka, 2025, arXiv 2508.05302, with the noise scale of the steps in place of passes over
    the data; McCandlish et al., 2018, arXiv 1812.06162.

    Args:
        delta: factor on the batch from stage to stage, above 1.
        scaling: how the rate follows the batch in hand; None leaves it.
        kappa: batch / noise scale that still pays, above 0.
        patience: tests in a row that must ask.
        max: largest batch in samples; None for the data set.
        every: optimizer steps from one test to the next; the first so many steps are all tested.
        statistic: "moments" of the bare gradient, or "preconditioned_moments", of the gradient as
            the optimizer divides it (Adam, Adagrad).
    """
    check_counts("adaptive_growth", every=every, max=max)
    if not 1.0 < delta <= 1024.0:
        raise ValueError(f"The batch grows by a delta above 1, as in delta=2.0; got {delta!r}.")
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
    """The batch times delta, the rate times gamma, when the full gradient's norm is at most
    eps0 sqrt(first batch / batch), in checks that each cost a pass over the data set.

    Umeda, Iiduka, 2025, arXiv 2508.05302. The meter needs the data: `lb.Meter(model,
    full=lb.FullGradient(dataset, loss))`. `adaptive_growth` needs no passes.

    Args:
        eps0: threshold at the first batch, above 0, in units of the gradient.
        delta, gamma: factors on batch and rate from stage to stage, above 0.
        max: largest batch in samples, where the rate's growth ends, too; None for the data set.
        check: optimizer steps from one check to the next.
        consistent: whether the threshold follows the rate, too, without which a rate that grows
            ends in a stage that lasts; derived here, see `FullGradientGrowth`.
    """
    table = covering_stages(delta=delta, gamma=gamma)
    rule = FullGradientGrowth(eps0=eps0, stages=table, max=max, check=check, consistent=consistent)
    return bounded(rule, max=max, then=())
