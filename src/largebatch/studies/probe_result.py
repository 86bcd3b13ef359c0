"""Hold the result of a probe, and print it as a text report."""

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
    "The noise of the preconditioned gradient (divided as Adam divides it) could not be measured. "
    "Parameters that are rarely used, such as rows of an embedding, are divided by almost zero "
    "when they are used, and this hides the noise of all other parameters. The numbers below come "
    "from the raw gradient, so they are only a rough guide for Adam."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """Hold the result of a probe; `print` shows it as a text report.

    Args:
        name: Name of the workload, or of the model's class.
        command_name: Name of the workload for `largebatch train`; None if it has no such name.
        optimizer: Class name of the optimizer.
        adam: Whether the optimizer belongs to the Adam family.
        preconditioned: Whether noise scales are computed from the preconditioned gradient (divided
            as Adam divides it). With Adam, `preconditioned` is False if Adam's denominators are too
            small (`overscaled`). The noise scales of single modules (`blocks`) are always computed
            from the raw gradient.
        base_lr: Learning rate of the first parameter group.
        base_batch_size: Base batch size b in samples.
        batch_size: Number of samples in one measured step.
        micro_batches: Number of micro-batches in one measured step, over all ranks.
        ranks: Number of processes that shared the batch.
        dataset_size: Number of samples in one epoch; None if unknown.
        steps: Number of measured steps.
        run_steps: Number of steps of the whole run at the base batch size.
        seed: Seed of weights, samples and intervals.
        seconds: Duration of the probe in seconds.
        noise: Noise scale that represents the whole run, where each base step has the same weight.
        pooled: Noise scale of all steps pooled, where steps with a large gradient have more weight.
        along: Pieces of the probe, in order.
        bare_noise: Noise scale of the raw gradient over the run, if `preconditioned` is True; else
            None.
        blocks: Noise of each module of the model.
        checks: Findings of the checks.
        outlook: Predictions for larger batches; None if the noise scale is unknown.
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
    """Return the sections of the report, without sections that have no content."""
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
        f"The probe trained a copy of the model for {result.steps:,} steps of "
        f"{result.batch_size:,} samples ({part:.0%} of a run of {result.run_steps:,} steps), each "
        f"in {result.micro_batches} micro-batches"
        + (f" on {result.ranks} ranks" if result.ranks > 1 else "")
        + f", with {result.optimizer} and learning rate {result.base_lr:g}, in "
        f"{result.seconds:.1f} s. Brackets [...] are 95 % confidence intervals."
    )
    known = result.noise.estimate
    if known is None:
        return Section(title=f"Probe of {result.name}", paragraphs=(how, f"{result.noise}."))
    which = " of the raw gradient" if result.adam else ""
    if result.preconditioned:
        which = " of the preconditioned gradient (divided as Adam divides it)"
    span = Range(value=known.noise_scale, low=known.low, high=known.high)
    found = (
        f"Gradient noise scale{which}: {interval(span)} samples, over the whole run. The gradient "
        "of a batch of this size is half signal, half noise. Much smaller batches are mostly "
        "noise, so one step of twice the batch makes nearly as much progress as two steps. "
        "Increasing a batch that is already much larger than this size saves hardly any steps."
    )
    paragraphs = [how, found]
    if result.adam and not result.preconditioned:
        paragraphs.append(OVERSCALED)
    if result.bare_noise is not None:
        paragraphs.append(
            f"Gradient noise scale of the raw gradient: {scale_of(result.bare_noise)} samples."
        )
    return Section(title=f"Probe of {result.name}", paragraphs=tuple(paragraphs))
