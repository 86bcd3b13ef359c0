"""The page on the upgrade lists every name of version 0.1 that moved."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import largebatch

PAGE = Path(__file__).parents[1] / "docs" / "upgrade-0.2.md"


@pytest.mark.parametrize(
    "module", ["largebatch", "largebatch.rules", "largebatch.workbench.quadratic"]
)
def test_the_page_on_the_upgrade_lists_each_moved_name(module: str) -> None:
    text = PAGE.read_text()
    moved = importlib.import_module(module).MOVED
    assert not {name for name in moved if f"`{name}`" not in text and f".{name}`" not in text}


def test_the_page_on_the_upgrade_gives_the_new_place_of_each_top_level_name() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    for name, place in largebatch.MOVED.items():
        row = next(row for row in rows if f"`{name}`" in row or f".{name}`" in row)
        space = place.removesuffix(f".{name}")
        assert f"`{place}`" in row or f"the same name in `{space}`" in row, name
