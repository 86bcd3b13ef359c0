"""Copy a run, or restore it after work that must not change it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from largebatch.measure.module_state import keep_module_state
from largebatch.measure.parameters import bare, replica
from largebatch.measure.random_state import accelerators_of, keep_random_state


def copy_run(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
    """Return deep copies of model and optimizer, without gradients.

    The copied optimizer moves the copied model. If the model is in DistributedDataParallel, the
    copy gets its own wrapper.

    Raises:
        ValueError: The model or the optimizer cannot be copied.
    """
    try:
        twin, twin_optimizer = copy.deepcopy((bare(model), optimizer))
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"The model and its optimizer cannot be copied ({error}). Pass a newly built model and "
            "optimizer, lb.probe(build_model(), ...), or write a Workload and probe the Workload."
        ) from error
    twin_optimizer.zero_grad()
    if isinstance(model, nn.parallel.DistributedDataParallel):
        twin = nn.parallel.DistributedDataParallel(twin, process_group=model.process_group)
    return twin, twin_optimizer


@contextmanager
def keep_run_state(
    model: nn.Module, optimizer: Optimizer, *, scaler: GradScaler | None, seed: int
) -> Iterator[None]:
    """Restore the state of a run, bit by bit, after the `with` block, also after an error.

    The state consists of weights, buffers, gradients, training modes, random generators and the
    scaler's state. Inside the block, torch's CPU generator starts at `seed`, no parameter has a
    gradient, and DistributedDataParallel does not synchronize.
    """
    inside, wrapper = bare(model), replica(model)
    held = {p: None for group in optimizer.param_groups for p in group["params"]}
    held.update(dict.fromkeys(inside.parameters()))
    gradients = [(parameter, parameter.grad) for parameter in held]
    scale = scaler.state_dict() if scaler is not None else None
    with ExitStack() as stack:
        stack.enter_context(keep_random_state(accelerators_of(inside), torch_seed=seed))
        stack.enter_context(keep_module_state(inside, also=list(inside.parameters())))
        if wrapper is not None:
            stack.enter_context(wrapper.no_sync())
            synchronizes = wrapper.require_forward_param_sync
            stack.callback(setattr, wrapper, "require_forward_param_sync", synchronizes)
        try:
            for parameter in held:
                parameter.grad = None
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            if scaler is not None and scale:
                scaler.load_state_dict(scale)
