"""Write the sections of a probe's report from the fields of the probe's result."""

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
        "Momentum and curvature: the numbers are derived for plain SGD and give all directions of "
        "the gradient the same weight. They show how much the gradient noise limits the progress, "
        "not which learning rate is stable."
    ),
    "Generalization: the numbers predict the training loss per step, not the error on new data.",
    (
        "Other settings: another learning rate, or the larger batch itself, leads to other "
        "weights, which have another noise scale. The intervals do not include this effect."
    ),
    (
        "Later training: steps that were not run are extrapolated, and the noise scale often "
        "rises. The intervals do not include the error of the extrapolation."
    ),
    (
        "Time: fewer steps save time only if one large batch takes less time than several small "
        "batches. Time one step at both batch sizes on your hardware."
    ),
)

ADAM = (
    "Adam: the theory is for plain SGD. Multiplying the learning rate by the square root of the "
    "gain is a rule of thumb without proof."
)


def scale_of(noise: NoiseOrReason) -> str:
    """Return a noise scale as the text of a table cell."""
    known = noise.estimate
    if known is None:
        return "unknown"
    return interval(Range(value=known.noise_scale, low=known.low, high=known.high))


def along_section(
    along: Sequence[Stretch], *, pooled: NoiseOrReason, steps: int, run_steps: int
) -> Section:
    """Return the section about the noise scale along the run."""
    heads = ("steps", "training loss", "noise scale, samples", "share of signal in a base batch")
    rows = [_stretch(piece) for piece in along]
    bars = sparkline(
        [math.nan if p.noise.estimate is None else p.noise.estimate.noise_scale for p in along]
    )
    notes = []
    if steps < run_steps:
        notes.append(
            f"Steps {steps:,} to {run_steps:,} were not run and are assumed to be like the last "
            "quarter of the probe."
        )
    notes.append(
        "Noise scale of all steps pooled, which gives steps with a large gradient more weight: "
        f"{scale_of(pooled)}. The predictions below give each step the same weight."
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
    """Return the section about the learning rate, steps and samples of larger batches."""
    base = base_batch_size
    heads = ("batch", "scale", "learning rate (x base)", "steps (x base)", "samples (x base)")
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
            "Doubling the batch saves a quarter of the steps or more, up to a batch of "
            f"{interval(outlook.paying)} samples."
        )
    else:
        pays = f"Even doubling the base batch of {base:,} saves less than a quarter of the steps."
    half = (
        f"Half efficiency: with a batch of {interval(outlook.twice_base)} samples, the run needs "
        "twice the samples of a run with the base batch. With a batch of "
        f"{interval(outlook.twice_fewest)}, the run needs twice the smallest possible number of "
        "samples."
    )
    rate = ("Adam's learning rate is multiplied by the square root of the gain: a rule of thumb.",)
    return Section(
        title=f"Larger batches, compared with the base batch of {base:,}, over the whole run",
        table=(heads, *rows),
        notes=(pays, half, *(rate if adam else ())),
    )


def forecast_section(
    outlook: BatchOutlook, *, base_batch_size: int, run_steps: int, dataset_size: int | None
) -> Section:
    """Return the section about the forecasts of AdaScale."""
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
        "The gain is the number of base steps that one step counts as; the mean gain is "
        f"{number(run_steps)} / steps. The forecast runs AdaScale's rule along the noise measured "
        "above. AdaScale decides from running averages. If the gradient's norm falls along the "
        "run, the averages lag behind, and AdaScale takes more steps than the table above shows."
    )
    trust = (
        "The forecast assumes that a large batch reaches the same weights after the same number "
        "of base steps. The forecast is therefore more reliable at scale 2 than at scale 32. At "
        "a large lr / (1 - momentum), a part of the gradient's norm is due to noise, and this "
        "part is smaller for a larger batch. AdaScale then takes fewer steps than the forecast: "
        "154 steps instead of 189 steps in one of our tests. With SGD at a constant learning rate, "
        "the lower bound of the interval includes this effect. With other optimizers or several "
        "learning rates, the interval does not include the effect."
    )
    notes = [gain, trust]
    largest = max((each.scale for each in outlook.forecasts), default=1)
    beyond = [each for each in sorted({*SCALES, outlook.scale}) if each > largest]
    if beyond:
        size = "" if dataset_size is None else f" of {dataset_size:,} samples"
        notes.append(
            f"Scales of {beyond[0]} or more are left out, because a batch of "
            f"{beyond[0] * base_batch_size:,} samples is larger than the data set{size}."
        )
    return Section(
        title=(
            "Forecast for AdaScale, which sets the learning rate during training, over the "
            "whole run"
        ),
        table=(heads, base, *rows),
        notes=tuple(notes),
    )


def blocks_section(blocks: Sequence[Block], *, adam: bool) -> Section:
    """Return the section about the noise of the model's modules."""
    heads = ("part of the model", "parameters", "share of the noise", "noise scale, samples")
    rows = [
        (block.name, f"{block.parameters:,}", f"{block.noise_share:.0%}", scale_of(block.noise))
        for block in blocks
    ]
    return Section(
        title="Noise of the raw gradient by part of the model"
        if adam
        else "Noise by part of the model",
        table=(heads, *rows),
    )


def checks_section(findings: Sequence[Finding]) -> Section:
    """Return the section with the findings of the checks, the worst first."""
    found = CheckUp(findings=tuple(findings)).worst_first
    return Section(title="Checks of the run", items=tuple(map(str, found)))


def limits_section(*, adam: bool) -> Section:
    """Return the section about what the probe does not predict."""
    items = (ADAM, *CANNOT_KNOW) if adam else CANNOT_KNOW
    return Section(title="What the probe cannot know", items=items)


def paste_section(
    outlook: BatchOutlook,
    *,
    base_batch_size: int,
    run_steps: int,
    adam: bool,
    preconditioned: bool,
    command_name: str | None,
) -> Section:
    """Return the section with lines to paste for a larger batch."""
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
            f"# {loop}, with two or more backward calls per step, or two or more ranks:",
            f"control = lb.attach(model, optimizer, {rule}, {sizes})",
            f"if control.base_steps >= {run_steps}: break    # instead of a number of steps",
            "control.advance(scheduler)    # instead of scheduler.step()",
        ),
    )


def _root(span: Range) -> Range:
    return Range(value=math.sqrt(span.value), low=math.sqrt(span.low), high=math.sqrt(span.high))
