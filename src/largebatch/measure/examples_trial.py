"""Repeat a training step on a copy of the model to check whether examples can be measured.

The copy of the model repeats each recorded forward pass from the same random state, and the copy's
outputs get the recorded gradients. If the outputs of the model and its copy are the same but the
gradients of their parameters differ, the loss has a term that does not depend on the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD

from largebatch.core.errors import LargeBatchError
from largebatch.measure.examples.check import DO_NOT_ADD_UP
from largebatch.measure.examples.per_example import PerExample
from largebatch.measure.forwards import tensor_leaves
from largebatch.measure.meter import Meter
from largebatch.measure.model_copy import check_memory, copy_of_inputs, copy_of_model
from largebatch.measure.parameters import bare
from largebatch.measure.random_state import accelerators_of, keep_random_state
from largebatch.measure.seen_forward import SeenForward
from largebatch.measure.squares import squared_norm

LIMIT, COARSE_LIMIT = 1e-3, 0.05
"""Largest relative error of a repeated gradient: without autocast, and with autocast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenStep:
    """Hold the forward passes and gradients that were recorded in the first training step.

    Args:
        forwards: Recorded forward passes, in order; empty if no forward pass was observed.
        complete: Whether all forward passes were recorded and one backward call followed.
        gradients: Gradient of each parameter by its name, if `complete`.
        several: Largest number of backward calls in one micro-batch.
    """

    forwards: Sequence[SeenForward]
    complete: bool
    gradients: Mapping[str, Tensor | None]
    several: int


def try_examples(meter: Meter, examples: PerExample, seen: SeenStep) -> int:
    """Measure the examples of a step on a copy of the model, and return the number of examples.

    The copy of the model shows which dimension of each module's input is the examples, and
    `examples` stores the dimensions.

    Args:
        meter: The meter, which is bound to the model and the optimizer.
        examples: The `PerExample` of the meter.
        seen: The recorded step.

    Raises:
        LargeBatchError: The examples cannot be measured.
    """
    model = bare(meter.model)
    if any(map(_is_compiled, model.modules())):
        raise LargeBatchError(
            "A part of the model is compiled, so the calls of its modules cannot be observed."
        )
    if seen.several > 1:
        raise LargeBatchError(
            f"A micro-batch had {seen.several} backward calls, but single examples need all losses "
            "of a micro-batch in one backward call: (loss_1 + loss_2).backward()."
        )
    if not seen.forwards:
        raise LargeBatchError(
            "No forward pass of the model was observed, perhaps because the loop calls submodules "
            "of the model directly."
        )
    twin, copies = copy_of_model(model)
    tensors = [copies[id(p)] for p in meter.parameters.tensors if id(p) in copies]
    trial = PerExample(exact_training=examples.exact_training)
    trial_meter = Meter(twin, examples=trial)
    trial_meter.bind(SGD(tensors, lr=0.0))
    try:
        with keep_random_state(accelerators_of(model)):
            rows = _Trial(trial_meter, trial, seen).run()
    except LargeBatchError:
        raise
    except Exception as error:
        raise LargeBatchError(
            f"Running a copy of the model failed: {type(error).__name__}: {error}"
        ) from error
    examples.take_layout(trial)
    return rows


class _Trial:
    """Repeat a training step once on a copy of the model.

    Mutable: uses the meter of the copy.
    """

    def __init__(self, meter: Meter, examples: PerExample, seen: SeenStep) -> None:
        self._meter, self._examples, self._seen = meter, examples, seen
        reached = [one for one in seen.forwards if one.gradients]
        self._forwards = reached or seen.forwards[:1]
        self._alike = bool(reached) and seen.complete
        self._limit = LIMIT
        if any(one.autocast is not None for one in self._forwards) or any(
            tensor.dtype.itemsize < 4 for tensor in meter.parameters.tensors
        ):
            self._limit = COARSE_LIMIT

    def run(self) -> int:
        meter, examples = self._meter, self._examples
        meter.open(frozenset({"moments"}))
        examples.begin()
        roots, weights = self._outputs()
        check_memory(
            examples.extra_bytes,
            device=meter.parameters.tensors[0].device,
            what="Measuring single examples",
        )
        tensors = meter.parameters.tensors
        found = torch.autograd.grad(roots, tensors, weights, allow_unused=True)
        for index, gradient in enumerate(found):
            if gradient is not None and meter.see is not None:
                meter.see(index, gradient)
        examples.end(0)
        if not examples.counts.rows or examples.counts.rows[0] < 2:
            raise LargeBatchError(
                "The batch has only one example, and single examples need two or more."
            )
        if self._alike:
            self._compare(dict(zip(meter.parameters.names, found, strict=True)))
        return examples.counts.rows[0]

    def _outputs(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the outputs that the backward call starts from, and the outputs' gradients."""
        roots, weights = [], []
        for seen in self._forwards:
            args, kwargs = copy_of_inputs((seen.args, seen.kwargs))
            with torch.enable_grad(), seen.as_it_began():
                outputs = list(tensor_leaves(self._meter.model(*args, **kwargs)))
            fits = all(
                at < len(outputs) and outputs[at].shape == gradient.shape
                for at, gradient in seen.gradients.items()
            )
            given = seen.gradients if fits else {}
            self._alike = self._alike and fits and seen.alike(outputs, limit=self._limit)
            for at, output in enumerate(outputs):
                if not output.requires_grad or (given and at not in given):
                    continue
                weight = given.get(at, output.detach() / max(output.numel(), 1))
                if at in given and output.grad_fn is not None:
                    output.grad_fn.register_prehook(_replace(output.output_nr, weight))
                roots.append(output)
                weights.append(weight)
        if not roots:
            raise LargeBatchError("No output of the model requires a gradient.")
        return roots, weights

    def _compare(self, found: Mapping[str, Tensor | None]) -> None:
        known = {name: one for name, one in self._seen.gradients.items() if one is not None}
        floor = 1e-10 * sum(squared_norm(one) for one in known.values())
        for name, gradient in known.items():
            again = found.get(name)
            off = squared_norm(gradient if again is None else gradient - again)
            if bool(torch.isfinite(off) & (off > self._limit**2 * squared_norm(gradient) + floor)):
                raise LargeBatchError(DO_NOT_ADD_UP.format(name=name))


def _replace(
    number: int, gradient: Tensor
) -> Callable[[tuple[Tensor | None, ...]], tuple[Tensor | None, ...]]:
    """Return a hook that replaces the gradient of output `number` of a graph node.

    The gradient is replaced even if another output of the model was computed from output `number`.
    """

    def hook(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        return (*gradients[:number], gradient, *gradients[number + 1 :])

    return hook


def _is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or "_orig_mod" in dict(module.named_children())
