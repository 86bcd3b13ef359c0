"""Compare a run on 2, then 1, then 4 ranks with the same run on one rank.

    python soak/ranks.py

Every micro-batch has 8 samples and every batch size is a multiple of 32, so a step has the same
micro-batches on 1, 2 and 4 ranks. The samples and their order must therefore be equal, and the
decisions must be equal up to rounding.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import largebatch as lb
from _common import Following, run_ranks, verdict

SAMPLES = 24_000
LEGS = ((2, 8_000), (1, 16_000), (4, SAMPLES))
"""Parts of the run: the number of ranks, and the number of samples at the end of the part."""


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return 1000 random inputs [N, 10], noisy linear targets [N, 1], and sample numbers [N]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 10, generator=generator)
    y = x @ torch.randn(10, 1, generator=generator) + torch.randn(1000, 1, generator=generator)
    return x, y, torch.arange(1000)


def leg(folder: Path, until: int) -> None:
    """Train until `until` samples were used, from the newest checkpoint if there is one."""
    together = dist.is_initialized()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    torch.manual_seed(1)
    bare = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1))
    model = nn.parallel.DistributedDataParallel(bare) if together else bare
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    control = lb.Controller(
        model,
        optimizer,
        lb.chain(lb.AdaScale(), Following(fraction=2.0), lb.Schedule(factor=lb.Cosine())),
        lb.BatchLoader(data(), batch_size=32, max_micro_batch_size=8),
        base_batch_size=32,
    )
    checkpoints = lb.Checkpoints(folder)
    if checkpoints.paths:
        state = checkpoints.load().state
        control.load_state_dict(state["control"])
        bare.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    with open(folder.parent / f"{folder.name}.{rank}.jsonl", "a") as file:
        for batch in control.steps(samples=SAMPLES):
            for at, (x, y, ids) in enumerate(batch):
                control.backward((model(x) - y).square().mean())
                place = [control.optimizer_steps, at * ranks + rank]
                file.write(json.dumps({"place": place, "ids": ids.tolist()}) + "\n")
            if control.samples >= until - 512 and until < SAMPLES:
                control.stop()
            decision = control.step()
            if rank == 0:
                numbers = [decision.base_steps, decision.lr_multiplier, decision.next_batch_size]
                file.write(json.dumps({"decision": numbers}) + "\n")
    if rank == 0:
        parts = {"control": control, "model": bare, "optimizer": optimizer}
        state = {name: part.state_dict() for name, part in parts.items()}
        checkpoints.save(state, step=control.optimizer_steps)


def read(folder: Path) -> tuple[list[int], list[list[float]]]:
    """Return the samples and the decisions of a run, both in the order of training."""
    lines = [
        json.loads(line)
        for path in sorted(folder.parent.glob(f"{folder.name}.*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    parts = sorted((line["place"], line["ids"]) for line in lines if "place" in line)
    decisions = [line["decision"] for line in lines if "decision" in line]
    return [number for _, ids in parts for number in ids], decisions


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_ranks(leg, 1, folder / "store", folder / "whole", SAMPLES)
        for ranks, until in LEGS:
            run_ranks(leg, ranks, folder / "store", folder / "legs", until)
        (samples, decisions), (same, others) = read(folder / "whole"), read(folder / "legs")
    batches = [decision[2] for decision in decisions]
    off = max(
        abs(a - b) / abs(a)
        for one, other in zip(decisions, others, strict=True)
        for a, b in zip(one[:2], other[:2], strict=True)
        if a
    )
    print(
        f"{len(decisions)} steps, {len(samples)} samples, batch sizes {min(batches):g} to "
        f"{max(batches):g}; the largest relative difference of a decision is {off:.1e}"
    )
    sizes = batches == [decision[2] for decision in others]
    verdict(
        samples == same and sizes and off <= 1e-6 and len(set(batches)) > 1,
        "a run on 2, then 1, then 4 ranks uses the same samples in the same order and the same "
        "batch sizes as a run on 1 rank, and decisions differ by at most 1e-6",
    )


if __name__ == "__main__":
    main()
