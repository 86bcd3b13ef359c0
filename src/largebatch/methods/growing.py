"""Batches that grow by a schedule, by the noise scale, or in exchange for a decay of the rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from largebatch.core.measurement import Budget
from largebatch.core.rule import Chain, Rule, chain
from largebatch.rules import (
    AdaptiveGrowth,
    After,
    Averaged,
    ClampBatch,
    ClampLr,
    ClampToNoiseScale,
    Cosine,
    Every,
    FullGradientGrowth,
    Growth,
    LinearScaling,
    Schedule,
    SqrtScaling,
    WarmUp,
)
from largebatch.rules.batch_steps import growth_by_ramp, growth_by_steps
from largebatch.rules.factors import Factor
from largebatch.rules.stages import fractions_of, growing_stages, linear_stages, optimal_ratio
from largebatch.rules.traded import growth_for

SQRT, LINEAR = SqrtScaling(), LinearScaling()
COSINE = Cosine()


def growth(
    *,
    delta: float = 2.0,
    gamma: float | None = None,
    stages: int | None = None,
    lengths: Sequence[float] | None = None,
    most: float = math.inf,
    rate_goes_on: bool = False,
    max_lr: float = math.inf,
    over: Budget | None = None,
) -> Chain:
    """The batch times delta from stage to stage, the rate times gamma.

    With gamma = sqrt(delta), as where none is given, the rate follows the batch in hand as its
    root, whatever bounds it. Each stage takes (delta / gamma)^2 times the samples of the one before
    it, where the bound falls fastest with the samples; with that gamma all take the same number of
    steps. Constant batches: `lb.Schedule`. The authors' settings: delta=2, gamma=1.4,
    lengths=(1,) * 10.

    Umeda, Iiduka, 2024, arXiv 2409.08770; 2025, arXiv 2508.05297. The lengths are derived here.

    Args:
        delta: factor on the batch, above 0.
        gamma: factor on the rate, above 0; 1 leaves it.
        stages: how many; None for as many as there are lengths, or 5.
        lengths: of each stage, in samples or epochs or relative to each other.
        most: largest factor on the first batch, where the rate's growth ends, too.
        rate_goes_on: whether it does not end there; needs a gamma.
        max_lr: largest factor on the base rate, that of the last stable one.
        over: what the stages share, as `lb.Budget(samples=...)`; None for the run's budget.

    Raises:
        ValueError: numbers out of range, another number of lengths than of stages, or a rate that
            goes on without a gamma.
    """
    if gamma is None and rate_goes_on:
        raise ValueError(
            "A rate that goes on beyond the largest batch grows by gamma: give one, as in "
            "lb.methods.growth(gamma=1.4, rate_goes_on=True)."
        )
    count = (5 if lengths is None else len(lengths)) if stages is None else stages
    if lengths is not None and len(lengths) != count:
        raise ValueError(
            f"Each stage has a length; got {count} stages and {len(lengths)} lengths. Leave the "
            "number out, as in lb.methods.growth(lengths=(20, 20, 40))."
        )
    table = growing_stages(
        count,
        delta=delta,
        gamma=1.0 if gamma is None else gamma,
        most=most,
        rate_goes_on=rate_goes_on,
    )
    if lengths is None:
        ratio = delta if gamma is None else optimal_ratio(delta=delta, gamma=gamma)
        lengths = [ratio**m for m in range(count)]
    rules: list[Rule] = [Growth(stages=table, at=fractions_of(tuple(lengths)), over=over)]
    if gamma is None:
        rules.append(SQRT)
    if max_lr < math.inf:
        rules.append(ClampLr(max=max_lr))
    return chain(*rules)


def linear_growth(
    *, step: float = 1.0, stages: int = 8, most: float = math.inf, over: Budget | None = None
) -> Chain:
    """The batch grows by the same number of samples from each of equally long stages to the next;
    the rate stays.

    Umeda, Iiduka, 2025, arXiv 2508.05297.

    Args:
        step: what each stage adds, as a part of the first batch, above 0.
        stages, most, over: as in `growth`.
    """
    table = linear_stages(stages, step=step, most=most)
    return chain(Growth(stages=table, at=fractions_of((1.0,) * stages), over=over))


def warmup_growth(
    *,
    delta: float = 2.0,
    stages: int = 10,
    peak: float = 2.0,
    fraction: float = 0.1,
    decay: Factor = COSINE,
) -> Chain:
    """The rate rises to `peak` times the base rate and decays, while the batch grows throughout.

    The fourth regime of Umeda, Iiduka, 2024, arXiv 2409.08770; there the rise is a staircase.

    Args:
        delta, stages: as in `growth`; all stages are equally long.
        peak: largest factor on the base rate, 1 or more.
        fraction: the part of the budget that the rise takes, in (0, 1).
        decay: over the rest of it; `lb.Constant()` stays at the peak.
    """
    if not 1.0 <= peak < math.inf:
        raise ValueError(
            f"A warm-up rises to a peak of at least the base rate, as in peak=2.0; got {peak!r}."
        )
    table = growing_stages(stages, delta=delta)
    return chain(
        Growth(stages=table, at=fractions_of((1.0,) * stages)),
        WarmUp(fraction=fraction, start=1.0 / peak),
        Schedule(factor=After(start=fraction, factor=decay, height=peak)),
    )


def adaptive_growth(
    *,
    delta: float = 2.0,
    scaling: Rule | None = SQRT,
    kappa: float = 1.0,
    patience: int = 3,
    max: int | None = None,
    every: int = 10,
) -> Chain:
    """The batch times delta, and the rate as its root, when the noise scale has reached the batch.

    Umeda, Iiduka, 2025, arXiv 2508.05302, with the noise scale of the steps in place of passes over
    the data; McCandlish et al., 2018, arXiv 1812.06162.

    Args:
        delta: factor on the batch from stage to stage, above 1.
        scaling: how the rate follows the batch in hand; None leaves it.
        kappa: batch / noise scale that still pays, above 0.
        patience: tests in a row that must ask.
        max: largest batch in samples; None for the data set.
        every: optimizer steps from one test to the next.
    """
    if not 1.0 < delta <= 1024.0:
        raise ValueError(f"The batch grows by a delta above 1, as in delta=2.0; got {delta!r}.")
    table = growing_stages(21, delta=delta)
    test = Averaged(AdaptiveGrowth(stages=table, kappa=kappa, patience=patience))
    return _bounded(_spaced(test, every), max=max, then=(scaling,))


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
    table = growing_stages(21, delta=delta, gamma=gamma)
    rule = FullGradientGrowth(eps0=eps0, stages=table, max=max, check=check, consistent=consistent)
    return _bounded(rule, max=max, then=())


def seesaw(
    *,
    factor: Factor = COSINE,
    cut: float = 1.1,
    kappa: float | None = 1.0,
    max: int | None = None,
    every: int = 10,
) -> Chain:
    """A decay of the rate by a factor becomes one by its root, and a batch that grows by it.

    For Adam and normalised SGD, while the batch is below the critical one: there growth ends, and
    the decay goes on alone. With a decay to 0 as the cosine's about half of the steps are saved.

    Meterez et al., 2025, arXiv 2510.14717; the noise scale stands for the critical batch, which is
    ours.

    Args:
        factor: the schedule; no other one stands beside it.
        cut: by what the schedule falls from one change of the batch to the next, above 1.
        kappa: largest batch over the noise scale; None for no such bound.
        max: largest batch in samples; None for the data set.
        every: optimizer steps from one measurement to the next.
    """
    return _traded(factor, SQRT, cut=cut, kappa=kappa, max=max, every=every)


def smith(
    *,
    factor: Factor = COSINE,
    cut: float = 1.1,
    kappa: float | None = None,
    max: int | None = None,
    every: int = 10,
) -> Chain:
    """Do not decay the rate, increase the batch: by as much, for SGD. Beyond the largest batch the
    rate decays.

    Smith, Kindermans, Ying, Le, 2017, arXiv 1711.00489.

    Args:
        factor, cut, kappa, max, every: as in `seesaw`.
    """
    return _traded(factor, LINEAR, cut=cut, kappa=kappa, max=max, every=every)


def batch_steps(text: str, *, tokens_per_sample: int = 1, scaling: Rule | None = None) -> Chain:
    """Batches by a string such as "0:768 250B:1536", as Megatron-LM has them.

    Args:
        text: threshold:batch, from 0 on; K, M, B and T are powers of 1000.
        tokens_per_sample: the length of a sequence where thresholds are in tokens.
        scaling: how the rate follows the batch in hand; None leaves it, as there.
    """
    return _bounded(growth_by_steps(text, tokens_per_sample=tokens_per_sample), then=(scaling,))


def batch_ramp(
    *, start: int, increment: int, samples: int, size: int, scaling: Rule | None = None
) -> Chain:
    """The batch rises in equal increments over the first samples, as Megatron-LM had it.

    Args:
        start, increment, samples, size: the first batch, what is added, over how many samples, and
            the last batch.
        scaling: as in `batch_steps`.
    """
    rule = growth_by_ramp(start=start, increment=increment, samples=samples, size=size)
    return _bounded(rule, then=(scaling,))


def _traded(
    factor: Factor, scaling: Rule, *, cut: float, kappa: float | None, max: int | None, every: int
) -> Chain:
    rules: list[Rule] = [growth_for(factor, cut=cut)]
    if kappa is not None:
        rules.append(_spaced(Averaged(ClampToNoiseScale(kappa=kappa)), every))
    return _bounded(chain(*rules), max=max, then=(scaling, Schedule(factor=factor)))


def _spaced(rule: Rule, every: int) -> Rule:
    return rule if every == 1 else Every(rule, steps=every)


def _bounded(rule: Rule, *, max: int | None = None, then: Sequence[Rule | None]) -> Chain:
    cap = () if max is None else (ClampBatch(max=max),)
    return chain(rule, *cap, *[one for one in then if one is not None])
