"""How a loop is measured that makes one backward call per step on one process.

One gradient has no variance. Single examples within it have one: `PerExample` measures them in
some of the steps, if the model's examples are independent. The first step, in which the loop
shows what it is, gives no estimate. At its end, before a weight moves, the model is tried on the
inputs of that step, so that a model that cannot be measured is known at once. If nothing is decided
by the measurement, pairs of consecutive steps serve such a model.

Batch normalization couples the examples. Their rows' shares of the gradient have up to 4.6 times
the true variance (`experiments/batch_norm_rows`), so they serve neither decisions nor a display.
There, pairs of steps gave noise scales that were 1.5 times too large in the median, and 1.03 times
at a tenth of the learning rate. Their bias follows the learning rate, so they serve no decision.
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
from largebatch.measure.forwards import Inputs, tensor_leaves
from largebatch.measure.memory import bytes_text, free_bytes
from largebatch.measure.meter import Meter
from largebatch.measure.module_state import keep_module_state
from largebatch.measure.parameters import bare
from largebatch.measure.random_state import accelerators_of, keep_random_state
from largebatch.measure.temporal import TemporalMoments


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSteps:
    """Which steps are measured: stretches of `span` steps, often at first and rarely later.

    >>> often = MeasuredSteps(every=80, early=2, early_every=8)
    >>> [step for step in range(200) if often.position(step) is not None]
    [0, 8, 16, 96, 176]

    Args:
        every: steps from one stretch to the next.
        span: steps of a stretch, of which the last one gives the moments of all.
        early: stretches at first.
        early_every: steps from one of these to the next.
    """

    every: int = 1
    span: int = 1
    early: int = 0
    early_every: int = 1

    def position(self, step: int) -> int | None:
        """Return the place of a step within its stretch; None if it is not measured."""
        later = step - self.early * self.early_every
        place = step % self.early_every if later < 0 else later % self.every
        return place if place < self.span else None

    @property
    def words(self) -> str:
        """How often, for people.

        >>> MeasuredSteps(every=80, early=2, early_every=8).words
        'every 8th step at first, later every 80th'
        """
        if self.every == 1:
            return "every step"
        early = f"every {self.early_every}th step at first, later " if self.early else ""
        return f"{early}every {self.every}th" + ("" if early else " step")


EXAMPLES = MeasuredSteps(every=80, early=16, early_every=8)
PAIRS = MeasuredSteps(every=80, span=2, early=16, early_every=8)
"""A step that measures single examples costs up to three times a plain one, so 3 % on average after
the first 128 steps. These give the 16 measurements that an estimate needs."""

PART_OF_MEMORY = 0.5
"""Of the free memory, which measuring single examples may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What measures the coming steps.

    Args:
        meter: None if nothing can.
        schedule: which steps it measures.
        refusals: why better ways were not taken.
    """

    meter: Meter | None
    schedule: MeasuredSteps = MeasuredSteps()
    refusals: Sequence[str] = ()


def choose_meter(
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
    try:
        examples = PerExample(exact_training=looks_only)
        meter = Meter(model, examples=examples)
        meter.bind(optimizer)
        _try(meter, examples, inputs)
        return Choice(meter=meter, schedule=EXAMPLES)
    except (LargeBatchError, ValueError) as error:
        refusals = [str(error)]
    if not looks_only:
        return Choice(meter=None, refusals=refusals)
    temporal = Meter(model, statistics=[TemporalMoments()])
    return Choice(meter=temporal, schedule=PAIRS, refusals=refusals)


def _try(meter: Meter, examples: PerExample, inputs: Inputs | None) -> None:
    """Measure one made-up backward on the inputs, without a trace.

    Raises:
        LargeBatchError: the examples cannot be measured.
    """
    model = bare(meter.model)
    if any(map(_is_compiled, model.modules())):
        raise LargeBatchError("A part of the model is compiled, which leaves no calls to follow.")
    if inputs is None:
        raise LargeBatchError(
            "No forward pass of the model was seen, as when its submodules are called directly."
        )
    meter.open(frozenset({"moments"}))
    try:
        with keep_module_state(model), keep_random_state(accelerators_of(model)):
            examples.begin()
            loss = _loss(model, inputs)
            _check_memory(examples.extra_bytes, loss.device)
            gradients = torch.autograd.grad(loss, meter.parameters.tensors, allow_unused=True)
            for index, gradient in enumerate(gradients):
                if gradient is not None and meter.see is not None:
                    meter.see(index, gradient)
            examples.end(0)
            if not examples.counts.rows or examples.counts.rows[0] < 2:
                raise LargeBatchError("The batch has one example.")
    except LargeBatchError:
        raise
    except Exception as error:
        raise LargeBatchError(
            f"Running the model once more failed: {type(error).__name__}: {error}"
        ) from error
    finally:
        examples.release()
        meter.open(frozenset())


def _check_memory(extra: int | None, device: torch.device) -> None:
    free = free_bytes(device)
    if extra is None or free is None or extra <= PART_OF_MEMORY * free:
        return
    raise LargeBatchError(
        f"Measuring single examples would take {bytes_text(extra)} more memory, and "
        f"{bytes_text(free)} are free."
    )


def _is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or "_orig_mod" in dict(module.named_children())


def _loss(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return a scalar that depends on all outputs of the model."""
    with torch.enable_grad(), _autocast(inputs):
        output = model(*inputs.args, **inputs.kwargs)
        found = [tensor for tensor in tensor_leaves(output) if tensor.requires_grad]
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
