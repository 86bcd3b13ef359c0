"""Test that checkpoints are complete or missing, and that corrupted ones are rejected."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

import largebatch as lb


def state(value: float = 1.0) -> dict[str, object]:
    return {"weights": torch.full((64,), value), "control": {"step": 3, "text": "[1,2]", "n": None}}


def test_a_saved_checkpoint_comes_back_equal(tmp_path: Path) -> None:
    checkpoints = lb.Checkpoints(tmp_path / "run")
    path = checkpoints.save(state(), step=7)
    loaded = checkpoints.load()
    assert loaded.path == path
    assert loaded.passed_over == ()
    assert torch.equal(loaded.state["weights"], torch.ones(64))
    assert loaded.state["control"] == {"step": 3, "text": "[1,2]", "n": None}


def test_only_the_newest_are_kept_by_number_and_not_by_name(tmp_path: Path) -> None:
    checkpoints = lb.Checkpoints(tmp_path, keep=2)
    for step in (5, 999_999_999, 1_000_000_000):
        checkpoints.save(state(step), step=step)
    assert [path.stem for path in checkpoints.paths] == ["step-999999999", "step-1000000000"]
    assert float(checkpoints.load().state["weights"][0]) == 1e9


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = lb.Checkpoints(tmp_path)
    checkpoints.save(state(1.0), step=1)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(lb.errors.CheckpointError, match="No space left"):
        checkpoints.save(state(2.0), step=2)
    monkeypatch.undo()
    assert float(checkpoints.load().state["weights"][0]) == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001.pt"]


def test_what_a_killed_run_left_half_written_is_passed_over_and_removed(tmp_path: Path) -> None:
    checkpoints = lb.Checkpoints(tmp_path)
    checkpoints.save(state(1.0), step=1)
    (tmp_path / "step-000000002.partial").write_bytes(b"half")
    assert float(checkpoints.load().state["weights"][0]) == 1.0
    checkpoints.save(state(3.0), step=3)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
def test_a_cut_file_is_passed_over_with_its_cause(tmp_path: Path, kept: float) -> None:
    checkpoints = lb.Checkpoints(tmp_path)
    checkpoints.save(state(1.0), step=1)
    newest = checkpoints.save(state(2.0), step=2)
    content = newest.read_bytes()
    newest.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else int(kept)])
    loaded = checkpoints.load()
    assert float(loaded.state["weights"][0]) == 1.0
    assert newest.name in loaded.passed_over[0]


def test_one_flipped_bit_in_a_tensor_is_found(tmp_path: Path) -> None:
    checkpoints = lb.Checkpoints(tmp_path)
    path = checkpoints.save(state(1.0), step=1)
    content = bytearray(path.read_bytes())
    at = content.index(torch.ones(64).numpy().tobytes())
    content[at + 17] ^= 1
    path.write_bytes(content)
    with pytest.raises(lb.errors.CheckpointError, match=r"All checkpoints in .* are corrupted"):
        checkpoints.load()


class Planted:
    """An object that creates a directory if its reader executes code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_no_code_in_a_file_is_run(tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    path = tmp_path / "step-000000001.pt"
    torch.save({"state": Planted(canary)}, path)
    with pytest.raises(lb.errors.CheckpointError, match="corrupted, or it is not a checkpoint"):
        lb.Checkpoints(tmp_path).load()
    path.write_bytes(pickle.dumps(Planted(canary)))
    with pytest.raises(lb.errors.CheckpointError):
        lb.Checkpoints(tmp_path).load(path)
    assert not canary.exists()


def test_torch_writes_the_sums_that_are_checked(tmp_path: Path) -> None:
    path = lb.Checkpoints(tmp_path).save(state(), step=1)
    with zipfile.ZipFile(path) as archive:
        assert all(info.CRC for info in archive.infolist() if info.file_size > 4)


def test_checkpoints_refuse_bad_arguments_and_paths(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        lb.Checkpoints(tmp_path, keep=0)
    with pytest.raises(lb.errors.CheckpointError, match="There is no checkpoint in"):
        lb.Checkpoints(tmp_path / "none").load()
    (tmp_path / "file").write_text("")
    with pytest.raises(lb.errors.CheckpointError, match="could not be written"):
        lb.Checkpoints(tmp_path / "file").save(state(), step=1)
