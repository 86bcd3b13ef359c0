"""Test the page on the critical batch size: its sentences and its recorded answers."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
from experiments.growth.agreement import agreement, change, factor, overlap, pieces
from experiments.growth.critical import CELLS, Cell, measured
from experiments.lab.critical import answered
from experiments.lab.ledger import Ledger, NotMeasured

from largebatch.analysis.efficiency import Range
from largebatch.analysis.noise import NotEnough
from largebatch.workbench.studies.critical.settings import Settings
from largebatch.workbench.studies.critical.values import CriticalBatch

SMALL = Cell(
    workload="digits",
    samples=1_024,
    settings=Settings(seeds=2, points=2, doublings=1),
    methods=("noise", "branches"),
)


def between(low: float, high: float, value: float = 1.0) -> Range:
    return Range(value=value, low=low, high=high)


def at(batch: Range | None) -> CriticalBatch:
    missing = NotEnough(reason="it scatters", needed="more") if batch is None else None
    return CriticalBatch(where="here", batch=batch, missing=missing)


def test_the_critical_batch_size_changes_only_if_the_two_intervals_do_not_overlap() -> None:
    early, late = between(40.0, 90.0), between(100.0, math.inf)
    assert change(early, late) == "rises"
    assert change(late, early) == "falls"
    assert change(early, between(89.0, 200.0)) == "not shown to change"
    assert change(None, late) == change(late, None) == "not known to change"


def test_two_intervals_that_share_only_a_bound_do_not_overlap() -> None:
    below, above = between(0.0, 64.0), between(64.0, 256.0)
    assert change(below, above) == "rises"
    assert not overlap(below, above)
    assert overlap(below, between(32.0, 128.0))


def test_the_ratio_of_two_answers_is_symmetric_and_needs_two_upper_bounds() -> None:
    one, other = between(40.0, 160.0, 60.0), between(0.0, 64.0, 16.0)
    assert factor(one, other) == factor(other, one) == 3.75
    assert factor(one, between(64.0, math.inf, 128.0)) is None


def test_agreement_counts_only_pairs_with_two_known_answers() -> None:
    pairs = [
        (at(between(40.0, 160.0, 60.0)), at(between(0.0, 64.0, 16.0))),
        (at(between(80.0, 100.0, 90.0)), at(between(128.0, 256.0, 128.0))),
        (at(between(80.0, math.inf, 1_000.0)), at(between(128.0, 256.0, 128.0))),
        (at(None), at(between(128.0, 256.0, 128.0))),
    ]
    assert agreement(pairs) == (
        "In 2 pairs both intervals have an upper bound, and the larger answer divided by the "
        "smaller one is 3.8, 1.4. The ratio is at most 2 in 1 and at most 4 in 2 of these pairs. "
        "The intervals overlap in 2 of 3 pairs. The interval of the second method lies above that "
        "of the first in 1 pairs and below it in 0. In 1 more pairs, one of the two answers is "
        "unknown."
    )
    assert agreement(pairs[3:]).startswith("No pair has two upper bounds.")


def test_every_answer_is_measured_once_and_read_back_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "critical.jsonl"
    with pytest.raises(NotMeasured, match="lacks 2 of the 2 runs"):
        measured(Ledger(path, workers=0), SMALL)
    made = measured(Ledger(path, workers=1), SMALL)
    assert len(path.read_bytes().splitlines()) == 2
    assert measured(Ledger(path, workers=0), SMALL) == made
    assert [answer.method for answer in made.answers] == ["noise", "branches"]
    assert [len(pieces(made, method)) for method in SMALL.methods] == [2, 2]
    assert made.budget_samples == 1_024


def test_a_run_records_the_samples_and_steps_of_its_answer() -> None:
    result = replace(SMALL, samples=512).run("noise").make()
    (answer,) = answered(result).answers
    assert (answer.samples, answer.steps) == (result.samples, result.steps) == (512, 32)


def test_the_key_of_a_run_depends_on_every_setting() -> None:
    settings = {"seed": 1, "seeds": 3, "points": 3, "doublings": 2, "tolerance": 0.1, "target": 0.5}
    assert set(settings) == {field.name for field in fields(Settings)}
    others = [
        replace(SMALL, settings=replace(SMALL.settings, **{k: v})) for k, v in settings.items()
    ]
    keys = {cell.run("branches").key for cell in (SMALL, *others)}
    assert len({*keys, SMALL.run("noise").key}) == 2 + len(others)


def test_no_cell_has_fewer_than_five_seeds() -> None:
    assert all(cell.settings.seeds >= 5 for cell in CELLS)
