"""Build methods that set the learning rate for a batch size other than the base batch size."""

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
    """Keep the base learning rate at any batch size.

    >>> none().rules
    ()
    """
    return chain()


def cosine() -> Chain:
    """Let the learning rate of the base batch decay by a cosine, at any batch size.

    Loshchilov, Hutter, 2016, arXiv 1608.03983, without the restarts of that paper.

    >>> cosine().rules[0].factor(0.5)
    0.5
    """
    return chain(Schedule())


def linear() -> Chain:
    """Multiply the learning rate by the scale S = B / B0. Goyal et al., 2017, arXiv 1706.02677,
    section 2.1.

    >>> linear().rules
    (LinearScaling(),)
    """
    return chain(LinearScaling())


def linear_warmup(*, fraction: float = 0.055) -> Chain:
    """Multiply the learning rate by S = B / B0, after a warm-up from the base learning rate over
    the first `fraction` of the budget.

    Goyal et al., 2017, arXiv 1706.02677, section 2.2. With a fraction of 5.5 %, this is the
    baseline LSW of AdaScale (Johnson, Agrawal, Gu, Guestrin, 2020, arXiv 2007.05105).

    >>> linear_warmup(fraction=0.1).rules[1].fraction
    0.1

    Args:
        fraction: Fraction of the budget that the warm-up takes, in (0, 1].

    Raises:
        ValueError: If the fraction is outside (0, 1].
    """
    return chain(LinearScaling(), WarmUp(fraction=fraction))


def sqrt() -> Chain:
    """Multiply the learning rate by sqrt(S), with the scale S = B / B0. Krizhevsky, 2014, arXiv
    1404.5997.

    >>> sqrt().rules
    (SqrtScaling(),)
    """
    return chain(SqrtScaling())


def legw(*, warmup_epochs: float = 0.25) -> Chain:
    """Multiply the learning rate by sqrt(S), after a warm-up over S * `warmup_epochs` epochs
    (LEGW).

    You, Hseu, Ying, Demmel, Keutzer, Hsieh, 2019, arXiv 1901.08256.

    >>> legw(warmup_epochs=0.5).rules
    (Legw(warmup_epochs=0.5),)

    Args:
        warmup_epochs: Length of the warm-up at the base batch, in epochs, above 0.

    Raises:
        ValueError: If the length is not above 0.
    """
    return chain(Legw(warmup_epochs=warmup_epochs))


def adascale(*, every: int = 1) -> Chain:
    """Multiply the learning rate by the gain, measured from the gradient's noise (AdaScale).

    Johnson, Agrawal, Gu, Guestrin, 2020, arXiv 2007.05105.

    >>> adascale(every=10).rules[0].steps
    10

    Args:
        every: Optimizer steps from one measurement to the next.

    Raises:
        ValueError: If `every` is not a whole number of at least 1.
    """
    check_counts("adascale", every=every)
    return chain(spaced(AdaScale(), every))


def adascale_paper() -> Chain:
    """Build AdaScale with the averages of its paper, and with the paper's bounds on each
    measurement.

    Johnson, Agrawal, Gu, Guestrin, 2020, arXiv 2007.05105.

    >>> adascale_paper().rules[0].averaging
    'mean-then-ema'
    """
    return chain(AdaScale(averaging="mean-then-ema", clip="first"))


def adascale_adam() -> Chain:
    """Multiply the learning rate by the square root of the preconditioned gradient's gain, for
    Adam.

    No theory supports this method.

    >>> adascale_adam().rules[0].exponent
    0.5
    """
    return chain(AdaScale(statistic="preconditioned_moments", exponent=0.5))


def autowu(
    *, low: float = 1e-5, high: float = 1.0, fraction: float = 0.5, cooldown: float = 1.0
) -> Chain:
    """Find the learning rate by a warm-up, then let it decay by a cosine (AutoWU).

    Kim, Kim, Kim, Lee, Kim, 2021, arXiv 2107.05855.

    >>> autowu(high=10.0).rules[0].high
    10.0

    Args:
        low, high: Range of the learning rate of the first parameter group. The default range begins
            with a learning rate that is too small for most models and ends with one that is too
            large. A smaller range makes the search finer: 1e-4 to 1 for SGD with momentum, 1e-4 to
            10 for SGD without momentum; 1e-5 to 0.1 for AdamW and AdamP; 1e-4 to 1 for LAMB; 1e-2
            to 100 for LARS, which multiplies the learning rate by a trust coefficient.
        fraction: Fraction of the budget that the warm-up may take.
        cooldown: Fraction of the budget that the cosine takes at the end of the run; with
            cooldown=1, the cosine begins as soon as the warm-up has ended.

    Raises:
        ValueError: If an argument is out of its range.
    """
    return chain(AutoWarmUp(low=low, high=high, fraction=fraction, cooldown=cooldown))


def autowu_paper() -> Chain:
    """Find the learning rate as the authors' program of AutoWU does, without our additional
    safeguards.

    Kim, Kim, Kim, Lee, Kim, 2021, arXiv 2107.05855.

    >>> autowu_paper().rules[0].patience
    3
    """
    return chain(AutoWarmUp(paper=True, patience=3))
