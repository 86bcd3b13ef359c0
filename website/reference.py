"""Write the pages of the reference: one page for each namespace, and the command line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable

import click

from largebatch.workbench.cli.main import cli
from public_objects import (
    SOURCE,
    Namespace,
    PublicObject,
    first_sentence,
    module_of,
    namespaces,
    public_names,
)


def pages() -> dict[str, str]:
    """Return path -> Markdown of each page of the reference."""
    spaces = namespaces()
    homes = {thing.target: space for space in spaces for thing in space.objects}
    written = {space.page: namespace_page(space, homes) for space in spaces}
    return {**written, "reference/command-line.md": command_line_page()}


def overview() -> str:
    """Return the table of all namespaces with their opening sentences."""
    rows = [
        f"| [`{space.name}`]({space.page.rpartition('/')[2]}) | {opening(space)} |"
        for space in namespaces()
    ]
    command = "| [`largebatch`](command-line.md) | Lists the commands and their options. |"
    return "\n".join(["| namespace | what it holds |", "| --- | --- |", *rows, command])


def moved_names() -> str:
    """Return the table of the names that have moved since version 0.1."""
    lines = ["| name of version 0.1 | current name |", "| --- | --- |"]
    for path in sorted(SOURCE.rglob("__init__.py")):
        for old, place in public_names.table_of(path.read_text(), "MOVED").items():
            lines.append(
                f"| `{module_of(path)}.{old}` | `{place}` |".replace("`largebatch.", "`lb.")
            )
    return "\n".join(lines)


def opening(space: Namespace) -> str:
    """Return the first sentence of a namespace's docstring."""
    return first_sentence(ast.get_docstring(ast.parse(space.path.read_text())) or "")


def namespace_page(space: Namespace, homes: dict[str, Namespace]) -> str:
    """Return the page of a namespace: a table of its names, then each object in full.

    Args:
        space: Namespace to write the page for.
        homes: Full path of each object's definition -> namespace whose page describes it.
    """
    things = sorted([*space.objects, *space.elsewhere], key=lambda thing: _last(thing).lower())
    title = f"{space.name} (largebatch)" if space.name == "lb" else space.name
    lines = [f"# {title}", "", opening(space), "", "| name | what it is |", "| --- | --- |"]
    for thing in things:
        home = homes[thing.target]
        file = "" if home is space else home.page.rpartition("/")[2]
        lines.append(f"| [`{_last(thing)}`]({file}#{thing.name}) | {_cell(thing.summary)} |")
    for thing in sorted(space.objects, key=lambda thing: _last(thing).lower()):
        lines += ["", *_entry(thing)]
    return "\n".join(lines) + "\n"


def _last(thing: PublicObject) -> str:
    """Return the last part of an object's name."""
    return thing.name.rpartition(".")[2]


def _cell(text: str) -> str:
    """Return a text that fits into a cell of a Markdown table."""
    return text.replace("|", "\\|")


def _entry(thing: PublicObject) -> Iterable[str]:
    """Yield the Markdown of one object; mkdocstrings replaces the block by its docstring."""
    yield f'<a id="{thing.name}"></a>'
    yield ""
    yield f"::: {thing.target}"
    yield "    options:"
    yield f"      heading: {_last(thing)}"
    yield f"      toc_label: {_last(thing)}"
    yield ""
    module = thing.target.rpartition(".")[0]
    names = [f"`{name}`" for name in thing.names]
    if ".integrations." in module:
        yield f"Import: `from {module} import {_last(thing)}`"
    elif len(names) > 1:
        yield f"Public names: {' and '.join(names)}"


def command_line_page() -> str:
    """Return the page of the command line, from the help of each command."""
    context = click.Context(cli, info_name="largebatch")
    lines = [
        "# Command line",
        "",
        _prose(cli.help or ""),
        "",
        "```text",
        "largebatch COMMAND",
        "```",
    ]
    lines += ["", "| command | what it does |", "| --- | --- |"]
    for name, command in sorted(cli.commands.items()):
        lines.append(f"| [`{name}`](#{name}) | {_cell(command.get_short_help_str(limit=200))} |")
    for name, command in sorted(cli.commands.items()):
        lines += ["", *_command(name, command, context)]
    return "\n".join(lines) + "\n"


def _command(name: str, command: click.Command, parent: click.Context) -> Iterable[str]:
    """Yield the Markdown of one command: its usage, its help, its options."""
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"## {name} {{ #{name} }}"
    yield ""
    yield f"```text\nlargebatch {name} {usage}\n```"
    yield ""
    yield _prose(command.help or "")
    for option in command.get_params(context):
        record = option.get_help_record(context)
        if record is not None and record[1] and "--help" not in option.opts:
            yield ""
            yield f"`{record[0]}`"
            yield f":   {_prose(record[1])}"


def _prose(text: str) -> str:
    """Return a help text as Markdown: click's mark for kept line breaks becomes a code block."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if paragraph.startswith("\b\n"):
            kept = paragraph.removeprefix("\b\n")
            paragraphs.append(f"```text\n{kept}\n```")
        else:
            plain = " ".join(paragraph.split()).replace("<", "&lt;").replace("*", "\\*")
            paragraphs.append(_with_code(plain))
    return "\n\n".join(paragraphs)


def _with_code(text: str) -> str:
    """Return a help text whose commands and options are marked as code.

    >>> _with_code("Start with: largebatch demo")
    'Start with: <code>largebatch demo</code>'
    >>> _with_code("In largebatch plan, pass --out.")
    'In <code>largebatch plan</code>, pass <code class="one-line">--out</code>.'
    """
    sentence, colon, command = text.rpartition(": ")
    if re.match(r"(torchrun|largebatch) ", command):
        return f"{_with_code(sentence)}{colon}<code>{command}</code>"
    commands = "|".join(sorted(cli.commands))
    text = re.sub(rf"(?<![\w`-])largebatch (?:{commands})\b", r"<code>\g<0></code>", text)
    return re.sub(r"(?<![\w`-])--[a-z][\w-]*", r'<code class="one-line">\g<0></code>', text)
