"""Find every public name of the package, and decide on which page of the reference it stands.

The names are read from the tables and imports of the package, by `tests/public_names.py`. No name
is listed by hand, and torch is not imported.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "largebatch"
sys.path.insert(0, str(ROOT / "tests"))

import public_names  # noqa: E402  (the tests' folder is no package)


@dataclass(frozen=True, kw_only=True)
class PublicObject:
    """Describe one public class, function or constant.

    Args:
        target: Full path of the definition, such as "largebatch.rules.adascale.AdaScale".
        names: Public names of the object, the shortest first, such as "lb.AdaScale".
        summary: First sentence of the docstring.
    """

    target: str
    names: tuple[str, ...]
    summary: str

    @property
    def name(self) -> str:
        """Shortest public name."""
        return self.names[0]


@dataclass(kw_only=True)
class Namespace:
    """Collect the public objects of one namespace, such as "lb.rules".

    Mutable: `namespaces` fills the lists.

    Args:
        name: Public name of the namespace.
        path: File that defines the namespace.
        objects: Objects that are described on the page of the namespace.
        elsewhere: Objects that have a name in the namespace and are described on another page.
    """

    name: str
    path: Path
    objects: list[PublicObject] = field(default_factory=list)
    elsewhere: list[PublicObject] = field(default_factory=list)

    @property
    def page(self) -> str:
        """Path of the page below the folder of the pages."""
        last = self.name.removeprefix("lb.").removeprefix("largebatch.")
        last = "largebatch" if last == "lb" else last
        return f"reference/{last.replace('.', '-')}.md"


def namespaces() -> list[Namespace]:
    """Return the namespaces with their objects, the namespace `lb` first.

    An object with several public names stands on the page of the longest namespace.
    """
    spaces = {space.name: space for space in _empty_namespaces()}
    names: dict[str, list[str]] = {}
    for space in spaces.values():
        for name, target in _targets(space.path).items():
            names.setdefault(target, []).append(f"{space.name}.{name}")
    for target, found in names.items():
        ordered = tuple(sorted(found, key=lambda name: (name.count("."), name)))
        thing = PublicObject(target=target, names=ordered, summary=summary_of(target))
        home = max((name.rpartition(".")[0] for name in ordered), key=len)
        for name in ordered:
            space = spaces[name.rpartition(".")[0]]
            (space.objects if space.name == home else space.elsewhere).append(thing)
    return list(spaces.values())


def _empty_namespaces() -> list[Namespace]:
    """Return the namespaces of the list of public names, then the integrations."""
    found = []
    for path in sorted([*public_names.FACES, *public_names.EAGER]):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(("lb", *[part for part in parts if part != "__init__"]))
        found.append(Namespace(name=name, path=path))
    found.sort(key=lambda space: space.name)
    for path in sorted((SOURCE / "integrations").glob("*.py")):
        if path.stem != "__init__" and not path.stem.endswith("_checks"):
            found.append(Namespace(name=f"largebatch.integrations.{path.stem}", path=path))
    return found


def _targets(path: Path) -> dict[str, str]:
    """Return each public name of a namespace with the full path of its definition."""
    text = path.read_text()
    module = module_of(path)
    kinds = (ast.ClassDef, ast.FunctionDef)
    defined = [node.name for node in ast.parse(text).body if isinstance(node, kinds)]
    if "integrations" in path.parts:
        return {name: f"{module}.{name}" for name in defined if not name.startswith("_")}
    if path in public_names.FACES:
        table = public_names.table_of(text, "NAMES")
        return {name: _definition(f"{home}.{name}") for name, home in table.items()}
    found = {name: f"{module}.{name}" for name in defined}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                target = _definition(f"{node.module}.{alias.name}")
                found[alias.asname or alias.name] = target
    return {name: found[name] for name in sorted(public_names.names_imported_by(path))}


@cache
def _tree(module: str) -> ast.Module:
    """Return what is written in the file of a module."""
    return ast.parse(file_of(module).read_text())


def _definition(target: str) -> str:
    """Return the path of an object's definition, by way of the imports of its module."""
    module, _, name = target.rpartition(".")
    if not module.startswith("largebatch"):
        return target
    for node in _tree(module).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(f"{node.module}.{alias.name}")
    return target


def module_of(path: Path) -> str:
    """Return the full name of the module that a file defines."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def file_of(module: str) -> Path:
    """Return the file that defines a module."""
    path = SOURCE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def summary_of(target: str) -> str:
    """Return the first sentence of an object's docstring, on one line."""
    module, _, name = target.rpartition(".")
    body = _tree(module).body
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return first_sentence(ast.get_docstring(node) or "")
        if isinstance(node, ast.Assign | ast.AnnAssign) and name in _assigned(node):
            text = below.value if isinstance(below, ast.Expr) else None
            return first_sentence(str(text.value) if isinstance(text, ast.Constant) else "")
    raise LookupError(f"{target} is a public name, but {module} does not define it.")


def _assigned(node: ast.Assign | ast.AnnAssign) -> list[str]:
    """Return the names that an assignment binds."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def first_sentence(docstring: str) -> str:
    """Return the first sentence of a docstring, on one line.

    >>> first_sentence("Return tr Sigma, e.g. 2.0.\\n\\nMore.")
    'Return tr Sigma, e.g. 2.0.'
    >>> first_sentence("Measure. Then decide.")
    'Measure.'
    """
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    for place, character in enumerate(paragraph):
        ends = character == "." and paragraph[place + 1 : place + 2] in ("", " ")
        if ends and paragraph[place + 2 : place + 3].isupper() | (place + 1 == len(paragraph)):
            return paragraph[: place + 1]
    return paragraph
