"""Test that a CSV file has one header and one row per step, and is never overwritten."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from made_up import run

import largebatch as lb

HEADER = "step,samples,loss,lr,lr_multiplier,batch_size,base_steps,gain,noise_scale,skipped"


def written(
    path: Path, length: int, *, after: int = 0, lost: frozenset[int] = frozenset(), **options: bool
) -> list[dict[str, str]]:
    """Log the steps from `after` on to a file and return its rows."""
    logged = lb.Logged(lb.CsvLogger(path, **options))
    logged.start({})
    for seen, decision in run(length, lost=lost)[after:]:
        logged.write(seen, decision)
    logged.close()
    return rows(path)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_numbers_come_back_with_the_same_bits(tmp_path: Path) -> None:
    found = written(tmp_path / "new" / "run.csv", 3)
    assert (tmp_path / "new" / "run.csv").read_text().splitlines()[0] == HEADER
    assert [row["step"] for row in found] == ["1", "2", "3"]
    for row, (seen, decision) in zip(found, run(3), strict=True):
        assert float(row["loss"]) == seen.loss
        assert float(row["gain"]) == decision.base_steps
        assert int(row["samples"]) == seen.samples + seen.batch_size


def test_what_a_step_lacks_is_an_empty_cell(tmp_path: Path) -> None:
    found = written(tmp_path / "run.csv", 3, lost=frozenset({1}))
    assert (found[1]["loss"], found[1]["noise_scale"], found[1]["skipped"]) == ("", "", "1")
    assert "nan" not in (tmp_path / "run.csv").read_text()


def test_a_row_is_in_the_file_at_once(tmp_path: Path) -> None:
    logger = lb.CsvLogger(tmp_path / "run.csv")
    logger.start({})
    logger.log({"loss": 0.5}, step=1, samples=8)
    assert rows(logger.path)[0]["loss"] == "0.5"
    logger.close()


def test_an_existing_file_is_refused_with_the_line_to_paste_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    path.write_text("mine")
    with pytest.raises(
        lb.errors.RecordError, match=r"never overwritten.*lb\.CsvLogger\(.*, append=True"
    ):
        lb.CsvLogger(path).start({})
    assert path.read_text() == "mine"


def test_a_resumed_run_goes_on_below_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    written(path, 3)
    found = written(path, 5, after=3, append=True)
    assert [row["step"] for row in found] == ["1", "2", "3", "4", "5"]
    assert path.read_text().count(HEADER) == 1


def test_a_row_that_a_crash_cut_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    written(path, 3)
    path.write_bytes(path.read_bytes()[:-5])
    found = written(path, 4, after=2, append=True)
    assert [row["step"] for row in found] == ["1", "2", "3", "4"]
    assert all(row["skipped"] == "0" for row in found)


@pytest.mark.parametrize("content", ["", "step,sam"])
def test_appending_to_nothing_or_to_a_cut_header_writes_the_header(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "run.csv"
    path.write_text(content)
    assert len(written(path, 2, append=True)) == 2


@pytest.mark.parametrize("content", ["a,b\n1,2\n", HEADER.replace("gain", "speed") + "\n"])
def test_nothing_is_appended_to_other_columns(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.csv"
    path.write_text(content)
    with pytest.raises(lb.errors.RecordError, match="not a CSV file with the columns"):
        lb.CsvLogger(path, append=True).start({})
    assert path.read_text() == content


def test_starting_one_csv_logger_twice_is_like_starting_two(tmp_path: Path) -> None:
    once, goes_on = lb.CsvLogger(tmp_path / "a.csv"), lb.CsvLogger(tmp_path / "b.csv", append=True)
    for logger in (once, goes_on):
        logger.start({})
        logger.log({"loss": 1.0}, step=1, samples=8)
    goes_on.start({})
    goes_on.log({"loss": 0.5}, step=2, samples=16)
    goes_on.close()
    goes_on.close()
    assert [row["loss"] for row in rows(goes_on.path)] == ["1.0", "0.5"]
    with pytest.raises(lb.errors.RecordError, match="never overwritten"):
        once.start({})


def test_a_value_without_a_column_and_a_closed_file_are_refused(tmp_path: Path) -> None:
    logger = lb.CsvLogger(tmp_path / "run.csv")
    with pytest.raises(lb.errors.RecordError, match=r"logger\.start"):
        logger.log({"loss": 1.0}, step=1, samples=8)
    logger.start({})
    with pytest.raises(lb.errors.RecordError, match="no column for accuracy"):
        logger.log({"accuracy": 1.0}, step=1, samples=8)
    logger.close()
    assert rows(logger.path) == []
