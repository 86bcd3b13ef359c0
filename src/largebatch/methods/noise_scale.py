"""Batches that follow the noise scale by a formula: norm tests and multiples of the scale."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, ParamSpec

from largebatch.core.number_checks import is_number
from largebatch.core.rule import Chain, Rule, chain
from largebatch.methods.chains import SQRT, bounded, check_counts, refused, spaced
from largebatch.rules import LimitGrowth, NoiseScaleControl, NormTest
from largebatch.rules.noise_scale import control_by_cosine, control_by_diversity
from largebatch.rules.sizes import Statistic

Arguments = ParamSpec("Arguments")


def with_arguments_of(
    model: Callable[Arguments, Chain],
) -> Callable[[Callable[..., Chain]], Callable[Arguments, Chain]]:
    """Give a function the arguments and defaults of another one, so that they are written once."""
    signature = inspect.signature(model)

    def decorate(function: Callable[..., Chain]) -> Callable[Arguments, Chain]:
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Chain:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            return function(**given.arguments)

        update_wrapper(call, function)
        # `inspect.signature`, and so `help`, show the arguments of what `__wrapped__` names
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
    """The batch grows until it passes the norm test, for SGD; the rate follows as its root.

    The test is against the true gradient's squared norm, estimated over past tests, so that with
    eta = 1 the batch grows to the noise scale. It grows if even the low end of the noise scale's
    interval is above it. It shrinks if even the high end is below it, to the base batch at least.
    The paper tests each single step against the batch's own norm, limits no growth and leaves the
    rate: `lb.chain(lb.NormTest(eta=0.5), lb.LimitGrowth(factor=1e9, shrink=1.0))`.

    Byrd et al., 2012; Lau et al., 2024, arXiv 2402.11215; the estimate is that of McCandlish et
    al., 2018, arXiv 1812.06162.

    Args:
        eta: of the test; the batch grows to the noise scale / eta^2.
        scaling: how the rate follows the batch; None leaves it.
        max: largest batch in samples; None for the data set.
        every: optimizer steps from one test to the next; the first ten are all tested.
        growth: most growth from one window of `every` steps to the next, 1 or more.

    Raises:
        ValueError: an argument out of its range, by its name.
    """
    return _growing(
        "adasgd", "moments", eta=eta, scaling=scaling, max=max, every=every, growth=growth
    )


@with_arguments_of(adasgd)
def adadagrad_norm(**arguments: Any) -> Chain:
    """AdAdaGrad-Norm: the same for `lb.optim.AdaGradNorm`.

    Lau et al., 2024, arXiv 2402.11215.

    Args:
        eta, scaling, max, every, growth: as in `adasgd`.
    """
    return _growing("adadagrad_norm", "moments", **arguments)


@with_arguments_of(adasgd)
def adadagrad(**arguments: Any) -> Chain:
    """AdAdaGrad: the batch grows until it passes the norm test as Adagrad divides the gradient.

    The paper's theory has the strict coordinate-wise test, its program the plain norm test.

    Lau et al., 2024, arXiv 2402.11215.

    Args:
        eta, scaling, max, every, growth: as in `adasgd`.
    """
    return _growing("adadagrad", "preconditioned_moments", **arguments)


@with_arguments_of(adasgd)
def adadam(**arguments: Any) -> Chain:
    """The same for Adam and AdamW.

    Lau et al., 2024, arXiv 2412.21124.

    Args:
        eta, scaling, max, every, growth: as in `adasgd`.
    """
    return _growing("adadam", "preconditioned_moments", **arguments)


def noise_scale_control(
    *, kappa: float = 1.0, statistic: Statistic = "moments"
) -> NoiseScaleControl:
    """The batch follows kappa times the noise scale, up and down.

    McCandlish et al., 2018, arXiv 1812.06162.

    Args:
        kappa: batch / noise scale, above 0.
        statistic: "moments" of the bare gradient, or "preconditioned_moments".
    """
    return NoiseScaleControl(kappa=kappa, statistic=statistic)


def gradient_diversity(*, delta: float = 0.1) -> NoiseScaleControl:
    """DiveBatch: the batch is delta (1 + noise scale), which is delta times the gradients'
    diversity and the data set's size.

    The authors' program adds up gradients of a whole epoch while the weights move, and never
    shrinks the batch: `lb.LimitGrowth(shrink=1.0)` after it.

    DiveBatch, 2025, arXiv 2509.16173.

    Args:
        delta: above 0; the authors' program has 0.1 for CIFAR.
    """
    return control_by_diversity(delta=delta)


def cosine_test(*, target: float = 0.75) -> NoiseScaleControl:
    """SimiGrad: the batch at which the gradients of its two halves have the target cosine.

    SimiGrad, NeurIPS 2021.

    Args:
        target: in (0, 1); the batch grows where the cosine is below and may shrink above.
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
    check_counts(method, every=every, max=max)
    if not (is_number(eta) and 0.0 < eta < math.inf):
        raise refused(method, "eta", eta, "a number above 0", "1.0")
    if not (is_number(growth) and 1.0 <= growth < math.inf):
        raise refused(method, "growth", growth, "a factor of 1 or more", "2.0")
    test = NormTest(eta=eta, denominator="unbiased", statistic=statistic)
    limit = LimitGrowth(factor=growth, shrink=0.5, over=every, to_base=True)
    return bounded(chain(spaced(test, every), limit), max=max, then=(scaling,))
