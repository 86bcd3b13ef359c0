"""Write complete checkpoints to a directory, and check each checkpoint when it is read."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from largebatch.core.errors import CheckpointError

_NAME = re.compile(r"step-([0-9]{9,18})\.pt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Hold a checkpoint that was read from a file.

    >>> from pathlib import Path
    >>> Checkpoint(path=Path("step-000000020.pt"), state={"step": 20}).state["step"]
    20

    Args:
        path: Path of the checkpoint file.
        state: Saved state, with tensors on the CPU.
        passed_over: Error messages about newer files that are corrupted and were skipped.
    """

    path: Path
    state: dict[str, Any]
    passed_over: tuple[str, ...] = field(default=())


class Checkpoints:
    """Keep the last checkpoints of a run in a directory, one file per checkpoint.

    A file gets its final name only after all of its data is on the disk. So an interruption at any
    moment leaves the earlier checkpoints intact. A power failure may lose the newest checkpoint.
    The CRC that torch writes for each part of a file is checked before reading. Only tensors and
    plain values are read, and no code in a file is executed. `save` changes the directory.

    >>> import torch
    >>> checkpoints = Checkpoints(getfixture("tmp_path") / "run", keep=2)
    >>> for step in (10, 20, 30):
    ...     path = checkpoints.save({"weight": torch.tensor(float(step))}, step=step)
    >>> [path.name for path in checkpoints.paths]
    ['step-000000020.pt', 'step-000000030.pt']
    >>> checkpoints.load().state["weight"]
    tensor(30.)

    Args:
        directory: Directory of the checkpoints. The first `save` creates the directory.
        keep: Number of newest checkpoints to keep, at least 1.

    Raises:
        ValueError: `keep` is below 1.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(
                f"keep={keep!r} was given, but at least 1 checkpoint must be kept. Pass keep=3."
            )
        self.directory, self.keep = Path(directory), keep

    @property
    def paths(self) -> list[Path]:
        """Return the paths of the existing checkpoints, oldest first."""
        if not self.directory.is_dir():
            return []
        found = [path for path in self.directory.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.stem.removeprefix("step-")))

    def save(self, state: Mapping[str, Any], *, step: int) -> Path:
        """Write a checkpoint, then remove the oldest checkpoints beyond `keep`. Call `save` on one
        rank only.

        Args:
            state: Tensors and plain values, nested in dicts, lists and tuples.
            step: Number of optimizer steps taken. The number of steps becomes part of the file
                name.

        Raises:
            CheckpointError: The disk is full, or the directory cannot be written.
        """
        import torch

        path = self.directory / f"step-{step:09d}.pt"
        partial = path.with_suffix(".partial")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            self._prune()
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise CheckpointError(
                f"{path} could not be written ({error!s:.200}). Earlier checkpoints are intact. "
                "Free disk space, or pass another directory: lb.Checkpoints('other/directory')."
            ) from error
        return path

    def load(self, path: str | os.PathLike[str] | None = None) -> Checkpoint:
        """Read the checkpoint at `path`, or the newest checkpoint that is not corrupted.

        Args:
            path: Path of the checkpoint file, or None for the newest checkpoint that is not
                corrupted.

        Raises:
            CheckpointError: There is no checkpoint, or no checkpoint can be read.
        """
        if path is not None:
            try:
                return Checkpoint(path=Path(path), state=_read(Path(path)))
            except CheckpointError as error:
                raise CheckpointError(
                    f"{error} Load the newest intact checkpoint: checkpoints.load()."
                ) from None
        damaged: list[str] = []
        for candidate in reversed(self.paths):
            try:
                state = _read(candidate)
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            return Checkpoint(path=candidate, state=state, passed_over=tuple(damaged))
        if damaged:
            raise CheckpointError(
                f"All checkpoints in {self.directory} are corrupted. {damaged[0]} Start a new run "
                "in another directory: lb.Checkpoints('other/directory')."
            )
        raise CheckpointError(
            f"There is no checkpoint in {self.directory}. Save a checkpoint first: "
            "checkpoints.save(state, step=step)."
        )

    def _prune(self) -> None:
        for old in self.paths[: -self.keep]:
            old.unlink(missing_ok=True)
        for partial in self.directory.glob("step-*.partial"):  # left by a killed process
            partial.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    import torch

    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        state = None if broken else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupted file can make its readers raise anything
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    if broken or not isinstance(state, dict):
        raise _damaged(path, f"its part {broken} is corrupted" if broken else "it has no state")
    return state


def _damaged(path: Path, cause: str) -> CheckpointError:
    first = cause.splitlines()[0] if cause else ""
    return CheckpointError(
        f"The file {path} is corrupted, or it is not a checkpoint ({first:.160})."
    )
