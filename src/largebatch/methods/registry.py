"""List the methods by name in one table, which the command line reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from largebatch.core.rule import Chain
from largebatch.methods.decay_as_growth import seesaw, smith
from largebatch.methods.growing import growth, linear_growth, warmup_growth
from largebatch.methods.noise_scale import adadagrad, adadagrad_norm, adadam, adasgd
from largebatch.methods.references import METHOD_REFERENCES
from largebatch.methods.scaling import (
    adascale,
    adascale_adam,
    adascale_paper,
    autowu,
    autowu_paper,
    cosine,
    legw,
    linear,
    linear_warmup,
    none,
    sqrt,
)
from largebatch.methods.triggered_growth import adaptive_growth, full_gradient_growth
from largebatch.rules.references import REFERENCES


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """Describe a named method for setting the learning rate or the batch size.

    >>> METHODS["linear"].reference
    'Goyal et al., 2017, arXiv 1706.02677'

    Args:
        name: Name on the command line.
        summary: Description in one line for users.
        rule: Function of `lb.methods` that builds the chain of rules.
        optimizer: Kind of optimizer that the method requires: "adagrad", "adagrad-norm" or "adam";
            None for the optimizer of the workload.
        noise_bounded: Whether `rule` takes `kappa` and `max`, which limit the batch by the noise
            scale and in samples.
    """

    name: str
    summary: str
    rule: Callable[..., Chain]
    optimizer: str | None = None
    noise_bounded: bool = False

    @property
    def own_clock(self) -> bool:
        """Whether a step counts as `gain` base steps, measured by the method, instead of `scale`
        base steps."""
        return "clock" in self.rule().changes

    @property
    def reference(self) -> str:
        """The papers of the method in one line: first authors, year and arXiv number.

        >>> METHODS["linear"].reference
        'Goyal et al., 2017, arXiv 1706.02677'
        """
        keys = METHOD_REFERENCES[self.rule.__name__]
        return "; ".join([REFERENCES[key].short for key in keys])


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method(name="none", summary="the base learning rate at any batch size", rule=none),
            Method(name="linear", summary="learning rate x S", rule=linear),
            Method(
                name="linear-warmup",
                summary="learning rate x S after a warm-up over 5.5 % of the run",
                rule=linear_warmup,
            ),
            Method(name="sqrt", summary="learning rate x sqrt(S)", rule=sqrt),
            Method(
                name="legw",
                summary="learning rate x sqrt(S) after a warm-up over S x 0.25 epochs",
                rule=legw,
            ),
            Method(
                name="adascale",
                summary="learning rate x gain, measured from the gradient's noise (SGD)",
                rule=adascale,
            ),
            Method(
                name="adascale-paper",
                summary="like 'adascale', but with the averages and bounds of the paper",
                rule=adascale_paper,
            ),
            Method(
                name="adascale-adam",
                summary="learning rate x sqrt(gain), preconditioned gradient (Adam; no theory)",
                rule=adascale_adam,
            ),
            Method(
                name="autowu",
                summary="finds the learning rate: warm-up until the loss rises, then a cosine",
                rule=autowu,
            ),
            Method(
                name="autowu-paper",
                summary="like 'autowu', but decides as the authors' program does",
                rule=autowu_paper,
            ),
            Method(
                name="adasgd",
                summary="the batch grows to the noise scale, learning rate x sqrt(S) (SGD)",
                rule=adasgd,
            ),
            Method(
                name="adadagrad-norm",
                summary="like 'adasgd', for the optimizer AdaGrad-Norm",
                rule=adadagrad_norm,
                optimizer="adagrad-norm",
            ),
            Method(
                name="adadagrad",
                summary="like 'adasgd', with the gradient divided as Adagrad divides it",
                rule=adadagrad,
                optimizer="adagrad",
            ),
            Method(
                name="adadam",
                summary="like 'adasgd', with the gradient divided as Adam or AdamW divides it",
                rule=adadam,
                optimizer="adam",
            ),
            Method(
                name="growth",
                summary="the batch doubles from stage to stage, 5 stages, learning rate x sqrt(S)",
                rule=growth,
            ),
            Method(
                name="adaptive-growth",
                summary="the batch doubles when the noise scale allows it, learning rate x sqrt(S)",
                rule=adaptive_growth,
            ),
            Method(
                name="full-gradient-growth",
                summary="batch x 2, learning rate x 1.4 when the full gradient is small enough",
                rule=full_gradient_growth,
            ),
            Method(
                name="seesaw",
                summary="a cosine, half of it as growth of the batch up to the noise scale (Adam)",
                rule=seesaw,
                noise_bounded=True,
            ),
            Method(
                name="smith",
                summary="the batch grows instead of a cosine decay of the learning rate (SGD)",
                rule=smith,
                noise_bounded=True,
            ),
        )
    }
)
"""Map of names to methods, for the option `--method`."""


SCHEDULES: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method(name="constant", summary="the base learning rate and batch size", rule=none),
            Method(
                name="cosine",
                summary="the base batch size, the learning rate decays by a cosine",
                rule=cosine,
            ),
            METHODS["growth"],
            Method(
                name="linear-growth",
                summary="the batch grows by its first size from stage to stage, 8 stages",
                rule=linear_growth,
            ),
            Method(
                name="warmup-growth",
                summary="warm-up and decay of the learning rate while the batch doubles, 10 stages",
                rule=warmup_growth,
            ),
            METHODS["seesaw"],
            METHODS["smith"],
        )
    }
)
"""Map of names to schedules of batch size and learning rate, for `largebatch plan`."""
