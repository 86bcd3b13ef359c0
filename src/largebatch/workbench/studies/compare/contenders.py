"""Define which methods take part in a comparison and how long each of them runs.

A method that measures its gain, such as AdaScale, runs until the sum of its gains reaches the
number of base steps of the run at scale 1. Any other method, such as linear scaling, runs for as
many samples as the run at scale 1. A + after the name of a method that does not measure its gain,
as in "linear+", changes the length of the run: the method runs for exactly as many optimizer steps
as the first method that measures its gain took at the same scale and seed. The schedule of a method
with a + is stretched over the steps of its run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from largebatch.core.decider import Decider
from largebatch.core.measurement import Budget, GradientMoments, Reading
from largebatch.methods import Method
from largebatch.workbench.runs.method_names import method_named

At = Literal["equal-samples", "equal-steps"]

ANY = "any"
"""Name of the method in runs at scale 1 that several methods share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """Describe one method of a comparison.

    Args:
        method: Method that is compared.
        stretched: Whether the method runs for as many steps as the first method that measures its
            gain. The name of a stretched method ends with a +.
    """

    method: Method
    stretched: bool = False

    @property
    def name(self) -> str:
        """Return the name of the method, with a + if the method is stretched."""
        return self.method.name + "+" * self.stretched


def contenders(methods: Sequence[str], *, at: At) -> tuple[Contender, ...]:
    """Return the contenders with the given names, each once.

    >>> [c.name for c in contenders(["adascale", "linear"], at="equal-steps")]
    ['adascale', 'linear+']

    Args:
        methods: Names of methods in `METHODS`. A method that does not measure its gain may have a +
            after its name.
        at: "equal-samples", or "equal-steps" to add a + to the name of every method that does not
            measure its gain.

    Raises:
        ValueError: A name is unknown, a method that measures its gain has a +, or a method has a +
            and no given method measures its gain.
    """
    if at not in ("equal-samples", "equal-steps"):
        raise ValueError(
            f"at={at!r} was given, but at must be 'equal-samples' or 'equal-steps'. Pass "
            "at='equal-samples'."
        )
    found: dict[Contender, None] = {}
    for name in methods:
        method = method_named(name.removesuffix("+"))
        stretched = name.endswith("+")
        if stretched and method.own_clock:
            raise ValueError(
                f"The method name {name!r} was given, but {method.name!r} measures its gain and "
                f"cannot be stretched with a +. Pass methods={method.name}."
            )
        stretched = stretched or (at == "equal-steps" and not method.own_clock)
        found[Contender(method=method, stretched=stretched)] = None
    if not found:
        raise ValueError(
            "No method was given. Pass at least one: methods=['adascale', 'linear', 'linear+']."
        )
    if any(c.stretched for c in found) and not any(c.method.own_clock for c in found):
        names = ["adascale", *(c.name for c in found)]
        raise ValueError(
            "A method with a + runs for as many steps as a method that measures its gain took, but "
            f"no method that measures its gain was given. Pass methods={names}."
        )
    return tuple(found)


def same_at_scale_one(method: Method) -> bool:
    """Return whether the method changes nothing at scale 1 and can share a run with other methods.

    For a method that sets the batch size, the result is False, because the method can act at any
    scale. The rule of any other method is run on two made-up epochs of 128 steps. The gradient
    noise falls in one epoch and rises in the other epoch.

    >>> from largebatch.methods import METHODS
    >>> [name for name in METHODS if not same_at_scale_one(METHODS[name])]
    ['legw', 'autowu', 'autowu-paper', 'adasgd', 'adadagrad-norm', 'adadagrad', 'adadam', \
'growth', 'adaptive-growth', 'full-gradient-growth', 'seesaw', 'smith']
    """
    if "batch" in method.rule().changes:
        return False
    return all(_does_nothing(method, rising=rising) for rising in (False, True))


def _does_nothing(method: Method, *, rising: bool) -> bool:
    batch, steps = 8, 128
    decider = Decider.start(
        method.rule(),
        base_batch_size=batch,
        batch_size=batch,
        dataset_size=batch * steps,
        budget=Budget(base_steps=steps),
    )
    for step in range(steps):
        moments = GradientMoments(
            batch_size=batch,
            parts=2,
            batch_sqnorm=1.0 + step,
            variance=64.0 * (1.0 + step) if rising else 64.0 / (1.0 + step),
        )
        reading = Reading(
            samples=batch,
            loss=2.0 - step / steps,
            batch_sqnorm=moments.batch_sqnorm,
            moments=moments,
            preconditioned_moments=moments,
        )
        decider, decision = decider.decide(decider.see(reading, base_lr=0.1))
        found = (decision.lr_multiplier, decision.base_steps, decision.next_batch_size)
        if found != (1.0, 1.0, batch):
            return False
    return True
