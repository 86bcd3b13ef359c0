"""What the documentation shows is true: its code runs, its commands parse, its links and names
lead somewhere.

A block fenced as ```python runs after `PRELUDE`, each block by itself; the fence says otherwise:

    ```python continues     runs in the names that the block before it left
    ```python torchrun      is a whole program, run by torchrun on two processes
    ```python notest        is compiled only, as is a block whose first line is `# sketch`

What a comment gives after `# -> ` is printed by its block, in this order. A ```text block that
directly follows shows what is printed; its numbers may differ, and `...` ends a line that is cut. A
block that imports a package of `OPTIONAL` is skipped where that is missing.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest

import generated
import largebatch
from distributed import run_program
from largebatch.workbench.cli.main import cli
from offenders import assert_no_offenders

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "largebatch"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])

GENERATED = {ROOT / "docs" / place for place in generated.pages()}
"""Pages of the site that are made from other files, such as the reference."""

PRELUDE = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
import largebatch as lb

x, y = torch.randn(1024, 3), torch.randint(0, 2, (1024,))
dataset = TensorDataset(x, y)
loader = DataLoader(dataset, batch_size=64)
model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[30, 60])
loss_fn = nn.CrossEntropyLoss()
moments = [
    lb.GradientMoments(batch_size=64, parts=4, batch_sqnorm=2.0 + i % 2, variance=64.0)
    for i in range(64)
]

def evaluate(model):
    with torch.no_grad():
        return loss_fn(model(x), y).item()

def save_checkpoint():
    pass
"""
"""Names that a reader of the pages has in a training script."""


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, what else its fence says, and its text."""

    page: Path
    line: int
    language: str
    kind: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_in(text: str, *, page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    fence = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for found in fence.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, line, found[1], found[2] or "", found[3])


BLOCKS = [block for page in PAGES for block in blocks_in(page.read_text(), page=page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
PROGRAMS = [block for block in PYTHON if block.kind == "torchrun"]
OPTIONAL = ("accelerate", "lightning")


def pieces() -> Iterator[list[Block]]:
    """The blocks to run: each with those before it that it continues."""
    piece: list[Block] = []
    for block in PYTHON:
        if block.kind in ("notest", "torchrun") or block.text.startswith("# sketch"):
            continue
        if block.kind == "continues":
            piece.append(block)
            continue
        if piece:
            yield piece
        piece = [block]
    if piece:
        yield piece


def run(piece: list[Block]) -> dict[str, Any]:
    """Runs blocks after the prelude; the names that they leave."""
    names: dict[str, Any] = {"__name__": "docs"}
    exec(compile(PRELUDE, "prelude", "exec"), names)
    for block in piece:
        shifted = "\n" * block.line + block.text  # so that an error names the page's line
        exec(compile(shifted, str(block.page), "exec", dont_inherit=True), names)
    return names


@pytest.mark.parametrize("piece", list(pieces()), ids=lambda piece: piece[0].name)
def test_the_code_that_is_shown_runs(
    piece: list[Block],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    for package in OPTIONAL:
        if any(f"import {package}" in b.text or f"from {package}" in b.text for b in piece):
            pytest.importorskip(package)
    if any("import lightning" in b.text or "from lightning" in b.text for b in piece):
        warnings.simplefilter("ignore")  # Lightning calls functions that torch has deprecated
    run(piece)
    lines = capsys.readouterr().out.splitlines()
    printed = iter(lines)
    promised = [line for block in piece for line in promises(block)]
    missing = [line for line in promised if line not in printed]  # reads on from the one before
    assert not missing
    assert not unlike(shown_after(piece), lines)


@pytest.fixture(autouse=True)
def _no_state() -> Iterator[None]:
    """accelerate keeps its settings in class attributes."""
    yield
    if (state := sys.modules.get("accelerate.state")) is not None:
        for kept in (state.AcceleratorState, state.GradientState, state.PartialState):
            kept._reset_state()


def promises(block: Block) -> list[str]:
    """The lines that a block says it prints."""
    return re.findall(r"# -> (.+)", block.text)


def shown_after(piece: list[Block]) -> list[str]:
    """The lines of the ```text blocks that directly follow a block of the piece."""
    texts = [
        after.text for one, after in pairwise(BLOCKS) if one in piece and after.language == "text"
    ]
    return [line for text in texts for line in text.splitlines()]


def unlike(shown: list[str], printed: list[str]) -> list[str]:
    """The shown lines that nothing printed is like, up to numbers and to what `...` stands for."""
    found = [without_numbers(line) for line in printed]
    return [
        line
        for line in shown
        if not any(
            one.startswith(without_numbers(line[:-3]))
            if line.endswith("...")
            else one == without_numbers(line)
            for one in found
        )
    ]


def without_numbers(line: str) -> str:
    """The line with `#` in the place of each number."""
    return re.sub(r"\d[\d.,]*", "#", line)


def unreadable_blocks(blocks: list[Block]) -> Iterator[str]:
    """Each block whose fence says an unknown kind, or that is no Python."""
    for block in blocks:
        if block.kind not in ("", "continues", "torchrun", "notest"):
            yield f"{block.name} {block.kind!r}"
        try:
            ast.parse(block.text)
        except SyntaxError as error:
            yield f"{block.name} line {error.lineno} of the block: {error.msg}"


def test_every_block_is_python_of_a_known_kind() -> None:
    remedy = "Fence it as python, python continues, python torchrun or python notest."
    assert_no_offenders(unreadable_blocks(PYTHON), remedy=remedy)


@pytest.mark.distributed
@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: block.name)
def test_a_program_for_torchrun_runs_on_two_processes(block: Block, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(block.text)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = run_program(*launcher, "train.py", cwd=tmp_path)
    assert done.returncode == 0, f"{done.stderr[:3000]}\n...\n{done.stderr[-1000:]}"
    lines = done.stdout.splitlines()
    assert len(lines) == 1, "the first rank alone prints its one line"
    assert promises(block) in ([], lines)


def overlooked_blocks(text: str, *, page: Path) -> Iterator[str]:
    """Each fence of Python that `blocks_in` does not take for one: indented, or never closed."""
    found = [block.line for block in blocks_in(text, page=page) if block.language == "python"]
    for number, line in enumerate(text.splitlines(), start=1):
        if "```py" in line and number not in found:
            yield f"{page.relative_to(ROOT)}:{number} {line}"


def test_no_python_block_of_a_page_is_overlooked() -> None:
    found = [line for page in PAGES for line in overlooked_blocks(page.read_text(), page=page)]
    assert_no_offenders(found, remedy="Open with ```python at the line's start; close with ```.")


def calls(blocks: list[Block]) -> Iterator[tuple[str, list[str]]]:
    """(where, arguments) of each call of the command line in a shell block."""
    for block in blocks:
        if block.language not in ("sh", "bash", "console"):
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "largebatch" in words:
                yield block.name, words[words.index("largebatch") + 1 :]


def unknown_calls(blocks: list[Block]) -> Iterator[str]:
    """Each call of the command line that it would refuse."""
    for where, words in calls(blocks):
        try:
            cli.commands[words[0]].make_context(words[0], words[1:])
        except (KeyError, click.ClickException) as error:
            yield f"{where} largebatch {shlex.join(words)}: {error}"


def test_a_command_that_is_shown_is_one_that_parses() -> None:
    remedy = "Show commands and options that `largebatch --help` lists."
    assert_no_offenders(unknown_calls(BLOCKS), remedy=remedy)


def dead_links(text: str, *, page: Path) -> Iterator[str]:
    """Each link to a file of the project that is not there and that the site does not generate."""
    for found in re.finditer(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        link = found[1]
        place = Path(os.path.normpath(page.parent / link))
        if not re.match(r"\w+:", link) and not (place.exists() or place in GENERATED):
            yield f"{page.relative_to(ROOT)}:{line_of(text, found)} {link}"


def line_of(text: str, found: re.Match[str]) -> int:
    """The line on which a match begins."""
    return text.count("\n", 0, found.start()) + 1


def test_every_link_within_the_project_leads_to_a_file() -> None:
    found = [line for page in PAGES for line in dead_links(page.read_text(), page=page)]
    assert_no_offenders(found, remedy="Link to where the file is now, relative to the page.")


@cache
def members() -> dict[str, set[str]]:
    """Class -> what its body and its `self.x = ...` name, inherited names among them."""
    own: dict[str, set[str]] = {}
    bases: dict[str, list[str]] = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                text = ast.unparse(node)
                names = set(re.findall(r"def (\w+)|self\.(\w+)|^    (\w+)\s*[:=]", text, re.M))
                own.setdefault(node.name, set()).update(n for found in names for n in found if n)
                bases[node.name] = [ast.unparse(base) for base in node.bases]
    for name in own:
        own[name] |= {n for base in bases[name] for n in own.get(base, set())}
    return own


def unknown_names(text: str, *, page: Path) -> Iterator[str]:
    """Each public name and each member of a class of ours that does not exist."""
    where, known = page.relative_to(ROOT), members()
    for found in re.finditer(r"\blb\.(\w+)", text):
        if found[1] not in {*dir(largebatch), *largebatch.__all__}:
            yield f"{where}:{line_of(text, found)} {found[0]}"
    for found in re.finditer(r"`_?([A-Z]\w+)\.(\w+)", text):
        if found[1] in known and found[2] not in known[found[1]]:
            yield f"{where}:{line_of(text, found)} {found[1]}.{found[2]}"


def test_every_name_of_ours_in_the_text_exists() -> None:
    found = [line for page in PAGES for line in unknown_names(page.read_text(), page=page)]
    assert_no_offenders(found, remedy="Write the name that the code has now.")


@pytest.mark.parametrize(
    ("find", "text", "found"),
    [
        (overlooked_blocks, "a\n  ```python\n  1\n  ```\n", ["README.md:2   ```python"]),
        (overlooked_blocks, "```python\n1\n```\n```py\n1\n```\n", ["README.md:4 ```py"]),
        (dead_links, "a [b](docs)\n[c](docs/no.md#d) [e](https://f)\n", ["README.md:2 docs/no.md"]),
        (unknown_names, "lb.watch\nlb.no_such(1)", ["README.md:2 lb.no_such"]),
        (unknown_names, "`Meter.open`\n`Meter.no_such`", ["README.md:2 Meter.no_such"]),
    ],
)  # fmt: skip
def test_what_is_wrong_on_a_page_is_found_with_its_line(
    find: Callable[..., Iterator[str]], text: str, found: list[str]
) -> None:
    assert list(find(text, page=ROOT / "README.md")) == found


@pytest.mark.parametrize(
    ("find", "text", "found"),
    [
        (unreadable_blocks, "```python once\n1\n```\n", "README.md:1 'once'"),
        (unreadable_blocks, "```python\n1 +\n```\n", "README.md:1 line 1 of the block: invalid"),
        (unknown_calls, "```sh\nlargebatch fly --high\n```\n", "README.md:1 largebatch fly --high"),
        (unknown_calls, "```sh\nlargebatch demo --no-such\n```\n", "README.md:1 largebatch demo"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_block_is_found_with_its_line(
    find: Callable[..., Iterator[str]], text: str, found: str
) -> None:
    (line,) = find(list(blocks_in(text, page=ROOT / "README.md")))
    assert line.startswith(found)


def test_a_shown_line_that_nothing_printed_is_like_is_found() -> None:
    printed = ["scale 12 [9, 15] samples", "from examples; exact"]
    assert not unlike(["scale 7 [1, 2] samples", "from examples; ..."], printed)
    assert unlike(["scale 7 [1, 2] steps"], printed) == ["scale 7 [1, 2] steps"]


def test_the_rules_page_has_a_section_for_every_rule_and_a_row_for_every_method() -> None:
    from largebatch.methods import METHODS
    from largebatch.rules.kinds import RULES

    text = (ROOT / "docs" / "explanation" / "rules.md").read_text()
    assert not {name for name in RULES if f"### {name}\n" not in text}
    assert not {name for name in METHODS if f"| `{name}` |" not in text}


def test_blocks_and_what_they_continue_are_found() -> None:
    text = "a\n```python\nz = 1\n```\n```python continues\nz += 1\n```\n```sh\nls\n```\n"
    found = list(blocks_in(text, page=ROOT / "README.md"))
    assert [(b.line, b.language, b.kind) for b in found] == [
        (2, "python", ""), (5, "python", "continues"), (8, "sh", ""),
    ]  # fmt: skip
    assert run(found[:2])["z"] == 2
    with pytest.raises(NameError):
        run(found[1:2])
