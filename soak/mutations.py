"""Corrupt records, checkpoints and states at random and check that reading them is safe.

    python soak/mutations.py [--count 10000] [--seed 0]

The program changes a valid file or state at random and reads it. The changes flip bits, truncate,
duplicate, move or remove parts, and insert bytes and values. A reading has three allowed results:
an error with a message of this package, the original content, and for a record the steps before the
corrupted part. The exit code is 1 after any other exception, after a reading that takes 10 seconds,
if a change is not detected, or if code from a file is run. To detect this, some files hold a pickle
that would create a directory.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import largebatch as lb
from _common import verdict
from largebatch.core.decision import Decision
from largebatch.core.measurement import GradientMoments, Measurement

SECONDS = 10


@dataclass(frozen=True, slots=True)
class Planted:
    """Create a directory if a program runs the code in this pickle."""

    path: str

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def damaged(content: bytes, random_: random.Random) -> bytes:
    """Return the content with one to three random changes."""
    for _ in range(random_.randint(1, 3)):
        size = max(len(content), 1)
        a, b = sorted((random_.randrange(size), random_.randrange(size)))
        b = min(b, a + 4096)
        kind = random_.randrange(8)
        if kind == 0:
            whole = bytearray(content)
            for _ in range(random_.randint(1, 8)):
                if whole:
                    whole[random_.randrange(len(whole))] ^= 1 << random_.randrange(8)
            content = bytes(whole)
        elif kind == 1:
            content = content[: random_.randrange(size)]
        elif kind == 2:
            content = content[:a] + content[b:]
        elif kind == 3:
            content = content[:b] + content[a:b] + content[b:]
        elif kind == 4:
            content = content[:a] + random_.randbytes(random_.randint(1, 64)) + content[a:]
        elif kind == 5:
            content = content[:a] + bytes(b - a) + content[b:]
        elif kind == 6:
            c = min(b + (b - a), len(content))
            content = content[:a] + content[b:c] + content[a:b] + content[c:]
        else:
            content = content[:a] + random_.choice(SPLICED) + content[a:]
    return content


SPLICED = (
    b"1e999", b"-1", b"NaN", b"9" * 400, b"[" * 3000, b'{"a":' * 3000, b"\xff\xfe", b"\\ud800",
    b"null", b"true", b'"', b"\n", b"\r\n", b"\0", b"{}\n", b'{"header":{}}\n', b"9" * 5000,
)  # fmt: skip

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 10**400, 1e308, float("nan"), float("inf"), "", "[" * 3000, "null", "{}",
    "[]", b"\0", [], {}, [[]], {"version": 1}, "\ud800", object(), "9" * 5000,
)  # fmt: skip


def changed(state: dict[str, Any], random_: random.Random) -> dict[str, Any]:
    """Return the nested state with one to three values replaced, removed, added or corrupted."""
    new = {key: dict(value) if isinstance(value, dict) else value for key, value in state.items()}
    for _ in range(random_.randint(1, 3)):
        inner = [value for value in new.values() if isinstance(value, dict) and value]
        part = random_.choice([new, *inner]) or new
        key = random_.choice(sorted(part, key=str)) if part else "version"
        kind = random_.randrange(5)
        value = part.get(key)
        if kind == 0:
            part.pop(key, None)
        elif kind == 1:
            part[random_.choice(["extra", "", "version "])] = random_.choice(VALUES)
        elif kind == 2 and isinstance(value, str):
            part[key] = damaged(value.encode(errors="replace"), random_).decode(errors="replace")
        elif kind == 3 and isinstance(value, (int, float)) and not isinstance(value, bool):
            part[key] = value + random_.choice([1, -1, 2**63, -(2**70)])
        else:
            part[key] = random_.choice(VALUES)
    return new


def written_record(folder: Path) -> tuple[bytes, tuple[Any, ...]]:
    """Write a record of 60 steps; return the bytes of the file and the steps."""
    path = folder / "sound.jsonl"
    record = lb.JsonlRecord(path)
    record.start({"rule": {"kind": "AdaScale"}, "base_batch_size": 16})
    for step in range(60):
        moments = GradientMoments(batch_size=32, parts=2, batch_sqnorm=1.5, variance=20.0 + step)
        seen = Measurement(
            step=step, samples=32 * step, base_steps=1.7 * step, batch_size=32,
            base_batch_size=16, loss=2.0 / (step + 1), batch_sqnorm=1.5, moments=moments,
        )  # fmt: skip
        record.write(seen, Decision(next_batch_size=32, base_steps=1.7, reason="gain 1.7 of 2"))
    record.close()
    return path.read_bytes(), lb.read_record(path).steps


def controller() -> lb.Controller:
    """Return a new controller of a small linear model."""
    x = torch.arange(96.0).reshape(32, 3) / 96
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = lb.BatchLoader((x, x.sum(1, keepdim=True)), batch_size=8, max_micro_batch_size=4)
    control = lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=4)
    return control


def trained() -> lb.Controller:
    """Return a controller after 20 training steps."""
    control = controller()
    for batch in control.steps(samples=400):
        for x, y in batch:
            control.backward((control.model(x) - y).square().mean())
        control.step()
        if control.optimizer_steps == 20:
            break
    return control


class Cases:
    """Corrupt and read each kind of file or state; each method returns its result as text."""

    def __init__(self, folder: Path, random_: random.Random) -> None:
        torch.manual_seed(0)
        self.folder, self.random = folder, random_
        self.canary = folder / "ran"
        self.record, self.steps = written_record(folder)
        self.run = trained()
        self.state = self.run.state_dict()
        self.sound = {
            "weights": torch.arange(50.0), "control": self.state,
            "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]},
        }  # fmt: skip
        path = lb.Checkpoints(folder / "sound").save(self.sound, step=1)
        self.checkpoint = path.read_bytes()
        self.planted = self._planted()
        self.fresh = controller()
        self.untouched = self.fresh.state_dict()

    def records(self) -> str:
        """Read a corrupted record."""
        path = self.folder / "record.jsonl"
        path.write_bytes(damaged(self.record, self.random))
        read = lb.read_record(path, up_to_damage=True)
        return "unchanged" if read.steps == self.steps else "read without the corrupted part"

    def appended(self) -> str:
        """Append to a corrupted record."""
        path = self.folder / "appended.jsonl"
        path.write_bytes(damaged(self.record, self.random))
        record = lb.JsonlRecord(path, append=True)
        record.start({"again": True})
        record.close()
        return "unchanged"

    def checkpoints(self) -> str:
        """Load a corrupted checkpoint."""
        path = self.folder / "step-000000001.pt"
        content = self.planted if self.random.random() < 0.1 else self.checkpoint
        path.write_bytes(damaged(content, self.random))
        read = lb.Checkpoints(self.folder).load(path).state
        same = (
            read.keys() == self.sound.keys()
            and torch.equal(read["weights"], self.sound["weights"])
            and read["control"] == self.state
        )
        assert same, "a change in a checkpoint was not detected"
        return "unchanged"

    def states(self) -> str:
        """Load a corrupted state into a controller."""
        mutated = changed(self.state, self.random)
        try:
            self.fresh.load_state_dict(mutated)
        except lb.LargeBatchError:
            assert self.fresh.state_dict() == self.untouched, "only a part of a state was loaded"
            raise
        resumed = self.fresh.state_dict()
        self.fresh = controller()
        assert resumed == self.state, "a change in a controller's state was not detected"
        return "unchanged"

    def loaders(self) -> str:
        """Load a corrupted state into a loader."""
        x = torch.arange(32)
        loader = lb.BatchLoader(x, batch_size=8)
        loader.bind(rank=0, ranks=1, least_parts=1)
        loader.load_state_dict(changed(self.run.batches.state_dict(), self.random))
        step = loader.next_step(limit=64)
        assert step is not None
        same = loader.position == self.run.batches.position
        assert same, "a change in a loader's state was not detected"
        return "unchanged"

    def _planted(self) -> bytes:
        file = io.BytesIO()
        torch.save({"weights": Planted(str(self.canary))}, file)
        return file.getvalue()


def reading(case: Callable[[], str]) -> str:
    """Return the result of one reading as text; a forbidden result starts with "!"."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        return case()
    except TimeoutError:
        return "! took too long"
    except lb.LargeBatchError as error:
        return "rejected" if str(error) else "! rejected without a message"
    except ValueError as error:
        here = "largebatch" in traceback.extract_tb(error.__traceback__)[-1].filename
        return "rejected" if here and str(error) else f"! ValueError {error!r:.90}"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return (
            f"! {type(error).__name__}: {error!s:.90} ({Path(where.filename).name}:{where.lineno})"
        )
    finally:
        signal.alarm(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        cases = Cases(Path(name), random.Random(arguments.seed))
        kinds = (cases.records, cases.appended, cases.checkpoints, cases.states, cases.loaders)
        found: dict[str, Counter[str]] = {kind.__name__: Counter() for kind in kinds}
        for number in range(arguments.count):
            kind = kinds[number % len(kinds)]
            found[kind.__name__][reading(kind)] += 1
        ran = cases.canary.exists()
    for kind_name, counts in found.items():
        print(f"{kind_name}: {json.dumps(dict(counts.most_common()))}")
    bad = sum(n for counts in found.values() for end, n in counts.items() if end.startswith("!"))
    verdict(
        not bad and not ran,
        f"{bad} of {arguments.count} corrupted files and states caused a forbidden error, a hang "
        f"or an undetected change; code from a file was {'run' if ran else 'never run'}",
    )


if __name__ == "__main__":
    main()
