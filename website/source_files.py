"""Write the page that lists each source file with the first sentence of its docstring."""

from __future__ import annotations

import ast

from public_objects import SOURCE, first_sentence


def page() -> str:
    """Return the page: one table for each folder of the package."""
    folders: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text()
        if text.strip():
            sentence = first_sentence(ast.get_docstring(ast.parse(text)) or "").replace("|", "\\|")
            folder = path.parent.relative_to(SOURCE).as_posix()
            folders.setdefault(folder, []).append(f"| `{path.name}` | {sentence} |")
    lines = [
        "# Source files",
        "",
        "This page lists each file below `src/largebatch/` with its docstring's first sentence.",
        "[Architecture](architecture.md) explains how the folders work together.",
    ]
    for folder, rows in sorted(folders.items()):
        title = "largebatch" if folder == "." else f"{folder}/"
        lines += ["", f"## {title}", "", "| file | what it does |", "| --- | --- |", *rows]
    return "\n".join(lines) + "\n"
