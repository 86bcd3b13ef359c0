"""Writes `decisions.jsonl`: what the first version whose averages count base batches decides about
the records of 0.1.0.

    PYTHONPATH=src python tests/old/write_decisions.py

Run it if averages are changed on purpose before version 0.2 is released, and read the difference.
After that the file stays as it is, as those of 0.1.0 do.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PATH = HERE / "decisions.jsonl"
sys.path.insert(0, str(HERE))
if not PATH.exists():  # `old_files` reads it when it is imported
    PATH.write_text("")

import old_files  # noqa: E402


def main() -> None:
    """Write one line for each record whose averages have changed."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for name, saved in old_files.STATES.items():
            if old_files.has_averages(json.loads(saved["state"]["rule"])):
                found = old_files.decided_anew(name, Path(folder))
                lines.append(json.dumps(found, separators=(",", ":")) + "\n")
    PATH.write_text("".join(lines))


if __name__ == "__main__":
    main()
