"""Write files line by line, so that a crash can truncate only the last line."""

from __future__ import annotations

import mmap
import os
from io import FileIO
from pathlib import Path

from largebatch.core.errors import RecordError


def open_lines(path: Path, *, append: bool, opening: bytes, what: str, again: str) -> FileIO:
    """Open a file for appending lines, and create its directory. The file is never overwritten.

    Args:
        path: Path of the file.
        append: Whether to append to an existing file. A last line without a newline is removed.
        opening: Bytes with which the first line of an existing file must begin.
        what: Name of the kind of file in error messages, such as "a record".
        again: Line of code that appends to the file, for error messages.

    Raises:
        RecordError: The file exists and `append` is False, or the file begins with other bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if append and path.exists():
        _prepare_to_append(path, opening=opening, what=what)
    try:
        return FileIO(path, "a" if append else "x")
    except FileExistsError:
        raise RecordError(
            f"The file {path} already exists, and {what} is never overwritten. Pass another "
            f"file, or append to this file: {again}"
        ) from None


def write_line(file: FileIO, line: bytes, *, path: Path) -> None:
    """Append one line with one write call of the operating system.

    Args:
        file: Open file.
        line: Line with its newline.
        path: Path of the file, for error messages.

    Raises:
        RecordError: Only a part of the line could be written. The part was removed again.
    """
    written = file.write(line)
    if written != len(line):
        file.seek(-written, os.SEEK_CUR)
        file.truncate()  # otherwise the next line would continue the incomplete line
        raise RecordError(
            f"Only part of a line could be written to {path}, and the part was removed. Check "
            "whether the disk is full, and free disk space."
        )


def _prepare_to_append(path: Path, *, opening: bytes, what: str) -> None:
    """Check the first line of the file, and remove a last line without a newline."""
    with open(path, "r+b") as file:
        if not os.fstat(file.fileno()).st_size:
            return
        first = file.readline()
        if first.endswith(b"\n") and not first.startswith(opening):
            raise RecordError(f"{path} is not {what}, so nothing was appended. Pass another file.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            whole = content.rfind(b"\n") + 1
        file.truncate(whole)
