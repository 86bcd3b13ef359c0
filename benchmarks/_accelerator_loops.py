"""Build the training loops that `accelerator.py` compares: with torch alone and with the library.

All loops do the same work per step. Each step copies 4 micro-batches from pinned host memory to the
device, computes the loss under bfloat16 autocast, and takes one step of a fused optimizer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import largebatch as lb
from _accelerator_models import Workload

PARTS = 4
"""Number of micro-batches per step."""

STOCK = 4
"""Number of steps in one pass over the data."""

Loop = Callable[[int], None]
"""Function that takes a number of training steps and waits until the device has finished them."""

Attach = Callable[[nn.Module, Optimizer], object]
"""Function that attaches the library to the model and the optimizer of a loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Describe where and how a workload is trained.

    Args:
        workload: Model, optimizer and data.
        device: Device of the model.
        backend: Backend of `torch.compile`; None to run the model without compilation.
    """

    workload: Workload
    device: torch.device
    backend: str | None

    def build(self) -> tuple[nn.Module, Optimizer]:
        """Return the model, which has the same weights in every loop, and its optimizer."""
        torch.manual_seed(0)
        with self.device:
            model = self.workload.model()
        optimizer = self.workload.optimizer(model)
        if self.backend is None:
            return model, optimizer
        compiled: nn.Module = torch.compile(model, backend=self.backend)
        return compiled, optimizer

    def data(self) -> tuple[Tensor, Tensor]:
        """Return inputs and targets in host memory."""
        return self.workload.data(STOCK * PARTS * self.workload.micro_batch)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Copy a micro-batch to the device and return its loss under bfloat16 autocast."""
        x, y = (t if self.device.type == "cpu" else self._copied(t) for t in (x, y))
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            return self.workload.loss(model(x), y)

    def finish(self) -> None:
        """Wait until the device has finished all its work."""
        if self.device.type != "cpu":
            torch.cuda.synchronize(self.device)

    def _copied(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True)


def micro_batches(setting: Setting) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield micro-batches without end, with a new order in each pass over the data."""
    (x, y), size = setting.data(), setting.workload.micro_batch
    while True:
        for rows in torch.randperm(len(x)).split(size):
            yield x.index_select(0, rows), y.index_select(0, rows)


def hand_loop(setting: Setting, attach: Attach | None = None) -> Loop:
    """Return a loop with torch alone, or with the library if `attach` is given."""
    model, optimizer = setting.build()
    if attach is not None:
        attach(model, optimizer)
    batches = micro_batches(setting)

    def loop(steps: int) -> None:
        for _ in range(steps):
            for x, y in itertools.islice(batches, PARTS):
                (setting.loss(model, x, y) / PARTS).backward()
            optimizer.step()
            optimizer.zero_grad()
        setting.finish()

    return loop


def attached(setting: Setting) -> Loop:
    """Return the loop with `lb.attach`, which measures the gradient of each micro-batch."""
    return _attached(setting, lambda model: lb.Meter(model))


def per_example(setting: Setting) -> Loop:
    """Return the loop with `lb.attach`, which measures the gradient of each single example."""
    return _attached(setting, lambda model: lb.Meter(model, examples=lb.PerExample()))


def _attached(setting: Setting, meter: Callable[[nn.Module], lb.Meter]) -> Loop:
    size = setting.workload.micro_batch

    def attach(model: nn.Module, optimizer: Optimizer) -> object:
        return lb.attach(
            model, optimizer, lb.AdaScale(), batch_size=PARTS * size, base_batch_size=size,
            micro_batches=PARTS, meter=meter(model),
        )  # fmt: skip

    return hand_loop(setting, attach)


def controlled(setting: Setting) -> Loop:
    """Return a loop over the steps of `lb.Controller`, with batches from `lb.BatchLoader`."""
    model, optimizer = setting.build()
    size = setting.workload.micro_batch
    batches = lb.BatchLoader(setting.data(), batch_size=PARTS * size, max_micro_batch_size=size)
    control = lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=size)
    run = control.steps(steps=10**9)

    def loop(steps: int) -> None:
        for batch in itertools.islice(run, steps):
            for x, y in batch:
                control.backward(setting.loss(model, x, y))
            control.step()
        setting.finish()

    return loop


CANDIDATES: dict[str, Callable[[Setting], Loop]] = {
    "attach": attached,
    "controller": controlled,
    "per-example": per_example,
}
"""Functions that make the loops to compare with torch alone, the most informative loop first."""
