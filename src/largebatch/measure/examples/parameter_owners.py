"""Which module gives which parameter's gradient example by example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from largebatch.measure.examples.layer_kinds import is_known, is_whole
from largebatch.measure.parameters import Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A module that is called, and the measured parameters that it uses.

    Args:
        module: the module.
        name: its place in the model.
        indices: name of a parameter in the module -> its index among the measured ones.
        parameters: the same names -> the parameters.
        known: whether its layer has formulas of its own.
        group: the same number for owners that have a parameter in common.
        dtype: in which its examples are computed: float32 or wider, but where the module itself
            runs again that of its parameters.
    """

    module: nn.Module
    name: str
    indices: Mapping[str, int]
    parameters: Mapping[str, nn.Parameter]
    known: bool
    group: int
    dtype: torch.dtype = torch.float32


def dtype_of(parameter: Tensor, *, known: bool) -> torch.dtype:
    """In which the examples of a parameter's module are computed."""
    return torch.promote_types(parameter.dtype, torch.float32) if known else parameter.dtype


def owners_of(model: nn.Module, parameters: Parameters) -> tuple[list[Owner], dict[int, int]]:
    """The owners of the measured parameters; and, index by index with their groups, the bare
    parameters: those that a module uses beside other modules in it, or in a `ParameterList`."""
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
    """Index -> the least index that it is together with, also by way of others."""
    group: dict[int, int] = {}
    for indices in together:
        merged = {group.get(index, index) for index in indices}
        least = min(merged)
        group.update(dict.fromkeys(indices, least))
        group.update({index: least for index, of in group.items() if of in merged})
    return group


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules by name, each once, but none inside one that is taken as a whole."""
    hidden: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in hidden:
            continue
        yield name, module
        if is_whole(module):
            hidden |= {id(below) for below in module.modules()}


def _alone(module: nn.Module) -> bool:
    """Whether it is called, and with parameters of its own only."""
    called = type(module).forward is not nn.Module.forward
    return called and not any(any(True for _ in child.parameters()) for child in module.children())
