"""The one table of methods by name; the command line reads everything about a method here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from largebatch.core.rule import Chain
from largebatch.methods.decay_as_growth import seesaw, smith
from largebatch.methods.growing import growth, linear_growth, warmup_growth
from largebatch.methods.noise_scale import adadagrad, adadagrad_norm, adadam, adasgd
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

_CITATION = re.compile(r"[A-Z]\w+(?: et al\.)?,\s+\d{4},\s+arXiv\s+\d{4}\.\d{4,5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A named way to set the learning rate at another batch than the base batch, or the batch.

    Args:
        name: as on the command line.
        summary: one line in a user's words.
        rule: builds its rules.
        optimizer: the kind that it is named after and trains with: "adagrad", "adagrad-norm" or
            "adam"; None for the workload's.
        noise_bounded: whether `rule` takes `kappa` and `max`, which bound its batch by the noise
            scale and in samples.
    """

    name: str
    summary: str
    rule: Callable[..., Chain]
    optimizer: str | None = None
    noise_bounded: bool = False

    @property
    def own_clock(self) -> bool:
        """Whether a step is worth what the method measures, and not its scale."""
        return "clock" in self.rule().changes

    @property
    def reference(self) -> str:
        """The papers that the docstring of `rule` names.

        >>> METHODS["linear"].reference
        'Goyal et al., 2017, arXiv 1706.02677'
        """
        return "; ".join(citations(self.rule.__doc__ or ""))


def citations(docstring: str) -> list[str]:
    """Return the papers named in a docstring, each as "Author et al., year, arXiv number".

    >>> citations("See (You et al., 2019,\\n    arXiv 1901.08256, section 3).")
    ['You et al., 2019, arXiv 1901.08256']
    """
    return [" ".join(found.split()) for found in _CITATION.findall(docstring)]


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method(name="none", summary="the base rate at any batch", rule=none),
            Method(name="linear", summary="rate x S", rule=linear),
            Method(
                name="linear-warmup",
                summary="rate x S after a warm-up over 5.5 % of the run",
                rule=linear_warmup,
            ),
            Method(name="sqrt", summary="rate x sqrt(S)", rule=sqrt),
            Method(name="legw", summary="rate x sqrt(S) after S x .25 epochs", rule=legw),
            Method(
                name="adascale",
                summary="rate and clock x gain, measured from the gradient's noise (SGD)",
                rule=adascale,
            ),
            Method(
                name="adascale-paper",
                summary="adascale with the paper's averaging and bounds",
                rule=adascale_paper,
            ),
            Method(
                name="adascale-adam",
                summary="rate x sqrt(gain) of the preconditioned gradient (Adam; no theory)",
                rule=adascale_adam,
            ),
            Method(
                name="autowu",
                summary="finds the rate itself: warms up until the loss rises, then a cosine",
                rule=autowu,
            ),
            Method(
                name="autowu-paper",
                summary="autowu as the authors' program decides",
                rule=autowu_paper,
            ),
            Method(
                name="adasgd",
                summary="the batch grows to the gradient's noise scale, the rate as its root (SGD)",
                rule=adasgd,
            ),
            Method(
                name="adadagrad-norm",
                summary="the same for scalar AdaGrad",
                rule=adadagrad_norm,
                optimizer="adagrad-norm",
            ),
            Method(
                name="adadagrad",
                summary="the same with the gradient as Adagrad divides it",
                rule=adadagrad,
                optimizer="adagrad",
            ),
            Method(
                name="adadam",
                summary="the same for Adam and AdamW",
                rule=adadam,
                optimizer="adam",
            ),
            Method(
                name="growth",
                summary="the batch doubles over five stages, the rate as its root",
                rule=growth,
            ),
            Method(
                name="adaptive-growth",
                summary="the batch doubles when the noise scale asks for it, the rate as its root",
                rule=adaptive_growth,
            ),
            Method(
                name="full-gradient-growth",
                summary="batch x 2, rate x 1.4 when a pass over the data finds a small gradient",
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
                summary="the batch grows where a cosine would decay the rate (SGD)",
                rule=smith,
                noise_bounded=True,
            ),
        )
    }
)
"""Name -> method, for `--method`."""


SCHEDULES: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method(name="constant", summary="the base rate and batch", rule=none),
            Method(name="cosine", summary="the base batch, the rate by a cosine", rule=cosine),
            METHODS["growth"],
            Method(
                name="linear-growth",
                summary="the batch grows by its first size from each of eight stages to the next",
                rule=linear_growth,
            ),
            Method(
                name="warmup-growth",
                summary="the rate warms up and decays while the batch doubles in ten stages",
                rule=warmup_growth,
            ),
            METHODS["seesaw"],
            METHODS["smith"],
        )
    }
)
"""Name -> schedule of batch and rate, for `largebatch plan`, beside each method on the clock."""
