"""Write the lists of public names: `make names` after a name, a rule or a factor was added.

A package with lazy names has a table NAMES (name -> module that defines it) and, for type checkers,
the same as imports below `if TYPE_CHECKING`. This program writes the imports from the table. The
table of `largebatch.rules` is itself written, from the classes in its files.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "largebatch"
FACES = (
    SOURCE / "__init__.py",
    SOURCE / "measure" / "__init__.py",
    SOURCE / "record" / "__init__.py",
    SOURCE / "rules" / "__init__.py",
    SOURCE / "workbench" / "__init__.py",
)
"""The packages whose names are imported on first use."""

EAGER = (
    SOURCE / "errors.py",
    SOURCE / "methods" / "__init__.py",
    SOURCE / "optim" / "__init__.py",
    SOURCE / "theory" / "__init__.py",
    SOURCE / "workbench" / "quadratic" / "__init__.py",
    SOURCE / "workbench" / "workloads" / "__init__.py",
)
"""The namespaces that import their names at once."""

OTHER_NAMES = frozenset({"Stages"})
"""Public names of `largebatch.rules` that are neither rules nor factors."""

SURFACE = ROOT / "tests" / "public_surface.txt"


def table_of(text: str, name: str) -> dict[str, str]:
    """Return a table that a module assigns to `name`, as a dictionary; empty if there is none."""
    for node in ast.parse(text).body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == name and node.value is not None:
            return dict(ast.literal_eval(node.value))
    return {}


def rules_in(folder: Path) -> dict[str, str]:
    """Return each rule and factor in the files of a folder, with its module.

    A class counts if it has `update` or `__call__` and is neither a protocol nor private.
    """
    found = {}
    for path in sorted(folder.rglob("*.py")):
        module = ".".join(("largebatch", *path.relative_to(SOURCE).with_suffix("").parts))
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
                bases = {ast.unparse(base) for base in node.bases}
                if methods & {"update", "__call__"} and "Protocol" not in bases:
                    found[node.name] = module
    return dict(sorted(found.items()))


def with_table(text: str, names: dict[str, str]) -> str:
    """Return a module's text with another table NAMES."""
    lines = "".join(f'    "{name}": "{module}",\n' for name, module in names.items())
    table = f"NAMES: Mapping[str, str] = {{\n{lines}}}\n"
    return re.sub(r"^NAMES: .*?^\}\n", lambda _: table, text, flags=re.DOTALL | re.MULTILINE)


def with_imports(text: str) -> str:
    """Return a module's text with the imports for type checkers that its tables ask for."""
    names, modules = table_of(text, "NAMES"), table_of(text, "MODULES")
    lines = [f"    from {module} import {name} as {name}" for name, module in names.items()]
    for name, module in modules.items():
        parent, _, last = module.rpartition(".")
        lines.append(f"    from {parent} import {last} as {name}")
    lines.sort()
    block = "if TYPE_CHECKING:\n" + "".join(line + "\n" for line in lines)
    return re.sub(
        r"^if TYPE_CHECKING:\n(?:    .*\n|\n(?=    ))*", lambda _: block, text, flags=re.MULTILINE
    )


def imports_of(text: str) -> set[tuple[str, str, str]]:
    """Return (module, name, public name) of each import below `if TYPE_CHECKING`."""
    found = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                if isinstance(line, ast.ImportFrom):
                    found |= {(str(line.module), a.name, a.asname or a.name) for a in line.names}
    return found


def is_stale(path: Path) -> bool:
    """Return whether a face differs from its tables, however its lines are broken."""
    text, wanted = path.read_text(), written(path)
    return imports_of(text) != imports_of(wanted) or table_of(text, "NAMES") != table_of(
        wanted, "NAMES"
    )


def written(path: Path) -> str:
    """Return the text that a face should have."""
    text = path.read_text()
    if path.parent.name == "rules":
        found = rules_in(path.parent)
        others = {name: at for name, at in table_of(text, "NAMES").items() if name in OTHER_NAMES}
        text = with_table(text, dict(sorted({**found, **others}.items())))
    return with_imports(text)


def names_imported_by(path: Path) -> list[str]:
    """Return the public names of an eager namespace: those of `__all__`, else all it imports."""
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return [a.asname for node in imports for a in node.names if a.asname]


def surface() -> str:
    """Return the frozen list of public names, of the package and of its namespaces.

    The table of `largebatch.rules` is a list that is written and compared already.
    """
    lines = []
    for path in [path for path in FACES if path.parent.name != "rules"]:
        text = path.read_text()
        parts = path.relative_to(SOURCE).parts[:-1]
        prefix = ".".join(("lb", *parts))
        lines += [f"{prefix}.{n}" for n in [*table_of(text, "NAMES"), *table_of(text, "MODULES")]]
    for path in EAGER:
        parts = path.relative_to(SOURCE).with_suffix("").parts
        prefix = ".".join(("lb", *[part for part in parts if part != "__init__"]))
        lines += [f"{prefix}.{name}" for name in names_imported_by(path)]
    return "".join(line + "\n" for line in sorted(lines))


def main() -> None:
    """Write the lists, or exit with status 1 if `--check` finds one that is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    stale = [path for path in FACES if is_stale(path)]
    if parser.parse_args().check:
        if stale:
            names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
            sys.exit(f"{names}: the imports differ from the table. Run: make names")
        return
    for path in stale:
        path.write_text(written(path))
    SURFACE.write_text(surface())


if __name__ == "__main__":
    main()
