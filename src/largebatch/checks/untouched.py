"""A user's run that is looked at: what is done to it, or to a copy of it, leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from largebatch.measure.parameters import bare, replica
from largebatch.measure.random_state import modules_kept
from largebatch.measure.random_state import random_state_kept as generators_kept


def copied(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
    """Deep copies of both, the optimizer's copy moving the model's copy; gradients are left out.

    A model in DistributedDataParallel gets a wrapper of its own.

    Raises:
        ValueError: a model or an optimizer that cannot be copied.
    """
    try:
        twin, twin_optimizer = copy.deepcopy((bare(model), optimizer))
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"The model and its optimizer cannot be copied ({error}). Give freshly built ones that "
            "can: lb.probe(build_model(), ...), or write a Workload and probe that."
        ) from error
    twin_optimizer.zero_grad()
    if isinstance(model, nn.parallel.DistributedDataParallel):
        twin = nn.parallel.DistributedDataParallel(twin, process_group=model.process_group)
    return twin, twin_optimizer


@contextmanager
def random_state_kept(model: nn.Module, batches: Any, *, seed: int) -> Iterator[None]:
    """Inside, torch's CPU generator starts at `seed`; afterwards every generator is as it was:
    Python's, NumPy's, torch's on the CPU and on the model's device, and a loader's own."""
    own = [(generator, generator.get_state()) for generator in _generators(batches)]
    try:
        with generators_kept(model):
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        for generator, state in own:
            generator.set_state(state)


def _generators(batches: Any) -> list[torch.Generator]:
    if not isinstance(batches, DataLoader):
        return []
    holders = (batches, batches.sampler, batches.batch_sampler)
    found = [vars(holder).get("generator") for holder in holders if holder is not None]
    return [generator for generator in found if isinstance(generator, torch.Generator)]


@contextmanager
def untouched(
    model: nn.Module, optimizer: Optimizer, *, scaler: GradScaler | None, seed: int
) -> Iterator[None]:
    """Inside, torch's CPU generator starts at `seed`, no parameter has a gradient and
    DistributedDataParallel synchronises nothing. Afterwards weights, buffers, gradients, modes,
    generators and the scaler's state have the bits they had, also after an error.
    """
    inside, wrapper = bare(model), replica(model)
    held = {p: None for group in optimizer.param_groups for p in group["params"]}
    held.update(dict.fromkeys(inside.parameters()))
    gradients = [(parameter, parameter.grad) for parameter in held]
    scale = scaler.state_dict() if scaler is not None else None
    with ExitStack() as stack:
        stack.enter_context(random_state_kept(inside, None, seed=seed))
        stack.enter_context(modules_kept(inside, also=list(inside.parameters())))
        if wrapper is not None:
            stack.enter_context(wrapper.no_sync())
            synchronises = wrapper.require_forward_param_sync
            stack.callback(setattr, wrapper, "require_forward_param_sync", synchronises)
        try:
            for parameter in held:
                parameter.grad = None
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            if scaler is not None and scale:
                scaler.load_state_dict(scale)
