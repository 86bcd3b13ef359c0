"""Compare the time of a checkpoint of a whole run with `torch.save` of model and optimizer.

    python benchmarks/checkpoint.py [--rounds 15]

The checkpoint and `torch.save` write a new file to the disk (fsync) and then remove the previous
file. The row `null` compares `torch.save` with a second copy of itself. The last candidate is
`torch.save` without fsync. A file without fsync can be lost in a power failure, but not when the
process ends. The goal is a ratio of 1.05 between the two candidates with fsync.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

import largebatch as lb
from _timing import Run, interleave


def trained(width: int) -> tuple[nn.Module, torch.optim.Optimizer, lb.Controller]:
    """Return a model, its optimizer and its controller after two training steps."""
    x, y = torch.randn(64, 64), torch.randint(10, (64,))
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = lb.BatchLoader((x, y), batch_size=32, max_micro_batch_size=16)
    control = lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=16)
    for batch in control.steps(steps=2):
        for inputs, targets in batch:
            control.backward(nn.functional.cross_entropy(model(inputs), targets))
        control.step()
    return model, optimizer, control


def bare(folder: Path, parts: dict[str, Any], *, sync: bool) -> Run:
    """Return a function that saves the parts to a new file and removes the previous file."""
    folder.mkdir()
    numbers = count()

    def run() -> None:
        number = next(numbers)
        with open(folder / f"{number}.pt", "wb") as file:
            torch.save({name: part.state_dict() for name, part in parts.items()}, file)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        (folder / f"{number - 1}.pt").unlink(missing_ok=True)

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for megabytes in (1, 100):
        model, optimizer, control = trained(megabytes * 2**20 // (3 * 4 * 75))
        with tempfile.TemporaryDirectory(dir=".") as name:
            folder = Path(name)
            checkpoints = lb.Checkpoints(folder / "ours", keep=1)
            parts = {"model": model, "optimizer": optimizer}

            def ours(
                checkpoints: lb.Checkpoints = checkpoints,
                parts: dict[str, Any] = {**parts, "control": control},  # noqa: B006
                steps: Iterator[int] = count(),  # noqa: B008
            ) -> None:
                state = {name: part.state_dict() for name, part in parts.items()}
                checkpoints.save(state, step=next(steps))

            paired = interleave(
                {
                    "torch.save": bare(folder / "bare", parts, sync=True),
                    "null: torch.save again": bare(folder / "null", parts, sync=True),
                    "a checkpoint of the run": ours,
                    "torch.save, no fsync": bare(folder / "fast", parts, sync=False),
                },
                rounds=rounds,
            )
        title = f"model and optimizer of {megabytes} MB"
        print(paired.table(title, to="torch.save", per=1, unit="save"))


if __name__ == "__main__":
    main()
