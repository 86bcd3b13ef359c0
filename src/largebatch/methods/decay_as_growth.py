"""Build methods in which the batch grows in exchange for a decay of the learning rate."""

from __future__ import annotations

from largebatch.core.rule import Chain, Rule, chain
from largebatch.methods.chains import LINEAR, SQRT, bounded, check_counts, spaced
from largebatch.rules import ClampToNoiseScale, Cosine, Schedule
from largebatch.rules.factors import Factor
from largebatch.rules.growth_from_decay import growth_from_decay

COSINE = Cosine()


def seesaw(
    *,
    factor: Factor = COSINE,
    cut: float = 1.1,
    kappa: float | None = 1.0,
    max: int | None = None,
    every: int = 10,
) -> Chain:
    """Replace half of a learning-rate decay by growth of the batch (Seesaw).

    Where the schedule divides the learning rate by a factor, this method divides it by the square
    root of the factor and multiplies the batch size by the factor. Seesaw is meant for Adam and
    normalized SGD, while the batch is below the critical batch size. Above the critical batch size,
    the batch no longer grows and only the learning rate decays. With a cosine decay to 0, about
    half of the steps of a run at a constant batch size are saved.

    Meterez, Morwani, Wu, Oncescu, Pehlevan, Kakade, 2025, arXiv 2510.14717. Using the noise scale
    as the critical batch size is our own choice.

    >>> [round(size, 6) for size in seesaw(cut=2.0).rules[0].stages.batch[:3]]
    [1.0, 2.0, 4.0]

    Args:
        factor: Factor of the schedule. Do not add another schedule to the chain.
        cut: Ratio by which the factor falls from one change of the batch to the next, above 1.
        kappa: Largest batch size divided by the noise scale of the preconditioned gradient. The
            batch grows only while the interval of the noise scale lies above the batch size. If
            kappa is None, the noise scale does not limit the batch.
        max: Largest batch size in samples; None for the size of the data set.
        every: Optimizer steps from one measurement to the next.

    Raises:
        ValueError: If an argument is out of its range, or if the factor rises or
            never falls by the ratio `cut`.
    """
    check_counts("seesaw", every=every, max=max)
    return _grown_for_decay(factor, SQRT, cut=cut, kappa=kappa, max=max, every=every)


def smith(
    *,
    factor: Factor = COSINE,
    cut: float = 1.1,
    kappa: float | None = None,
    max: int | None = None,
    every: int = 10,
) -> Chain:
    """Replace a learning-rate decay by growth of the batch, for SGD (Smith et al.).

    Where the schedule divides the learning rate by a factor, this method multiplies the batch size
    by that factor and keeps the learning rate. After the batch has reached its largest size, the
    learning rate decays.

    Smith, Kindermans, Ying, Le, 2017, arXiv 1711.00489.

    >>> from largebatch.rules import StepDecay
    >>> smith(factor=StepDecay(at=(0.5,), factor=0.1)).rules[0].stages.batch
    (1.0, 10.0)

    Args:
        factor, cut, kappa, max, every: Arguments with the same meaning as in `seesaw`.

    Raises:
        ValueError: If an argument is out of its range, or if the factor rises or
            never falls by the ratio `cut`.
    """
    check_counts("smith", every=every, max=max)
    return _grown_for_decay(factor, LINEAR, cut=cut, kappa=kappa, max=max, every=every)


def _grown_for_decay(
    factor: Factor, scaling: Rule, *, cut: float, kappa: float | None, max: int | None, every: int
) -> Chain:
    """Return the chain of growth, limits, scaling of the learning rate, and schedule."""
    rules: list[Rule] = [growth_from_decay(factor, cut=cut)]
    if kappa is not None:
        clamp = ClampToNoiseScale(kappa=kappa, statistic="preconditioned_moments")
        rules.append(spaced(clamp, every))
    return bounded(chain(*rules), max=max, then=(scaling, Schedule(factor=factor)))
