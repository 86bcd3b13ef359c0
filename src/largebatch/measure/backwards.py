"""Group the backward calls of a training step by micro-batch with pure functions.

In this module, a part is the contribution of one micro-batch on one rank to the step's gradient.
Four sources of evidence show which micro-batch a backward call belongs to. From the best to the
weakest, the sources are:

1. the blocks `with control.part():` that the user writes around forward and backward calls,
2. the forward pass whose output a backward call started from,
3. forward passes that alternate with backward calls,
4. the number of gradients that each parameter got.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from largebatch.core.errors import MicroBatchMissed


@dataclass(eq=False, slots=True, kw_only=True)
class Backward:
    """Record what the hooks observe in one backward call.

    Mutable: grows while the backward call runs.

    Attributes:
        after: Number of the training step's forward passes before the backward call began.
        outer: The backward call in which this backward call is nested, as in reentrant
            checkpointing; None if it is not nested.
        forwards: Numbers of the forward passes whose outputs the backward call started from.
        indices: Index of each parameter that got a gradient, in the order of the gradients.
        order: Largest number of gradients that a parameter of the backward call has received in the
            training step so far.
        block: Number of the user's `part()` block around the backward call; None outside a block.
        start, stop: Range of the backward call's terms among the training step's sums.
        thread: Identifier of the thread. Backward calls of different threads are not nested.
        begun: Whether the backward call, or a nested backward call, produced a gradient.
        filling: Number of the running sum to which the gradients were added; 0 if each gradient was
            squared separately.
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
        """Return the outermost enclosing backward call, or this call if it is not nested."""
        return self if self.outer is None else self.outer.root


Group = list[Backward]
"""List of the backward calls of one micro-batch."""


def groups_of(backwards: Sequence[Backward], *, forwards: int) -> list[Group]:
    """Return one list of backward calls per micro-batch, in the order of the first backward calls.

    >>> two_losses = [Backward(after=1, order=1), Backward(after=1, order=2)]
    >>> len(groups_of(two_losses, forwards=1))
    1
    >>> len(groups_of(two_losses, forwards=0))
    2

    Args:
        backwards: The outermost backward calls of the training step, in the order of the calls.
        forwards: Number of forward passes of the training step.

    Raises:
        MicroBatchMissed: Some backward calls ran inside the user's `control.part()` blocks and
            others outside, or only some micro-batches have backward calls that started from no
            forward pass.
    """
    if any(one.block is not None for one in backwards):
        return _by_block(backwards)
    if any(one.forwards for one in backwards):
        return _by_forward(backwards)
    if alternates(backwards, forwards=forwards):
        return _joined([(one, one.after) for one in backwards])
    return _joined([(one, one.order) for one in backwards])


def alternates(backwards: Sequence[Backward], *, forwards: int) -> bool:
    """Return whether one or more backward calls followed each forward pass."""
    return forwards > 0 and {one.after for one in backwards} == set(range(1, forwards + 1))


def counts_decide(backwards: Sequence[Backward], *, forwards: int) -> bool:
    """Return whether only the counts of gradients show the micro-batch of a backward call."""
    shown = any(one.block is not None or one.forwards for one in backwards)
    return not shown and not alternates(backwards, forwards=forwards)


def is_plain(groups: Sequence[Group], *, forwards: int) -> bool:
    """Return whether each micro-batch has one forward pass, followed by one backward call."""
    alone = [group[0] for group in groups if len(group) == 1]
    plain = len(alone) == len(groups) == forwards
    return plain and alternates(alone, forwards=forwards)


def needs_sum(group: Group) -> bool:
    """Return whether the sum of a parameter's gradients in one micro-batch is missing."""
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
    """Return whether each of two micro-batches uses a parameter that the other does not use.

    If the user's `control.part()` blocks show the micro-batches, the result is False.
    """
    if any(one.block is not None for group in groups for one in group):
        return False
    used = {frozenset(index for one in group for index in one.indices) for group in groups}
    ordered = sorted(used, key=len)
    return any(not small <= large for small, large in pairwise(ordered))


def shared_sum(groups: Sequence[Group]) -> Group | None:
    """Return the backward calls of the first sum that mixes gradients of several micro-batches."""
    members: dict[int, Group] = {}
    parts: dict[int, set[int]] = {}
    for number, group in enumerate(groups):
        for backward in group:
            if backward.filling:
                members.setdefault(backward.filling, []).append(backward)
                parts.setdefault(backward.filling, set()).add(number)
    return next((members[filling] for filling, those in parts.items() if len(those) > 1), None)


def joins_of(backwards: Sequence[Backward], groups: Sequence[Group]) -> list[bool]:
    """Return for each backward call whether the preceding call has the same micro-batch."""
    part = {id(one): number for number, group in enumerate(groups) for one in group}
    parts = [part[id(one)] for one in backwards]
    return [at > 0 and parts[at - 1] == number for at, number in enumerate(parts)]


def _by_block(backwards: Sequence[Backward]) -> list[Group]:
    outside = sum(one.block is None for one in backwards)
    if outside:
        raise MicroBatchMissed(
            f"{len(backwards) - outside} backward calls of this step ran inside control.part(), "
            f"and {outside} ran outside control.part(). Put the forward and backward calls of "
            "every micro-batch into its own block: "
            "with control.part(): loss_fn(model(x), y).backward(). "
            "After backward calls whose gradients the optimizer must not get, call control.drop()."
        )
    return _joined([(one, one.block or 0) for one in backwards])


def _by_forward(backwards: Sequence[Backward]) -> list[Group]:
    parts: list[_Part] = []
    of: dict[int, _Part] = {}  # forward pass -> its part
    early: Group = []
    for one in backwards:
        if not one.forwards:  # a penalty on the weights joins the preceding part
            if parts:
                parts[-1].members.append(one)
                parts[-1].adrift += 1
            else:  # the first backward calls join the first part
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
            "did not start from an output of the model, and the number of these backward calls "
            f"differs between the {len(parts)} micro-batches. Add a loss without model output, "
            "for example a penalty on the weights, "
            "to the loss of every micro-batch: (loss_fn(model(x), y) + penalty).backward()."
        )
    return [part.members for part in parts]


@dataclass(eq=False, slots=True)
class _Part:
    """Collect the backward calls of one micro-batch.

    Mutable: grows with each backward call.
    """

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
