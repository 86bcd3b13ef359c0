"""Build methods whose batch follows the noise scale: norm tests and multiples of it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, ParamSpec

from largebatch.core.number_checks import is_number
from largebatch.core.rule import Chain, Rule, chain
from largebatch.methods.chains import SQRT, argument_error, bounded, check_counts, spaced
from largebatch.rules import LimitGrowth, NoiseScaleControl, NormTest
from largebatch.rules.noise_scale import control_by_cosine, control_by_diversity
from largebatch.rules.sizes import Statistic

Arguments = ParamSpec("Arguments")


def with_arguments_of(
    model: Callable[Arguments, Chain],
) -> Callable[[Callable[..., Chain]], Callable[Arguments, Chain]]:
    """Return a decorator that gives a function the arguments and defaults of another function.

    With the decorator, the arguments are written only once.
    """
    signature = inspect.signature(model)

    def decorate(function: Callable[..., Chain]) -> Callable[Arguments, Chain]:
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Chain:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            return function(**given.arguments)

        update_wrapper(call, function)
        # `inspect.signature`, and therefore `help`, reads the arguments of `__wrapped__`.
        return update_wrapper(call, model, assigned=(), updated=())

    return decorate


def adasgd(
    *,
    eta: float = 1.0,
    scaling: Rule | None = SQRT,
    max: int | None = None,
    every: int = 10,
    growth: float = 2.0,
) -> Chain:
    """Grow the batch until it passes the norm test, and scale the learning rate by the square root
    of the scale, for SGD.

    The test uses the squared norm of the true gradient, estimated over past tests, so with eta = 1
    the batch grows to the noise scale. The batch grows only if the lower bound of the noise scale's
    interval is above the batch size. The batch shrinks, but not below the base batch, if the
    interval's upper bound is below the batch size. The paper tests each single step with the norm
    of the batch's own gradient, does not limit the growth, and keeps the learning rate:
    `lb.chain(lb.NormTest(eta=0.5), lb.LimitGrowth(factor=1e9, shrink=1.0))`.

    Byrd, Chin, Nocedal, Wu, 2012; Lau, Liu, Kolar, 2024, arXiv 2402.11215. The squared norm is
    estimated as in McCandlish et al., 2018, arXiv 1812.06162.

    >>> [type(rule).__name__ for rule in adasgd(max=4096).rules]
    ['Every', 'LimitGrowth', 'ClampBatch', 'SqrtScaling']

    Args:
        eta: Level of the norm test, above 0; the batch grows to the noise scale / eta^2.
        scaling: Rule by which the learning rate follows the batch size; None keeps the learning
            rate.
        max: Largest batch size in samples; None for the size of the data set.
        every: Optimizer steps from one test to the next. The first `every` steps, but at most ten,
            are all tested.
        growth: Largest growth of the batch from one window of `every` steps to the next, 1 or more.

    Raises:
        ValueError: If an argument is out of its range; the message names the argument.
    """
    return _growing(
        "adasgd", "moments", eta=eta, scaling=scaling, max=max, every=every, growth=growth
    )


@with_arguments_of(adasgd)
def adadagrad_norm(**arguments: Any) -> Chain:
    """Grow the batch as `adasgd` does, for the optimizer `lb.optim.AdaGradNorm` (AdAdaGrad-Norm).

    Lau, Liu, Kolar, 2024, arXiv 2402.11215.

    >>> sorted(adadagrad_norm().needs)
    ['moments']

    Args:
        eta, scaling, max, every, growth: Arguments with the same meaning as in `adasgd`.
    """
    return _growing("adadagrad_norm", "moments", **arguments)


@with_arguments_of(adasgd)
def adadagrad(**arguments: Any) -> Chain:
    """Grow the batch until the gradient, divided as Adagrad divides it, passes the norm test
    (AdAdaGrad).

    The paper's theory uses the strict coordinate-wise test. The authors' program uses the norm test
    of the raw gradient.

    Lau, Liu, Kolar, 2024, arXiv 2402.11215.

    >>> sorted(adadagrad().needs)
    ['preconditioned_moments']

    Args:
        eta, scaling, max, every, growth: Arguments with the same meaning as in `adasgd`.
    """
    return _growing("adadagrad", "preconditioned_moments", **arguments)


@with_arguments_of(adasgd)
def adadam(**arguments: Any) -> Chain:
    """Grow the batch until the gradient, divided as Adam or AdamW divides it, passes the norm test.

    Lau, Li, Xu, Liu, Kolar, 2024, arXiv 2412.21124.

    >>> sorted(adadam().needs)
    ['preconditioned_moments']

    Args:
        eta, scaling, max, every, growth: Arguments with the same meaning as in `adasgd`.
    """
    return _growing("adadam", "preconditioned_moments", **arguments)


def noise_scale_control(
    *, kappa: float = 1.0, statistic: Statistic = "moments"
) -> NoiseScaleControl:
    """Keep the batch size at kappa times the noise scale; the batch may grow and shrink.

    McCandlish, Kaplan, Amodei, OpenAI Dota Team, 2018, arXiv 1812.06162.

    >>> noise_scale_control(kappa=2.0).kappa
    2.0

    Args:
        kappa: Batch size divided by the noise scale, above 0.
        statistic: "moments" for the raw gradient, or "preconditioned_moments" for the gradient
            divided as the optimizer divides it.

    Raises:
        ValueError: If `kappa` is not above 0, or if the statistic is unknown.
    """
    return NoiseScaleControl(kappa=kappa, statistic=statistic)


def gradient_diversity(*, delta: float = 0.1) -> NoiseScaleControl:
    """Set the batch size to delta * (1 + noise scale) (DiveBatch).

    The batch size equals delta times the diversity of the gradients times the size of the data set.
    The authors' program sums gradients over a whole epoch while the weights change, and never
    shrinks the batch. To keep the batch from shrinking, add `lb.LimitGrowth(shrink=1.0)` after this
    rule.

    Chen, Wang, Sundaram, 2025, arXiv 2509.16173.

    >>> gradient_diversity(delta=0.5)
    NoiseScaleControl(kappa=0.5, offset=1.0, statistic='moments')

    Args:
        delta: Factor on the diversity, above 0; the authors' program uses 0.1 for CIFAR.

    Raises:
        ValueError: If `delta` is not above 0.
    """
    return control_by_diversity(delta=delta)


def cosine_test(*, target: float = 0.75) -> NoiseScaleControl:
    """Set the batch size so that the gradients of its two halves have the target cosine (SimiGrad).

    Qin, Rajbhandari, Ruwase, Yan, Yang, He, SimiGrad, NeurIPS 2021.

    >>> cosine_test(target=0.75).kappa
    6.0

    Args:
        target: Target cosine, in (0, 1). The batch grows if the cosine is below the target, and may
            shrink if the cosine is above the target.

    Raises:
        ValueError: If the target is outside (0, 1).
    """
    return control_by_cosine(target=target)


def _growing(
    method: str,
    statistic: Statistic,
    *,
    eta: float,
    scaling: Rule | None,
    max: int | None,
    every: int,
    growth: float,
) -> Chain:
    """Return the chain of norm test, growth limit, batch limit and scaling of the learning rate."""
    check_counts(method, every=every, max=max)
    if not (is_number(eta) and 0.0 < eta < math.inf):
        raise argument_error(method, "eta", eta, "a number above 0", "1.0")
    if not (is_number(growth) and 1.0 <= growth < math.inf):
        raise argument_error(method, "growth", growth, "a factor of 1 or more", "2.0")
    test = NormTest(eta=eta, denominator="unbiased", statistic=statistic)
    limit = LimitGrowth(factor=growth, shrink=0.5, over=every, to_base=True)
    return bounded(chain(spaced(test, every), limit), max=max, then=(scaling,))
