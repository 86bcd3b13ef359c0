"""Counts what one training step asks of the host and the device, with torch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

LAUNCHES = (
    *("cudaLaunchKernel", "cudaLaunchCooperativeKernel", "cudaGraphLaunch", "cuLaunchKernel"),
    *("hipLaunchKernel", "hipExtLaunchKernel", "hipExtModuleLaunchKernel"),
    *("hipModuleLaunchKernel", "hipGraphLaunch"),
)
"""How the names of the calls that launch work on the device begin."""

WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "hipStreamSynchronize", "hipEventSync")
"""Calls in which the host waits; not `cudaDeviceSynchronize`, which ends each timed run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """Counts of one training step.

    Args:
        aten: operators of ATen that ran, those called by other operators included. What a compiled
            graph computes in kernels of its own is not among them.
        scalars_read: calls of `_local_scalar_dense`, which `item()` and `tolist()` of one number
            make; on a device the host waits in each.
        launches: calls that launch kernels. This and the following counts are None on the CPU, and
            where the profiler was not allowed to see the device.
        kernels: kernels that ran on the device.
        waits: calls in which the host waits for a stream or an event.
        to_host, to_device: copies from and to the device.
    """

    aten: int
    scalars_read: int
    launches: int | None = None
    kernels: int | None = None
    waits: int | None = None
    to_host: int | None = None
    to_device: int | None = None


def operations_of(events: Iterable[Any]) -> Operations:
    """Return the counts of a profile's events, each with `name`, `device_type` and
    `is_user_annotation`."""
    held = list(events)
    on_host = [event.name for event in held if event.device_type == DeviceType.CPU]
    aten = sum(name.startswith("aten::") for name in on_host)
    scalars = on_host.count("aten::_local_scalar_dense")
    on_device = [
        event.name
        for event in held
        if event.device_type != DeviceType.CPU and not event.is_user_annotation
    ]
    if not on_device:
        return Operations(aten=aten, scalars_read=scalars)
    return Operations(
        aten=aten,
        scalars_read=scalars,
        launches=sum(name.startswith(LAUNCHES) for name in on_host),
        kernels=sum(not name.startswith(("Memcpy", "Memset")) for name in on_device),
        waits=sum(name.startswith(WAITS) for name in on_host),
        to_host=sum(name.startswith("Memcpy DtoH") for name in on_device),
        to_device=sum(name.startswith("Memcpy HtoD") for name in on_device),
    )


def count_operations(step: Callable[[], None], *, device: str) -> Operations:
    """Run one training step, which must end with the device's work done, and count."""
    activities = [ProfilerActivity.CPU]
    if device != "cpu":
        torch.cuda.synchronize()
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, acc_events=True) as profiled:
        step()
    return operations_of(profiled.events() or ())
