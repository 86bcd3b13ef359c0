"""Who takes part in a comparison, and for how long each of them runs.

A method with its own clock (AdaScale) runs to its own end. One with the fixed clock runs for the
samples of scale 1; with a + after its name it runs for exactly as many optimizer steps as the first
own-clock method took at the same scale and seed, its schedule stretched over them.
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
"""The method's name in runs at scale 1, where methods are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A method, and whether it runs for the steps of the first own-clock method (the + form)."""

    method: Method
    stretched: bool = False

    @property
    def name(self) -> str:
        """As on the command line: linear+ is linear for AdaScale's steps."""
        return self.method.name + "+" * self.stretched


def contenders(methods: Sequence[str], *, at: At) -> tuple[Contender, ...]:
    """The contenders of these names, each once.

    >>> [c.name for c in contenders(["adascale", "linear"], at="equal-steps")]
    ['adascale', 'linear+']

    Args:
        methods: names of `METHODS`, those with the fixed clock with or without a +.
        at: "equal-steps" puts a + to each fixed-clock name that has none.

    Raises:
        ValueError: an unknown name, a + where none belongs, or nobody whose steps a + could take.
    """
    if at not in ("equal-samples", "equal-steps"):
        raise ValueError(f"at is equal-samples or equal-steps; got {at!r}.")
    found: dict[Contender, None] = {}
    for name in methods:
        method = method_named(name.removesuffix("+"))
        stretched = name.endswith("+")
        if stretched and method.own_clock:
            raise ValueError(
                f"{method.name} runs to its own end, so there is no {name!r}: write {method.name}."
            )
        stretched = stretched or (at == "equal-steps" and not method.own_clock)
        found[Contender(method=method, stretched=stretched)] = None
    if not found:
        raise ValueError("Name at least one method: --methods adascale,linear,linear+")
    if any(c.stretched for c in found) and not any(c.method.own_clock for c in found):
        stretched_names = ",".join(c.name for c in found)
        raise ValueError(
            "A + form runs for as many steps as a method with its own clock took, and none is "
            f"named. Add one: --methods adascale,{stretched_names}"
        )
    return tuple(found)


def same_at_scale_one(method: Method) -> bool:
    """Whether the method does nothing at scale 1, so that one run serves it and others.

    One that sets the batch may do so at any scale. Another's rule is asked about two made-up epochs
    of 128 steps, one whose noise falls and one whose noise rises.

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
