"""Whether a probe's forecast of AdaScale's steps comes true, on noisy quadratics.

    python benchmarks/probe_forecast.py [--seeds 20] [--scales 2,4,8]

Times nothing but the forecast. Each problem is plain SGD on curvature 1 / i in 30 directions, from
a start whose gradient is mostly far above its noise, so that the noise scale rises along the run.
The truth of a cell is the mean of AdaScale's steps over the seeds; each seed's probe is a run of
its own at the base batch. Goals: a median error within 5 % in each cell, and intervals that hold
the truth in 90 % of all probes and in three of four in each cell.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import largebatch as lb
from largebatch.studies.gain_forecast import GainForecast, forecast_gain
from largebatch.studies.measured_steps import ProbeTarget, measure_steps

DIMENSIONS = 30
SAMPLES = 60_000
BASE = 16
CURVATURE = torch.arange(1, DIMENSIONS + 1.0) ** -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A noisy quadratic.

    Args:
        noise: standard deviation of a sample in each direction.
        start: distance from the minimum in each direction.
        lr: of the base batch.
        steps: of the base batch.
    """

    noise: float
    start: float
    lr: float
    steps: int


PROBLEMS = (
    Problem(noise=1.0, start=3.0, lr=0.05, steps=600),
    Problem(noise=4.0, start=3.0, lr=0.05, steps=600),
    Problem(noise=1.0, start=3.0, lr=0.3, steps=300),
    Problem(noise=4.0, start=1.0, lr=0.3, steps=300),
)


class Weights(nn.Module):
    """One weight per direction."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((DIMENSIONS,), start))

    def forward(self, x: Tensor) -> Tensor:
        return self.w - x


def loss(model: nn.Module, batch: Tensor | Sequence[Tensor]) -> Tensor:
    """Return half the mean squared distance, weighed by the curvature."""
    (x,) = [batch] if isinstance(batch, Tensor) else batch
    return 0.5 * (CURVATURE * model(x) ** 2).sum(1).mean()


def data_of(problem: Problem) -> TensorDataset:
    """Return the samples of a problem, the same for all runs."""
    generator = torch.Generator().manual_seed(1000)
    return TensorDataset(torch.randn(SAMPLES, DIMENSIONS, generator=generator) * problem.noise)


def steps_taken(problem: Problem, data: TensorDataset, *, scale: int, seed: int) -> int:
    """Return the steps of a run with AdaScale."""
    model = Weights(problem.start)
    control = lb.Controller(
        model,
        torch.optim.SGD(model.parameters(), lr=problem.lr),
        lb.AdaScale(),
        lb.BatchLoader(data, batch_size=scale * BASE, max_micro_batch_size=BASE, seed=seed),
        base_batch_size=BASE,
    )
    for batch in control.steps(base_steps=problem.steps):
        for micro_batch in batch:
            control.backward(loss(model, micro_batch))
        control.step()
    return control.optimizer_steps


def forecasts(
    problem: Problem, data: TensorDataset, *, scales: Sequence[int], seed: int
) -> list[GainForecast]:
    """Return what a probe of the whole run forecasts at each scale."""
    model = Weights(problem.start)
    target = ProbeTarget(
        name="quadratic",
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=problem.lr),
        loss=loss,
        batches=data,
        base_batch_size=BASE,
        run_steps=problem.steps,
    )
    trace = measure_steps(target, steps=problem.steps, batch_size=BASE, seed=seed)
    return [
        forecast_gain(
            trace.series, base_batch_size=BASE, run_steps=problem.steps, scale=scale, seed=seed
        )
        for scale in scales
    ]


def main() -> None:
    """Print a row for each problem and scale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--scales", default="2,4,8")
    options = parser.parse_args()
    torch.set_num_threads(1)
    scales = [int(scale) for scale in options.scales.split(",")]
    held = total = 0
    for problem in PROBLEMS:
        data = data_of(problem)
        print(problem, flush=True)
        found = [forecasts(problem, data, scales=scales, seed=s) for s in range(options.seeds)]
        for index, scale in enumerate(scales):
            taken = [steps_taken(problem, data, scale=scale, seed=s) for s in range(options.seeds)]
            truth, spans = float(np.mean(taken)), [each[index].steps for each in found]
            errors = np.array([span.value / truth - 1.0 for span in spans])
            holds = sum(span.low <= truth <= span.high for span in spans)
            held, total = held + holds, total + len(spans)
            print(
                f"    S {scale}: AdaScale took {truth:.1f} steps (sd {np.std(taken):.1f}), "
                f"forecast {np.mean([s.value for s in spans]):.1f}; error: median "
                f"{np.median(errors):+.1%}, median size {np.median(np.abs(errors)):.1%}; "
                f"[{np.mean([s.low for s in spans]):.0f}, {np.mean([s.high for s in spans]):.0f}] "
                f"holds it in {holds} of {len(spans)}",
                flush=True,
            )
    print(f"in all: {held} of {total}")
    series = np.array([(16.0, 0.1 + 5.0 * np.exp(-t / 50.0)) for t in range(400)])
    began = time.process_time()
    for scale in (2, 8, 32, 128):
        forecast_gain(series, base_batch_size=BASE, run_steps=400, scale=scale)
    print(f"four scales of a probe of 400 steps: {time.process_time() - began:.2f} s of CPU")


if __name__ == "__main__":
    main()
