"""Define what a rule must implement, and combine rules into a chain.

A rule is a frozen dataclass of hyper-parameters with two pure functions. The function `init`
returns the rule's first state. The function `update` returns the next state and a refined decision.
A rule sees only numbers. A rule has no access to tensors or to the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from largebatch.core.decision import Decision
from largebatch.core.measurement import FACTS, STATISTICS, Measurement

CHANGES = frozenset({"lr", "batch", "clock"})
"""Names of what a rule may change: learning rate, batch size, and the counter of base steps."""

LR_RULES = "every rule for the learning rate"
"""Text for `Rule.forbids` that stands for every rule that changes only the learning rate."""


@runtime_checkable
class Rule(Protocol):
    """Define what every rule must implement: four attributes and the methods `init` and `update`.

    The function `chain` uses the four attributes to check that rules fit together. A rule must be a
    dataclass if the run has a record or a checkpoint, because records and checkpoints store the
    fields of the rule.

    >>> @dataclass(frozen=True)
    ... class HalfLr:
    ...     needs = bounds = forbids = frozenset()
    ...     changes = frozenset({"lr"})
    ...     def init(self): return None
    ...     def update(self, state, seen, proposed):
    ...         return state, proposed.scaled(0.5, because="half the learning rate")
    >>> isinstance(HalfLr(), Rule)
    True

    Attributes:
        needs: Names of the statistics and facts that the rule reads, from `STATISTICS` and `FACTS`.
        changes: Names of what the rule proposes, from "lr", "batch" and "clock" (the counter of
            base steps).
        bounds: Names of what the rule bounds, from "lr", "batch" and "clock". Later rules in the
            chain must not propose a bounded value.
        forbids: Class names of rules that must not be in the same chain. The text `LR_RULES` stands
            for every rule derived from `DefaultFacts` that changes the learning rate but not the
            batch size.
    """

    @property
    def needs(self) -> frozenset[str]: ...
    @property
    def changes(self) -> frozenset[str]: ...
    @property
    def bounds(self) -> frozenset[str]: ...
    @property
    def forbids(self) -> frozenset[str]: ...

    def init(self) -> Any:
        """Return the state before the first training step.

        The state is None, a frozen dataclass, or a tuple of states.
        """
        ...

    def update(self, state: Any, seen: Measurement, proposed: Decision) -> tuple[Any, Decision]:
        """Return the new state of the rule and the refined decision.

        `update` is never called for a training step with a loss or gradient that is not finite.

        Args:
            state: State of the rule before this training step.
            seen: Measurement of this training step.
            proposed: Decision of the rules before this rule in the chain.
        """
        ...


class DefaultFacts:
    """Provide the four attributes of `Rule` as empty sets, which a derived rule may override.

    A chain may contain at most one rule derived from `DefaultFacts` that proposes the batch size,
    because a second such rule would undo the proposal of the first rule. A rule that rounds another
    rule's batch size can define the four attributes itself instead of deriving from `DefaultFacts`.

    >>> DefaultFacts().bounds
    frozenset()
    """

    __slots__ = ()

    @property
    def needs(self) -> frozenset[str]:
        """Return the names of the statistics and facts that the rule reads: an empty set."""
        return frozenset()

    @property
    def changes(self) -> frozenset[str]:
        """Return the names of what the rule proposes: an empty set."""
        return frozenset()

    @property
    def bounds(self) -> frozenset[str]:
        """Return the names of what the rule bounds: an empty set."""
        return frozenset()

    @property
    def forbids(self) -> frozenset[str]:
        """Return the class names of rules that must not be in the same chain: an empty set."""
        return frozenset()


@runtime_checkable
class Wrapper(Rule, Protocol):
    """Define a rule that contains another rule and changes when the inner rule runs or what the
    inner rule sees.
    """

    @property
    def rule(self) -> Rule: ...


class InnerFacts:
    """Provide the four attributes of `Rule` for a wrapper, with the values of the wrapped rule."""

    __slots__ = ()

    rule: Rule

    @property
    def needs(self) -> frozenset[str]:
        """Return the names of the statistics and facts that the wrapped rule reads."""
        return self.rule.needs

    @property
    def changes(self) -> frozenset[str]:
        """Return the names of what the wrapped rule proposes."""
        return self.rule.changes

    @property
    def bounds(self) -> frozenset[str]:
        """Return the names of what the wrapped rule bounds."""
        return self.rule.bounds

    @property
    def forbids(self) -> frozenset[str]:
        """Return the class names of rules that the wrapped rule forbids in the same chain."""
        return self.rule.forbids


@dataclass(frozen=True, slots=True)
class Chain:
    """Apply rules in order. Each rule refines the decision of the rule before it.

    Build a chain with `chain`, which checks that the rules fit together.
    """

    rules: tuple[Rule, ...] = ()

    @property
    def needs(self) -> frozenset[str]:
        """Return the names of all statistics and facts that the rules read."""
        return frozenset().union(*(rule.needs for rule in self.rules))

    @property
    def changes(self) -> frozenset[str]:
        """Return the names of everything that the rules propose."""
        return frozenset().union(*(rule.changes for rule in self.rules))

    @property
    def bounds(self) -> frozenset[str]:
        """Return the names of everything that the rules bound."""
        return frozenset().union(*(rule.bounds for rule in self.rules))

    @property
    def forbids(self) -> frozenset[str]:
        """Return the class names of all rules that the chain's rules forbid in the same chain."""
        return frozenset().union(*(rule.forbids for rule in self.rules))

    def init(self) -> tuple[Any, ...]:
        """Return the states of all rules before the first training step."""
        return tuple(rule.init() for rule in self.rules)

    def update(
        self, state: tuple[Any, ...], seen: Measurement, proposed: Decision
    ) -> tuple[tuple[Any, ...], Decision]:
        """Return the new states of all rules, and the decision after the last rule."""
        states = []
        for rule, old in zip(self.rules, state, strict=True):
            new, proposed = rule.update(old, seen, proposed)
            states.append(new)
        return tuple(states), proposed


def chain(*rules: Rule) -> Chain:
    """Combine rules into one rule. Each rule refines the decision of the rule before it.

    Nested chains are flattened, so `chain(a, chain(b, c)) == chain(a, b, c)`. The empty chain
    `chain()` leaves every decision unchanged.

    >>> import largebatch as lb
    >>> rule = lb.chain(lb.AdaScale(), lb.ClampLr(max=8.0))
    >>> sorted(rule.changes), sorted(rule.bounds)
    (['clock', 'lr'], ['lr'])

    Args:
        *rules: Rules or chains, in the order in which they are applied.

    Raises:
        ValueError: Two rules forbid each other, a rule proposes a value that an earlier rule in the
            chain bounds, a rule needs an unknown statistic, or an argument is not a rule.
    """
    flat = tuple(_flatten(rules))
    for at, rule in enumerate(flat):
        _check_facts(rule)
        _check_pairs(rule, others=flat[:at] + flat[at + 1 :])
        _check_bounds(rule, before=flat[:at])
    return Chain(flat)


def name_of(rule: Rule) -> str:
    """Return the class name of a rule, for registries, `forbids` and error messages."""
    return type(rule).__name__


def label_of(rule: Rule) -> str:
    """Return a rule's name with the names of the rules inside, such as `Every(AdaScale)`."""
    inside = ", ".join([label_of(one) for one in _within(rule) if one != Chain()])
    return f"{name_of(rule)}({inside})" if inside else name_of(rule)


def names_within(rule: Rule) -> frozenset[str]:
    """Return the names of a rule and of all rules that it wraps or chains.

    >>> sorted(names_within(chain()))
    ['Chain']
    """
    return frozenset(map(name_of, within(rule)))


def within(rule: Rule) -> Iterator[Rule]:
    """Yield a rule and all rules that it wraps or chains.

    >>> list(within(chain()))
    [Chain(rules=())]
    """
    yield rule
    for inside in _within(rule):
        yield from within(inside)


def require(rule: Rule, provided: frozenset[str], *, by: str, remedy: str) -> None:
    """Raise an error if a rule, or a rule inside it, needs data that are not provided.

    >>> require(chain(), frozenset(), by="this meter", remedy="")

    Args:
        rule: Rule to check, usually a whole chain. The error message names the single rule that
            needs the data.
        provided: Names of the statistics and facts that are provided.
        by: Name of the provider in the message, such as "this meter".
        remedy: How to fix the error, with a line to paste.

    Raises:
        ValueError: A rule needs a statistic or fact that is not provided.
    """
    for one in _flatten((rule,)):
        missing = one.needs - provided
        if missing:
            raise ValueError(
                f"{label_of(one)} needs {', '.join(map(repr, sorted(missing)))}, which {by} does "
                f"not provide. {remedy}".rstrip()
            )


def _within(rule: Rule) -> tuple[Rule, ...]:
    if isinstance(rule, Wrapper):
        return (rule.rule,)
    return rule.rules if isinstance(rule, Chain) else ()


def _flatten(rules: Iterable[Rule]) -> Iterable[Rule]:
    for rule in rules:
        if isinstance(rule, Chain):
            yield from rule.rules
        elif isinstance(rule, Rule) and not isinstance(rule, type):
            yield rule
        else:
            if isinstance(rule, type):
                raise ValueError(
                    f"The class {rule.__name__} was given in place of a rule. Call the class to "
                    f"make a rule: {rule.__name__}(...)."
                )
            raise ValueError(
                f"{rule!r} was given in place of a rule. Pass a rule, such as lb.AdaScale() or "
                "lb.chain(lb.AdaScale(), lb.Schedule())."
            )


def _check_facts(rule: Rule) -> None:
    unknown = rule.needs - STATISTICS - FACTS
    if unknown or not (rule.changes | rule.bounds) <= CHANGES:
        raise ValueError(
            f"The rule {name_of(rule)} has needs={sorted(rule.needs)}, "
            f"changes={sorted(rule.changes)}, bounds={sorted(rule.bounds)}, but at least one of "
            f"these names is unknown. Use only {sorted(STATISTICS | FACTS)} in needs, and only "
            f"{sorted(CHANGES)} in changes and bounds."
        )


def _check_pairs(rule: Rule, *, others: tuple[Rule, ...]) -> None:
    for other in others:
        if _exclude(rule, other):
            raise ValueError(
                f"{label_of(rule)} and {label_of(other)} cannot be in one chain, because both "
                "would change the same value for the same reason. Keep only one of them: "
                f"lb.chain({name_of(rule)}(...))."
            )


def _exclude(rule: Rule, other: Rule) -> bool:
    """Return whether `rule` forbids `other` in its chain, or both propose the batch size."""
    own, others = (
        [one for one in within(whole) if isinstance(one, DefaultFacts)] for whole in (rule, other)
    )
    if any("batch" in one.changes & another.changes for one in own for another in others):
        return True
    if LR_RULES in rule.forbids and any(_changes_lr_alone(one) for one in others):
        return True
    return not rule.forbids.isdisjoint(names_within(other))


def _changes_lr_alone(rule: DefaultFacts) -> bool:
    """Return whether a rule changes the learning rate and leaves the batch size to other rules."""
    return "lr" in rule.changes and "batch" not in rule.changes


def _check_bounds(rule: Rule, *, before: tuple[Rule, ...]) -> None:
    for bound in before:
        undone = bound.bounds & rule.changes
        if undone:
            raise ValueError(
                f"{label_of(rule)} comes after {label_of(bound)} in the chain and would undo the "
                f"bound on {' and '.join(map(repr, sorted(undone)))}. Put the bound last: "
                f"lb.chain({name_of(rule)}(...), {name_of(bound)}(...))."
            )
