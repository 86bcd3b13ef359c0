"""Build methods in which the batch grows at fixed points of the run."""

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
    """Multiply the batch size by delta and the learning rate by gamma from stage to stage.

    If gamma is omitted, the learning rate follows the square root of the current batch size, even
    if a bound limits the batch. Each stage has (delta / gamma)^2 times the samples of the stage
    before it, because the theoretical bound falls fastest per sample with these lengths. With gamma
    = sqrt(delta), all stages have the same number of steps. For a constant batch size, use
    `lb.Schedule` instead of `growth`. The authors' program goes from a batch of 16 to 2048 in eight
    stages of 25 epochs: delta=2, gamma=1.4, lengths=(25,) * 8.

    Umeda, Iiduka, 2024, arXiv 2409.08770; Umeda, Iiduka, 2025, arXiv 2508.05297. The lengths of the
    stages are our own derivation.

    >>> growth(delta=2.0, stages=3).rules[0].stages.batch
    (1.0, 2.0, 4.0)

    Args:
        delta: Factor on the batch size from stage to stage, above 0.
        gamma: Factor on the learning rate from stage to stage, above 0; 1 keeps the learning rate.
            If gamma is None, the learning rate follows the square root of the current batch size.
        stages: Number of stages; None for the number of lengths, or for 5 if no lengths are given.
        lengths: Length of each stage in samples or epochs, or relative to each other.
        most: Largest factor on the first batch size. When the batch reaches its largest size, the
            learning rate also stops growing.
        rate_goes_on: Whether the learning rate keeps growing after the batch has reached its
            largest size. Setting `rate_goes_on` to True requires a gamma.
        max_lr: Largest factor on the base learning rate, for example the largest stable learning
            rate divided by the base learning rate.
        over: Length of all stages together, such as `lb.Budget(samples=...)`; None for the run's
            budget.

    Raises:
        ValueError: If a number is out of its range, if the numbers of lengths and stages differ, or
            if `rate_goes_on` is True without a gamma.
    """
    if gamma is None and rate_goes_on:
        raise ValueError(
            "rate_goes_on=True was given without gamma, but gamma is the factor by which "
            "the learning rate keeps growing. Pass a gamma: "
            "lb.methods.growth(gamma=1.4, rate_goes_on=True)"
        )
    count = (5 if lengths is None else len(lengths)) if stages is None else stages
    if lengths is not None and len(lengths) != count:
        raise ValueError(
            f"stages={count} was given with {len(lengths)} lengths, but each stage needs one "
            "length. Omit stages: lb.methods.growth(lengths=(20, 20, 40))"
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
    """Add the same number of samples to the batch in each of several equally long stages.

    The learning rate stays constant.

    Umeda, Iiduka, 2025, arXiv 2508.05297.

    >>> linear_growth(step=0.5, stages=3).rules[0].stages.batch
    (1.0, 1.5, 2.0)

    Args:
        step: Number of samples that each stage adds, as a fraction of the first batch size, above
            0.
        stages, most, over: Arguments with the same meaning as in `growth`.

    Raises:
        ValueError: If a number is out of its range.
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
    """Warm the learning rate up to `peak` times the base learning rate, then let it decay; the
    batch grows throughout.

    The schedule is the fourth regime in Umeda, Iiduka, 2024, arXiv 2409.08770. In the paper the
    learning rate rises in steps; in `warmup_growth` the learning rate rises linearly.

    >>> [type(rule).__name__ for rule in warmup_growth().rules]
    ['Growth', 'WarmUp', 'Schedule']

    Args:
        delta: Factor on the batch size from stage to stage, above 0.
        stages: Number of equally long stages.
        peak: Largest factor on the base learning rate, 1 or more.
        fraction: Fraction of the budget that the rise takes, in (0, 1).
        decay: Factor on the learning rate over the rest of the budget; `lb.rules.Constant()` keeps
            the learning rate at the peak.

    Raises:
        ValueError: If a number is out of its range.
    """
    if not 1.0 <= peak < math.inf:
        raise ValueError(
            f"peak={peak!r} was given, but the learning rate rises to peak times the base learning "
            "rate, so peak must be 1 or more. Example: lb.methods.warmup_growth(peak=2.0)"
        )
    table = growing_stages(stages, delta=delta)
    return chain(
        Growth(stages=table, at=fractions_of((1.0,) * stages)),
        WarmUp(fraction=fraction, start=1.0 / peak),
        Schedule(factor=HoldThenDecay(start=fraction, factor=decay, height=peak)),
    )


def batch_steps(text: str, *, tokens_per_sample: int = 1, scaling: Rule | None = None) -> Chain:
    """Set batch sizes by a string such as "0:768 250B:1536", as Megatron-LM does.

    >>> batch_steps("0:768 4K:1536").rules[0].stages.batch
    (768, 1536)

    Args:
        text: Pairs threshold:batch, starting at 0; K, M, B and T are powers of 1000.
        tokens_per_sample: Length of a sequence in tokens, if the thresholds count tokens.
        scaling: Rule by which the learning rate follows the current batch size; None keeps the
            learning rate, as Megatron-LM does.

    Raises:
        ValueError: If the text has another form, or if `tokens_per_sample` is below 1.
    """
    return bounded(growth_by_steps(text, tokens_per_sample=tokens_per_sample), then=(scaling,))


def batch_ramp(
    *, start: int, increment: int, samples: int, size: int, scaling: Rule | None = None
) -> Chain:
    """Raise the batch size in equal increments over the first samples, as Megatron-LM did.

    >>> batch_ramp(start=16, increment=8, samples=400, size=32).rules[0].stages.batch
    (16, 24, 32)

    Args:
        start: First batch size, in samples.
        increment: Number of samples that each stage adds to the batch.
        samples: Number of samples seen when the batch reaches `size`.
        size: Last batch size, in samples.
        scaling: Rule by which the learning rate follows the batch size; None keeps the learning
            rate.

    Raises:
        ValueError: If a number is below 1, or if the increments do not end at `size`.
    """
    rule = growth_by_ramp(start=start, increment=increment, samples=samples, size=size)
    return bounded(rule, then=(scaling,))


def adabatch(
    *,
    at: Sequence[float] = (0.25, 0.5, 0.75),
    factor: float = 2.0,
    over: Budget | None = None,
) -> Chain:
    """Multiply the batch size by a factor at given points of the run (AdaBatch).

    Devarakonda, Naumov, Garland, 2017, arXiv 1712.02029.

    >>> adabatch(at=(0.5,), factor=4.0).rules[0].factor
    4.0

    Args:
        at: Fractions of the budget in (0, 1), in rising order.
        factor: Factor that each point applies to the batch size, above 0.
        over: Length that the fractions refer to, such as `lb.Budget(samples=...)`; None for the
            run's budget.

    Raises:
        ValueError: If the fractions are outside (0, 1) or do not rise, or if the factor is not
            above 0.
    """
    return chain(Milestones(at=tuple(at), factor=factor, over=over))
