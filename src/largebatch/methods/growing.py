"""Batches that grow by the clock."""

from __future__ import annotations

import math
from collections.abc import Sequence

from largebatch.core.measurement import Budget
from largebatch.core.rule import Chain, Rule, chain
from largebatch.methods.chains import SQRT, bounded
from largebatch.rules import (
    ClampLr,
    Cosine,
    Growth,
    HoldThenDecay,
    Milestones,
    Schedule,
    WarmUp,
)
from largebatch.rules.batch_steps import growth_by_ramp, growth_by_steps
from largebatch.rules.factors import Factor
from largebatch.rules.stages import fractions_of, growing_stages, linear_stages, optimal_ratio

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
    steps. Constant batches: `lb.Schedule`. The authors' program goes from a batch of 16 to 2048 in
    eight stages of 25 epochs: delta=2, gamma=1.4, lengths=(25,) * 8.

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
        decay: over the rest of it; `lb.rules.Constant()` stays at the peak.
    """
    if not 1.0 <= peak < math.inf:
        raise ValueError(
            f"A warm-up rises to a peak of at least the base rate, as in peak=2.0; got {peak!r}."
        )
    table = growing_stages(stages, delta=delta)
    return chain(
        Growth(stages=table, at=fractions_of((1.0,) * stages)),
        WarmUp(fraction=fraction, start=1.0 / peak),
        Schedule(factor=HoldThenDecay(start=fraction, factor=decay, height=peak)),
    )


def batch_steps(text: str, *, tokens_per_sample: int = 1, scaling: Rule | None = None) -> Chain:
    """Batches by a string such as "0:768 250B:1536", as Megatron-LM has them.

    Args:
        text: threshold:batch, from 0 on; K, M, B and T are powers of 1000.
        tokens_per_sample: the length of a sequence where thresholds are in tokens.
        scaling: how the rate follows the batch in hand; None leaves it, as there.
    """
    return bounded(growth_by_steps(text, tokens_per_sample=tokens_per_sample), then=(scaling,))


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
    return bounded(rule, then=(scaling,))


def adabatch(
    *,
    at: Sequence[float] = (0.25, 0.5, 0.75),
    factor: float = 2.0,
    over: Budget | None = None,
) -> Chain:
    """AdaBatch: the batch times a factor at given points of the run.

    Devarakonda et al., 2017, arXiv 1712.02029.

    Args:
        at: fractions of the budget in (0, 1), rising.
        factor: of the batch at each, above 0.
        over: what the fractions are of, as `lb.Budget(samples=...)`; None for the run's budget.
    """
    return chain(Milestones(at=tuple(at), factor=factor, over=over))
