"""Keeps the program that wrote the old files out of the tests: its imports may no longer exist."""

from __future__ import annotations

collect_ignore = ["write.py"]
