from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from quadratic_records import quadratic_record

from largebatch.workbench.cli.arguments import with_options
from largebatch.workbench.cli.main import cli
from largebatch.workbench.cli.plan import plan_command
from largebatch.workbench.planner.plan import ALONE, FITTED, plan
from largebatch.workbench.planner.request import plan_request
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
    assert plain["notes"][-1] == with_options(ALONE, command=plan_command)
    assert "Pass --record FILE" in plain["notes"][-1]


def test_a_schedules_stages_are_counted() -> None:
    ended = CliRunner().invoke(
        cli, ["schedule", "0:768 250B:1536", "--budget", "300B", "--base-batch", "768"]
    )
    assert "358,072,917 steps" in ended.output
    assert "8.3% fewer" in ended.output


SCHEDULE = ["schedule", "growth", "--budget", "1M", "--base-batch", "16"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan"], "requires a budget"),
        (["plan", "--budget", "1M"], "either a noise scale or a recorded run"),
        (["plan", "--budget", "1M", "--noise-scale", "10"], "requires the base batch size"),
        ([*PLAN, "--latency", "1"], "Only one of latency and throughput was given"),
        ([*PLAN, "--latency", "-1", "--throughput", "3"], "above 0"),
        ([*PLAN, "--minimise", "time"], "duration of a step"),
        ([*PLAN, "--max-lr", "0.1"], "at least 1"),
        ([*PLAN, "--within", "100"], "--within 100 was given"),
        ([*PLAN, "--scale", "2"], "No such option"),
        ([*PLAN, "--plot", "a.txt"], "must end with .png, .pdf or .svg"),
        ([*SCHEDULE[:3], "10", *SCHEDULE[4:]], "first batch"),
        (["schedule", "adascale", *SCHEDULE[2:]], "measurements"),
        ([*SCHEDULE, "--plot", "a.png"], "No such option"),
        ([*SCHEDULE, "--noise-scale", "1,2"], "accepts only one noise scale"),
        ([*SCHEDULE, "--scale", "0"], "--scale 0 was given"),
        (["schedule", "growth", "--budget", "1M"], "Pass --budget 10_000_000 and --base-batch 256"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str) -> None:
    ended = CliRunner().invoke(cli, words)
    assert ended.exit_code == 2, ended.output
    assert message in " ".join(ended.stderr.split())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budget", "5ep"], "--budget 5ep is not a whole number of samples"),
        (["--base-batch", "1.5"], "--base-batch 1.5 is not a whole number"),
        (["--memory-limit", "0"], "--memory-limit 0 is not a whole number"),
        (["--noise-scale", "1,2,3"], "--noise-scale 1,2,3 is not one or two noise scales"),
        (["--latency", "0", "--throughput", "9"], "--latency 0.0 and --throughput 9.0 were given"),
        (
            ["--minimise", "time"],
            "--minimise time requires the duration of a step",
        ),
        (["--max-lr", "0.5"], "--max-lr 0.5 was given"),
        (["--stages", "41"], "--stages 41 was given, but a plan has 1 to 40 stages"),
        (["--workers", "0"], "--workers 0 was given"),
        (
            ["--budget", "20"],
            "--budget 20 was given, but a plan with 2 stage(s) requires",
        ),
        (["--memory-limit", "8"], "Pass --memory-limit 16 or more workers"),
        (["--loss-exponent", "9"], "--loss-exponent 9.0 was given"),
        (["--noise-scale", "700,0.5"], "Pass only the first noise scale: --noise-scale 700"),
    ],
)
def test_an_error_of_the_planner_names_the_option(more: list[str], message: str) -> None:
    ended = CliRunner().invoke(cli, [*PLAN, *more])
    assert ended.exit_code == 2, ended.output
    assert message in " ".join(ended.stderr.split())
    assert not re.search(r"[a-z_]=", ended.stderr)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--dry-run", "growth", "--budget", "1T", "--base-batch", "768", "--scale", "4"],
            "largebatch schedule growth --budget 1T --base-batch 768 --scale 4",
        ),
        (
            ["--memory-limit", "5K", "--dry-run=0:768 250B:1536"],
            "largebatch schedule --max-batch 5K '0:768 250B:1536'",
        ),
    ],
)
def test_the_dry_run_of_0_1_names_the_command_in_its_place(words: list[str], line: str) -> None:
    ended = CliRunner().invoke(cli, ["plan", *words])
    assert ended.exit_code == 2
    assert " ".join(ended.stderr.split()).endswith(f"Run: {line}")


def test_a_schedules_notes_name_the_option() -> None:
    ended = CliRunner().invoke(cli, ["schedule", "seesaw", *SCHEDULE[2:]])
    assert "Pass --noise-scale 4000 to set a" in " ".join(ended.output.split())


def test_a_schedule_is_written_and_never_overwritten(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "a.json")]
    first = CliRunner().invoke(cli, [*SCHEDULE, *out])
    assert first.exit_code == 0
    assert f"largebatch train WORKLOAD --schedule {out[1]}" in " ".join(first.output.split())
    again = CliRunner().invoke(cli, [*SCHEDULE, *out])
    assert again.exit_code == 1
    assert "Pass another file: --out new.json" in " ".join(again.stderr.split())
    counted = CliRunner().invoke(cli, ["schedule", out[1], "--json"])
    assert (
        json.loads(counted.output)["table"]
        == json.loads(CliRunner().invoke(cli, [*SCHEDULE, "--json"]).output)["table"]
    )
    twice = CliRunner().invoke(cli, ["schedule", out[1], "--base-batch", "16", "--scale", "2"])
    assert "Leave out --base-batch 16 and --scale 2" in " ".join(twice.stderr.split())


def test_a_record_that_is_too_short_names_the_line_that_makes_a_longer_one(tmp_path: Path) -> None:
    record = quadratic_record(tmp_path / "a.jsonl", steps=9)
    ended = CliRunner().invoke(cli, ["plan", "--budget", "20K", "--record", str(record)])
    assert ended.exit_code == 1
    message = " ".join(ended.stderr.split())
    assert "pass --noise-scale 4000" in message
    assert "largebatch train WORKLOAD --method adascale --record FILE" in message


def test_a_record_and_a_number_are_not_both_taken(tmp_path: Path) -> None:
    record = quadratic_record(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="Pass one of"):
        plan_request(budget=10**5, noise_scales=[3.0], record=record)
    with pytest.raises(ValueError, match="Leave out base_batch_size=32"):
        plan_request(budget=10**5, base_batch_size=32, record=record)


def test_a_plan_from_a_record_stays_below_its_largest_rate(tmp_path: Path) -> None:
    record = quadratic_record(tmp_path / "a.jsonl")
    found = plan(plan_request(budget=50_000, record=record, stages=2))
    assert all(row.last_lr <= 1.0 for row in found.table.rows)
    assert any("by the largest learning rate in the record" in note for note in found.notes)
    faster = plan(plan_request(budget=50_000, record=record, stages=2, max_lr=1.5))
    assert max(row.lr for row in faster.table.rows) <= 1.5
    assert not any("in the record" in note for note in faster.notes)


def test_a_record_is_planned_from_on_the_command_line(tmp_path: Path) -> None:
    record = str(quadratic_record(tmp_path / "a.jsonl"))
    ended = CliRunner().invoke(
        cli, ["plan", "--budget", "20K", "--record", record, "--stages", "2"]
    )
    assert ended.exit_code == 0, ended.output
    assert "Quadratic fitted to the record: lambda ~ i^-" in ended.output
    assert FITTED in " ".join(ended.output.split())
