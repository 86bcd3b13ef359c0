"""Find the module that gives the examples' gradients of each parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from largebatch.measure.examples.layer_kinds import is_known, is_whole
from largebatch.measure.parameters import Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Describe a module and the measured parameters that it uses.

    Args:
        module: The module.
        name: Name of the module in the model.
        indices: Index of each parameter among the measured parameters, by the parameter's name in
            the module.
        parameters: Parameters by their names in the module.
        known: Whether formulas for the module's gradients are implemented.
        group: Number that is equal for owners with a common parameter.
        dtype: Type in which the examples' gradients are computed: float32 or wider. A module that
            runs a second time uses the type of its parameters.
    """

    module: nn.Module
    name: str
    indices: Mapping[str, int]
    parameters: Mapping[str, nn.Parameter]
    known: bool
    group: int
    dtype: torch.dtype = torch.float32


def dtype_of(parameter: Tensor, *, known: bool) -> torch.dtype:
    """Return the type in which the examples' gradients of a parameter are computed."""
    return torch.promote_types(parameter.dtype, torch.float32) if known else parameter.dtype


def owners_of(model: nn.Module, parameters: Parameters) -> tuple[list[Owner], dict[int, int]]:
    """Return the owners of the measured parameters, and the groups of bare parameters by index.

    A parameter is bare if its module has submodules with parameters, or if it is in a
    `ParameterList`.
    """
    index_of = {id(tensor): index for index, tensor in enumerate(parameters.tensors)}
    found: list[tuple[str, nn.Module, dict[str, nn.Parameter]]] = []
    bare: list[int] = []
    for name, module in _modules(model):
        whole = is_whole(module)
        pairs = module.named_parameters(recurse=whole, remove_duplicate=False)
        own = {at: parameter for at, parameter in pairs if id(parameter) in index_of}
        if own and (is_known(module) or whole or _alone(module)):
            found.append((name, module, own))
        else:
            bare += [index_of[id(parameter)] for parameter in own.values()]
    groups = _groups([[index_of[id(p)] for p in own.values()] for *_, own in found])
    owners = [
        Owner(
            module=module,
            name=name,
            indices={at: index_of[id(p)] for at, p in own.items()},
            parameters=own,
            known=is_known(module),
            group=groups[index_of[id(next(iter(own.values())))]],
            dtype=dtype_of(next(iter(own.values())), known=is_known(module)),
        )
        for name, module, own in found
    ]
    return owners, {index: groups.get(index, index) for index in bare}


def _groups(together: list[list[int]]) -> dict[int, int]:
    """Return for each index the smallest index in its group of connected indices."""
    group: dict[int, int] = {}
    for indices in together:
        merged = {group.get(index, index) for index in indices}
        least = min(merged)
        group.update(dict.fromkeys(indices, least))
        group.update({index: least for index, of in group.items() if of in merged})
    return group


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each module once with its name, without submodules that `is_whole` modules use."""
    hidden: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in hidden:
            continue
        yield name, module
        if is_whole(module):
            hidden |= {id(below) for below in module.modules()}


def _alone(module: nn.Module) -> bool:
    """Return whether a module has a forward method and no submodule with parameters."""
    called = type(module).forward is not nn.Module.forward
    return called and not any(any(True for _ in child.parameters()) for child in module.children())
