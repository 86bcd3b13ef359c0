"""What a probe found: plain values, which `core.codec` writes and reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from largebatch.analysis.efficiency import (
    BatchRow,
    Range,
    batch_table,
    half_efficiency_batch_size,
    paying_range,
)
from largebatch.analysis.noise import NoiseEstimate
from largebatch.workbench.studies.probe.checks import Check
from largebatch.workbench.studies.probe.forecast import Forecast, Noise, Stretch, forecast
from largebatch.workbench.studies.probe.report import print_rich, report, text_of

if TYPE_CHECKING:
    from rich.console import Console

SCALES = (8, 32, 128)
"""Of the forecasts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A part of the model.

    Args:
        name: of its module.
        parameters: how many numbers it holds.
        noise_share: its part of the variance of one sample's gradient, over all steps.
        noise: its own noise scale over the run.
    """

    name: str
    parameters: int
    noise_share: float
    noise: Noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What follows from the noise scale of the whole run.

    Args:
        rows: the base batch and its doublings.
        paying: the batch up to which a doubling saves a quarter of the steps or more.
        twice_base: the batch that needs twice the samples of the base batch.
        twice_fewest: the batch that needs twice the fewest samples of any batch.
        forecasts: of AdaScale over the whole run.
        scale: what the lines to paste are for.
    """

    rows: tuple[BatchRow, ...]
    paying: Range
    twice_base: Range
    twice_fewest: Range
    forecasts: tuple[Forecast, ...]
    scale: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What a probe found; `str` gives it as text, `render` prints it with tables.

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
    noise: Noise
    pooled: Noise
    along: tuple[Stretch, ...]
    bare_noise: Noise | None
    blocks: tuple[Block, ...]
    checks: tuple[Check, ...]
    outlook: Outlook | None

    def render(self, console: Console) -> None:
        """Prints it with rich."""
        print_rich(report(self), console)

    def __str__(self) -> str:
        return text_of(report(self))


def outlook(
    noise: Noise, *, base_batch_size: int, run_steps: int, scale: int | None = None
) -> Outlook | None:
    """What follows from the noise scale of a run; None where it is unknown.

    Args:
        noise: of the whole run.
        base_batch_size: b, in samples.
        run_steps: of the run at the base batch.
        scale: for the lines to paste; None is the last doubling that pays, at least 2.
    """
    known = noise.estimate
    if known is None:
        return None
    paying = paying_range(known, base_batch_size)
    sure = paying.value if known.noise_scale < float("inf") else paying.low
    scale = scale or max(round(sure / base_batch_size), 2)
    return Outlook(
        rows=batch_table(known, base_batch_size),
        paying=paying,
        twice_base=_half(known, base_batch_size),
        twice_fewest=_half(known, 0),
        forecasts=tuple(
            forecast(known, base_batch_size=base_batch_size, run_steps=run_steps, scale=each)
            for each in sorted({*SCALES, scale})
        ),
        scale=scale,
    )


def _half(noise: NoiseEstimate, base_batch_size: int) -> Range:
    value, low, high = (
        half_efficiency_batch_size(noise_scale=n, base_batch_size=base_batch_size)
        for n in (noise.noise_scale, noise.low, noise.high)
    )
    return Range(value=value, low=low, high=high)
