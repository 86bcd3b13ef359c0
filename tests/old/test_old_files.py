"""Checks that every later version reads, resumes and replays the files of version 0.1.0.

The folder `0.1.0` holds records, states, checkpoints and schedules of version 0.1.0; `write.py` is
the program that made them. A record holds what a rule saw, so its decisions are compared bit by
bit, and the reasons by their keys (`old_files.key_of`). Rules with running averages decide
otherwise since version 0.2, and are in `test_old_averages.py`. A real run computes gradients in
float32, whose last bits depend on the processor; there learning rates, clocks and losses are
compared to `NEARLY`, and batch sizes and samples exactly.
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import old_files
import old_runs
import pytest
from old_files import FOLDER, RUNS, STATES

import largebatch as lb

NEARLY = 1e-4
"""Relative tolerance. When the weights of each checkpoint were changed by 2e-7 of their value, all
numbers changed by less than this, and no batch size changed."""

OWN = "own-rule"
UNMEASURED = "methods/full-gradient-growth"
"""A record that is shorter than the 1000 steps to this method's first measurement."""

LIBRARY = [name for name in STATES if name != OWN]
EXACT = [name for name in LIBRARY if name not in old_files.DECISIONS]
"""Records whose rules have no averages. `test_old_averages.py` has the others."""

RUNS_OF_EXACT = [name for name in old_runs.RUNS if name not in old_runs.AVERAGING]
LOADERS: dict[str, Any] = json.loads((FOLDER / "loaders.json").read_text())
SCHEDULES = sorted(path.stem for path in (FOLDER / "schedules").glob("*.json"))


def same(name: str, found: list[lb.Decision], record: Any, *, first: int = 0) -> None:
    """Assert that decisions are those of a record from its step `first` on."""
    old = [decision for _, decision in record.steps[first:]]
    assert len(found) == len(old)
    for at, (new, there) in enumerate(zip(found, old, strict=True), start=first):
        new_facts = old_files.facts_of(new)
        old_facts = old_files.facts_of(there, old=True)
        assert new_facts == old_facts, f"{name} decides differently from 0.1.0 in step {at}"


@pytest.mark.parametrize("name", EXACT)
def test_a_record_of_0_1_0_is_replayed_to_the_bit(name: str, tmp_path: Path) -> None:
    record = old_files.record_named(name, tmp_path)
    assert record.header["version"] == "0.1.0"
    assert (record.redone, record.truncated, record.damage) == (0, False, "")
    rule = old_files.rule_of(record.header)
    begun = old_files.started(rule, record.steps[0].seen)
    found = [decision for _, decision in old_files.decisions(begun, record.steps)]
    same(name, found, record)
    if name != UNMEASURED:
        assert lb.replay(rule, record) == found, name


def test_a_record_without_the_rules_statistic_is_refused_by_name(tmp_path: Path) -> None:
    record = old_files.record_named(UNMEASURED, tmp_path)
    with pytest.raises(ValueError, match="full_sqnorm"):
        lb.replay(old_files.rule_of(record.header), record)


@pytest.mark.parametrize("name", EXACT)
def test_a_run_of_0_1_0_is_resumed_to_the_bit(name: str, tmp_path: Path) -> None:
    record = old_files.record_named(name, tmp_path)
    check_resumed(name, old_files.rule_of(record.header), record)


def check_resumed(name: str, rule: lb.Rule, record: Any) -> None:
    """Resume a run from its state and compare all that follows: clocks, batches, decisions."""
    cut, steps = STATES[name]["cut"], record.steps
    assert 0 < cut < len(steps) - 1
    decider = old_files.started(rule, steps[0].seen)
    decider = old_files.resumed(decider, STATES[name]["state"])
    assert decider.batch_size == steps[cut - 1].decision.next_batch_size
    assert decider.measure == steps[cut - 1].decision.measure_next
    found = []
    for before, decision in old_files.decisions(decider, steps[cut:]):
        seen = steps[cut + len(found)].seen
        for clock in ("step", "samples", "base_steps", "skipped"):
            there = getattr(seen, clock)
            assert getattr(before, clock) == there, f"{name}: {clock} in step {cut + len(found)}"
        found.append(decision)
    same(name, found, record, first=cut)


def test_a_run_of_0_1_0_with_a_users_own_rule_is_resumed(tmp_path: Path) -> None:
    record = old_files.record_named(OWN, tmp_path)
    same(OWN, lb.replay(old_runs.OwnRule(), record), record)
    check_resumed(OWN, old_runs.OwnRule(), record)


def test_every_kind_of_0_1_0_is_in_a_record(tmp_path: Path) -> None:
    known = set(json.loads((FOLDER / "kinds.json").read_text()))
    found: set[str] = set()
    for name in LIBRARY:
        found |= set(old_files.kinds_in(old_files.record_named(name, tmp_path).header["rule"]))
    assert found == known


def test_the_record_of_a_run_that_was_killed_twice_is_read() -> None:
    record = lb.read_record(FOLDER / "interrupted.jsonl")
    assert (record.redone, record.truncated, len(record.steps)) == (4, True, 19)
    assert len(lb.replay(old_files.rule_of(record.header), record)) == 19


def test_a_record_of_0_1_0_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    shutil.copy(FOLDER / "interrupted.jsonl", path)
    whole = lb.read_record(path)
    record = lb.JsonlRecord(path, append=True)
    record.start({name: fact for name, fact in whole.header.items() if name != "version"})
    record.write(*whole.steps[-1])
    record.close()
    again = lb.read_record(path)
    assert (again.redone, again.truncated) == (5, False)
    assert len(again.steps) == len(whole.steps)
    assert again.steps[-1] == whole.steps[-1]


def nearly(name: str, found: dict[str, Any], old: dict[str, Any]) -> None:
    """Assert that a real run went on as it did in 0.1.0."""
    assert len(found["steps"]) == len(old["steps"]) > 5
    for at, (new, there) in enumerate(zip(found["steps"], old["steps"], strict=True)):
        key = old_files.key_of(there["reason"], renamed=old_files.REWORDED)
        where = f"{name}, step {at} after its checkpoint"
        assert old_files.key_of(new["reason"]) == key, where
        for exact in ("next_batch_size", "measure_next", "samples"):
            assert new.get(exact) == there.get(exact), f"{where}: {exact}"
        for number in ("lr_multiplier", "base_steps", "losses"):
            assert new[number] == pytest.approx(there[number], rel=NEARLY, abs=1e-9), where
    assert found["end"].keys() == old["end"].keys()
    for fact, value in old["end"].items():
        there = pytest.approx(value, rel=NEARLY, abs=NEARLY)
        assert found["end"][fact] == there, f"{name}: {fact} at the end"


@pytest.mark.parametrize("name", RUNS_OF_EXACT)
def test_a_checkpoint_of_0_1_0_is_resumed(name: str) -> None:
    run = old_runs.RUNS[name]
    control = run.build()
    old_runs.load(name, control.model, control)
    assert control.optimizer_steps == run.cut
    nearly(name, run.train(control), RUNS[name])


def test_every_checkpoint_has_a_run() -> None:
    folders = {path.name for path in (FOLDER / "checkpoints").iterdir()}
    assert folders == {*old_runs.RUNS, "attach"} == set(RUNS)


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_of_0_1_0_resumes_with_the_same_samples(name: str) -> None:
    loader = old_files.bound(old_runs.LOADERS[name]())
    loader.load_state_dict(LOADERS[name]["state"])
    assert old_files.samples_of(loader, steps=9) == LOADERS[name]["samples"], name


def check_record(name: str, found: Any, old: Any) -> None:
    """Assert that a training wrote nearly the same record as in 0.1.0."""
    assert len(found.steps) == len(old.steps)
    for at, (new, there) in enumerate(zip(found.steps, old.steps, strict=True)):
        where = f"{name}, step {at}"
        for count in ("step", "samples", "batch_size", "base_batch_size", "skipped"):
            assert getattr(new.seen, count) == getattr(there.seen, count), f"{where}: {count}"
        assert new.seen.loss == pytest.approx(there.seen.loss, rel=NEARLY), where
        new_facts = old_files.facts_of(new.decision)
        for fact, value in old_files.facts_of(there.decision, old=True).items():
            expected = pytest.approx(value, rel=NEARLY) if isinstance(value, float) else value
            assert new_facts[fact] == expected, f"{where}: {fact}"


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_of_0_1_0_is_followed(name: str, tmp_path: Path) -> None:
    """`largebatch plan --out` wrote the file, and `largebatch train --schedule` the record."""
    old = tmp_path / "old.jsonl"
    packed = FOLDER / "schedules" / f"{name}.jsonl.gz"
    old.write_bytes(gzip.decompress(packed.read_bytes()))
    path, record = FOLDER / "schedules" / f"{name}.json", tmp_path / "record.jsonl"
    old_files.train_workload(old_runs.workload(), schedule=path, record=record)
    old_record = lb.read_record(old)
    assert len({decision.next_batch_size for _, decision in old_record.steps}) >= 3
    check_record(name, lb.read_record(record), old_record)


# Unknown kinds and versions raise an error that names them.


def test_a_record_of_an_unknown_rule_is_read_but_its_rule_is_refused_by_name(
    tmp_path: Path,
) -> None:
    record = old_files.record_named(OWN, tmp_path)
    assert len(record.steps) == 44
    with pytest.raises(lb.errors.RecordError, match="OwnRule"):
        old_files.rule_of(record.header)


def test_the_state_of_an_unknown_rule_is_refused_by_name(tmp_path: Path) -> None:
    first = old_files.record_named(OWN, tmp_path).steps[0].seen
    decider = old_files.started(lb.AdaScale(), first)
    with pytest.raises(lb.errors.CheckpointError, match="OwnRule"):
        old_files.resumed(decider, STATES[OWN]["state"])


def test_the_state_of_another_rule_is_refused_by_name(tmp_path: Path) -> None:
    first = old_files.record_named("rules/adascale", tmp_path).steps[0].seen
    decider = old_files.started(lb.LinearScaling(), first)
    with pytest.raises(lb.errors.CheckpointError, match="AdaScale"):
        old_files.resumed(decider, STATES["rules/adascale"]["state"])


@pytest.mark.parametrize("version", [0, 99])
def test_states_of_an_unknown_version_are_refused_with_its_number(version: int) -> None:
    control = old_runs.RUNS["adascale"].build()
    state = lb.Checkpoints(FOLDER / "checkpoints" / "adascale").load().state["control"]
    with pytest.raises(lb.errors.CheckpointError, match=rf"version {version}\b"):
        control.load_state_dict({**state, "version": version})
    loader = old_runs.LOADERS["tensor"]()
    with pytest.raises(ValueError, match=rf"version={version}\b"):
        loader.load_state_dict({**LOADERS["tensor"]["state"], "version": version})


def test_a_changed_number_in_a_state_is_found() -> None:
    control = old_runs.RUNS["adascale"].build()
    state = lb.Checkpoints(FOLDER / "checkpoints" / "adascale").load().state["control"]
    with pytest.raises(lb.errors.CheckpointError):
        control.load_state_dict({**state, "samples": state["samples"] + 1})


def test_a_line_with_an_unknown_field_is_refused_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    lines = (FOLDER / "interrupted.jsonl").read_text().splitlines(keepends=True)
    lines[3] = lines[3].replace('"seen":{', '"seen":{"surprise":1,', 1)
    path.write_text("".join(lines))
    with pytest.raises(lb.errors.RecordError, match=r"line 4.*surprise"):
        lb.read_record(path)


def test_a_schedule_of_an_unknown_kind_is_refused_by_name(tmp_path: Path) -> None:
    plain = json.loads((FOLDER / "schedules" / "growth.json").read_text())
    plain["rule"]["rules"][0]["kind"] = "NoSuchRule"
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(lb.errors.RecordError, match="NoSuchRule"):
        old_files.train_workload(old_runs.workload(), schedule=path)
