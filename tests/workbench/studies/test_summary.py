from __future__ import annotations

import pytest
from made_up_runs import made_up

from largebatch.analysis.student import mean_of
from largebatch.workbench.runs.results import RunResult
from largebatch.workbench.studies.compare.summary import comparison_rows, margin_of


def runs(*, far: tuple[float | None, ...]) -> list[RunResult]:
    base = [made_up(seed=seed, loss=loss) for seed, loss in enumerate((1.0, 2.0, 3.0))]
    other = [
        made_up(method="linear", scale=8, seed=seed, loss=loss, steps=20)
        for seed, loss in enumerate(far)
    ]
    return other + base


def test_a_row_holds_the_means_and_the_differences_paired_by_seed() -> None:
    first, second = comparison_rows(runs(far=(1.5, 2.4, 3.6)), order=["linear"], margin=1.0)
    assert (first.scale, first.method, first.runs, first.quality) == (1, "any", 3, None)
    assert first.validation["loss"] == mean_of([1.0, 2.0, 3.0])
    assert first.difference == {}
    assert (second.scale, second.method, second.diverged) == (8, "linear", 0)
    assert second.difference["loss"].value == pytest.approx(0.5)
    assert second.difference["loss"].high == pytest.approx(0.5 + 4.302653 * 0.1 / 3**0.5, abs=1e-5)
    assert second.difference["accuracy"].value == pytest.approx(-0.05)
    assert second.steps == mean_of([20, 20, 20])


@pytest.mark.parametrize(
    ("margin", "quality"),
    [
        (0.749, "held"),
        (0.748, "not shown"),
        (0.252, "not shown"),
        (0.251, "worse"),
        (0.0, "worse"),
        (None, "not shown"),
    ],
)
def test_quality_follows_from_where_the_whole_interval_lies(
    margin: float | None, quality: str
) -> None:
    (_, row) = comparison_rows(runs(far=(1.5, 2.4, 3.6)), order=["linear"], margin=margin)
    assert row.quality == quality  # the interval is [.2516, .7484]


def test_better_quality_is_held_whatever_its_amount() -> None:
    (_, row) = comparison_rows(runs(far=(0.1, 1.1, 2.1)), order=["linear"], margin=0.0)
    assert row.quality == "held"


def test_a_diverged_run_is_counted_in_no_mean_and_quality_is_worse() -> None:
    (_, row) = comparison_rows(runs(far=(1.0, 2.0, None)), order=["linear"], margin=10.0)
    assert (row.runs, row.diverged, row.quality) == (3, 1, "worse")
    assert row.validation["loss"].count == row.difference["loss"].count == 2


def test_when_all_runs_diverged_the_row_says_only_that() -> None:
    (_, row) = comparison_rows(runs(far=(None, None, None)), order=["linear"], margin=10.0)
    assert (row.diverged, row.steps, row.validation, row.difference) == (3, None, {}, {})
    assert row.quality == "worse"


def test_a_run_that_diverged_where_scale_one_did_shows_nothing() -> None:
    others = [
        made_up(method="linear", scale=8, seed=seed, loss=x) for seed, x in ((0, None), (1, 1))
    ]
    base = [made_up(seed=seed, loss=x) for seed, x in ((0, None), (1, 1.0))]
    (_, row) = comparison_rows([*others, *base], order=["linear"], margin=0.1)
    assert row.quality == "not shown"


def test_a_comparison_of_one_seed_shows_no_difference() -> None:
    (_, row) = comparison_rows(
        [made_up(), made_up(method="linear", scale=8, loss=0.1)], order=["linear"], margin=1.0
    )
    assert row.difference["loss"].low is None
    assert row.quality == "not shown"


def test_rows_stand_by_scale_and_then_in_the_order_of_the_methods() -> None:
    many = [
        made_up(method=name, scale=scale)
        for scale in (32, 8)
        for name in ("linear", "adascale", "linear+")
    ]
    rows = comparison_rows([*many, made_up()], order=["adascale", "linear+", "linear"], margin=None)
    assert [(row.scale, row.method) for row in rows] == [
        (1, "any"),
        *[(s, name) for s in (8, 32) for name in ("adascale", "linear+", "linear")],
    ]


def test_the_margin_is_a_fraction_of_the_loss_at_scale_one() -> None:
    assert margin_of(runs(far=(9.0,)), fraction=0.1) == pytest.approx(0.2)
    assert margin_of([made_up(loss=None)], fraction=0.1) is None
