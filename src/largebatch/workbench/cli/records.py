"""Define the commands `report` and `replay`, which read recorded runs."""

from __future__ import annotations

import click

from largebatch.workbench.cli.arguments import FunctionCommand
from largebatch.workbench.cli.output import as_json, console_of_results, print_json, print_text


@click.command("report", cls=FunctionCommand)
@click.argument("records", nargs=-1, required=True, metavar="RECORD...")
@click.option("--out", default="report.html", show_default=True, help="HTML file to write.")
def report_command(records: tuple[str, ...], *, out: str) -> None:
    """Draw one or several recorded runs as one HTML page.

    Each RECORD is a file that largebatch train --record wrote. If a record is corrupted or
    truncated, the page shows the steps before the fault. The page needs no network connection.
    """
    from largebatch.workbench.reports.report import write_report

    page = write_report(records, out)
    print_text(
        console_of_results(), f"The report was written to {page}. Open this file in a browser."
    )


@click.command("replay", cls=FunctionCommand)
@click.argument("record")
@click.option(
    "--method", required=True, help="Method to replay; run 'largebatch methods' for the names."
)
@as_json
def replay_command(record: str, *, method: str, as_json: bool) -> None:
    """Show what a method would decide about a recorded run.

    The method receives the measurements in RECORD step by step, and nothing is trained. In a
    training run with METHOD, the later measurements would differ from the recorded ones.
    """
    from largebatch.workbench.cli.tables import replay_table
    from largebatch.workbench.reports.replay import replay_file

    result = replay_file(record, method=method)
    console = console_of_results()
    print_json(result) if as_json else console.print(replay_table(result, console))
