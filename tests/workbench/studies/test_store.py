from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_up_runs import made_up

from largebatch.core.errors import RecordError
from largebatch.workbench.studies.compare.store import ComparisonSettings, RunKey, RunStore

SHARED = ComparisonSettings(
    workload="digits",
    summary="small images",
    base_batch_size=16,
    micro_batch_size=256,
    lr=0.01,
    base_steps=100,
    dataset_size=1000,
    data={"corpus": "a"},
    largebatch="0",
    torch="0",
    python="3",
)


def test_a_run_added_to_a_store_is_found_when_it_is_opened_again(tmp_path: Path) -> None:
    runs = [made_up(seed=seed) for seed in range(3)]
    store = RunStore(tmp_path / "a" / "b", SHARED)
    for run in runs:
        store.add(run)
    again = RunStore(tmp_path / "a" / "b", SHARED)
    for run in runs:
        assert store.get(RunKey.of(run)) == again.get(RunKey.of(run)) == run
    assert again.get(RunKey.of(made_up(seed=3))) is None


def test_a_half_written_last_line_is_dropped_and_nothing_is_joined_to_it(tmp_path: Path) -> None:
    first, second, third = (made_up(seed=seed) for seed in range(3))
    store = RunStore(tmp_path, SHARED)
    store.add(first)
    store.add(second)
    path = tmp_path / "runs.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    cut = RunStore(tmp_path, SHARED)
    assert cut.get(RunKey.of(first)) == first
    assert cut.get(RunKey.of(second)) is None
    cut.add(third)
    assert RunStore(tmp_path, SHARED).get(RunKey.of(third)) == third


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    RunStore(tmp_path, SHARED).add(made_up())
    path = tmp_path / "runs.jsonl"
    path.write_bytes(b"{}\n" + path.read_bytes())
    with pytest.raises(RecordError, match=r"runs.jsonl, line 1"):
        RunStore(tmp_path, SHARED)
    path.write_bytes(b"{\n")
    with pytest.raises(RecordError, match=r"line 1: the line is not valid JSON.*Remove the line"):
        RunStore(tmp_path, SHARED)


@pytest.mark.parametrize("change", [{"lr": 0.02}, {"base_steps": 101}, {"data": {"corpus": "b"}}])
def test_a_store_refuses_a_directory_of_other_settings(
    tmp_path: Path, change: dict[str, object]
) -> None:
    other = replace(SHARED, **change)  # type: ignore[arg-type]
    assert other.digest != SHARED.digest == replace(SHARED).digest
    RunStore(tmp_path, SHARED)
    with pytest.raises(ValueError, match="holds runs with other settings") as error:
        RunStore(tmp_path, other)
    assert f"out='runs/compare-{other.digest}'" in str(error.value)
    assert next(iter(change)) in str(error.value)
