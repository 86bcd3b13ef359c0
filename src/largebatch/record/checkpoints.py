"""Checkpoints in a directory: written whole or not at all, checked when they are read."""

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
    """A checkpoint read back.

    Args:
        path: its file.
        state: what was saved, with tensors on the CPU.
        passed_over: newer files that are damaged, each with its cause.
    """

    path: Path
    state: dict[str, Any]
    passed_over: tuple[str, ...] = field(default=())


class Checkpoints:
    """The last checkpoints of a run, one file each; `save` changes the directory.

    A file gets its name once all of it is on the disk, so an interruption at any moment leaves the
    ones before it; a power cut may undo the newest. torch writes a CRC of each part, which is
    checked before anything is read, and only tensors and plain values are read: no code in a file
    is run.

    >>> import torch
    >>> checkpoints = Checkpoints(getfixture("tmp_path") / "run", keep=2)
    >>> for step in (10, 20, 30):
    ...     path = checkpoints.save({"weight": torch.tensor(float(step))}, step=step)
    >>> [path.name for path in checkpoints.paths]
    ['step-000000020.pt', 'step-000000030.pt']
    >>> checkpoints.load().state["weight"]
    tensor(30.)

    Args:
        directory: made by the first `save`.
        keep: how many of the newest to keep, at least 1.

    Raises:
        ValueError: a `keep` below 1.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep is a number of checkpoints, at least 1; got {keep!r}.")
        self.directory, self.keep = Path(directory), keep

    @property
    def paths(self) -> list[Path]:
        """The checkpoints that are there, oldest first."""
        if not self.directory.is_dir():
            return []
        found = [path for path in self.directory.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.stem.removeprefix("step-")))

    def save(self, state: Mapping[str, Any], *, step: int) -> Path:
        """Writes a checkpoint and removes the oldest beyond `keep`; call it on one rank.

        Args:
            state: tensors and plain values, nested in dicts, lists and tuples.
            step: optimizer steps taken, which names the file.

        Raises:
            CheckpointError: the disk is full or the directory cannot be written.
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
        except (OSError, RuntimeError) as error:  # torch tells a full disk by the latter
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise CheckpointError(
                f"{path} could not be written ({error!s:.200}); the checkpoints before it are "
                "there. Make room, or name another directory."
            ) from error
        return path

    def load(self, path: str | os.PathLike[str] | None = None) -> Checkpoint:
        """Reads one checkpoint, or the newest that is whole.

        Raises:
            CheckpointError: none is there, or none is whole.
        """
        if path is not None:
            return Checkpoint(path=Path(path), state=_read(Path(path)))
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
                f"No checkpoint in {self.directory} is whole. {damaged[0]} Start a new run in "
                "another directory."
            )
        raise CheckpointError(f"There is no checkpoint in {self.directory}.")

    def _prune(self) -> None:
        for old in self.paths[: -self.keep]:
            old.unlink(missing_ok=True)
        for partial in self.directory.glob("step-*.partial"):  # of a run that was killed
            partial.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    import torch

    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        state = None if broken else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes of its readers
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    if broken or not isinstance(state, dict):
        raise _damaged(path, f"{broken} is not as it was written" if broken else "no state in it")
    return state


def _damaged(path: Path, cause: str) -> CheckpointError:
    first = cause.splitlines()[0] if cause else ""
    return CheckpointError(f"{path} is damaged or no checkpoint ({first:.160}).")
