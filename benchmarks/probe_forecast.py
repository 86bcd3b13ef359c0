"""Test whether a probe forecasts the number of AdaScale's steps correctly, on noisy quadratics.

    python benchmarks/probe_forecast.py [--seeds 20] [--scales 2,4,8] [--digits]

Each problem is plain SGD with curvature 1 / i in 30 directions. At the start, the gradient is
mostly far above its noise, so the noise scale rises along the run. The true value of a cell is the
mean number of AdaScale's steps over the seeds. Each seed's probe is a separate run at the base
batch size. Goals: The median error is within 5 % in each cell. The intervals contain the true value
in 90 % of all probes, and in 3 of 4 probes of each cell. Only the forecast is timed.

With --digits, a network 64-64-10 is trained on 1500 of scikit-learn's digits instead, with and
without momentum. Each interval is then compared with the number of steps of one run from the same
weights.
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
from largebatch.studies.useful_signal import useful_signal

DIMENSIONS = 30
SAMPLES = 60_000
BASE = 16
CURVATURE = torch.arange(1, DIMENSIONS + 1.0) ** -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Describe a noisy quadratic.

    Args:
        noise: Standard deviation of a sample in each direction.
        start: Distance of the start from the minimum in each direction.
        lr: Learning rate at the base batch size.
        steps: Number of steps at the base batch size.
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
    """Hold one weight per direction and return its difference from a sample."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((DIMENSIONS,), start))

    def forward(self, x: Tensor) -> Tensor:
        return self.w - x


def loss(model: nn.Module, batch: Tensor | Sequence[Tensor]) -> Tensor:
    """Return half the mean squared distance, weighted by the curvature."""
    (x,) = [batch] if isinstance(batch, Tensor) else batch
    return 0.5 * (CURVATURE * model(x) ** 2).sum(1).mean()


def data_of(problem: Problem) -> TensorDataset:
    """Return the samples of a problem, the same for all runs."""
    generator = torch.Generator().manual_seed(1000)
    return TensorDataset(torch.randn(SAMPLES, DIMENSIONS, generator=generator) * problem.noise)


def steps_taken(problem: Problem, data: TensorDataset, *, scale: int, seed: int) -> int:
    """Return the number of optimizer steps of a run with AdaScale."""
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
    """Return the forecast of a probe of the whole run at each scale."""
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
    useful = useful_signal(trace.series, losses=trace.losses, lrs=trace.lrs)
    return [
        forecast_gain(
            trace.series,
            base_batch_size=BASE,
            run_steps=problem.steps,
            scale=scale,
            seed=seed,
            useful=useful,
        )
        for scale in scales
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """Describe a training run on digits with SGD."""

    lr: float
    momentum: float
    steps: int

    def start(self, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return a network and its optimizer."""
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        return model, torch.optim.SGD(model.parameters(), lr=self.lr, momentum=self.momentum)


DIGITS = (
    Digits(lr=0.01, momentum=0.9, steps=400),
    Digits(lr=0.02, momentum=0.9, steps=400),
    Digits(lr=0.05, momentum=0.9, steps=400),
    Digits(lr=0.05, momentum=0.9, steps=800),
    Digits(lr=0.1, momentum=0.0, steps=400),
    Digits(lr=0.5, momentum=0.0, steps=400),
)


def digits_data() -> tuple[Tensor, Tensor]:
    """Return 1500 images of 64 pixels in [0, 1], and their classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.data), generator=torch.Generator().manual_seed(0))[:1500]
    return (
        torch.tensor(data.data, dtype=torch.float32)[order] / 16.0,
        torch.tensor(data.target)[order],
    )


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean loss of a batch of digits."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def digits_steps(case: Digits, data: tuple[Tensor, Tensor], *, scale: int, seed: int) -> int:
    """Return the number of optimizer steps of a run with AdaScale on digits."""
    model, optimizer = case.start(seed)
    batches = lb.BatchLoader(
        data, batch_size=scale * BASE, max_micro_batch_size=BASE, seed=seed + 10
    )
    control = lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=BASE)
    for batch in control.steps(base_steps=case.steps):
        for micro_batch in batch:
            control.backward(cross_entropy(model, micro_batch))
        control.step()
    return control.optimizer_steps


def print_digits(case: Digits, *, scales: Sequence[int], seeds: int) -> None:
    """Print a row for each scale."""
    data = digits_data()
    print(case, flush=True)
    probes = [
        lb.probe(
            *case.start(s), cross_entropy, data, base_batch_size=BASE, steps=case.steps, seed=s
        )
        for s in range(seeds)
    ]
    for scale in scales:
        taken = [digits_steps(case, data, scale=scale, seed=s) for s in range(seeds)]
        spans = [
            row.steps
            for each in probes
            if each.outlook is not None
            for row in each.outlook.forecasts
            if row.scale == scale
        ]
        holds = sum(x.low <= t <= x.high for x, t in zip(spans, taken, strict=True))
        low, value, high = (
            np.mean([getattr(x, name) for x in spans]) for name in ("low", "value", "high")
        )
        print(
            f"    S {scale}: AdaScale took {np.mean(taken):.1f} steps, forecast {value:.1f} "
            f"({value / np.mean(taken) - 1.0:+.1%}); the interval [{low:.0f}, {high:.0f}] contains "
            f"the number of steps in {holds} of {len(spans)} probes",
            flush=True,
        )


def main() -> None:
    """Print a row for each problem and scale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--scales", default="2,4,8")
    parser.add_argument("--digits", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    scales = [int(scale) for scale in options.scales.split(",")]
    if options.digits:
        for case in DIGITS:
            print_digits(case, scales=scales, seeds=options.seeds)
        return
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
                f"{np.median(errors):+.1%}, median size {np.median(np.abs(errors)):.1%}; interval "
                f"[{np.mean([s.low for s in spans]):.0f}, {np.mean([s.high for s in spans]):.0f}] "
                f"contains the mean in {holds} of {len(spans)} probes",
                flush=True,
            )
    print(f"intervals that contain the mean, all cells: {held} of {total}")
    series = np.array([(16.0, 0.1 + 5.0 * np.exp(-t / 50.0)) for t in range(400)])
    began = time.process_time()
    for scale in (2, 8, 32, 128):
        forecast_gain(series, base_batch_size=BASE, run_steps=400, scale=scale)
    seconds = time.process_time() - began
    print(f"forecasts at four scales from a probe of 400 steps: {seconds:.2f} s of CPU time")


if __name__ == "__main__":
    main()
