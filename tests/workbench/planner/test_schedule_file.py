from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import largebatch as lb
from largebatch.workbench.planner.schedule_file import read_schedule, schedule_of, write_schedule
from largebatch.workbench.planner.schedule_names import NAMES, schedule_named
from largebatch.workbench.planner.table import table_of


def written(path: Path, name: str = "growth", budget: int = 64_000) -> dict[str, Any]:
    rule = schedule_named(name, base_batch_size=16, noise_scale=300)
    write_schedule(schedule_of(rule, table_of(rule, budget=budget, base_batch_size=16)), path)
    plain: dict[str, Any] = json.loads(path.read_text())
    return plain


@pytest.mark.parametrize("budget", [64_000, 10**12])
@pytest.mark.parametrize("name", [*NAMES, "0:24 5K:48", "linear-warmup"])
def test_a_schedule_comes_back_as_it_was(name: str, budget: int, tmp_path: Path) -> None:
    rule = schedule_named(name, base_batch_size=16, noise_scale=300)
    schedule = schedule_of(rule, table_of(rule, budget=budget, base_batch_size=16))
    write_schedule(schedule, tmp_path / "new" / "a.json")
    assert read_schedule(tmp_path / "new" / "a.json") == schedule


def test_each_stage_stands_on_a_line(tmp_path: Path) -> None:
    written(tmp_path / "a.json")
    lines = (tmp_path / "a.json").read_text().splitlines()
    assert sum('"batch_size": ' in line and "cumulative" in line for line in lines) == 5


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    written(tmp_path / "a.json")
    with pytest.raises(lb.errors.RecordError, match="never overwritten"):
        written(tmp_path / "a.json", "smith")


Change = Callable[[dict[str, Any]], object]
CHANGES: dict[str, tuple[Change, str]] = {
    "unsorted": (lambda f: f["stages"].reverse(), "must begin at sample 0"),
    "back": (lambda f: f["stages"][2].update(samples=10), "sorted by their beginning"),
    "overlap": (lambda f: f["stages"][1].update(samples=1000), "overlaps with"),
    "gap": (lambda f: f["stages"][1].update(samples=5000), "leaves a gap"),
    "another batch": (lambda f: f["stages"][4].update(batch_size=257), "not match"),
    "another rate": (lambda f: f["stages"][1].update(lr=1.5, last_lr=1.5), "not match"),
    "another rule": (lambda f: f["rule"]["rules"][0].update(at=[0.1, 0.2, 0.3, 0.4]), "not match"),
    "unsorted rule": (lambda f: f["rule"]["rules"][0].update(at=[0.2, 0.1, 0.3, 0.4]), "invalid"),
    "no rule": (lambda f: f["rule"].update(kind="Nothing"), "unknown kind"),
    "measures": (lambda f: f.update(rule={"kind": "Observe"}), "missing fields"),
    "infinite": (lambda f: f["stages"][1].update(lr="inf"), "learning rates finite"),
    "no batch": (lambda f: f["stages"][1].update(batch_size=0), "at least 1"),
    "overflow": (lambda f: f.update(budget=10**40), "must lie between 1 and"),
    "never reached": (lambda f: f.update(budget=20_000), "never"),
    "missing": (lambda f: f.pop("base_batch_size"), "missing fields"),
    "unknown": (lambda f: f.update(more=1), "unknown fields"),
    "no stages": (lambda f: f.update(stages=[]), "0 stages"),
    "half a sample": (lambda f: f["stages"][1].update(samples=2064.5), "should be int"),
    "version": (lambda f: f.update(version=2), "version"),
    "another base batch": (lambda f: f.update(base_batch_size=32), "not match"),
    "no base batch": (lambda f: f.update(base_batch_size=0), "invalid"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    plain = written(tmp_path / "a.json")
    change, words = CHANGES[name]
    change(plain)
    (tmp_path / "b.json").write_text(json.dumps(plain))
    with pytest.raises(lb.errors.RecordError, match=words):
        read_schedule(tmp_path / "b.json")


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"version": NaN}', "[" * 100_000])
def test_a_file_that_is_no_schedule_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(lb.errors.RecordError, match="not a schedule file"):
        read_schedule(tmp_path / "b.json")


def test_bytes_that_are_no_text_and_no_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_bytes(bytes(range(256)))
    with pytest.raises(lb.errors.RecordError, match="not a schedule file"):
        read_schedule(tmp_path / "b.json")
    with pytest.raises(lb.errors.RecordError, match="cannot be read"):
        read_schedule(tmp_path / "missing.json")
