"""Forecast the steps of AdaScale at larger batches, by running AdaScale's rule on the noise that a
probe measured.

AdaScale decides from running averages. If the gradient's norm falls along the run, the averages lag
behind, and AdaScale takes more steps than the current noise would require. The forecast therefore
runs AdaScale's rule itself, step by step:

    a step at base step t reads the (variance, sqnorm) that the probe measured around t
    the rule answers with its gain r, and the run moves to base step t + r, until the run is over

The forecast assumes that a run at scale S has, after t base steps, the same weights as a run at the
base batch size after t steps. Two effects break this assumption if x, the learning rate times the
curvature, is not small:

- One long step contracts the weights by the factor 1 - r * x. In contrast, r short steps contract
  the weights by the factor (1 - x)^r.
- A part of the squared norm is due to noise. At scale S, the noise part is multiplied by (r / S) *
  (1 - x / 2) / (1 - r * x / 2), a factor that may be below or above 1.

On noisy quadratics with x up to 0.3, the forecast at 8 times the batch is therefore 1 to 4 % too
high. On digits with momentum 0.9 and lr 0.05, the forecast is 28 % too high in the mean of ten
runs. A probe does not measure x. For SGD, `useful_signal` gives an upper bound of the noise part of
the squared norm. The lower bound of the interval comes from a simulated run in which the noise part
is multiplied by r / S.

Each simulated step averages the noise over as many base steps as the previous step counted as. This
average is about as exact as the measurement in a real step. The gain is small at the start of a
run, so the average keeps a steep fall of the squared norm at the start. On the noisy quadratics,
averages over S base steps made the forecast up to 7 % too high at 8 times the base batch size, and
up to 48 % too high at 128 times the base batch size.

Johnson et al.: AdaScale SGD, 2020, arXiv 2007.05105.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from largebatch.analysis.bootstrap import Series
from largebatch.analysis.efficiency import Range
from largebatch.analysis.noise import Pairs
from largebatch.core.decision import Decision
from largebatch.core.measurement import Budget, GradientMoments, Measurement
from largebatch.rules.adascale import AdaScale
from largebatch.studies.noise_path import NoisePath, variations

VARIATIONS = 48
"""Number of simulated runs for one interval; their standard deviation is known to 10 %."""

WIDTH = 2.306
"""Half of a 95 % confidence interval, in standard deviations.

The value is Student's t with 8 degrees of freedom, because most of the error comes from the few
blocks of steps with a large gradient.
"""

SETTLED = 2e-6
"""Relative change of the gain per step below which the gain counts as constant.

The forecast assumes constant noise after the probed steps. If the gain changes by less than the
fraction SETTLED per step, the rest of the run is counted at the current gain. At S = 2, the gain
would change by another 0.1 % until it is constant; at larger scales, the gain would change by less
than 0.1 %.
"""


class _Run(TypedDict):
    base_batch_size: int
    run_steps: int
    scale: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GainForecast:
    """Hold the forecast of AdaScale's steps and samples for a whole run at one scale.

    Args:
        scale: Scale S = batch size / base batch size.
        batch_size: Batch size in samples.
        mean_gain: Number of base steps of the run divided by the number of optimizer steps.
        steps: Number of optimizer steps.
        samples: Number of training samples.
    """

    scale: int
    batch_size: int
    mean_gain: Range
    steps: Range
    samples: Range


def forecast_gain(
    series: Pairs,
    *,
    base_batch_size: int,
    run_steps: int,
    scale: int,
    seed: int = 0,
    useful: Series | None = None,
) -> GainForecast:
    """Return the forecast of AdaScale's steps and samples at one scale over the whole run.

    The 95 % confidence interval is the value +- WIDTH standard deviations, limited to [T / S, T].
    The standard deviation is computed from the numbers of steps of runs simulated on random
    variations of the measured noise. Quantiles of the simulated runs would contain the true value
    too rarely: if the measured noise is below the true noise by chance, the variations reach too
    little above the measured noise. If `useful` is given, one more run is simulated, in which the
    noise part of the squared norm is multiplied by gain / S. If the additional simulated run takes
    fewer steps than the forecast, the lower bound is computed from the steps of the additional run.

    On artificial noise paths of 200 and 400 steps, falling and flat, the intervals contained the
    true value with a frequency of 0.93 to 1.0 for independent errors, and of 0.83 to 0.93 if half
    of the errors' variance lasts for five steps.

    >>> forecast_gain([(12.0, 0.25)] * 400, base_batch_size=16, run_steps=1000, scale=5).steps.value
    400.0

    Args:
        series: Pair (variance, sqnorm) of each step of the probe, at least 3 steps. The values
            belong to the raw gradient or to the preconditioned gradient (divided as Adam divides
            it).
        base_batch_size: Base batch size b in samples.
        run_steps: Length T of the run in base steps.
        scale: Scale S, at least 1.
        seed: Seed of the variations.
        useful: Part of each step's sqnorm that is not due to noise (see `useful_signal`); None if
            unknown.
    """
    run: _Run = {"base_batch_size": base_batch_size, "run_steps": run_steps, "scale": scale}
    paths = NoisePath.of(series), *variations(series, count=VARIATIONS, seed=seed)
    value, *varied = (simulated_steps(path, **run) for path in paths)
    least = value
    if useful is not None:
        least = min(value, simulated_steps(paths[0], useful=_useful_path(series, useful), **run))
    error = WIDTH * float(np.std(varied, ddof=1))
    steps = Range(
        value=value,
        low=max(least - error, run_steps / scale),
        high=min(value + error, float(run_steps)),
    )
    batch = scale * base_batch_size
    return GainForecast(
        scale=scale,
        batch_size=batch,
        mean_gain=Range(
            value=run_steps / steps.value, low=run_steps / steps.high, high=run_steps / steps.low
        ),
        steps=steps,
        samples=Range(value=batch * steps.value, low=batch * steps.low, high=batch * steps.high),
    )


def simulated_steps(
    path: NoisePath,
    *,
    base_batch_size: int,
    run_steps: int,
    scale: int,
    rule: AdaScale | None = None,
    useful: NoisePath | None = None,
) -> float:
    """Return the number of steps that AdaScale takes for `run_steps` base steps along a path.

    Only the fraction of the last step that the run still needs is counted. In the simulation, each
    base batch of a step is measured separately.

    Args:
        path: Path of the noise along the run.
        base_batch_size: Base batch size b in samples.
        run_steps: Length T of the run in base steps.
        scale: Scale S, at least 1.
        rule: Rule that decides; None is `AdaScale()`.
        useful: Path whose squared norms lack the noise part; in the simulated run, the noise part
            is multiplied by gain / S. None uses `path` unchanged.
    """
    rule = rule or AdaScale()
    batch, budget = scale * base_batch_size, Budget(base_steps=run_steps)
    proposed = Decision(next_batch_size=batch, base_steps=scale)
    state, step, clock, gain = rule.init(), 0, 0.0, 1.0
    while not budget.over(step=step, samples=step * batch, base_steps=clock):
        variance, sqnorm = path.around(clock, gain)
        if useful is not None:
            without = useful.around(clock, gain)[1]
            sqnorm = without + gain / scale * (sqnorm - without)
        seen = Measurement(
            step=step,
            samples=step * batch,
            base_steps=clock,
            batch_size=batch,
            base_batch_size=base_batch_size,
            moments=GradientMoments(
                batch_size=batch,
                parts=max(scale, 2),
                batch_sqnorm=sqnorm + variance / batch,
                variance=variance,
            ),
            budget=budget,
        )
        state, decision = rule.update(state, seen, proposed)
        before, gain = gain, decision.base_steps
        step, clock = step + 1, clock + gain
        if clock > path.steps + scale and abs(gain - before) <= SETTLED * gain:
            break
    return step + (run_steps - clock) / gain


def _useful_path(series: Pairs, useful: Series) -> NoisePath:
    return NoisePath.of(np.stack([np.asarray(series)[:, 0], useful], axis=1))
