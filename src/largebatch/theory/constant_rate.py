"""Compute steps and samples to a small gradient at a constant batch size, and the best batch size.

    bound after T steps at batch size b  = bias / T + noise / b + floor
    steps T(b)    = bias * b / (room * b - noise),        room = target - floor
    samples N(b)  = b * T(b), convex in b
    critical batch b* = 2 * noise / room
    T(b*) = 2 * bias / room,   N(b*) = 4 * bias * noise / room^2

At b* the noise term is exactly half of the room. For SGD at the learning rate lr, the bound of
`largebatch.theory.bound` has

    bias = 2 * gap / ((2 - L * lr) * lr),   noise = L * lr * variance_1 / (2 - L * lr),   floor = 0.

For a schedule lr * h_t, the bias is divided by mean(h), and the noise is multiplied by mean(h^2) /
mean(h). At a constant learning rate N(b*) = 8 * gap * L * variance_1 / ((2 - L * lr)^2 * target^2).
So lowering the learning rate below 1 / L saves at most a factor of 4 in samples, and increases the
number of steps.

The formulas were derived for largebatch. Imaizumi and Iiduka (2024, arXiv 2402.15344) and Umeda and
Iiduka (2025, arXiv 2508.05302) state that N is convex in b, with its minimum at a b* of order 1 /
target. In the papers of Imaizumi, Umeda and Iiduka, the target is called epsilon^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from largebatch.theory.bound import Problem, stability_room
from largebatch.theory.checked import above_zero, not_negative


@dataclass(frozen=True, slots=True, kw_only=True)
class RateTerms:
    """Hold the constants of a bound bias / T + noise / b + floor.

    >>> RateTerms(bias=40.0, noise=6.0).floor
    0.0

    Args:
        bias: Constant of the term bias / T, above 0 (C1 or A in the papers). Unit: squared gradient
            * steps.
        noise: Constant of the term noise / b, at least 0 (C2 or B in the papers). Unit: squared
            gradient * samples.
        floor: Remainder of the bound that neither more steps nor larger batches reduce. The floor
            is 0 for SGD. For Adam a floor (C) was recalled from Iiduka (2022, arXiv 2208.09814),
            but the floor was not compared with the paper's text.

    Raises:
        ValueError: An argument is outside its range.
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
    """Return the constants of the bound for SGD with the learning rate lr * h_t.

    The schedule h_t is at most 1.

    >>> rate_terms(Problem(smoothness=1.0, variance=3.0, gap=2.0), lr=0.5)
    RateTerms(bias=5.333333333333333, noise=1.0, floor=0.0)

    Args:
        problem: Constants of the loss.
        lr: Largest learning rate, in (0, 2 / smoothness).
        mean: Mean of the schedule h over the run: 1 for a constant, 1/2 for a half cosine to 0, and
            1 / (p + 1) for (1 - x)^p.
        mean_square: Mean of h^2 over the run: 1 for a constant, 3/8 for a half cosine to 0, and 1 /
            (2 * p + 1) for (1 - x)^p. The means must satisfy mean^2 <= mean_square <= mean.

    Raises:
        ValueError: The learning rate is outside its range, or no schedule in [0, 1] has these
            means.

    Reference: none. The formula was derived for largebatch.
    """
    above_zero("rate_terms(problem, lr=0.1)", lr=lr)
    if not 0.0 < mean <= 1.0 or not mean**2 * (1 - 1e-12) <= mean_square <= mean:
        raise ValueError(
            f"mean={mean!r} and mean_square={mean_square!r} were given, but no schedule between 0 "
            "and 1 has these means. For a half cosine, pass mean=0.5, mean_square=0.375."
        )
    room = stability_room(problem, lr=lr)
    return RateTerms(
        bias=2.0 * problem.gap / (room * lr) / mean,
        noise=problem.smoothness * lr * problem.variance / room * mean_square / mean,
    )


def steps_needed(terms: RateTerms, *, batch_size: float, target_sqnorm: float) -> float:
    """Return the number of steps until the bound reaches the target.

    The result is `inf` if the batch size is too small for the target.

    >>> round(steps_needed(RateTerms(bias=40.0, noise=6.0), batch_size=100, target_sqnorm=0.25), 4)
    210.5263

    Args:
        terms: Constants of the bound.
        batch_size: Batch size b in samples, above 0.
        target_sqnorm: Squared gradient norm to reach, above 0 (epsilon^2).

    Raises:
        ValueError: The batch size or the target is not above 0.

    Reference: see the docstring of the module. The formula was derived for largebatch.
    """
    _check(batch_size=batch_size, target_sqnorm=target_sqnorm)
    room = (target_sqnorm - terms.floor) * batch_size - terms.noise
    return terms.bias * batch_size / room if room > 0.0 else math.inf


def samples_needed(terms: RateTerms, *, batch_size: float, target_sqnorm: float) -> float:
    """Return the number of samples until the bound reaches the target (SFO complexity).

    The number of samples is the batch size times the number of steps. Arguments and errors are the
    same as for `steps_needed`.

    >>> round(samples_needed(RateTerms(bias=40.0, noise=6.0), batch_size=60, target_sqnorm=0.25))
    16000
    """
    return batch_size * steps_needed(terms, batch_size=batch_size, target_sqnorm=target_sqnorm)


def critical_batch_size(terms: RateTerms, *, target_sqnorm: float) -> float:
    """Return the batch size that reaches the target with the fewest samples: 2 * noise / room.

    If the target is the current squared gradient norm, a step with the critical batch size lowers
    the loss most per sample. In that case, the critical batch size is 2 * L * lr / (2 - L * lr)
    times the noise scale (derived for largebatch).

    >>> critical_batch_size(RateTerms(bias=40.0, noise=6.0), target_sqnorm=0.25)
    48.0

    Args:
        terms: Constants of the bound.
        target_sqnorm: Squared gradient norm to reach, above the floor.

    Raises:
        ValueError: No batch size reaches the target.

    Reference: see the docstring of the module. The formula was derived for largebatch.
    """
    return 2.0 * terms.noise / _room(terms, target_sqnorm)


def critical_steps(terms: RateTerms, *, target_sqnorm: float) -> float:
    """Return the number of steps to the target at the critical batch size: 2 * bias / room.

    An infinite batch needs half as many steps as the critical batch size. Arguments and errors are
    the same as for `critical_batch_size`.

    >>> critical_steps(RateTerms(bias=40.0, noise=6.0), target_sqnorm=0.25)
    320.0
    """
    return 2.0 * terms.bias / _room(terms, target_sqnorm)


def fewest_samples(terms: RateTerms, *, target_sqnorm: float) -> float:
    """Return the number of samples to the target at the critical batch size: 4 * bias * noise /
    room^2.

    Arguments and errors are the same as for `critical_batch_size`.

    >>> fewest_samples(RateTerms(bias=40.0, noise=6.0), target_sqnorm=0.25)
    15360.0
    """
    return 4.0 * terms.bias * terms.noise / _room(terms, target_sqnorm) ** 2


def fewest_samples_of_any_schedule(problem: Problem, *, target_sqnorm: float) -> float:
    """Return the fewest samples with which any schedule can bring the bound to the target.

    A schedule may change the learning rate and the batch size in any way. The formula is 2 * gap *
    L * variance_1 / target^2. A schedule approaches this number of samples if its learning rates
    are small and its batch sizes are L * variance_1 * lr / target. No schedule needs fewer samples
    than the formula, because (sum lr)^2 <= (sum b) * sum (lr^2 / b).

    >>> one = Problem(smoothness=1.0, variance=3.0, gap=2.0)
    >>> fewest_samples_of_any_schedule(one, target_sqnorm=0.5)
    48.0

    Args:
        problem: Constants of the loss.
        target_sqnorm: Squared gradient norm to reach, above 0.

    Reference: none. The formula was derived for largebatch.
    """
    above_zero("fewest_samples_of_any_schedule(problem, target_sqnorm=0.25)", target=target_sqnorm)
    return 2.0 * problem.gap * problem.smoothness * problem.variance / target_sqnorm**2


def _room(terms: RateTerms, target_sqnorm: float) -> float:
    _check(batch_size=1.0, target_sqnorm=target_sqnorm)
    if not target_sqnorm > terms.floor:
        raise ValueError(
            f"target_sqnorm={target_sqnorm!r} was given, but no batch size reaches a target at or "
            f"below the floor {terms.floor:.6g}. Pass a larger target: "
            f"target_sqnorm={2.0 * terms.floor:.6g}."
        )
    return target_sqnorm - terms.floor


def _check(*, batch_size: float, target_sqnorm: float) -> None:
    above_zero(
        "steps_needed(terms, batch_size=64, target_sqnorm=0.25)",
        batch_size=batch_size,
        target_sqnorm=target_sqnorm,
    )
