"""The commands about records: `report` and `replay`."""

from __future__ import annotations

import click

from largebatch.workbench.cli.output import as_json, console_of_results, print_json, say


@click.command("report")
@click.argument("records", nargs=-1, required=True, metavar="RECORD...")
@click.option("--out", default="report.html", show_default=True, help="The page to write.")
def report_command(records: tuple[str, ...], *, out: str) -> None:
    """Draw one run, or several side by side, as a page that needs no network.

    A RECORD is what train --record wrote; one that a crash cut is shown up to the cut.
    """
    from largebatch.workbench.reports.report import write_report

    page = write_report(records, out)
    say(console_of_results(), f"The report is in {page}: open it in a browser.")


@click.command("replay")
@click.argument("record")
@click.option("--method", required=True, help="See: largebatch methods.")
@as_json
def replay_command(record: str, *, method: str, as_json: bool) -> None:
    """Tell what a method would have said about the run in RECORD, not what it would have done."""
    from largebatch.workbench.cli.tables import replay_table
    from largebatch.workbench.reports.replay import replay_file

    result = replay_file(record, method=method)
    print_json(result) if as_json else console_of_results().print(replay_table(result))
