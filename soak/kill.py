"""Kill a two-rank run with a growing batch at random moments, then resume the run.

    python soak/kill.py [--kills 100] [--seed 0]

Each time, the program starts a new run on two ranks and kills it (SIGKILL) at a random moment. The
moment is drawn evenly from the duration of a run, so it can be in the start, a step, a save or the
end. Every fourth time, only one rank is killed, and the other rank must end by itself. The run is
then resumed to its end. Weights, optimizer state, controller state and every decision in the record
must equal those of the uninterrupted run, bit for bit.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import largebatch as lb
from _common import Following, run_ranks, start_ranks, verdict
from largebatch.workbench.runs.train import train
from largebatch.workbench.workloads import Workload, load


def workload() -> Workload:
    """Return the workload "digits", whose data are loaded once for all runs."""
    digits = load("digits")
    data = digits.data()
    return replace(digits, data=lambda: data)


def one(digits: Workload, folder: Path) -> None:
    """Train the run from its start or from the newest checkpoint."""
    torch.manual_seed(0)
    train(
        digits,
        method=lb.chain(lb.AdaScale(), Following()),
        scale=2,
        budget="6ep",
        checkpoint=folder / "checkpoints",
        checkpoint_every="400",
        keep=2,
        record=folder / "record.jsonl",
        resume=True,
        evaluations=3,
    )


def outcome(folder: Path) -> tuple[dict[str, Any], Any]:
    """Return the parts of a finished run that must be equal: the last checkpoint and all steps.

    The duration in the checkpoint is left out.
    """
    record = lb.read_record(folder / "record.jsonl")
    state = lb.Checkpoints(folder / "checkpoints").load().state
    return {name: part for name, part in state.items() if name != "seconds"}, record.steps


def equal(a: Any, b: Any) -> bool:
    """Return whether two nested values are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random_ = random.Random(arguments.seed)
    digits = workload()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.monotonic()
        run_ranks(one, 2, folder / "store", digits, folder / "whole")
        life = time.monotonic() - began
        reference = outcome(folder / "whole")
        sizes = [step.seen.batch_size for step in reference[1]]
        print(
            f"uninterrupted run: {life:.1f} s, {len(sizes)} steps, batch sizes {sizes[0]} to "
            f"{max(sizes)}, {sum(a != b for a, b in pairwise(sizes))} changes of the batch size"
        )
        same = late = before_first = redone = ended_alone = alone = 0
        for number in range(arguments.kills):
            here = folder / "killed"
            shutil.rmtree(here, ignore_errors=True)
            moment = random_.uniform(0.0, life)
            ranks = start_ranks(one, 2, folder / "store", digits, here)
            time.sleep(moment)
            ended = any(rank.exitcode is not None for rank in ranks)
            late += ended
            if number % 4 == 3 and not ended:
                alone += 1
                victim, other = random_.sample(ranks, 2)
                victim.kill()
                other.join(60)
                ended_alone += other.exitcode is not None
            for rank in ranks:
                rank.kill()
                rank.join()
            before_first += not lb.Checkpoints(here / "checkpoints").paths
            run_ranks(one, 2, folder / "store", digits, here)
            found = outcome(here)
            redone += lb.read_record(here / "record.jsonl").redone
            same += equal(found, reference)
            if (number + 1) % 10 == 0:
                print(f"{number + 1} kills: {same} resumed runs are equal", flush=True)
    print(
        f"runs killed before the first checkpoint: {before_first}; runs killed after the end: "
        f"{late}; steps that were repeated: {redone}; ranks that ended by themselves after the "
        f"other rank was killed: {ended_alone} of {alone}"
    )
    verdict(
        same == arguments.kills and ended_alone == alone,
        f"{same} of {arguments.kills} resumed runs equal the uninterrupted run, bit for bit",
    )


if __name__ == "__main__":
    main()
