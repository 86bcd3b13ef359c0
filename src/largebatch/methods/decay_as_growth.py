"""Batches that grow in exchange for a decay of the learning rate."""

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
    """A decay of the rate by a factor becomes one by its root, and a batch that grows by it.

    For Adam and normalised SGD, while the batch is below the critical one: there growth ends, and
    the decay goes on alone. With a decay to 0 as the cosine's about half of the steps are saved.

    Meterez et al., 2025, arXiv 2510.14717; the noise scale stands for the critical batch, which is
    ours.

    Args:
        factor: the schedule; no other one stands beside it.
        cut: by what the schedule falls from one change of the batch to the next, above 1.
        kappa: largest batch over the noise scale of the gradient as the optimizer divides it. The
            batch grows only while the interval of the noise scale lies above it. None for no such
            bound.
        max: largest batch in samples; None for the data set.
        every: optimizer steps from one measurement to the next.
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
    """Do not decay the rate, increase the batch: by as much, for SGD. Beyond the largest batch the
    rate decays.

    Smith, Kindermans, Ying, Le, 2017, arXiv 1711.00489.

    Args:
        factor, cut, kappa, max, every: as in `seesaw`.
    """
    check_counts("smith", every=every, max=max)
    return _grown_for_decay(factor, LINEAR, cut=cut, kappa=kappa, max=max, every=every)


def _grown_for_decay(
    factor: Factor, scaling: Rule, *, cut: float, kappa: float | None, max: int | None, every: int
) -> Chain:
    rules: list[Rule] = [growth_from_decay(factor, cut=cut)]
    if kappa is not None:
        clamp = ClampToNoiseScale(kappa=kappa, statistic="preconditioned_moments")
        rules.append(spaced(clamp, every))
    return bounded(chain(*rules), max=max, then=(scaling, Schedule(factor=factor)))
