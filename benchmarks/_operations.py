"""Count the operations of one training step on host and device with torch's profiler."""

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
"""Beginnings of the names of calls that launch work on the device."""

WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "hipStreamSynchronize", "hipEventSync")
"""Names of calls in which the host waits.

`cudaDeviceSynchronize` is not included, because it ends each timed run.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """Hold the counts of one training step.

    On the CPU, and if the profiler has no access to the device, all counts except the first two
    are None.

    Args:
        aten: Number of ATen operators, including operators that other operators call. Kernels that
            a compiled graph generates are not included.
        scalars_read: Number of calls of `_local_scalar_dense`, which `item()` and `tolist()` of one
            number make. On a GPU, the host waits in each call.
        launches: Number of calls that launch kernels.
        kernels: Number of kernels that ran on the device.
        waits: Number of calls in which the host waits for a stream or an event.
        to_host: Number of copies from the device to the host.
        to_device: Number of copies from the host to the device.
    """

    aten: int
    scalars_read: int
    launches: int | None = None
    kernels: int | None = None
    waits: int | None = None
    to_host: int | None = None
    to_device: int | None = None


def operations_of(events: Iterable[Any]) -> Operations:
    """Return the counts of a profile.

    Args:
        events: Events of the profile, with `name`, `device_type` and `is_user_annotation`.
    """
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
    """Run one training step and count its operations.

    The step must wait until the device has finished.
    """
    activities = [ProfilerActivity.CPU]
    if device != "cpu":
        torch.cuda.synchronize()
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, acc_events=True) as profiled:
        step()
    return operations_of(profiled.events() or ())
