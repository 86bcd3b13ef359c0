"""Keeps the programs that wrote files out of the tests. The imports of the one that wrote the old
files may no longer exist."""

from __future__ import annotations

collect_ignore = ["write.py", "write_decisions.py"]
