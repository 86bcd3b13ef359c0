"""What a probe found; printing it shows the report as text."""

from __future__ import annotations

from dataclasses import dataclass

from largebatch.analysis.efficiency import Range
from largebatch.checks.finding import Finding
from largebatch.studies.noise_of_run import NoiseOrReason, Stretch
from largebatch.studies.probe_sections import (
    along_section,
    batches_section,
    blocks_section,
    checks_section,
    forecast_section,
    limits_section,
    paste_section,
    scale_of,
)
from largebatch.studies.probe_values import BatchOutlook, Block
from largebatch.studies.report_text import Section, interval, sections_text

OVERSCALED = (
    "As Adam scales the gradient, its noise cannot be told: parameters that are rarely used, such "
    "as rows of an embedding, are divided by almost nothing when their turn comes, and hide all "
    "others. Take what follows, from the bare gradient, as a rough guide."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """The result of a probe; `print` shows it as text.

    Args:
        name: of the workload, or of the model's class.
        command_name: by which `largebatch train` knows it; None where it does not.
        optimizer: class name.
        adam: whether the optimizer is of the Adam family.
        preconditioned: whether noise scales are those of the gradient as Adam scales it; with Adam
            they are not where its denominators are too small (`overscaled`). Blocks never are.
        base_lr: learning rate of the first parameter group.
        base_batch_size: b, in samples.
        batch_size: samples of one measured step.
        micro_batches: parts of one measured step, over all ranks.
        ranks: processes that shared the batch.
        dataset_size: samples in an epoch, where known.
        steps: measured.
        run_steps: of the whole run at the base batch.
        seed: of weights, samples and intervals.
        seconds: that the probe took.
        noise: the noise scale that counts for the whole run, each base step alike.
        pooled: the noise scale of all steps pooled, where large gradients count more.
        along: the pieces of the probe.
        bare_noise: where they are, the noise scale of the bare gradient over the run.
        blocks: the parts of the model.
        checks: what else was looked at.
        outlook: what follows; None where the noise scale is unknown.
    """

    name: str
    command_name: str | None
    optimizer: str
    adam: bool
    preconditioned: bool
    base_lr: float
    base_batch_size: int
    batch_size: int
    micro_batches: int
    ranks: int
    dataset_size: int | None
    steps: int
    run_steps: int
    seed: int
    seconds: float
    noise: NoiseOrReason
    pooled: NoiseOrReason
    along: tuple[Stretch, ...]
    bare_noise: NoiseOrReason | None
    blocks: tuple[Block, ...]
    checks: tuple[Finding, ...]
    outlook: BatchOutlook | None

    def __str__(self) -> str:
        return sections_text(sections_of_probe(self))


def sections_of_probe(result: ProbeResult) -> tuple[Section, ...]:
    """Return the sections of the report, without those that have nothing to say."""
    sections = [
        _head(result),
        along_section(
            result.along, pooled=result.pooled, steps=result.steps, run_steps=result.run_steps
        ),
    ]
    if result.outlook is not None:
        sections += _outlook_sections(result, result.outlook)
    sections += [
        blocks_section(result.blocks, adam=result.adam),
        checks_section(result.checks),
        limits_section(adam=result.adam),
    ]
    if result.outlook is not None:
        sections.append(
            paste_section(
                result.outlook,
                base_batch_size=result.base_batch_size,
                run_steps=result.run_steps,
                adam=result.adam,
                preconditioned=result.preconditioned,
                command_name=result.command_name,
            )
        )
    return tuple(sections)


def _outlook_sections(result: ProbeResult, outlook: BatchOutlook) -> list[Section]:
    sections = [batches_section(outlook, base_batch_size=result.base_batch_size, adam=result.adam)]
    if result.preconditioned or not result.adam:
        sections.append(
            forecast_section(
                outlook,
                base_batch_size=result.base_batch_size,
                run_steps=result.run_steps,
                dataset_size=result.dataset_size,
            )
        )
    return sections


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
