"""The sections of a probe's report, each from the part of the result that it is about."""

from __future__ import annotations

import math
from collections.abc import Sequence

from largebatch.analysis.efficiency import Range
from largebatch.checks.finding import CheckUp, Finding
from largebatch.studies.noise_of_run import NoiseOrReason, Stretch
from largebatch.studies.probe_values import SCALES, BatchOutlook, Block
from largebatch.studies.report_text import Section, interval, number, sparkline

CANNOT_KNOW = (
    (
        "Momentum and curvature: the numbers are derived for plain SGD and add up all directions "
        "alike. They say how much the noise allows, not which learning rate is still stable."
    ),
    "Generalization: they speak of the training loss a step, not of the error on new data.",
    (
        "Other settings: another learning rate, or the larger batch itself, leads to other "
        "weights, which have another noise scale. Intervals do not include this."
    ),
    (
        "Later training: what was not run is extrapolated, and the noise scale often rises. "
        "Intervals do not include this either."
    ),
    (
        "Time: fewer steps are only faster where a larger batch takes less time than as many small "
        "ones. Measure a step at both sizes on your hardware."
    ),
)

ADAM = (
    "Adam: the theory is for plain SGD. That the square root of the gain is the right factor on "
    "the learning rate is a rule of thumb without proof."
)


def scale_of(noise: NoiseOrReason) -> str:
    """Return a noise scale for a table's cell."""
    known = noise.estimate
    if known is None:
        return "not enough signal"
    return interval(Range(value=known.noise_scale, low=known.low, high=known.high))


def along_section(
    along: Sequence[Stretch], *, pooled: NoiseOrReason, steps: int, run_steps: int
) -> Section:
    """Return the noise scale along the run."""
    heads = ("steps", "training loss", "noise scale, samples", "signal in the base batch")
    rows = [_stretch(piece) for piece in along]
    bars = sparkline(
        [math.nan if p.noise.estimate is None else p.noise.estimate.noise_scale for p in along]
    )
    notes = []
    if steps < run_steps:
        notes.append(
            f"Steps {steps:,} to {run_steps:,} were not run; they are taken to be "
            "like the last quarter of the probe."
        )
    notes.append(
        "All steps pooled, where steps with a large gradient count more: "
        f"{scale_of(pooled)}. What follows counts each step alike, as a run does."
    )
    return Section(
        title=f"Along the run  {bars}".rstrip(), table=(heads, *rows), notes=tuple(notes)
    )


def _stretch(piece: Stretch) -> tuple[str, ...]:
    share = (
        "unknown"
        if piece.noise.estimate is None
        else f"{piece.signal.value:.0%} [{piece.signal.low:.0%}, {piece.signal.high:.0%}]"
    )
    return f"{piece.start:,} to {piece.stop:,}", f"{piece.loss:.3g}", scale_of(piece.noise), share


def batches_section(outlook: BatchOutlook, *, base_batch_size: int, adam: bool) -> Section:
    """Return what larger batches take."""
    base = base_batch_size
    heads = ("batch", "scale", "times the learning rate", "times the steps", "times the samples")
    rows = [
        (
            f"{row.batch_size:,}",
            f"{row.scale:g}",
            interval(_root(row.lr_multiplier) if adam else row.lr_multiplier),
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
        notes=(pays, half, *(rate if adam else ())),
    )


def forecast_section(
    outlook: BatchOutlook, *, base_batch_size: int, run_steps: int, dataset_size: int | None
) -> Section:
    """Return the forecasts of AdaScale."""
    heads = ("scale", "batch", "mean gain", "steps", "samples")
    samples = run_steps * base_batch_size
    base = ("1", f"{base_batch_size:,}", "1", number(run_steps), number(samples))
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
        "The gain is how many steps of the base batch one step is worth; the mean gain is "
        f"{number(run_steps)} / steps. The forecast runs AdaScale's rule along the noise measured "
        "above. AdaScale decides from running averages: if the gradient's norm falls along the "
        "run, they lag behind, and it takes more steps than the table above says."
    )
    trust = (
        "The forecast assumes that large batches come by the same weights after as many base "
        "steps. So trust it for 2 times the batch more than for 32. At large lr / (1 - momentum), "
        "noise keeps up a part of the gradient's norm, and a larger batch keeps up less of it. "
        "AdaScale then takes fewer steps than the forecast: 154 for 189 in one of our tests. With "
        "SGD at one learning rate, the lower end of the interval allows for this; else it does not."
    )
    notes = [gain, trust]
    largest = max((each.scale for each in outlook.forecasts), default=1)
    beyond = [each for each in sorted({*SCALES, outlook.scale}) if each > largest]
    if beyond:
        size = "" if dataset_size is None else f" of {dataset_size:,} samples"
        notes.append(
            f"Scales from {beyond[0]} on are left out: a batch of {beyond[0] * base_batch_size:,} "
            f"is larger than the data set{size}, and nothing is known about it."
        )
    return Section(
        title="AdaScale, which sets the rate as it goes: forecast for the whole run",
        table=(heads, base, *rows),
        notes=tuple(notes),
    )


def blocks_section(blocks: Sequence[Block], *, adam: bool) -> Section:
    """Return the noise of the parts of the model."""
    heads = ("part of the model", "parameters", "of the noise", "its own noise scale")
    rows = [
        (block.name, f"{block.parameters:,}", f"{block.noise_share:.0%}", scale_of(block.noise))
        for block in blocks
    ]
    return Section(
        title="Where the noise of the bare gradient is" if adam else "Where the noise is",
        table=(heads, *rows),
    )


def checks_section(findings: Sequence[Finding]) -> Section:
    """Return the findings of the checks, the worst first."""
    found = CheckUp(findings=tuple(findings)).worst_first
    return Section(title="Checked", items=tuple(map(str, found)))


def limits_section(*, adam: bool) -> Section:
    """Return what the numbers do not say."""
    items = (ADAM, *CANNOT_KNOW) if adam else CANNOT_KNOW
    return Section(title="What this cannot know", items=items)


def paste_section(
    outlook: BatchOutlook,
    *,
    base_batch_size: int,
    run_steps: int,
    adam: bool,
    preconditioned: bool,
    command_name: str | None,
) -> Section:
    """Return lines to paste for a larger batch."""
    base, batch = base_batch_size, outlook.scale * base_batch_size
    method, rule = "adascale", "lb.AdaScale()"
    if adam:
        method, rule = "sqrt", "lb.SqrtScaling()"
    if preconditioned:
        method, rule = "adascale-adam", "lb.methods.adascale_adam()"
    sizes = f"batch_size={batch}, base_batch_size={base}"
    command = (f"largebatch train {command_name} --method {method} --scale {outlook.scale}",)
    loop = "or in your own loop" if command_name else "in your own loop"
    return Section(
        title=f"To use a batch of {batch:,} ({outlook.scale} times the base batch)",
        code=(
            *(command if command_name else ()),
            f"# {loop}, with two or more backward calls or ranks per step:",
            f"control = lb.attach(model, optimizer, {rule}, {sizes})",
            f"if control.base_steps >= {run_steps}: break    # instead of a number of steps",
            "control.advance(scheduler)    # instead of scheduler.step(), if there is one",
        ),
    )


def _root(span: Range) -> Range:
    return Range(value=math.sqrt(span.value), low=math.sqrt(span.low), high=math.sqrt(span.high))
