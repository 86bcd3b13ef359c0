from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from quadratic_records import quadratic_record

from largebatch.workbench.cli.main import cli
from largebatch.workbench.planner.plan import ALONE, FITTED
from largebatch.workbench.planner.planned import planned
from largebatch.workbench.runs.train import train

PLAN = ["plan", "--budget", "20K", "--base-batch", "16", "--noise-scale", "100", "--stages", "2"]


def test_a_plan_is_printed_drawn_written_and_trained(tmp_path: Path) -> None:
    out, picture = tmp_path / "a.json", tmp_path / "a.png"
    ended = CliRunner().invoke(
        cli,
        [
            *PLAN,
            "--memory-limit",
            "512",
            "--max-lr",
            "2",
            "--out",
            str(out),
            "--plot",
            str(picture),
        ],
    )
    assert ended.exit_code == 0, ended.output
    for word in ("constant", "cosine", "seesaw", "growth", "do not rank schedules"):
        assert word in ended.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    result = train("digits", schedule=out, evaluations=0)
    assert f"{result.steps:,}" in ended.output


def test_json_has_the_schedule_and_the_rows() -> None:
    ended = CliRunner().invoke(cli, [*PLAN, "--json"])
    plain = json.loads(ended.output)
    assert plain["rows"][0]["schedule"] == plain["name"]
    assert plain["notes"][-1] == ALONE


def test_a_dry_run_prints_its_stages() -> None:
    ended = CliRunner().invoke(
        cli, ["plan", "--dry-run", "0:768 250B:1536", "--budget", "300B", "--base-batch", "768"]
    )
    assert "358,072,917 steps" in ended.output
    assert "8.3% fewer" in ended.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["plan"], "needs its budget"),
        (["plan", "--budget", "1M"], "needs the noise scale"),
        (["plan", "--budget", "1M", "--noise-scale", "10"], "needs the base batch"),
        ([*PLAN, "--latency", "1"], "its latency and the throughput"),
        ([*PLAN, "--latency", "-1", "--throughput", "3"], "above 0"),
        ([*PLAN, "--minimise", "time"], "price of a step"),
        ([*PLAN, "--max-lr", "0.1"], "stability limit"),
        ([*PLAN, "--scale", "2"], "of a dry run alone"),
        ([*PLAN, "--plot", "a.txt"], "A picture is one of"),
        (["plan", "--dry-run", "growth", "--budget", "10", "--base-batch", "16"], "first batch"),
        (["plan", "--dry-run", "adascale", "--budget", "1M", "--base-batch", "16"], "measures"),
        (["plan", "--dry-run", "growth", "--plot", "a.png"], "no forecast"),
    ],
)
def test_bad_input_is_one_line(words: list[str], told: str) -> None:
    ended = CliRunner().invoke(cli, words)
    assert ended.exit_code == 2, ended.output
    assert told in " ".join(ended.stderr.split())


def test_a_record_and_a_number_are_not_both_taken(tmp_path: Path) -> None:
    record = quadratic_record(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="one of the two"):
        planned(budget=10**5, noise_scales=[3.0], record=record)
    with pytest.raises(ValueError, match="leave --base-batch out"):
        planned(budget=10**5, base_batch_size=32, record=record)


def test_a_plan_from_a_record_stays_below_its_largest_rate(tmp_path: Path) -> None:
    record = quadratic_record(tmp_path / "a.jsonl")
    found = planned(budget=50_000, record=record, stages=2)
    assert all(row.last_lr <= 1.0 for row in found.table.rows)
    assert any("capped at x1 by the largest rate in the record" in note for note in found.notes)
    faster = planned(budget=50_000, record=record, stages=2, max_lr=1.5)
    assert max(row.lr for row in faster.table.rows) <= 1.5
    assert not any("in the record" in note for note in faster.notes)


def test_a_record_is_planned_from_on_the_command_line(tmp_path: Path) -> None:
    record = str(quadratic_record(tmp_path / "a.jsonl"))
    ended = CliRunner().invoke(
        cli, ["plan", "--budget", "20K", "--record", record, "--stages", "2"]
    )
    assert ended.exit_code == 0, ended.output
    assert "The record as a quadratic: lambda ~ i^-" in ended.output
    assert FITTED in " ".join(ended.output.split())
