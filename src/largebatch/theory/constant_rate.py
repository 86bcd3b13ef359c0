"""Steps and samples to a small gradient at a constant batch, and the batch that needs fewest.

    bound after T steps of batch b  = bias / T + noise / b + floor
    steps T(b)    = bias b / (room b - noise),        room = target - floor
    samples N(b)  = b T(b), convex in b
    critical batch b* = 2 noise / room;   T(b*) = 2 bias / room;   N(b*) = 4 bias noise / room^2

At b* the noise takes exactly half of the room. For SGD at the learning rate lr the bound of
`largebatch.theory.bound` has

    bias = 2 gap / ((2 - L lr) lr),   noise = L lr variance_1 / (2 - L lr),   floor = 0,

and for a schedule lr h_t over the run, bias is divided by mean(h), noise multiplied by
mean(h^2) / mean(h). So N(b*) = 8 gap L variance_1 / ((2 - L lr)^2 target^2) at a constant rate: a
smaller rate saves at most a factor 4 of the samples at lr = 1 / L, while it takes more steps.

Derived here. That N is convex in b with its least value at a b* of order 1 / target is what
Imaizumi and Iiduka (2024, arXiv 2402.15344) and Umeda and Iiduka (2025, arXiv 2508.05302) state,
who write the target as epsilon^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from largebatch.theory.bound import Problem, stability_room
from largebatch.theory.checked import above_zero, not_negative


@dataclass(frozen=True, slots=True, kw_only=True)
class RateTerms:
    """The constants of a bound bias / T + noise / b + floor.

    Args:
        bias: squared gradient x steps, above 0 (C1 or A).
        noise: squared gradient x samples, at least 0 (C2 or B).
        floor: what neither steps nor batch lower. 0 for SGD; Iiduka (2022, arXiv 2208.09814) is
            about Adam, for which we recall such a term (C); not checked in the paper's text.

    Raises:
        ValueError: a number outside its range.
    """

    bias: float
    noise: float
    floor: float = 0.0

    def __post_init__(self) -> None:
        above_zero("RateTerms(bias=40.0, noise=6.0)", bias=self.bias)
        not_negative("RateTerms(bias=40.0, noise=6.0)", noise=self.noise, floor=self.floor)


def rate_terms(
    problem: Problem, *, lr: float, mean: float = 1.0, mean_square: float = 1.0
) -> RateTerms:
    """The constants for SGD whose learning rate is `lr` times a schedule h, at most 1.

    >>> rate_terms(Problem(smoothness=1.0, variance=3.0, gap=2.0), lr=0.5)
    RateTerms(bias=5.333333333333333, noise=1.0, floor=0.0)

    Args:
        problem: of the loss.
        lr: the largest learning rate, in (0, 2 / smoothness).
        mean, mean_square: of h over the run, 0 < mean^2 <= mean_square <= mean <= 1. A constant: 1
            and 1; a half cosine to 0: 1/2 and 3/8; (1 - x)^p: 1 / (p + 1) and 1 / (2 p + 1).

    Raises:
        ValueError: a rate outside its range, or means that no schedule in [0, 1] has.

    Reference: derived here.
    """
    above_zero("rate_terms(problem, lr=0.1)", lr=lr)
    if not 0.0 < mean <= 1.0 or not mean**2 * (1 - 1e-12) <= mean_square <= mean:
        raise ValueError(
            "mean and mean_square are of a schedule between 0 and 1, for example 0.5 and 0.375 for "
            f"a half cosine; got {mean!r} and {mean_square!r}."
        )
    room = stability_room(problem, lr=lr)
    return RateTerms(
        bias=2.0 * problem.gap / (room * lr) / mean,
        noise=problem.smoothness * lr * problem.variance / room * mean_square / mean,
    )


def steps_needed(terms: RateTerms, *, batch_size: float, target_sqnorm: float) -> float:
    """Steps until the bound is at the target; `inf` where the batch is too small for it.

    >>> round(steps_needed(RateTerms(bias=40.0, noise=6.0), batch_size=100, target_sqnorm=0.25), 4)
    210.5263

    Args:
        terms: constants of the bound.
        batch_size: b, in samples, above 0.
        target_sqnorm: the squared gradient norm to reach, above 0 (epsilon^2).

    Raises:
        ValueError: a batch or a target that is not above 0.

    Reference: see the module; derived here.
    """
    _check(batch_size=batch_size, target_sqnorm=target_sqnorm)
    room = (target_sqnorm - terms.floor) * batch_size - terms.noise
    return terms.bias * batch_size / room if room > 0.0 else math.inf


def samples_needed(terms: RateTerms, *, batch_size: float, target_sqnorm: float) -> float:
    """Samples until the bound is at the target: batch x steps (SFO complexity).

    >>> round(samples_needed(RateTerms(bias=40.0, noise=6.0), batch_size=60, target_sqnorm=0.25))
    16000

    Arguments and errors are those of `steps_needed`.
    """
    return batch_size * steps_needed(terms, batch_size=batch_size, target_sqnorm=target_sqnorm)


def critical_batch_size(terms: RateTerms, *, target_sqnorm: float) -> float:
    """The batch that reaches the target with fewest samples: 2 noise / room.

    With the squared gradient norm of the moment as target it is the batch whose step lowers the
    loss most per sample, 2 L lr / (2 - L lr) times the noise scale (derived here).

    >>> critical_batch_size(RateTerms(bias=40.0, noise=6.0), target_sqnorm=0.25)
    48.0

    Args:
        terms: constants of the bound.
        target_sqnorm: the squared gradient norm to reach, above the floor.

    Raises:
        ValueError: a target that no batch reaches.

    Reference: see the module; derived here.
    """
    return 2.0 * terms.noise / _room(terms, target_sqnorm)


def critical_steps(terms: RateTerms, *, target_sqnorm: float) -> float:
    """Steps to the target at the critical batch: 2 bias / room, twice those of an infinite batch.

    >>> critical_steps(RateTerms(bias=40.0, noise=6.0), target_sqnorm=0.25)
    320.0

    Arguments and errors are those of `critical_batch_size`.
    """
    return 2.0 * terms.bias / _room(terms, target_sqnorm)


def fewest_samples(terms: RateTerms, *, target_sqnorm: float) -> float:
    """Samples to the target at the critical batch: 4 bias noise / room^2.

    >>> fewest_samples(RateTerms(bias=40.0, noise=6.0), target_sqnorm=0.25)
    15360.0

    Arguments and errors are those of `critical_batch_size`.
    """
    return 4.0 * terms.bias * terms.noise / _room(terms, target_sqnorm) ** 2


def fewest_samples_of_any_schedule(problem: Problem, *, target_sqnorm: float) -> float:
    """Samples below which no rates and batches, constant or not, bring the bound to the target.

    2 gap L variance_1 / target^2. It is the limit of small rates with batches in proportion to
    them, b = L variance_1 lr / target; nothing is below, as (sum lr)^2 <= sum b sum (lr^2 / b).

    >>> one = Problem(smoothness=1.0, variance=3.0, gap=2.0)
    >>> fewest_samples_of_any_schedule(one, target_sqnorm=0.5)
    48.0

    Reference: derived here.
    """
    above_zero("fewest_samples_of_any_schedule(problem, target_sqnorm=0.25)", target=target_sqnorm)
    return 2.0 * problem.gap * problem.smoothness * problem.variance / target_sqnorm**2


def _room(terms: RateTerms, target_sqnorm: float) -> float:
    _check(batch_size=1.0, target_sqnorm=target_sqnorm)
    if not target_sqnorm > terms.floor:
        raise ValueError(
            f"no batch reaches a target at or below the floor {terms.floor:.6g}; got "
            f"{target_sqnorm!r}. Take a larger target_sqnorm."
        )
    return target_sqnorm - terms.floor


def _check(*, batch_size: float, target_sqnorm: float) -> None:
    above_zero(
        "steps_needed(terms, batch_size=64, target_sqnorm=0.25)",
        batch_size=batch_size,
        target_sqnorm=target_sqnorm,
    )
