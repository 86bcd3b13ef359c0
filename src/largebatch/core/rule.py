"""The contract of a rule, and how rules compose.

A rule is a frozen dataclass of hyper-parameters with two pure functions: `init` gives its state,
`update` refines a decision. It never sees a tensor, a model or a clock that it owns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from largebatch.core.decision import Decision
from largebatch.core.measurement import FACTS, STATISTICS, Measurement

CHANGES = frozenset({"lr", "batch", "clock"})

LR_RULES = "every rule for the learning rate"
"""In `Rule.forbids`, what stands for each rule that changes the learning rate and not the batch."""


@runtime_checkable
class Rule(Protocol):
    """What every rule offers; the four facts let a chain be checked when it is built.

    Attributes:
        needs: names of the statistics and facts it reads (`STATISTICS`, `FACTS`).
        changes: which of "lr", "batch", "clock" it proposes.
        bounds: which of them it bounds; nothing may propose one after its bound.
        forbids: class names of the rules that must not stand in the same chain. `LR_RULES` stands
            for each rule with `DefaultFacts` that changes the learning rate and not the batch.
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
        """The state before the first step: a frozen dataclass, a tuple of states, or None."""
        ...

    def update(self, state: Any, seen: Measurement, proposed: Decision) -> tuple[Any, Decision]:
        """The new state and the refined decision; never called for a non-finite step."""
        ...


class DefaultFacts:
    """The facts of a rule that needs, changes, bounds and forbids nothing.

    A class that derives from it states only the facts that differ, and is the only one of its chain
    to propose the batch: the second of two such rules would undo the first. A rule with the four
    attributes of `Rule` may do without it, for instance to round the batch that another proposes.

    >>> DefaultFacts().bounds
    frozenset()
    """

    __slots__ = ()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def changes(self) -> frozenset[str]:
        return frozenset()

    @property
    def bounds(self) -> frozenset[str]:
        return frozenset()

    @property
    def forbids(self) -> frozenset[str]:
        return frozenset()


@runtime_checkable
class Wrapper(Rule, Protocol):
    """A rule around another one, which it changes in when or in what it sees."""

    @property
    def rule(self) -> Rule: ...


class InnerFacts:
    """The facts of a rule that wraps another one: those of its `rule`."""

    __slots__ = ()

    rule: Rule

    @property
    def needs(self) -> frozenset[str]:
        return self.rule.needs

    @property
    def changes(self) -> frozenset[str]:
        return self.rule.changes

    @property
    def bounds(self) -> frozenset[str]:
        return self.rule.bounds

    @property
    def forbids(self) -> frozenset[str]:
        return self.rule.forbids


@dataclass(frozen=True, slots=True)
class Chain:
    """Rules applied in order, each refining the decision of the one before it. Build it with
    `chain`, which checks it."""

    rules: tuple[Rule, ...] = ()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(rule.needs for rule in self.rules))

    @property
    def changes(self) -> frozenset[str]:
        return frozenset().union(*(rule.changes for rule in self.rules))

    @property
    def bounds(self) -> frozenset[str]:
        return frozenset().union(*(rule.bounds for rule in self.rules))

    @property
    def forbids(self) -> frozenset[str]:
        return frozenset().union(*(rule.forbids for rule in self.rules))

    def init(self) -> tuple[Any, ...]:
        return tuple(rule.init() for rule in self.rules)

    def update(
        self, state: tuple[Any, ...], seen: Measurement, proposed: Decision
    ) -> tuple[tuple[Any, ...], Decision]:
        states = []
        for rule, old in zip(self.rules, state, strict=True):
            new, proposed = rule.update(old, seen, proposed)
            states.append(new)
        return tuple(states), proposed


def chain(*rules: Rule) -> Chain:
    """One rule from many: each refines the decision of the one before it.

    Chains inside it are flattened, so `chain(a, chain(b, c)) == chain(a, b, c)`, and `chain()`
    leaves every decision as it is.

    Raises:
        ValueError: a forbidden pair, a rule that proposes after its bound, an unknown need, or
            something that is not a rule.
    """
    flat = tuple(_flatten(rules))
    for at, rule in enumerate(flat):
        _check_facts(rule)
        _check_pairs(rule, others=flat[:at] + flat[at + 1 :])
        _check_bounds(rule, before=flat[:at])
    return Chain(flat)


def name_of(rule: Rule) -> str:
    """The name under which a rule is registered, forbidden and shown."""
    return type(rule).__name__


def label_of(rule: Rule) -> str:
    """The name of a rule in a message, with those of the rules in it: Every(AdaScale)."""
    inside = ", ".join([label_of(one) for one in _within(rule) if one != Chain()])
    return f"{name_of(rule)}({inside})" if inside else name_of(rule)


def names_within(rule: Rule) -> frozenset[str]:
    """The names of a rule and of the rules it wraps or chains.

    >>> sorted(names_within(chain()))
    ['Chain']
    """
    return frozenset(map(name_of, within(rule)))


def within(rule: Rule) -> Iterator[Rule]:
    """A rule, and the rules that it wraps or chains.

    >>> list(within(chain()))
    [Chain(rules=())]
    """
    yield rule
    for inside in _within(rule):
        yield from within(inside)


def require(rule: Rule, provided: frozenset[str], *, by: str, remedy: str) -> None:
    """Refuse a rule, or one within it, that needs what is not there.

    >>> require(chain(), frozenset(), by="this meter", remedy="")

    Args:
        rule: usually a whole chain; the message names the rule within it.
        provided: names of statistics and facts.
        by: who provides them, in the message: "this meter".
        remedy: what to do, as a line to paste.

    Raises:
        ValueError: a need that is not provided.
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
            shown = rule.__name__ + " (the class; call it)" if isinstance(rule, type) else rule
            raise ValueError(
                f"A chain takes rules, got {shown}. Example: lb.chain(lb.AdaScale(), lb.Schedule())"
            )


def _check_facts(rule: Rule) -> None:
    unknown = rule.needs - STATISTICS - FACTS
    if unknown or not (rule.changes | rule.bounds) <= CHANGES:
        raise ValueError(
            f"{name_of(rule)} declares unknown facts: needs {sorted(rule.needs)} must be among "
            f"{sorted(STATISTICS | FACTS)}, changes and bounds among {sorted(CHANGES)}."
        )


def _check_pairs(rule: Rule, *, others: tuple[Rule, ...]) -> None:
    for other in others:
        if _exclude(rule, other):
            raise ValueError(
                f"{label_of(rule)} and {label_of(other)} cannot stand in one chain: each would "
                f"apply its own factor or clock for the same cause. Keep one of them."
            )


def _exclude(rule: Rule, other: Rule) -> bool:
    """Return whether two rules cannot stand in one chain, as the first one has it."""
    own, others = (
        [one for one in within(whole) if isinstance(one, DefaultFacts)] for whole in (rule, other)
    )
    if any("batch" in one.changes & another.changes for one in own for another in others):
        return True
    if LR_RULES in rule.forbids and any(_changes_lr_alone(one) for one in others):
        return True
    return not rule.forbids.isdisjoint(names_within(other))


def _changes_lr_alone(rule: DefaultFacts) -> bool:
    """Return whether a rule sets the learning rate of batches that other rules choose."""
    return "lr" in rule.changes and "batch" not in rule.changes


def _check_bounds(rule: Rule, *, before: tuple[Rule, ...]) -> None:
    for bound in before:
        undone = bound.bounds & rule.changes
        if undone:
            raise ValueError(
                f"{label_of(rule)} proposes the {' and the '.join(sorted(undone))} after "
                f"{label_of(bound)} has bounded it, which would undo the bound. Put the "
                f"bound last: lb.chain({name_of(rule)}(...), {name_of(bound)}(...))."
            )
