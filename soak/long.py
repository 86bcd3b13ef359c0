"""Train 20,000 steps on two ranks with changing batch sizes and injected NaN and infinite values.

    python soak/long.py [--steps 20000]

One in a hundred micro-batches gets a loss or a gradient that is not finite, on a random rank. The
second half of the steps also uses a gradient scaler, and one in a hundred of these steps overflows.
In every step, both ranks must take the same decision. All weights, optimizer states, rule states
and measured statistics must be finite. Exactly the steps with injected values must be skipped.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler

import largebatch as lb
from _common import Following, run_ranks, verdict
from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement

WRONG = (math.nan, math.inf, -math.inf)


class Times(torch.autograd.Function):
    """Return the input unchanged, and multiply its gradient by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


@dataclass(frozen=True, slots=True)
class Guard:
    """Change no decision, but end the run if a rule receives a number that is not finite."""

    needs: ClassVar[frozenset[str]] = frozenset({"moments"})
    changes: ClassVar[frozenset[str]] = frozenset()
    bounds: ClassVar[frozenset[str]] = frozenset()
    forbids: ClassVar[frozenset[str]] = frozenset()

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        moments = seen.moments
        numbers = [seen.loss, seen.batch_sqnorm]
        numbers += [moments.variance, moments.sqnorm] if moments is not None else []
        if not all(number is None or math.isfinite(number) for number in numbers):
            raise AssertionError(f"A rule received a number that is not finite: {seen}")
        return state, proposed


def data() -> tuple[Tensor, Tensor]:
    """Return 4096 random inputs [N, 10] and noisy linear targets [N, 1]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 10, generator=generator)
    y = x @ torch.randn(10, 1, generator=generator) + torch.randn(4096, 1, generator=generator)
    return x, y


def soak(steps: int, half: bool, folder: Path) -> None:
    """Train one half of the steps on one rank.

    Args:
        steps: Number of steps.
        half: Whether this is the second half, which uses a gradient scaler.
        folder: Directory for the results.
    """
    rank = dist.get_rank()
    torch.manual_seed(1)
    bare = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1))
    model = nn.parallel.DistributedDataParallel(bare)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9)
    rule = lb.chain(Guard(), lb.AdaScale(), Following(fraction=0.2, largest=128))
    batches = lb.BatchLoader(data(), batch_size=32, max_micro_batch_size=16)
    scaler = GradScaler("cpu", init_scale=256.0, growth_interval=40) if half else None
    control = lb.Controller(
        model, optimizer, rule, batches, base_batch_size=16, scaler=scaler, patience=50
    )
    mine, shared = random.Random(f"{half} {rank}"), random.Random(f"{half}")
    digests, sizes, spoiled, wrong = [], set(), 0, 0
    stepped = iter(control.steps(samples=10**12))
    for _ in range(steps):
        batch = next(stepped)
        bad = False
        overflow = half and shared.random() < 0.01
        for x, y in batch:
            loss = (model(x) - y).square().mean()
            if overflow and batch.last:
                loss, bad = Times.apply(loss, math.inf), True
            elif mine.random() < 0.01 and control.samples:
                value, bad = mine.choice(WRONG), True
                loss = Times.apply(loss, value) if mine.random() < 0.5 else loss * value
            control.backward(loss)
        decision = control.step()
        if scaler is not None and not 1.0 <= scaler.get_scale() <= 2.0**20:
            scaler.update(256.0)  # Otherwise the many skipped steps would lower the scale to 0.
        digests.append(zlib.crc32(repr((decision, control.decider.state)).encode()))
        sizes.add(decision.next_batch_size)
        anywhere = torch.tensor([float(bad)])
        dist.all_reduce(anywhere)
        skipped = decision.base_steps == 0.0
        spoiled += bool(anywhere)
        wrong += skipped != bool(anywhere)
        held = [*bare.parameters(), *(s["momentum_buffer"] for s in optimizer.state.values())]
        if not all(bool(tensor.isfinite().all()) for tensor in held):
            raise AssertionError("A weight or a momentum buffer is not finite.")
    everyone: list[Any] = [None, None]
    dist.all_gather_object(everyone, digests)
    if rank == 0:
        differing = sum(a != b for a, b in zip(*everyone, strict=True))
        numbers = {
            "steps": steps, "differing": differing, "spoiled": spoiled, "wrong": wrong,
            "skipped": control.skipped, "sizes": sorted(sizes),
        }  # fmt: skip
        (folder / f"{half}.json").write_text(json.dumps(numbers))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20_000)
    steps = parser.parse_args().steps // 2
    differing = wrong = skipped = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for half in (False, True):
            began = time.monotonic()
            run_ranks(soak, 2, folder / "store", steps, half, folder)
            found = json.loads((folder / f"{half}.json").read_text())
            print(
                f"{'with' if half else 'without'} a gradient scaler: {found['steps']} steps in "
                f"{time.monotonic() - began:.0f} s with the batch sizes {found['sizes']}; "
                f"{found['spoiled']} steps with injected values, {found['skipped']} skipped steps, "
                f"{found['wrong']} steps wrongly skipped or not skipped; {found['differing']} "
                "decisions differ between the ranks"
            )
            differing, wrong = differing + found["differing"], wrong + found["wrong"]
            skipped += found["skipped"]
    verdict(
        differing == 0 and wrong == 0 and skipped > 0,
        f"{differing} of {2 * steps} decisions differ between the ranks; {wrong} steps were "
        f"wrongly skipped or not skipped; {skipped} steps were skipped; no injected value reached "
        "a statistic or a weight",
    )


if __name__ == "__main__":
    main()
