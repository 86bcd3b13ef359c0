"""docs/explanation/theory.md shows each public name of `lb.theory` in code that the tests run."""

from __future__ import annotations

import re
from pathlib import Path

import largebatch.theory

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "theory.md"


def test_each_public_name_occurs_in_a_python_block_of_the_page() -> None:
    blocks = re.findall(r"^```python[^\n]*\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    shown = set(re.findall(r"\btheory\.(\w+)", "\n".join(blocks)))
    assert set(largebatch.theory.__all__) - shown == set()
