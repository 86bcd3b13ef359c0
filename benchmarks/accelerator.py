"""Measure the overhead of lb.attach, lb.Controller and single-example statistics on a GPU.

    python benchmarks/accelerator.py [--minutes 6] [--output FILE]
    python benchmarks/accelerator.py --tiny --device cpu

A GPT and a residual network train in bfloat16, with and without torch.compile. A cell compares one
candidate with torch alone: the paired ratio of times, the operations of one step and the peak
memory. The most informative cells come first. Each cell is written as soon as it ends, so an
interrupted run keeps all finished cells. A cell that does not fit into the time limit is listed as
skipped.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import largebatch as lb
from _accelerator_cells import Bench, Cell, Plan
from _accelerator_loops import CANDIDATES, PARTS, Setting
from _accelerator_models import workloads
from _accelerator_results import append_line, heading, row_of

RESULTS = Path(__file__).parent / "results"
FULL = Plan(rounds=40, round_seconds=0.25, most_steps=20)
TINY = Plan(rounds=6, round_seconds=0.01, most_steps=2)


def cells_of(*, device: torch.device, tiny: bool, backend: str) -> list[Cell]:
    """Return all cells, the most informative first.

    The cells of one setting follow one another, so their baseline is built and compiled only once.
    """
    return [
        Cell(setting=Setting(workload=workload, device=device, backend=used), candidate=candidate)
        for used in (None, backend)
        for workload in workloads(tiny=tiny)
        for candidate in CANDIDATES
    ]


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or the architecture of the CPU."""
    if device.type == "cpu":
        return f"cpu {platform.machine()}"
    return torch.cuda.get_device_name(device)


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver, or None if `nvidia-smi` is not installed."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else None


def header_of(device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return versions, device, date and options, on which the results depend."""
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": None if device.type == "cpu" else driver_version(),
        "largebatch": lb.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": os.getloadavg()[0],
        "minutes": arguments.minutes,
        "tiny": arguments.tiny,
        "backend": arguments.backend,
        "micro_batches": PARTS,
    }


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command-line options, with defaults that depend on other options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=6.0, help="time limit for all cells")
    parser.add_argument("--device", help="cuda, cuda:1 or cpu; default: cuda if available")
    parser.add_argument("--tiny", action="store_true", help="small models, few rounds")
    parser.add_argument("--backend", help="torch.compile backend; default: inductor")
    parser.add_argument("--only", default="", help="part of a cell's name, as in 'GPT eager'")
    parser.add_argument("--output", type=Path, help="JSON lines are appended to this file")
    arguments = parser.parse_args(argv)
    kind = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(kind)
    if device.type not in ("cuda", "cpu"):
        parser.error(f"--device {kind} is not supported. Pass cuda, cuda:1 or cpu: --device cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(
            f"--device {kind} was given, but torch finds no CUDA device. Pass --device cpu."
        )
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    arguments.device = device
    if device.type == "cpu":
        arguments.tiny = True  # one step at full size would take minutes
    if arguments.backend is None:  # inductor calls the C++ compiler for each graph
        arguments.backend = "aot_eager" if device.type == "cpu" else "inductor"
    if arguments.output is None and device.type != "cpu":
        name = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
        arguments.output = RESULTS / f"{name}{'-tiny' if arguments.tiny else ''}.jsonl"
    return arguments


def _terminated(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write each cell; return 1 if a cell failed, 130 if interrupted."""
    arguments = parsed(argv)
    device: torch.device = arguments.device
    torch.set_num_threads(1)
    header = header_of(device, arguments)
    append_line(arguments.output, {"header": header})
    print("  ".join(f"{name} {value}" for name, value in header.items()))
    print(
        "Each pair of counts shows one step with torch alone > one step with the library.\n\n"
        + heading(),
        flush=True,
    )
    cells = [
        cell
        for cell in cells_of(device=device, tiny=arguments.tiny, backend=arguments.backend)
        if arguments.only in cell.name
    ]
    bench = Bench(TINY if arguments.tiny else FULL, seconds=60.0 * arguments.minutes)
    failed = False
    try:
        for result in bench.results(cells):
            append_line(arguments.output, {"cell": asdict(result)})
            print(row_of(result), flush=True)
            failed |= result.status == "failed"
    except KeyboardInterrupt:
        print("The program was interrupted. The cells above are complete.")
        return 130
    return int(failed)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    torch.compiler.reset()  # imports the compiler before anything is timed
    gc.freeze()  # The garbage collection after each round then skips the imported modules.
    sys.exit(main())
