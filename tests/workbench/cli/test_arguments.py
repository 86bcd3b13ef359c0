"""Arguments of functions are shown as the options of the command that calls them."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from largebatch.core.errors import RecordError
from largebatch.workbench.cli.arguments import FunctionCommand, with_options

OPTIONS = [
    click.Option(["--base-batch", "base_batch_size"]),
    click.Option(["--noise-scale", "noise_scales"]),
    click.Option(["--record"]),
]
COMMAND = click.Command("plan", params=[click.Argument(["schedule"]), *OPTIONS])


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Pass base_batch_size=256.", "Pass --base-batch 256."),
        ("Pass base_batch_size=1_000 or more", "Pass --base-batch 1_000 or more"),
        ("Leave out base_batch_size=.", "Leave out --base-batch."),
        ("noise_scales=[500, 20000], record=a", "--noise-scale 500,20000, --record a"),
        ("record='a b.jsonl' or record=\"c\"", "--record a b.jsonl or --record c"),
        ("base_batch_size=-1.5 was given", "--base-batch -1.5 was given"),
        ("(record=a)", "(--record a)"),
        ("lb.train(a, record=b), record=c", "lb.train(a, record=b), --record c"),
        ("f(g(h(), 1), record=b) and record=c", "f(g(h(), 1), record=b) and --record c"),
        ("the record, my_record=3, schedule=x", "the record, my_record=3, schedule=x"),
    ],
)
def test_arguments_become_options(message: str, shown: str) -> None:
    assert with_options(message, command=COMMAND) == shown


def test_a_call_of_the_function_becomes_a_command_line() -> None:
    shown = with_options("Pass more: lb.plan(..., base_batch_size=256)", command=COMMAND)
    assert shown == "Pass more: largebatch plan ... --base-batch 256"


def test_a_set_flag_has_no_value_and_a_list_no_quotes() -> None:
    command = click.Command(
        "train", params=[click.Option(["--resume"], is_flag=True), click.Option(["--methods"])]
    )
    message = "Pass resume=True and methods=['adascale', 'linear+']."
    assert with_options(message, command=command) == "Pass --resume and --methods adascale,linear+."


def test_a_command_without_options_changes_nothing() -> None:
    assert with_options("record=1", command=click.Command("bare")) == "record=1"


@pytest.mark.parametrize("kind", [ValueError, RecordError])
def test_an_error_stays_what_it_is_and_names_the_option(kind: type[Exception]) -> None:
    def refuse(record: str | None) -> None:
        raise kind(f"record={record!r} is missing.")

    command = FunctionCommand("plan", callback=refuse, params=[click.Option(["--record"])])
    ended = CliRunner().invoke(command, ["--record", "a.jsonl"])
    assert type(ended.exception) is kind
    assert str(ended.exception) == "--record a.jsonl is missing."
