"""Which backward calls of a step belong to one part: pure functions of what the hooks saw."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.core.errors import MicroBatchMissed
from largebatch.measure.backwards import (
    Backward,
    alternates,
    counts_decide,
    groups_of,
    is_plain,
    joins_of,
    needs_sum,
    shared_sum,
)

PARTS = 4
ALL = [0, 1, 2]
"""The parameters of the model."""


def seen(after: int, order: int, *forwards: int, block: int | None = None) -> Backward:
    """A backward that gave every parameter its gradient number `order`."""
    return Backward(
        after=after, order=order, forwards=set(forwards), indices=list(ALL), block=block
    )


def members(backwards: Sequence[Backward], *, forwards: int) -> list[list[int]]:
    """The places of each part's backward calls among all of them."""
    groups = groups_of(backwards, forwards=forwards)
    places = {id(one): at for at, one in enumerate(backwards)}
    return [sorted(places[id(one)] for one in group) for group in groups]


ONE_EACH = [[at] for at in range(PARTS)]
TWO_EACH = [[2 * at, 2 * at + 1] for at in range(PARTS)]
PLAIN = [seen(at + 1, at + 1) for at in range(PARTS)]
LINKED = [seen(at + 1, at + 1, at + 1) for at in range(PARTS)]
TWO_LOSSES = [seen(at // 2 + 1, at + 1) for at in range(2 * PARTS)]
FORWARDS_FIRST = [seen(PARTS, at + 1) for at in range(PARTS)]
PREFETCHED = [seen(min(at + 2, PARTS), at + 1) for at in range(PARTS)]
TWO_VIEWS = [seen(2 * at + 2, at + 1) for at in range(PARTS)]
LOGGING = [seen(2 * (at // 2) + 1 + at % 2, at + 1) for at in range(2 * PARTS)]


def with_links(backwards: Sequence[Backward], links: Sequence[Sequence[int]]) -> list[Backward]:
    """The same backward calls where the outputs report which forward passes they came from."""
    return [
        seen(one.after, one.order, *numbers) for one, numbers in zip(backwards, links, strict=True)
    ]


@pytest.mark.parametrize(
    ("backwards", "forwards", "expected", "counted"),
    [
        pytest.param(PLAIN, PARTS, ONE_EACH, False, id="plain"),
        pytest.param(LINKED, PARTS, ONE_EACH, False, id="plain, with links"),
        pytest.param(FORWARDS_FIRST, 0, ONE_EACH, True, id="submodules called directly"),
        pytest.param(TWO_LOSSES, PARTS, TWO_EACH, False, id="two losses"),
        pytest.param(TWO_LOSSES, 0, [[at] for at in range(8)], True, id="two losses, no forward"),
        pytest.param(FORWARDS_FIRST, PARTS, ONE_EACH, True, id="all forwards first"),
        pytest.param(PREFETCHED, PARTS, ONE_EACH, True, id="prefetched"),
        pytest.param(TWO_VIEWS, 2 * PARTS, ONE_EACH, True, id="two views"),
        pytest.param(
            with_links(FORWARDS_FIRST, [[1], [2], [3], [4]]),
            PARTS,
            ONE_EACH,
            False,
            id="all forwards first, with links",
        ),
        pytest.param(
            with_links(TWO_LOSSES, [[1], [1], [2], [2], [3], [3], [4], [4]]),
            PARTS,
            TWO_EACH,
            False,
            id="two losses, with links",
        ),
        pytest.param(
            with_links(LOGGING, [[1], [1], [3], [3], [5], [5], [7], [7]]),
            2 * PARTS,
            TWO_EACH,
            False,
            id="a logging forward between two losses, with links",
        ),
        pytest.param(
            with_links(TWO_VIEWS, [[1, 2], [3, 4], [5, 6], [7, 8]]),
            2 * PARTS,
            ONE_EACH,
            False,
            id="two views, with links",
        ),
    ],
)
def test_the_parts_of_a_loop(backwards, forwards, expected, counted) -> None:
    assert members(backwards, forwards=forwards) == expected
    assert counts_decide(backwards, forwards=forwards) == counted


def test_a_backward_of_two_views_joins_the_losses_of_either_view() -> None:
    backwards = [seen(2, 1, 1), seen(2, 2, 2), seen(2, 3, 1, 2), seen(3, 4, 3)]
    assert members(backwards, forwards=3) == [[0, 1, 2], [3]]


def test_a_backward_within_another_belongs_to_the_outermost() -> None:
    outer = Backward(after=1)
    middle = Backward(after=1, outer=outer)
    inner = Backward(after=1, outer=middle)
    assert inner.root is middle.root is outer.root is outer


def test_the_number_of_gradients_joins_parameters_that_come_in_turns() -> None:
    body = [Backward(after=2, order=at + 1, indices=[0]) for at in range(2)]
    head = [Backward(after=2, order=at + 1, indices=[1]) for at in range(2)]
    backwards = [body[0], head[0], body[1], head[1]]
    assert members(backwards, forwards=0) == [[0, 1], [2, 3]]


def test_a_penalty_on_the_weights_in_every_part_belongs_to_the_part_before_it() -> None:
    backwards = [one for at in range(3) for one in (seen(at + 1, 1, at + 1), seen(at + 1, 1))]
    assert members(backwards, forwards=3) == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_penalty_on_the_weights_in_some_parts_only_is_refused(at) -> None:
    backwards = [*LINKED]
    backwards.insert(at, seen(at, 9))
    with pytest.raises(MicroBatchMissed, match=r"1 of 5 backward calls .* 4 micro-batches"):
        groups_of(backwards, forwards=PARTS)


def test_a_penalty_before_the_only_part_belongs_to_it() -> None:
    assert members([seen(0, 1), seen(1, 2, 1)], forwards=1) == [[0, 1]]


def test_a_penalty_before_the_first_part_is_no_part_of_its_own() -> None:
    backwards = [seen(0, 1), seen(1, 2, 1), seen(1, 3), seen(2, 4, 2), seen(2, 5)]
    with pytest.raises(MicroBatchMissed, match=r"3 of 5 backward calls .* 2 micro-batches"):
        groups_of(backwards, forwards=2)


def test_penalties_before_each_part_are_one_too_early_and_refused() -> None:
    backwards = [one for at in range(3) for one in (seen(at, 1), seen(at + 1, 1, at + 1))]
    with pytest.raises(MicroBatchMissed, match="penalty"):
        groups_of(backwards, forwards=3)


def test_penalties_of_parts_that_are_joined_later_are_counted_together() -> None:
    loss_1, penalty, loss_2 = seen(1, 1, 1), seen(1, 2), seen(2, 3, 2)
    both = seen(2, 4, 1, 2)
    assert members([loss_1, penalty, loss_2, both], forwards=2) == [[0, 1, 2, 3]]


def test_blocks_override_what_the_forward_passes_say() -> None:
    backwards = [seen(1, 1, 1, block=1), seen(1, 2, 1, block=2), seen(2, 3, 2, block=2)]
    assert members(backwards, forwards=2) == [[0], [1, 2]]
    assert not counts_decide(backwards, forwards=2)


@pytest.mark.parametrize("outside", [1, 3])
def test_blocks_in_some_parts_only_are_refused(outside) -> None:
    backwards = [seen(at + 1, at + 1, block=None if at < outside else at) for at in range(4)]
    with pytest.raises(
        MicroBatchMissed, match=rf"{4 - outside} backward calls .* and {outside} ran outside"
    ):
        groups_of(backwards, forwards=4)


@pytest.mark.parametrize(
    ("backwards", "forwards", "expected"),
    [
        (PLAIN, PARTS, True),
        (TWO_LOSSES, PARTS, True),
        (FORWARDS_FIRST, PARTS, False),
        (PREFETCHED, PARTS, False),
        (TWO_VIEWS, 2 * PARTS, False),
        (PLAIN, PARTS + 1, False),
        (PLAIN, 0, False),
        ([], 0, False),
    ],
)
def test_forward_passes_alternate_with_backward_calls(backwards, forwards, expected) -> None:
    assert alternates(backwards, forwards=forwards) == expected


def test_a_plain_step_is_one_forward_and_one_backward_in_each_part() -> None:
    def plain(backwards: Sequence[Backward], forwards: int) -> bool:
        return is_plain(groups_of(backwards, forwards=forwards), forwards=forwards)

    assert plain(PLAIN, PARTS)
    assert plain(LINKED, PARTS)
    assert not plain(TWO_LOSSES, PARTS)
    assert not plain(FORWARDS_FIRST, PARTS)
    assert not plain(with_links(PREFETCHED, [[1], [2], [3], [4]]), PARTS)
    assert not plain(TWO_VIEWS, 2 * PARTS)
    assert not plain([seen(0, 1)], 0)


@pytest.mark.parametrize(
    ("indices", "fillings", "expected"),
    [
        ([[0, 1, 2]], [0], False),
        ([[0, 1], [2]], [0, 0], False),
        ([[0, 1], [1, 2]], [0, 0], True),
        ([[0, 1], [1, 2]], [1, 1], False),
        ([[0, 1], [1, 2]], [1, 2], True),
        ([[0, 1], [2]], [1, 2], False),
        ([[0, 1], [1, 2]], [1, 0], True),
        ([[0, 1], [1, 2]], [0, 1], True),
        ([[0, 0]], [0], True),
        ([[0, 0]], [1], False),
        ([[]], [0], False),
    ],
)
def test_a_part_needs_its_sum_if_a_parameter_got_several_gradients(
    indices, fillings, expected
) -> None:
    group = [
        Backward(after=1, indices=one, filling=filling)
        for one, filling in zip(indices, fillings, strict=True)
    ]
    assert needs_sum(group) == expected


def test_a_sum_that_serves_two_parts_is_found() -> None:
    fill = [Backward(after=1, filling=number) for number in (1, 1, 2, 2)]
    assert shared_sum([fill[:2], fill[2:]]) is None
    assert shared_sum([fill[:1], fill[1:]]) == fill[:2]
    alone = [Backward(after=1) for _ in range(2)]
    assert shared_sum([alone[:1], alone[1:]]) is None


def test_backward_calls_of_the_same_part_as_the_one_before() -> None:
    first, second, third = (Backward(after=1) for _ in range(3))
    order = [first, second, third]
    assert joins_of(order, [[first, second], [third]]) == [False, True, False]
    assert joins_of(order, [[first, third], [second]]) == [False, False, False]


@st.composite
def linked_steps(draw: st.DrawFn) -> tuple[list[Backward], int, int]:
    """(backward calls, forward passes, parts) of a step whose parts own disjoint forwards."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    backwards, forwards = [], 0
    for size in sizes:
        numbers = list(range(forwards + 1, forwards + size + 1))
        forwards += size
        extra = draw(st.lists(st.sets(st.sampled_from(numbers), min_size=1), max_size=3))
        backwards.append(seen(0, 0, *numbers))  # it links all forward passes of the part
        backwards += [seen(0, 0, *some) for some in extra]
    return backwards, forwards, len(sizes)


@given(linked_steps(), st.randoms(use_true_random=False))
def test_parts_with_links_do_not_depend_on_any_order(step, randoms: random.Random) -> None:
    backwards, forwards, parts = step
    groups = groups_of(backwards, forwards=forwards)
    assert len(groups) == parts
    shuffled = list(backwards)
    randoms.shuffle(shuffled)
    for one in shuffled:  # where it ran, and how many gradients there were, are unrelated
        one.after, one.order = randoms.randint(0, forwards), randoms.randint(1, len(backwards))
        randoms.shuffle(one.indices)
    again = groups_of(shuffled, forwards=forwards)

    def as_sets(groups: Sequence[Sequence[Backward]]) -> set[frozenset[int]]:
        return {frozenset(map(id, group)) for group in groups}

    assert as_sets(again) == as_sets(groups)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_parts_in_blocks_do_not_depend_on_anything_but_the_blocks(
    sizes, randoms: random.Random
) -> None:
    backwards = [
        seen(randoms.randint(0, 9), randoms.randint(1, 9), *randoms.sample(range(9), 3), block=at)
        for at, size in enumerate(sizes)
        for _ in range(size)
    ]
    randoms.shuffle(backwards)
    groups = groups_of(backwards, forwards=9)
    assert sorted(map(len, groups)) == sorted(sizes)
    assert all(len({one.block for one in group}) == 1 for group in groups)


@given(st.integers(1, 8), st.integers(1, 3), st.randoms(use_true_random=False))
def test_alternating_parts_do_not_depend_on_the_order_of_parameters(
    parts, losses, randoms: random.Random
) -> None:
    backwards = [seen(at // losses + 1, at + 1) for at in range(parts * losses)]
    for one in backwards:
        randoms.shuffle(one.indices)
        one.order = randoms.randint(1, 9)
    assert len(groups_of(backwards, forwards=parts)) == parts
    assert all(needs_sum(group) == (losses > 1) for group in groups_of(backwards, forwards=parts))
