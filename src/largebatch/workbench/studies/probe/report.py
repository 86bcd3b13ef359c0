"""A probe's findings in words and tables: as text, or printed by rich."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from largebatch.analysis.efficiency import Range

if TYPE_CHECKING:
    from rich.console import Console

    from largebatch.workbench.studies.probe.forecast import Noise, Stretch
    from largebatch.workbench.studies.probe.result import Outlook, ProbeResult

WIDTH = 96
"""Columns of the text."""

BARS = "▁▂▃▄▅▆▇█"

CANNOT_KNOW = (
    (
        "Momentum and curvature: the numbers are derived for plain SGD and add up all directions "
        "alike. They say how much the noise allows, not which learning rate is still stable."
    ),
    "Generalization: they speak of the training loss a step, not of the error on new data.",
    (
        "Other settings: another learning rate, or the larger batch itself, leads to other "
        "weights, which have another noise scale."
    ),
    ("Later training: what was not run is extrapolated, and the noise scale often rises."),
    (
        "Time: fewer steps are only faster where a larger batch takes less time than as many small "
        "ones. Measure a step at both sizes on your hardware."
    ),
)

ADAM = (
    "Adam: the theory is for plain SGD. That the square root of the gain is the right factor on "
    "the learning rate is a rule of thumb without proof."
)


OVERSCALED = (
    "As Adam scales the gradient, its noise cannot be told: parameters that are rarely used, such "
    "as rows of an embedding, are divided by almost nothing when their turn comes, and hide all "
    "others. Take what follows, from the bare gradient, as a rough guide."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading, paragraphs, a table (its first row the heads) and lines to paste or to list."""

    title: str
    paragraphs: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
    after: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    code: tuple[str, ...] = ()


def report(result: ProbeResult) -> tuple[Section, ...]:
    """The sections of the report, those that have nothing to say left out."""
    sections = [_head(result), _along(result)]
    if result.outlook is not None:
        sections.append(_batches(result, result.outlook))
        if result.preconditioned or not result.adam:
            sections.append(_forecast(result, result.outlook))
    sections += [_blocks(result), _checks(result), _unknown(result)]
    if result.outlook is not None:
        sections.append(_paste(result, result.outlook))
    return tuple(sections)


def text_of(sections: tuple[Section, ...]) -> str:
    """Plain text, for which nothing needs to be installed."""
    return "\n\n".join("\n".join(_lines(section)) for section in sections)


def print_rich(sections: tuple[Section, ...], console: Console) -> None:
    """Prints the sections with rich."""
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table

    for section in sections:
        console.print(f"[bold]{escape(section.title)}[/]")
        for paragraph in section.paragraphs:
            console.print(Padding(escape(paragraph), (0, 0, 0, 2)))
        if section.table:
            table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
            for column, head in enumerate(section.table[0]):
                table.add_column(escape(head), justify="left" if column == 0 else "right")
            for row in section.table[1:]:
                table.add_row(*map(escape, row))
            console.print(Padding(table, (0, 0, 0, 2)))
        for paragraph in section.after:
            console.print(Padding(escape(paragraph), (0, 0, 0, 2)))
        for item in section.items:
            console.print(Padding(f"- {escape(item)}", (0, 0, 0, 2)))
        for line in section.code:
            console.print(f"    {escape(line)}", style="green", soft_wrap=True, highlight=False)
        console.print()


def number(value: float) -> str:
    """Three significant digits, thousands apart, without an exponent.

    >>> number(1234567.0), number(0.04567), number(math.inf)
    ('1,230,000', '0.0457', 'no limit')
    """
    if math.isinf(value):
        return "no limit"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100.0 else f"{rounded:g}"


def interval(span: Range) -> str:
    """A value with its interval; the lower end alone where there is no upper one.

    >>> interval(Range(value=4.0, low=3.0, high=6.0))
    '4 [3, 6]'
    >>> interval(Range(value=4.0, low=3.0, high=math.inf))
    'at least 3'
    """
    if math.isinf(span.high):
        return f"at least {number(span.low)}"
    return f"{number(span.value)} [{number(span.low)}, {number(span.high)}]"


def scale_of(noise: Noise) -> str:
    """A noise scale in a table's cell."""
    known = noise.estimate
    if known is None:
        return "not enough signal"
    return interval(Range(value=known.noise_scale, low=known.low, high=known.high))


def sparkline(values: list[float]) -> str:
    """One bar for each value, in its place between the least and the largest, by logarithm; a
    space where a value is not known.

    >>> sparkline([1.0, 10.0, 100.0, math.nan])
    '▁▅█ '
    """
    logs = [math.log(v) if 0.0 < v < math.inf else None for v in values]
    known = [log for log in logs if log is not None]
    low, span = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)
    if span <= 0.0:
        return ""
    last = len(BARS) - 1
    return "".join(
        " " if log is None else BARS[math.ceil((log - low) / span * last - 1e-9)] for log in logs
    )


def _head(result: ProbeResult) -> Section:
    part = result.steps / result.run_steps
    how = (
        f"Trained a copy for {result.steps:,} steps of {result.batch_size:,} samples ({part:.0%} "
        f"of a run of {result.run_steps:,} steps), each in {result.micro_batches} micro-batches"
        + (f" on {result.ranks} ranks" if result.ranks > 1 else "")
        + f", {result.optimizer}, learning rate {result.base_lr:g}, {result.seconds:.1f} s. "
        "Ranges in brackets hold with 95 %."
    )
    known = result.noise.estimate
    if known is None:
        return Section(title=f"Probe of {result.name}", paragraphs=(how, f"{result.noise}."))
    which = " of the gradient as Adam scales it" if result.preconditioned else ""
    which = " of the bare gradient" if result.adam and not result.preconditioned else which
    span = Range(value=known.noise_scale, low=known.low, high=known.high)
    found = (
        f"Noise scale{which}: {interval(span)} samples, over the whole run. In a batch of that "
        "size the gradient is as much signal as noise: much smaller batches are mostly noise, so "
        "twice the batch is worth nearly two steps; much larger ones gain hardly anything."
    )
    paragraphs = [how, found]
    if result.adam and not result.preconditioned:
        paragraphs.append(OVERSCALED)
    if result.bare_noise is not None:
        paragraphs.append(f"The bare gradient's, without Adam: {scale_of(result.bare_noise)}.")
    return Section(title=f"Probe of {result.name}", paragraphs=tuple(paragraphs))


def _along(result: ProbeResult) -> Section:
    heads = ("steps", "training loss", "noise scale, samples", "signal in the base batch")
    rows = [_stretch(piece) for piece in result.along]
    bars = sparkline(
        [
            math.nan if p.noise.estimate is None else p.noise.estimate.noise_scale
            for p in result.along
        ]
    )
    after = []
    if result.steps < result.run_steps:
        after.append(
            f"Steps {result.steps:,} to {result.run_steps:,} were not run; they are taken to be "
            "like the last quarter of the probe."
        )
    after.append(
        "All steps pooled, where steps with a large gradient count more: "
        f"{scale_of(result.pooled)}. What follows counts each step alike, as a run does."
    )
    return Section(
        title=f"Along the run  {bars}".rstrip(), table=(heads, *rows), after=tuple(after)
    )


def _stretch(piece: Stretch) -> tuple[str, ...]:
    share = (
        "unknown"
        if piece.noise.estimate is None
        else f"{piece.signal.value:.0%} [{piece.signal.low:.0%}, {piece.signal.high:.0%}]"
    )
    return f"{piece.start:,} to {piece.stop:,}", f"{piece.loss:.3g}", scale_of(piece.noise), share


def _batches(result: ProbeResult, outlook: Outlook) -> Section:
    base = result.base_batch_size
    heads = ("batch", "scale", "times the learning rate", "times the steps", "times the samples")
    rows = [
        (
            f"{row.batch_size:,}",
            f"{row.scale:g}",
            interval(_root(row.lr_multiplier) if result.adam else row.lr_multiplier),
            interval(row.steps),
            interval(row.samples),
        )
        for row in outlook.rows
    ]
    if outlook.paying.value > base:
        pays = (
            f"Doubling pays, that is saves a quarter of the steps or more, up to a batch of "
            f"{interval(outlook.paying)}."
        )
    else:
        pays = f"Not even the first doubling of {base:,} saves a quarter of the steps."
    half = (
        f"Half efficiency: twice the samples of the base batch at a batch of "
        f"{interval(outlook.twice_base)}; twice the fewest samples that any batch needs at "
        f"{interval(outlook.twice_fewest)}."
    )
    rate = ("With Adam the rate is multiplied by the square root of the gain: a rule of thumb.",)
    return Section(
        title=f"Larger batches, beside the base batch of {base:,}, over the whole run",
        table=(heads, *rows),
        after=(pays, half, *(rate if result.adam else ())),
    )


def _forecast(result: ProbeResult, outlook: Outlook) -> Section:
    heads = ("scale", "batch", "mean gain", "steps", "samples")
    samples = result.run_steps * result.base_batch_size
    base = ("1", f"{result.base_batch_size:,}", "1", number(result.run_steps), number(samples))
    rows = [
        (
            str(each.scale),
            f"{each.batch_size:,}",
            interval(each.mean_gain),
            interval(each.steps),
            interval(each.samples),
        )
        for each in outlook.forecasts
    ]
    gain = (
        "The gain is how many steps of the base batch one step is worth. The forecast takes the "
        "noise scale along a run with large batches to be what it is here, so trust it for 8 times "
        "the batch more than for 128."
    )
    after = [gain]
    if result.dataset_size is not None and outlook.forecasts[-1].batch_size > result.dataset_size:
        after.append(
            f"The data set has {result.dataset_size:,} samples: of larger batches nothing is known."
        )
    return Section(
        title="AdaScale, which sets the rate as it goes: forecast for the whole run",
        table=(heads, base, *rows),
        after=tuple(after),
    )


def _blocks(result: ProbeResult) -> Section:
    heads = ("part of the model", "parameters", "of the noise", "its own noise scale")
    rows = [
        (block.name, f"{block.parameters:,}", f"{block.noise_share:.0%}", scale_of(block.noise))
        for block in result.blocks
    ]
    return Section(
        title="Where the noise of the bare gradient is" if result.adam else "Where the noise is",
        table=(heads, *rows),
    )


def _checks(result: ProbeResult) -> Section:
    items = tuple(f"{'ok' if c.sound else 'LOOK'}: {c.text}" for c in result.checks)
    return Section(title="Checked", items=items)


def _unknown(result: ProbeResult) -> Section:
    items = (ADAM, *CANNOT_KNOW) if result.adam else CANNOT_KNOW
    return Section(title="What this cannot know", items=items)


def _paste(result: ProbeResult, outlook: Outlook) -> Section:
    base, batch = result.base_batch_size, outlook.scale * result.base_batch_size
    method, rule = "adascale", "lb.AdaScale()"
    if result.adam:
        method, rule = "sqrt", "lb.SqrtScaling()"
    if result.preconditioned:
        method, rule = "adascale-adam", "lb.methods.adascale_adam()"
    sizes = f"batch_size={batch}, base_batch_size={base}"
    command = (f"largebatch train {result.command_name} --method {method} --scale {outlook.scale}",)
    return Section(
        title=f"To use a batch of {batch:,} ({outlook.scale} times the base batch)",
        code=(
            *(command if result.command_name else ()),
            "# or in your own loop, with two or more backward calls or ranks a step:",
            f"control = lb.attach(model, optimizer, {rule}, {sizes})",
            f"if control.base_steps >= {result.run_steps}: break    # instead of a number of steps",
            "control.advance(scheduler)    # instead of scheduler.step(), if there is one",
        ),
    )


def _root(span: Range) -> Range:
    return Range(value=math.sqrt(span.value), low=math.sqrt(span.low), high=math.sqrt(span.high))


def _lines(section: Section) -> Iterator[str]:
    yield section.title
    for paragraph in section.paragraphs:
        yield from _wrapped(paragraph)
    yield from _aligned(section.table)
    for paragraph in section.after:
        yield from _wrapped(paragraph)
    for item in section.items:
        yield from _wrapped(f"- {item}", hanging="    ")
    for line in section.code:
        yield f"    {line}"


def _wrapped(paragraph: str, *, hanging: str = "  ") -> list[str]:
    return textwrap.wrap(
        paragraph,
        WIDTH,
        initial_indent="  ",
        subsequent_indent=hanging,
        break_on_hyphens=False,
    )


def _aligned(table: tuple[tuple[str, ...], ...]) -> Iterator[str]:
    """Columns as wide as their widest cell, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  " + "   ".join(cells)
