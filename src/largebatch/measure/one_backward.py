"""How a loop is measured that makes one backward call per step on one process.

One gradient has no variance. Single examples within it have one: `PerExample` measures them in
every `EVERY`-th step, if the model's examples are independent. The first step, in which the loop
shows what it is, gives no estimate. At its end, before a weight moves, the model is tried on the
inputs of that step, so that a model that cannot be measured is known at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from largebatch.core.errors import LargeBatchError
from largebatch.measure.examples.per_example import PerExample
from largebatch.measure.forwards import Inputs, tensors_in
from largebatch.measure.meter import Meter
from largebatch.measure.module_state import keep_module_state
from largebatch.measure.parameters import bare
from largebatch.measure.random_state import accelerators_of, keep_random_state
from largebatch.measure.temporal import TemporalMoments

EVERY = 16
"""A step that measures single examples costs up to 1.5 times a plain one, so 3 % on average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What measures the coming steps.

    Args:
        meter: None if nothing can.
        every: one step in so many is measured.
        refusals: why better ways were not taken.
    """

    meter: Meter | None
    every: int = 1
    refusals: Sequence[str] = ()


def choose(
    model: nn.Module, optimizer: Optimizer, inputs: Inputs | None, *, looks_only: bool
) -> Choice:
    """Return what measures a loop with one backward per step.

    Args:
        model: bare, compiled, or in a wrapper.
        optimizer: of the run.
        inputs: of the first step's forward pass; None if it was not seen.
        looks_only: whether no decision depends on the measurement, so that an approximate one is
            better than none.
    """
    refusals = []
    try:
        meter = Meter(
            model, examples=PerExample(exact_training=looks_only, batch_norm_rows=looks_only)
        )
        meter.bind(optimizer)
        _try(meter, inputs)
        return Choice(meter=meter, every=EVERY)
    except (LargeBatchError, ValueError) as error:
        refusals.append(str(error))
    if not looks_only:
        return Choice(meter=None, refusals=refusals)
    return Choice(meter=Meter(model, statistics=[TemporalMoments()]), refusals=refusals)


def _try(meter: Meter, inputs: Inputs | None) -> None:
    """Measure one made-up backward on the inputs, without a trace.

    Raises:
        LargeBatchError: the examples cannot be measured.
    """
    model = bare(meter.model)
    if any(module._compiled_call_impl is not None for module in model.modules()):
        raise LargeBatchError("The model is compiled in place, which leaves no calls to follow.")
    if inputs is None:
        raise LargeBatchError(
            "No forward pass of the model was seen, as when its submodules are called directly."
        )
    source = meter.part_source
    meter.open(frozenset({"moments"}))
    try:
        with keep_module_state(model), keep_random_state(accelerators_of(model)):
            source.begin()
            loss = _loss(model, inputs)
            gradients = torch.autograd.grad(loss, meter.parameters.tensors, allow_unused=True)
            for index, gradient in enumerate(gradients):
                if gradient is not None and meter.see is not None:
                    meter.see(index, gradient)
            source.end(0)
            if not source.counts.rows or source.counts.rows[0] < 2:
                raise LargeBatchError("The batch has one example.")
    except LargeBatchError:
        raise
    except Exception as error:
        raise LargeBatchError(
            f"Running the model once more failed: {type(error).__name__}: {error}"
        ) from error
    finally:
        source.release()
        meter.open(frozenset())


def _loss(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return a scalar that depends on all outputs of the model."""
    with torch.enable_grad(), _autocast(inputs):
        output = model(*inputs.args, **inputs.kwargs)
        found = [tensor for tensor in tensors_in(output) if tensor.requires_grad]
        if not found:
            raise LargeBatchError("No output of the model has a gradient.")
        return torch.stack([one.float().square().mean() for one in found]).sum()


@contextmanager
def _autocast(inputs: Inputs) -> Iterator[None]:
    if inputs.autocast is None:
        yield
        return
    device, dtype = inputs.autocast
    with torch.autocast(device, dtype=dtype):
        yield


def reasons(refusals: Sequence[str]) -> str:
    """Return why single examples do not serve, as the end of an error; empty if there is none."""
    if not refusals:
        return ""
    return f" Single examples cannot be measured by themselves here: {refusals[0]}"
