"""Reports and replays of records that version 0.1 wrote say why decisions differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import largebatch as lb
from largebatch.core.codec import encode
from largebatch.record import read_record
from largebatch.workbench.cli.main import cli
from largebatch.workbench.reports.old_records import recorded_note, replayed_note
from largebatch.workbench.reports.replay import replay_file
from largebatch.workbench.reports.report import write_report

WHY = "Since version 0.2, the length is counted in base batches"


def record_of(
    path: Path, rule: lb.Rule, *, version: object = "0.1.0", steps: int = 12, plain: object = None
) -> Path:
    """Write the record of a run, as if this version had written it.

    Each step has a scale of 4 and is measured in 8 parts, which 0.1 counted.
    """
    record = lb.JsonlRecord(path)
    record.start({"rule": encode(rule, kind=True) if plain is None else plain})
    for step in range(steps):
        moments = lb.GradientMoments(
            batch_size=64, parts=8, batch_sqnorm=3.0 - step % 3, variance=50.0 + 9.0 * step
        )
        seen = lb.Measurement(
            step=step, samples=64 * step, base_steps=4.0 * step, batch_size=64, base_batch_size=16,
            base_lr=0.1, moments=moments,
        )  # fmt: skip
        record.write(seen, lb.Decision(next_batch_size=64, base_steps=4.0, lr_multiplier=1.5))
    record.close()
    head, *rest = path.read_text().splitlines(keepends=True)
    header = json.loads(head)["header"] | {"version": version}
    path.write_text(json.dumps({"header": header}) + "\n" + "".join(rest))
    return path


def test_a_replay_of_an_old_record_says_why_decisions_differ(tmp_path: Path) -> None:
    path = record_of(tmp_path / "run.jsonl", lb.chain(lb.AdaScale()))
    result = replay_file(path, method="adascale")
    (note,) = result.notes
    assert "largebatch 0.1.0" in note
    assert "averages of AdaScale" in note
    assert WHY in note
    assert "intact" in note
    assert replay_file(path, method="adascale") == result
    shown = CliRunner().invoke(cli, ["replay", str(path), "--method", "adascale"])
    assert shown.exit_code == 0, shown.output
    assert WHY in " ".join(shown.output.split())


def test_a_report_of_an_old_record_says_it_too_and_calls_nothing_damaged(tmp_path: Path) -> None:
    rule = lb.chain(lb.Every(lb.NormTest(denominator="unbiased"), steps=2), lb.SqrtScaling())
    path = record_of(tmp_path / "run.jsonl", rule)
    page = write_report([path], tmp_path / "page.html").read_text()
    assert "running averages of NormTest in gradients" in page
    assert "corrupted" not in page


@pytest.mark.parametrize("version", ["0.1", "0.1.0", "0.1.9"])
def test_each_version_before_0_2_is_old(version: str, tmp_path: Path) -> None:
    record = read_record(record_of(tmp_path / "run.jsonl", lb.AdaScale(), version=version))
    assert f"largebatch {version}" in recorded_note(record)
    assert f"largebatch {version}" in replayed_note(record, lb.AdaScale())


@pytest.mark.parametrize("version", ["0.2.0.dev0", "0.2.0", "0.10.0", "1.0.1", None, 3])
def test_a_record_of_another_version_gets_no_note(version: object, tmp_path: Path) -> None:
    record = read_record(record_of(tmp_path / "run.jsonl", lb.AdaScale(), version=version))
    assert recorded_note(record) == replayed_note(record, lb.AdaScale()) == ""


def test_rules_without_averages_get_no_note(tmp_path: Path) -> None:
    averaging = read_record(record_of(tmp_path / "a.jsonl", lb.AdaScale()))
    assert replayed_note(averaging, lb.SqrtScaling()) == ""
    plain = read_record(record_of(tmp_path / "b.jsonl", lb.chain(lb.NormTest())))
    assert recorded_note(plain) == replayed_note(plain, lb.AdaScale()) == ""


@pytest.mark.parametrize("plain", ["AdaScale", {"kind": "Own"}, {"kind": "AdaScale"}, [], 1])
def test_a_rule_that_cannot_be_read_gets_no_note(plain: object, tmp_path: Path) -> None:
    record = read_record(record_of(tmp_path / "run.jsonl", lb.AdaScale(), plain=plain))
    assert recorded_note(record) == replayed_note(record, lb.AdaScale()) == ""
