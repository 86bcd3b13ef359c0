"""Test ranks that hang and ranks that disagree.

    python soak/faults.py [--hangs 10] [--seed 0]

First, the program stops one rank of a two-rank run (SIGSTOP) at a random moment. The other rank
must end with torch's error within about twice the timeout of the process group, because gloo
restarts the timeout for each transfer of a collective operation. The run is then resumed and must
equal the uninterrupted run, bit for bit. Second, the program makes the ranks of small runs differ
in each way that the library checks. Every rank must raise `RanksDisagree`, which names the first
difference.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import largebatch as lb
from _common import Following, run_ranks, start_ranks, verdict
from kill import equal, one, outcome, workload

TIMEOUT = timedelta(seconds=8)
"""Timeout of a collective operation.

It is shorter than in the other programs, because each stopped rank costs this time.
"""
PATIENCE = 2 * TIMEOUT.total_seconds() + 10.0
"""Number of seconds after which the other rank must have ended."""


def learning_rate(control: lb.Controller, step: int) -> None:
    """Change the learning rate of this rank before the first step."""
    if step == 0:
        control.optimizer.param_groups[0]["lr"] = 0.02


def batch_size(control: lb.Controller, step: int) -> None:
    """Change the batch size of this rank after step 3."""
    if step == 3:
        control.resize(24)


def clock(control: lb.Controller, step: int) -> None:
    """Change the number of samples that this rank has counted after step 3."""
    if step == 3:
        control.decider = replace(control.decider, samples=control.samples + 1)


def rule_state(control: lb.Controller, step: int) -> None:
    """Reset the rule's state of this rank after step 3."""
    if step == 3:
        control.decider = replace(control.decider, state=control.decider.rule.init())


def no_fault(control: lb.Controller, step: int) -> None:
    """Change nothing, so that the ranks agree in every step."""


APART: dict[str, Callable[[lb.Controller, int], None]] = {
    "learning rate": learning_rate,
    "batch size": batch_size,
    "samples": clock,
    "rule's state": rule_state,
    "nothing": no_fault,
}


def drift(name: str, folder: Path) -> None:
    """Train a short run in which rank 1 is changed; each rank writes the error that it raised."""
    torch.manual_seed(0)
    x, y = torch.randn(512, 8), torch.randn(512, 1)
    bare = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.01)
    batches = lb.BatchLoader((x, y), batch_size=16, max_micro_batch_size=4)
    rule = lb.chain(lb.AdaScale(), Following(largest=64))
    rank, told = dist.get_rank(), ""
    model = nn.parallel.DistributedDataParallel(bare)
    control = lb.Controller(model, optimizer, rule, batches, base_batch_size=4)
    try:
        if rank == 1:
            APART[name](control, 0)
        for step, batch in enumerate(control.steps(steps=8)):
            for inputs, targets in batch:
                control.backward((model(inputs) - targets).square().mean())
            control.step()
            if rank == 1:
                APART[name](control, step + 1)
    except lb.errors.RanksDisagree as error:
        told = str(error)
    (folder / f"{rank}.json").write_text(json.dumps([control.optimizer_steps, told]))


def hang(folder: Path, digits: object, moment: float, victim: int) -> tuple[float | None, int]:
    """Stop one rank; return the seconds until the other rank ended, and its exit code.

    The number of seconds is None if the other rank did not end and was killed.
    """
    ranks = start_ranks(one, 2, folder / "store", digits, folder / "run", timeout=TIMEOUT)
    time.sleep(moment)
    stopped, other = ranks[victim], ranks[1 - victim]
    if stopped.exitcode is None:
        os.kill(stopped.pid, signal.SIGSTOP)
    began = time.monotonic()
    other.join(PATIENCE)
    seconds = time.monotonic() - began if other.exitcode is not None else None
    code = other.exitcode
    for rank in ranks:
        rank.kill()
        rank.join()
    return seconds, code or 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hangs", type=int, default=10)
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
        ended = same = done = 0
        longest = 0.0
        for _ in range(arguments.hangs):
            shutil.rmtree(folder / "run", ignore_errors=True)
            moment, victim = random_.uniform(0.2, 0.8) * life, random_.randrange(2)
            seconds, code = hang(folder, digits, moment, victim)
            done += code == 0
            ended += seconds is not None
            longest = max(longest, seconds or 0.0)
            run_ranks(one, 2, folder / "store", digits, folder / "run")
            same += equal(outcome(folder / "run"), reference)
        print(
            f"{arguments.hangs} ranks were stopped, {done} of them after the other rank had "
            f"finished. The other rank ended {ended} times, after at most {longest:.1f} s with a "
            f"timeout of {TIMEOUT.total_seconds():.0f} s. {same} resumed runs equal the "
            "uninterrupted run."
        )
        named = 0
        for what in APART:
            run_ranks(drift, 2, folder / "store", what, folder)
            told = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
            steps, text = told[0]
            print(f"ranks that differ in {what}: after {steps} steps, {text or 'no error'}")
            raised = all(bool(text) == (what != "nothing") for _, text in told)
            named += raised and told[0][1] == told[1][1]
    verdict(
        ended == same == arguments.hangs and named == len(APART),
        f"{ended} of {arguments.hangs} ranks ended after the other rank was stopped, and {same} "
        f"resumed runs gave the same bits; {named} of {len(APART)} cases gave the expected result "
        "on both ranks",
    )


if __name__ == "__main__":
    main()
