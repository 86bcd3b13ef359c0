"""Print each source file with the first line of its docstring: what lives where."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "largebatch"


def main() -> None:
    """Print the table, one file per line; empty `__init__` files are left out."""
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text()
        if text.strip():
            first = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
            print(f"{path.relative_to(SOURCE)!s:45}{first}")


if __name__ == "__main__":
    main()
