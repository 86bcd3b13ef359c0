"""The public names are a promise: they change on purpose, in the same commit as this list."""

from __future__ import annotations

from pathlib import Path

import largebatch

FROZEN = Path(__file__).parent / "public_surface.txt"
UPDATE = (
    'python -c "import largebatch; print(*sorted(largebatch.__all__), sep=chr(10))" '
    "> tests/public_surface.txt"
)


def test_the_public_names_are_those_of_the_frozen_list() -> None:
    frozen, found = set(FROZEN.read_text().split()), set(largebatch.__all__)
    assert found == frozen, (
        f"added {sorted(found - frozen)}, removed {sorted(frozen - found)}. If that is meant, say "
        f"it in CHANGELOG.md and run: {UPDATE}"
    )


def test_each_public_name_exists_and_stands_once() -> None:
    assert len(largebatch.__all__) == len(set(largebatch.__all__))
    for name in largebatch.__all__:
        assert getattr(largebatch, name) is not None
