"""Each method of the literature in one call, and by the name that the command line takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from largebatch.core.rule import Chain, Rule, chain
from largebatch.methods.growing import adaptive_growth as adaptive_growth
from largebatch.methods.growing import batch_ramp as batch_ramp
from largebatch.methods.growing import batch_steps as batch_steps
from largebatch.methods.growing import full_gradient_growth as full_gradient_growth
from largebatch.methods.growing import growth as growth
from largebatch.methods.growing import linear_growth as linear_growth
from largebatch.methods.growing import seesaw as seesaw
from largebatch.methods.growing import smith as smith
from largebatch.methods.growing import warmup_growth as warmup_growth
from largebatch.rules import (
    AdaScale,
    AutoWarmUp,
    Averaged,
    ClampBatch,
    Every,
    Legw,
    LimitGrowth,
    LinearScaling,
    NormTest,
    SqrtScaling,
    WarmUp,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A named way to set the learning rate at another batch than the base batch, or the batch.

    Args:
        name: as on the command line.
        summary: one line in a user's words.
        rule: builds its rules.
        own_clock: whether a step is worth what the method measures, and not its scale.
        optimizer: the kind that it is named after and trains with: "adagrad", "adagrad-norm" or
            "adam"; None for the workload's.
    """

    name: str
    summary: str
    rule: Callable[[], Chain]
    own_clock: bool = False
    optimizer: str | None = None


def none() -> Chain:
    """The base learning rate at any batch."""
    return chain()


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
    return chain(AdaScale() if every == 1 else Every(AdaScale(), steps=every))


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


SQRT = SqrtScaling()


def adasgd(
    *,
    eta: float = 1.0,
    scaling: Rule | None = SQRT,
    max: int | None = None,
    every: int = 10,
    growth: float = 2.0,
) -> Chain:
    """The batch grows until it passes the norm test, for SGD; the rate follows as its root.

    The test is against the true gradient's squared norm, estimated over past tests, so that with
    eta = 1 the batch grows to the noise scale. The paper tests each single step against the
    batch's own norm, limits no growth and leaves the rate: `lb.chain(lb.NormTest(eta=0.5),
    lb.LimitGrowth(factor=1e9, shrink=1.0))`.

    Byrd et al., 2012; Lau et al., 2024, arXiv 2402.11215; the estimate is that of McCandlish et
    al., 2018, arXiv 1812.06162.

    Args:
        eta: of the test; the batch grows to the noise scale / eta^2.
        scaling: how the rate follows the batch; None leaves it.
        max: largest batch in samples; None for the data set.
        every: optimizer steps from one test to the next.
        growth: most growth in one test, 1 or more.
    """
    test = Averaged(NormTest(eta=eta, denominator="unbiased"))
    return _growing(test, scaling=scaling, max=max, every=every, growth=growth)


def adadagrad_norm(
    *,
    eta: float = 1.0,
    scaling: Rule | None = SQRT,
    max: int | None = None,
    every: int = 10,
    growth: float = 2.0,
) -> Chain:
    """AdAdaGrad-Norm: the same for `lb.optim.AdaGradNorm`.

    Lau et al., 2024, arXiv 2402.11215.

    Args:
        eta, scaling, max, every, growth: as in `adasgd`.
    """
    return adasgd(eta=eta, scaling=scaling, max=max, every=every, growth=growth)


def adadagrad(
    *,
    eta: float = 1.0,
    scaling: Rule | None = SQRT,
    max: int | None = None,
    every: int = 10,
    growth: float = 2.0,
) -> Chain:
    """AdAdaGrad: the batch grows until it passes the norm test as Adagrad divides the gradient.

    The paper's theory has the strict coordinate-wise test, its program the plain norm test.

    Lau et al., 2024, arXiv 2402.11215.

    Args:
        eta, scaling, max, every, growth: as in `adasgd`.
    """
    test = Averaged(
        NormTest(eta=eta, denominator="unbiased", statistic="preconditioned_moments"),
        statistic="preconditioned_moments",
    )
    return _growing(test, scaling=scaling, max=max, every=every, growth=growth)


def adadam(
    *,
    eta: float = 1.0,
    scaling: Rule | None = SQRT,
    max: int | None = None,
    every: int = 10,
    growth: float = 2.0,
) -> Chain:
    """The same for Adam and AdamW.

    Lau et al., 2024, arXiv 2412.21124.

    Args:
        eta, scaling, max, every, growth: as in `adasgd`.
    """
    return adadagrad(eta=eta, scaling=scaling, max=max, every=every, growth=growth)


def _growing(
    test: Rule, *, scaling: Rule | None, max: int | None, every: int, growth: float
) -> Chain:
    rules = [
        test if every == 1 else Every(test, steps=every),
        LimitGrowth(factor=growth, shrink=1.0),
    ]
    if max is not None:
        rules.append(ClampBatch(max=max))
    if scaling is not None:
        rules.append(scaling)
    return chain(*rules)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method(name="none", summary="the base rate at any batch", rule=none),
            Method(name="linear", summary="rate x S", rule=linear),
            Method(
                name="linear-warmup",
                summary="rate x S after a warm-up over 5.5 % of the run",
                rule=linear_warmup,
            ),
            Method(name="sqrt", summary="rate x sqrt(S)", rule=sqrt),
            Method(name="legw", summary="rate x sqrt(S) after S x .25 epochs", rule=legw),
            Method(
                name="adascale",
                summary="rate and clock x gain, measured from the gradient's noise (SGD)",
                rule=adascale,
                own_clock=True,
            ),
            Method(
                name="adascale-paper",
                summary="adascale with the paper's averaging and bounds",
                rule=adascale_paper,
                own_clock=True,
            ),
            Method(
                name="adascale-adam",
                summary="rate x sqrt(gain) of the preconditioned gradient (Adam; no theory)",
                rule=adascale_adam,
                own_clock=True,
            ),
            Method(
                name="autowu",
                summary="finds the rate itself: warms up until the loss rises, then a cosine",
                rule=autowu,
            ),
            Method(
                name="autowu-paper",
                summary="autowu as the authors' program decides",
                rule=autowu_paper,
            ),
            Method(
                name="adasgd",
                summary="the batch grows to the gradient's noise scale, the rate as its root (SGD)",
                rule=adasgd,
            ),
            Method(
                name="adadagrad-norm",
                summary="the same for scalar AdaGrad",
                rule=adadagrad_norm,
                optimizer="adagrad-norm",
            ),
            Method(
                name="adadagrad",
                summary="the same with the gradient as Adagrad divides it",
                rule=adadagrad,
                optimizer="adagrad",
            ),
            Method(
                name="adadam",
                summary="the same for Adam and AdamW",
                rule=adadam,
                optimizer="adam",
            ),
            Method(
                name="growth",
                summary="the batch doubles over five stages, the rate as its root",
                rule=growth,
            ),
            Method(
                name="adaptive-growth",
                summary="the batch doubles when the noise scale asks for it, the rate as its root",
                rule=adaptive_growth,
            ),
            Method(
                name="full-gradient-growth",
                summary="batch x 2, rate x 1.4 when a pass over the data finds a small gradient",
                rule=full_gradient_growth,
            ),
            Method(
                name="seesaw",
                summary="a cosine, half of it as growth of the batch up to the noise scale (Adam)",
                rule=seesaw,
            ),
            Method(
                name="smith",
                summary="the batch grows where a cosine would decay the rate (SGD)",
                rule=smith,
            ),
        )
    }
)
"""Name -> method, for `--method`."""
