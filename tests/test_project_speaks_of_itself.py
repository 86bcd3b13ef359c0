"""What is in the project speaks of the project: no machine's paths, no notes to self."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from offenders import assert_no_offenders

ROOT = Path(__file__).parent.parent
FORBIDDEN = re.compile(
    "|".join(["/wo" + "rk/", "/tm" + "p/w", r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b"])
)


def tracked_files() -> list[Path]:
    """Every file of the checkout that git keeps."""
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / name for name in done.stdout.split("\0") if name]
    return [file for file in files if file.is_file()]


def slips(text: str, *, name: str) -> Iterator[str]:
    """Each line of a file that holds a forbidden word."""
    for number, line in enumerate(text.splitlines(), start=1):
        if FORBIDDEN.search(line):
            yield f"{name}:{number} {line.strip()}"


def test_no_tracked_file_names_a_machine_path_or_a_note_to_self() -> None:
    found = [
        slip
        for file in tracked_files()
        for slip in slips(
            file.read_text(encoding="utf-8", errors="replace"), name=str(file.relative_to(ROOT))
        )
    ]
    assert_no_offenders(found, remedy="Name no path of a machine; do the work or drop the note.")


def test_a_forbidden_word_is_found_with_its_line() -> None:
    assert list(slips("fine\n# FIX" + "ME later\n", name="a.py")) == ["a.py:2 # FIX" + "ME later"]
    assert list(slips("open('/wo" + "rk/x')", name="a.py"))
    assert not list(slips("src/largebatch/workloads/digits.py", name="a.py"))
    assert Path(__file__) in tracked_files()
