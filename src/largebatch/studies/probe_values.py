"""Define the values in a probe's result, which `core.codec` can write and read."""

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
"""Scales for which the probe forecasts AdaScale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Describe the noise of one module of the model.

    Args:
        name: Name of the module.
        parameters: Number of elements in the parameters of the module.
        noise_share: Share of this module in the variance of one sample's gradient, over all steps.
        noise: Noise scale of this module over the run.
    """

    name: str
    parameters: int
    noise_share: float
    noise: NoiseOrReason


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOutlook:
    """Hold the predictions for larger batches that follow from the noise scale of the whole run.

    Args:
        rows: Predictions for the base batch and its doublings.
        paying: Batch size up to which a doubling saves a quarter of the steps or more.
        twice_base: Batch size at which the run needs twice as many samples as at the base batch
            size.
        twice_fewest: Batch size at which the run needs twice as many samples as at the batch size
            that needs the fewest samples.
        forecasts: Forecasts of AdaScale over the whole run, at batch sizes up to the data set's
            size.
        scale: Scale S that the printed lines to paste use.
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
    """Return the predictions for larger batches; None if the noise scale of the run is unknown.

    Args:
        noise: Noise scale of the whole run.
        series: Pair (variance, sqnorm) of each step of the probe, from which `noise` was computed.
        base_batch_size: Base batch size b in samples.
        run_steps: Number of steps of the run at the base batch size.
        scale: Scale for the lines to paste. None uses the scale up to which doubling the batch
            saves a quarter of the steps or more, at least 2.
        seed: Seed of the forecasts' intervals.
        known_samples: Number of samples in the data set; larger batches are not forecast. None if
            unknown.
        useful: These arguments have the same meaning as in `forecast_gain`.
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
