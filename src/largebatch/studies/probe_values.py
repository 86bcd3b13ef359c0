"""The parts of a probe's result: plain values, which `core.codec` writes and reads."""

from __future__ import annotations

from dataclasses import dataclass

from largebatch.analysis.bootstrap import Series
from largebatch.analysis.efficiency import (
    BatchRow,
    Range,
    batch_table,
    half_efficiency_batch_size,
    paying_range,
)
from largebatch.analysis.noise import NoiseEstimate, Pairs
from largebatch.studies.gain_forecast import GainForecast, forecast_gain
from largebatch.studies.noise_of_run import NoiseOrReason

SCALES = (2, 4, 8, 32)
"""Scales of the forecasts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A part of the model.

    Args:
        name: of its module.
        parameters: how many numbers it holds.
        noise_share: its share of the variance of one sample's gradient, over all steps.
        noise: its own noise scale over the run.
    """

    name: str
    parameters: int
    noise_share: float
    noise: NoiseOrReason


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOutlook:
    """What the noise scale of the whole run says about larger batches.

    Args:
        rows: the base batch and its doublings.
        paying: the batch up to which a doubling saves a quarter of the steps or more.
        twice_base: the batch that needs twice the samples of the base batch.
        twice_fewest: the batch that needs twice the fewest samples of any batch.
        forecasts: of AdaScale over the whole run, at batches that the data set holds.
        scale: S of the lines to paste.
    """

    rows: tuple[BatchRow, ...]
    paying: Range
    twice_base: Range
    twice_fewest: Range
    forecasts: tuple[GainForecast, ...]
    scale: int


def outlook_of(
    noise: NoiseOrReason,
    *,
    series: Pairs,
    base_batch_size: int,
    run_steps: int,
    scale: int | None = None,
    seed: int = 0,
    known_samples: int | None = None,
    useful: Series | None = None,
) -> BatchOutlook | None:
    """Return what the noise scale of a run says about larger batches; None if it is unknown.

    Args:
        noise: of the whole run.
        series: (variance, sqnorm) of each step of the probe, which `noise` comes from.
        base_batch_size: b, in samples.
        run_steps: of the run at the base batch.
        scale: for the lines to paste; None is the last doubling that pays, at least 2.
        seed: of the forecasts' intervals.
        known_samples: of the data set, beyond which nothing is forecast; None if unknown.
        useful: as in `forecast_gain`.
    """
    known = noise.estimate
    if known is None:
        return None
    twice_base, twice_fewest = _half(known, base_batch_size), _half(known, 0)
    paying = paying_range(known, base_batch_size)
    sure = paying.value if known.noise_scale < float("inf") else paying.low
    scale = scale or max(round(sure / base_batch_size), 2)
    return BatchOutlook(
        rows=batch_table(known, base_batch_size),
        paying=paying,
        twice_base=twice_base,
        twice_fewest=twice_fewest,
        forecasts=tuple(
            forecast_gain(
                series,
                base_batch_size=base_batch_size,
                run_steps=run_steps,
                scale=each,
                seed=seed,
                useful=useful,
            )
            for each in sorted({*SCALES, scale})
            if known_samples is None or each * base_batch_size <= known_samples
        ),
        scale=scale,
    )


def _half(noise: NoiseEstimate, base_batch_size: int) -> Range:
    value, low, high = (
        half_efficiency_batch_size(noise_scale=n, base_batch_size=base_batch_size)
        for n in (noise.noise_scale, noise.low, noise.high)
    )
    return Range(value=value, low=low, high=high)
