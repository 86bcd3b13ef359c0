"""Learning rates for another batch than the base batch: fixed, measured or searched."""

from __future__ import annotations

from largebatch.core.rule import Chain, chain
from largebatch.methods.chains import check_counts, spaced
from largebatch.rules import (
    AdaScale,
    AutoWarmUp,
    Legw,
    LinearScaling,
    Schedule,
    SqrtScaling,
    WarmUp,
)


def none() -> Chain:
    """The base learning rate at any batch."""
    return chain()


def cosine() -> Chain:
    """The learning rate of the base batch, which decays by a cosine at any batch.

    Loshchilov, Hutter, 2016, arXiv 1608.03983, without its restarts.
    """
    return chain(Schedule())


def linear() -> Chain:
    """The learning rate times S. Goyal et al., 2017, arXiv 1706.02677, section 2.1."""
    return chain(LinearScaling())


def linear_warmup(*, fraction: float = 0.055) -> Chain:
    """The learning rate times S, reached gradually from 1 over the first `fraction` of the budget.

    Goyal et al., 2017, arXiv 1706.02677, section 2.2; with 5.5 % the baseline LSW of AdaScale
    (Johnson et al., 2020, arXiv 2007.05105).
    """
    return chain(LinearScaling(), WarmUp(fraction=fraction))


def sqrt() -> Chain:
    """The learning rate times sqrt(S). Krizhevsky, 2014, arXiv 1404.5997."""
    return chain(SqrtScaling())


def legw(*, warmup_epochs: float = 0.25) -> Chain:
    """The learning rate times sqrt(S), after a warm-up of S times the base batch's epochs.

    You et al., 2019, arXiv 1901.08256.
    """
    return chain(Legw(warmup_epochs=warmup_epochs))


def adascale(*, every: int = 1) -> Chain:
    """The learning rate and the clock times the gain, from the noise of the gradient.

    Johnson et al., 2020, arXiv 2007.05105.

    Args:
        every: optimizer steps from one measurement to the next.
    """
    check_counts("adascale", every=every)
    return chain(spaced(AdaScale(), every))


def adascale_paper() -> Chain:
    """AdaScale with the paper's averaging and its bounds on each sample.

    Johnson et al., 2020, arXiv 2007.05105
    """
    return chain(AdaScale(averaging="mean-then-ema", clip="first"))


def adascale_adam() -> Chain:
    """AdaScale for Adam: the square root of the gain of the preconditioned gradient. No theory
    supports it."""
    return chain(AdaScale(statistic="preconditioned_moments", exponent=0.5))


def autowu(
    *, low: float = 1e-5, high: float = 1.0, fraction: float = 0.5, cooldown: float = 1.0
) -> Chain:
    """A learning rate that is found while it warms up, and a cosine from there; none is given.

    Kim et al., 2021, arXiv 2107.05855.

    Args:
        low, high: of the first parameter group, from too small to too large for any model. The
            narrower, the finer is the search: 1e-4 to 1 for SGD with momentum, to 10 without;
            1e-5 to 0.1 for AdamW and AdamP; 1e-4 to 1 for LAMB; 1e-2 to 100 for LARS, whose rate
            is multiplied by a trust coefficient.
        fraction: the part of the budget that the warm-up may take.
        cooldown: the part of it that the cosine takes at the end; 1 begins at once.
    """
    return chain(AutoWarmUp(low=low, high=high, fraction=fraction, cooldown=cooldown))


def autowu_paper() -> Chain:
    """The same as the authors' program decides, without our guards.

    Kim et al., 2021, arXiv 2107.05855.
    """
    return chain(AutoWarmUp(paper=True, patience=3))
