"""A step is measured if it is asked for and enough steps have passed since the last one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest

from largebatch.measure.one_backward import EXAMPLES, PAIRS
from largebatch.measure.timetable import EVERY_STEP, MeasuredSteps, Timetable

MOMENTS = frozenset({"moments"})
NOTHING: frozenset[str] = frozenset()


def measured(
    schedule: MeasuredSteps,
    wanted: Sequence[frozenset[str]],
    *,
    lost: Sequence[int] = (),
) -> dict[int, int]:
    """Step -> place of each measured step; those that are lost were not finite."""
    timetable, found = Timetable(schedule), {}
    for step, names in enumerate(wanted):
        timetable.open(names)
        if timetable.place is not None:
            found[step] = timetable.place
            if step not in lost:
                timetable.close()
    return found


@pytest.mark.parametrize("schedule", [EXAMPLES, PAIRS, EVERY_STEP])
def test_who_asks_in_every_step_gets_stretches_often_at_first_and_rarely_later(schedule) -> None:
    starts = [at * schedule.early_every for at in range(schedule.early)]
    starts += range(schedule.early * schedule.early_every, 500, schedule.every)
    naive = {start + place: place for start in starts for place in range(schedule.span)}
    naive = {step: place for step, place in naive.items() if step < 500}
    assert measured(schedule, [MOMENTS] * 500) == naive


@pytest.mark.parametrize("seed", range(20))
def test_who_asks_in_some_steps_is_measured_as_soon_as_the_distance_allows(seed) -> None:
    draw = random.Random(seed)
    often = draw.choice([0.01, 0.1, 0.5, 0.95])
    wanted = [MOMENTS if draw.random() < often else NOTHING for _ in range(3000)]
    lost = {step for step in range(3000) if draw.random() < 0.2}
    naive: list[int] = []
    whole: list[int] = []
    for step in range(3000):
        distance = 8 if len(whole) <= 16 else 160
        if wanted[step] and all(step - other >= distance for other in whole):
            naive.append(step)
            whole += [step] * (step not in lost)
    assert list(measured(EXAMPLES, wanted, lost=sorted(lost))) == naive


@pytest.mark.parametrize("every", [1, 2, 7, 10, 16, 100, 159, 160, 161, 1000])
@pytest.mark.parametrize("offset", [0, 1, 5])
def test_who_asks_in_every_nth_step_never_waits_longer_than_distance_and_n(every, offset) -> None:
    wanted = [MOMENTS if step % every == offset % every else NOTHING for step in range(9000)]
    found = list(measured(EXAMPLES, wanted))
    assert 9000 - found[-1] < 160 + every
    assert all(b - a < 160 + every for a, b in pairwise(found))


def test_each_statistic_has_its_own_distance() -> None:
    """With one distance for both, the one that is asked for in each second step would get none."""
    other = frozenset({"preconditioned_moments"})
    wanted = [other if step % 2 == 1 else other | MOMENTS for step in range(1, 2000)]
    found = [step for step, _ in measured(EXAMPLES, wanted).items()]
    with_moments = [step for step in found if wanted[step] >= MOMENTS]
    assert max(b - a for a, b in pairwise(with_moments)) <= 162
    assert len(found) <= 2 * len(list(measured(EXAMPLES, [other] * 2000)))


def test_two_rules_that_ask_for_one_statistic_share_its_distance() -> None:
    wanted = [MOMENTS if step % 7 == 0 or step % 10 == 0 else NOTHING for step in range(4000)]
    found = list(measured(EXAMPLES, wanted))
    gaps = [b - a for a, b in pairwise(found)]
    assert min(gaps[:16]) >= 8
    assert 160 <= min(gaps[16:]) <= max(gaps[16:]) < 170


@pytest.mark.parametrize(("lost", "later"), [([0], [1, 2]), ([1], [2, 3]), ([0, 2], [3, 4])])
def test_a_stretch_with_a_lost_step_begins_again(lost, later) -> None:
    found = measured(PAIRS, [MOMENTS] * 9, lost=lost)
    whole = {later[0]: 0, later[1]: 1}
    assert {step: place for step, place in found.items() if step in whole} == whole
    assert all(step in whole or step <= max(lost) or step >= 8 for step in found)


def test_a_step_that_begins_once_more_keeps_its_place() -> None:
    timetable = Timetable(PAIRS)
    places = []
    for _ in range(20):
        timetable.open(MOMENTS)
        first = timetable.place
        for _ in range(9):  # a pass is dropped in each of them, as in SAM
            timetable.open(MOMENTS, repeated=True)
            assert timetable.place == first
        timetable.close()
        places.append(first)
    assert [step for step, place in enumerate(places) if place is not None] == [0, 1, 8, 9, 16, 17]


def test_a_step_that_is_not_measured_notes_nothing() -> None:
    timetable = Timetable(EXAMPLES)
    timetable.open(NOTHING)
    timetable.close()
    assert timetable.place is None
    assert not timetable.completes
    timetable.open(MOMENTS)
    assert timetable.place == 0
