"""Files that grow by whole lines, so that a crash cuts at most the last one."""

from __future__ import annotations

import mmap
import os
from io import FileIO
from pathlib import Path

from largebatch.core.errors import RecordError


def open_lines(path: Path, *, append: bool, opening: bytes, what: str, again: str) -> FileIO:
    """Opens a file to which lines are added, and makes its folder. It is never overwritten.

    Args:
        path: the file.
        append: whether to go on with one that exists, without a last line that a crash cut.
        opening: how the first line of such a file begins.
        what: how errors call it.
        again: the line to paste for going on with it.

    Raises:
        RecordError: the file exists and `append` is False, or it begins otherwise.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if append and path.exists():
        _prepare_to_append(path, opening=opening, what=what)
    try:
        return FileIO(path, "a" if append else "x")
    except FileExistsError:
        raise RecordError(
            f"{path} exists and {what} is never overwritten. Name another file, or go "
            f"on with this one: {again}"
        ) from None


def write_line(file: FileIO, line: bytes, *, path: Path) -> None:
    """Adds one line by one write of the operating system.

    Raises:
        RecordError: it was written in part, and taken back.
    """
    written = file.write(line)
    if written != len(line):
        file.seek(-written, os.SEEK_CUR)
        file.truncate()  # no later line may join a half one
        raise RecordError(f"{path} took half a line, now removed: is the disk full?")


def _prepare_to_append(path: Path, *, opening: bytes, what: str) -> None:
    """Checks how the file begins and removes a last line without its end."""
    with open(path, "r+b") as file:
        if not os.fstat(file.fileno()).st_size:
            return
        first = file.readline()
        if first.endswith(b"\n") and not first.startswith(opening):
            raise RecordError(f"{path} is not {what}, so nothing is appended. Name another file.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            whole = content.rfind(b"\n") + 1
        file.truncate(whole)
