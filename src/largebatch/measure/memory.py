"""Measure the present and the peak memory of this process, and the free memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

PROC = Path("/proc/self")
CGROUP = Path("/sys/fs/cgroup")


def resident() -> int:
    """Return the bytes of memory that this process uses now.

    If the system does not report the present use of memory, the peak since the process began is
    returned.

    Raises:
        ValueError: The system reports neither the present use nor the peak of memory.
    """
    now = _status("VmRSS")
    return _most_ever() if now is None else now


def peak_of(work: Callable[[], object]) -> int:
    """Run `work`, and return the peak memory of this process while `work` runs, in bytes.

    Outside Linux, the peak since the process began is returned, because only Linux can reset the
    peak.

    >>> peak_of(lambda: bytearray(50_000_000)) > 50_000_000
    True
    """
    try:
        (PROC / "clear_refs").write_text("5")  # resets the peak to the present use
    except OSError:
        work()
        return _most_ever()
    work()
    peak = _status("VmHWM")
    return _most_ever() if peak is None else peak


def available() -> int | None:
    """Return the bytes of free memory in the system or in its container, whichever is smaller.

    The result is None if the free memory of neither the system nor the container is known.
    """
    known = [left for left in (_of_system(), *_of_container()) if left is not None]
    return max(min(known), 0) if known else None


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes of free memory on a device; None if the free memory is unknown."""
    if device.type == "cpu":
        return available()
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def bytes_text(count: float) -> str:
    """Return a number of bytes as text in GB or MB.

    >>> bytes_text(1_536_000_000), bytes_text(250_000)
    ('1.54 GB', '0.25 MB')
    """
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def _status(name: str) -> int | None:
    return _field(PROC / "status", name)


def _of_system() -> int | None:
    return _field(Path("/proc/meminfo"), "MemAvailable")


def _of_container() -> list[int | None]:
    """Return the free bytes under the memory limits of control groups, versions 1 and 2."""
    pairs = [
        (CGROUP / "memory.max", CGROUP / "memory.current"),
        (CGROUP / "memory/memory.limit_in_bytes", CGROUP / "memory/memory.usage_in_bytes"),
    ]
    found: list[int | None] = []
    for limit, used in pairs:
        try:
            found.append(int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return found


def _field(path: Path, name: str) -> int | None:
    """Return the value of a line such as "VmRSS:   1234 kB", in bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next(
        (1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None
    )


def _most_ever() -> int:
    try:
        import resource
    except ImportError:
        raise ValueError(
            f"This system ({os.name}) does not report how much memory a process uses, so the "
            "largest micro-batch cannot be found. Pass its size: "
            "lb.BatchLoader(dataset, batch_size=64, max_micro_batch_size=64)."
        ) from None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
