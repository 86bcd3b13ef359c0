"""Print each source file with the first line of its docstring: what lives where."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "largebatch"


def first_line(path: Path) -> str:
    """Return the first line of a file's docstring, "" without one."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def main() -> None:
    """Print the table, one file per line; empty `__init__` files are left out."""
    for path in sorted(SOURCE.rglob("*.py")):
        if path.read_text().strip():
            print(f"{path.relative_to(SOURCE)!s:45}{first_line(path)}")


if __name__ == "__main__":
    main()
