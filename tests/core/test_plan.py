"""Compare the splitting of a batch with a naive version."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from largebatch.core.plan import BatchPlan

PLANS = {
    "batch_size": st.integers(1, 3000),
    "ranks": st.integers(1, 9),
    "most": st.integers(1, 300),
    "least_parts": st.integers(1, 20),
}


@given(**PLANS)
def test_chunks_are_contiguous_nearly_equal_and_cover_the_batch(
    batch_size: int, ranks: int, most: int, least_parts: int
) -> None:
    assume(batch_size >= ranks)
    plan = BatchPlan(
        batch_size=batch_size, ranks=ranks, max_micro_batch_size=most, least_parts=least_parts
    )
    sizes = plan.sizes
    assert sum(sizes) == batch_size
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1
    assert list(sizes) == sorted(sizes, reverse=True)
    assert len(sizes) == plan.parts == plan.accumulation * ranks


@given(**PLANS)
def test_every_rank_has_its_chunks_in_the_order_of_the_stream(
    batch_size: int, ranks: int, most: int, least_parts: int
) -> None:
    assume(batch_size >= ranks)
    plan = BatchPlan(
        batch_size=batch_size, ranks=ranks, max_micro_batch_size=most, least_parts=least_parts
    )
    offset, naive = 0, [[] for _ in range(ranks)]
    for j, size in enumerate(plan.sizes):
        naive[j % ranks].append((offset, size))
        offset += size
    assert [list(plan.chunks(rank=rank)) for rank in range(ranks)] == naive
    assert {len(chunks) for chunks in naive} == {plan.accumulation}


@given(**PLANS)
def test_a_plan_has_the_fewest_backward_calls_that_fit_and_give_enough_parts(
    batch_size: int, ranks: int, most: int, least_parts: int
) -> None:
    assume(batch_size >= ranks)
    plan = BatchPlan(
        batch_size=batch_size, ranks=ranks, max_micro_batch_size=most, least_parts=least_parts
    )
    enough = [
        k
        for k in range(1, batch_size // ranks + 1)
        if k * ranks * most >= batch_size and k * ranks >= least_parts
    ]
    assert plan.accumulation == (min(enough) if enough else batch_size // ranks)


@given(batch_size=PLANS["batch_size"], most=st.integers(2, 300), least_parts=st.integers(2, 8))
def test_with_parts_alike_every_number_of_ranks_has_the_parts_of_one_rank(
    batch_size: int, most: int, least_parts: int
) -> None:
    assume(batch_size >= 2 * least_parts)
    plans = {
        ranks: BatchPlan(
            batch_size=batch_size,
            ranks=ranks,
            max_micro_batch_size=most,
            least_parts=least_parts,
            alike=True,
        )
        for ranks in (1, 2, 4, 8)
        if batch_size >= ranks
    }
    needed = max(-(-batch_size // most), least_parts)
    parts = next(n for n in [1, 2, 4, *range(8, 4000, 8)] if n >= needed)
    assert plans[1].parts == parts
    assert max(plans[1].sizes) <= most
    for ranks, plan in plans.items():
        if ranks <= parts:
            assert plan.sizes == plans[1].sizes


def test_with_alike_three_ranks_get_the_fewest_equal_micro_batches() -> None:
    plan = BatchPlan(batch_size=90, ranks=3, max_micro_batch_size=30, alike=True)
    assert plan.sizes == (15,) * 6  # 4 are needed for one rank, 6 are the least for three


def test_with_alike_micro_batches_of_one_sample_are_not_split() -> None:
    plan = BatchPlan(batch_size=5, max_micro_batch_size=1, alike=True)
    assert plan.sizes == (1,) * 5


def test_hand_computed_cuts() -> None:
    assert BatchPlan(batch_size=10, max_micro_batch_size=4).sizes == (4, 3, 3)
    assert BatchPlan(batch_size=8, max_micro_batch_size=8).sizes == (8,)
    assert BatchPlan(batch_size=8, max_micro_batch_size=8, least_parts=2).sizes == (4, 4)
    plan = BatchPlan(batch_size=7, ranks=2, max_micro_batch_size=2)
    assert plan.sizes == (2, 2, 2, 1)
    assert plan.chunks(rank=1) == ((2, 2), (6, 1))


def test_a_batch_has_at_least_one_sample_per_rank() -> None:
    plan = BatchPlan(batch_size=3, ranks=3, max_micro_batch_size=100, least_parts=9)
    assert plan.sizes == (1, 1, 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 3, "ranks": 4}, "Pass batch_size=4 or more"),
        ({"batch_size": 0}, "each rank needs at least one"),
        ({"ranks": 0}, "at least 1"),
        ({"max_micro_batch_size": 0}, "at least 1"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchPlan(**{"batch_size": 8, "max_micro_batch_size": 4, **wrong})
