"""Provide numeric cases of the formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CASES: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "cases" / "theory.json").read_text()
)
