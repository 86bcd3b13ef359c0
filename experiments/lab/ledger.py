"""Record each run once, as a line of JSON that is written when the run ends."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.lab.run import Extra, Result, Run

SPLITS = ("train", "validation", "test")

EXTRA = "told"
"""Key of `Result.extra` in the records."""


class NotMeasured(Exception):
    """The record does not contain all runs that a table needs."""


class Ledger:
    """Return the recorded results of runs, and make the runs that are missing (mutable).

    Each missing run is made in a process of its own with one thread, and its result is added to the
    record.

    Args:
        path: Path of the record, a file of JSON lines. It is created if it does not exist. An
            incomplete last line, as a crash leaves it, is removed.
        workers: Number of processes. With 0, no run is made and a missing run is an error.
    """

    def __init__(self, path: Path, *, workers: int = 2) -> None:
        self.path, self.workers = path, workers
        self.asked: dict[str, Run] = {}
        self._found: dict[str, Result] = {}
        if path.exists():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content) and workers:
                os.truncate(path, whole)
            for line in content[:whole].splitlines():
                plain = json.loads(line)
                self._found[plain["key"]] = _result(plain["result"])

    def results(self, runs: Sequence[Run]) -> list[Result]:
        """Return the result of each run, in the order of the runs.

        Results are recorded one by one. If the call is interrupted, the next call makes only the
        runs that are still missing.

        Raises:
            NotMeasured: A run is missing and `workers` is 0.
        """
        self.asked |= {run.key: run for run in runs}
        missing = {run.key: run for run in runs if run.key not in self._found}
        if missing and not self.workers:
            first = next(iter(missing.values()))
            raise NotMeasured(
                f"{self.path} lacks {len(missing)} of the {len(runs)} runs that were asked for. "
                f"The first missing run is {first.facts}. Measure them with: "
                f"python -m experiments.NAME.run --parts {self.path.stem} --update"
            )
        if missing:
            self._make(missing.values())
        return [self._found[run.key] for run in runs]

    def _make(self, runs: Iterable[Run]) -> None:
        # Start the largest runs first. Otherwise one worker would still train a large run after
        # the others have finished.
        waiting = sorted(runs, key=lambda run: -run.scale)
        began, done = time.monotonic(), 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, mp_context=context) as pool:
            futures = {pool.submit(_made, run): run for run in waiting}
            for future in as_completed(futures):
                run, result = futures[future], future.result()
                self._keep(run, result)
                done += 1
                spent = time.monotonic() - began
                print(
                    f"{self.path.stem}: {done} of {len(waiting)}, {spent:.0f} s: {run.workload}, "
                    f"{run.method}, scale {run.scale}, lr {run.lr}, seed {run.seed}: "
                    f"{result.steps} steps, loss {result.validation.get('loss', math.nan):.4f}",
                    flush=True,
                )

    def _keep(self, run: Run, result: Result) -> None:
        line = {"key": run.key, "run": run.facts, "result": _plain(result)}
        with open(self.path, "ab", buffering=0) as file:
            file.write(json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n")
        self._found[run.key] = result


def _made(run: Run) -> Result:
    return run.make()


def _plain(result: Result) -> dict[str, Any]:
    """Return a result as plain JSON values.

    JSON has no NaN, so a number that is not finite becomes null. The seconds are rounded.
    """
    plain = asdict(result)
    for name in SPLITS:
        plain[name] = {k: v if math.isfinite(v) else None for k, v in plain[name].items()}
    plain["curve"] = [[v if math.isfinite(v) else None for v in p] for p in plain["curve"]]
    extra = plain[EXTRA] = plain.pop("extra")
    extra["notes"] = {k: v if math.isfinite(v) else None for k, v in extra["notes"].items()}
    extra["trace"] = [[v if math.isfinite(v) else None for v in p] for p in extra["trace"]]
    plain["seconds"] = round(result.seconds, 1)
    return plain


def _result(plain: dict[str, Any]) -> Result:
    """Return the result that `_plain` wrote; null becomes NaN again."""
    for name in SPLITS:
        plain[name] = {k: math.nan if v is None else v for k, v in plain[name].items()}
    plain["curve"] = tuple(
        tuple(math.nan if v is None else v for v in point) for point in plain["curve"]
    )
    plain["gains"] = tuple(plain["gains"])
    plain["forecast"] = tuple(map(tuple, plain.get("forecast", ())))
    extra = plain.pop(EXTRA, {"notes": {}, "trace": []})
    plain["extra"] = Extra(
        notes={k: math.nan if v is None else v for k, v in extra["notes"].items()},
        trace=tuple(tuple(math.nan if v is None else v for v in p) for p in extra["trace"]),
        whole=extra.get("whole"),
    )
    return Result(**plain)
