"""Groups the backward calls of a step into its parts: pure functions of what was seen.

A part is what one micro-batch contributes on one rank. Four sources of evidence, the best first:
blocks that the user wrote around forward and backward calls; the forward pass whose output a
backward came from; forward passes that alternate with backward calls; and the number of gradients
that each parameter got.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from largebatch.core.errors import MicroBatchMissed


@dataclass(eq=False, slots=True, kw_only=True)
class Backward:
    """One backward call, as the hooks saw it.

    Mutable: grows while the backward runs.

    Attributes:
        after: forward passes of the step before it began.
        outer: the backward that it runs in, as under reentrant checkpointing.
        forwards: numbers of the forward passes whose outputs it came from.
        indices: index of each parameter that got a gradient, in that order.
        order: most gradients in the step that one of these parameters had when it ended.
        block: number of the user's block that it ran in; None outside of any.
        start, stop: numbers of its terms among the step's sums.
        thread: that it runs in; only backward calls of one thread run in each other.
        begun: whether it, or a backward within it, has given a gradient.
        filling: number of the sum that its gradients were added to; 0 if each was squared alone.
    """

    after: int
    outer: Backward | None = None
    forwards: set[int] = field(default_factory=set)
    indices: list[int] = field(default_factory=list)
    order: int = 0
    block: int | None = None
    start: int = 0
    stop: int = 0
    thread: int = 0
    begun: bool = False
    filling: int = 0

    @property
    def root(self) -> Backward:
        """Return the outermost backward that it runs in."""
        return self if self.outer is None else self.outer.root


Group = list[Backward]
"""The backward calls of one part."""


def groups_of(backwards: Sequence[Backward], *, forwards: int) -> list[Group]:
    """Return the step's parts, each with its backward calls, in the order of their first ones.

    >>> two_losses = [Backward(after=1, order=1), Backward(after=1, order=2)]
    >>> len(groups_of(two_losses, forwards=1))
    1
    >>> len(groups_of(two_losses, forwards=0))
    2

    Args:
        backwards: the outermost backward calls of the step, in order.
        forwards: forward passes of the step.

    Raises:
        MicroBatchMissed: some backward calls in the user's blocks and some outside of them, or a
            backward that came from no forward pass in some parts only.
    """
    if any(one.block is not None for one in backwards):
        return _by_block(backwards)
    if any(one.forwards for one in backwards):
        return _by_forward(backwards)
    if alternates(backwards, forwards=forwards):
        return _joined([(one, one.after) for one in backwards])
    return _joined([(one, one.order) for one in backwards])


def alternates(backwards: Sequence[Backward], *, forwards: int) -> bool:
    """Return whether each forward pass was followed by one or more backward calls."""
    return forwards > 0 and {one.after for one in backwards} == set(range(1, forwards + 1))


def counts_decide(backwards: Sequence[Backward], *, forwards: int) -> bool:
    """Return whether nothing but the number of gradients tells the parts from each other."""
    told = any(one.block is not None or one.forwards for one in backwards)
    return not told and not alternates(backwards, forwards=forwards)


def is_plain(groups: Sequence[Group], *, forwards: int) -> bool:
    """Return whether each part is one forward pass and one backward call that follows it."""
    alone = [group[0] for group in groups if len(group) == 1]
    plain = len(alone) == len(groups) == forwards
    return plain and alternates(alone, forwards=forwards)


def needs_sum(group: Group) -> bool:
    """Return whether a parameter got several gradients in this part, whose sum was not formed."""
    seen: dict[int, int] = {}
    for backward in group:
        filling = backward.filling
        if not filling and len(set(backward.indices)) < len(backward.indices):
            return True
        if any(index in seen and not filling == seen[index] > 0 for index in backward.indices):
            return True
        seen.update(dict.fromkeys(backward.indices, filling))
    return False


def differ_in_parameters(groups: Sequence[Group]) -> bool:
    """Return whether two parts outside of blocks each use a parameter that the other does not."""
    if any(one.block is not None for group in groups for one in group):
        return False
    used = {frozenset(index for one in group for index in one.indices) for group in groups}
    ordered = sorted(used, key=len)
    return any(not small <= large for small, large in pairwise(ordered))


def shared_sum(groups: Sequence[Group]) -> Group | None:
    """Return the backward calls of the first sum that holds gradients of several parts."""
    members: dict[int, Group] = {}
    parts: dict[int, set[int]] = {}
    for number, group in enumerate(groups):
        for backward in group:
            if backward.filling:
                members.setdefault(backward.filling, []).append(backward)
                parts.setdefault(backward.filling, set()).add(number)
    return next((members[filling] for filling, those in parts.items() if len(those) > 1), None)


def joins_of(backwards: Sequence[Backward], groups: Sequence[Group]) -> list[bool]:
    """Return for each backward call of a step whether it is of the same part as the one before."""
    part = {id(one): number for number, group in enumerate(groups) for one in group}
    parts = [part[id(one)] for one in backwards]
    return [at > 0 and parts[at - 1] == number for at, number in enumerate(parts)]


def _by_block(backwards: Sequence[Backward]) -> list[Group]:
    outside = sum(one.block is None for one in backwards)
    if outside:
        raise MicroBatchMissed(
            f"{len(backwards) - outside} backward calls of this step ran inside control.part(), "
            f"and {outside} outside of it. Put the forward and backward calls of every "
            "micro-batch into a block of its own: with control.part(): loss_fn(model(x), "
            "y).backward(). After backward calls whose gradients are not used, call control.drop()."
        )
    return _joined([(one, one.block or 0) for one in backwards])


def _by_forward(backwards: Sequence[Backward]) -> list[Group]:
    parts: list[_Part] = []
    of: dict[int, _Part] = {}  # the part of each forward pass
    early: Group = []
    for one in backwards:
        if not one.forwards:  # a penalty on the weights: it belongs to the part before it
            if parts:
                parts[-1].members.append(one)
                parts[-1].adrift += 1
            else:  # or to the first one
                early.append(one)
            continue
        joined = {id(of[number]): of[number] for number in one.forwards if number in of}
        first, *others = sorted(joined.values(), key=lambda part: part.number) or [_Part()]
        if not joined:
            first.number = parts[-1].number + 1 if parts else 0
            parts.append(first)
        first.members.append(one)
        for other in others:
            first.take(other)
            of.update(dict.fromkeys(other.forwards, first))
            parts.remove(other)
        first.forwards |= one.forwards
        of.update(dict.fromkeys(one.forwards, first))
    parts[0].members[:0] = early
    parts[0].adrift += len(early)
    if len({part.adrift for part in parts}) > 1:
        raise MicroBatchMissed(
            f"{sum(part.adrift for part in parts)} of {len(backwards)} backward calls in this step "
            f"came from no forward pass of the model, and the {len(parts)} micro-batches did not "
            "get equally many of them. Add such a loss, as a penalty on the weights, to the loss "
            "of every micro-batch: (loss_fn(model(x), y) + penalty).backward()."
        )
    return [part.members for part in parts]


@dataclass(eq=False, slots=True)
class _Part:
    """A part in the making; mutable."""

    number: int = 0
    members: Group = field(default_factory=list)
    forwards: set[int] = field(default_factory=set)
    adrift: int = 0

    def take(self, other: _Part) -> None:
        self.members += other.members
        self.forwards |= other.forwards
        self.adrift += other.adrift


def _joined(pairs: Sequence[tuple[Backward, int]]) -> list[Group]:
    groups: dict[int, Group] = {}
    for backward, key in pairs:
        groups.setdefault(key, []).append(backward)
    return list(groups.values())
