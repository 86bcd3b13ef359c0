"""What is in the project speaks of the project: no machine's paths, no notes to self."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

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


def slips(text: str) -> list[str]:
    """The lines that hold a forbidden word."""
    return [line for line in text.splitlines() if FORBIDDEN.search(line)]


def test_no_tracked_file_names_a_machine_path_or_a_note_to_self() -> None:
    found = {
        str(file.relative_to(ROOT)): lines
        for file in tracked_files()
        if (lines := slips(file.read_text(encoding="utf-8", errors="replace")))
    }
    assert not found


def test_the_search_finds_what_it_forbids() -> None:
    assert slips("fine\n# FIX" + "ME later\n") == ["# FIX" + "ME later"]
    assert slips("open('/wo" + "rk/x')")
    assert not slips("src/largebatch/workloads/digits.py")
    assert Path(__file__) in tracked_files()
