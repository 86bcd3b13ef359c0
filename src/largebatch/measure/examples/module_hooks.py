"""Observe the inputs, the outputs and the outputs' gradients of modules that own parameters.

The output of each module call passes through an autograd function that does not change the output's
value. In the backward call the autograd function receives the gradient of the output. If the
parameters' gradients are summed from the examples' gradients, the parameters require no gradient
during the module's own forward, and the autograd function returns the parameters' gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten
from torch.utils.hooks import RemovableHandle

from largebatch.measure.examples.bare_parameter import BareLayer
from largebatch.measure.examples.broadcast import consumers_of, watch_shared
from largebatch.measure.examples.deferred_errors import DeferredErrors
from largebatch.measure.examples.example_dimension import Layout, layout_of
from largebatch.measure.examples.forward_in_hand import ForwardInHand
from largebatch.measure.examples.layer import SavedTensors
from largebatch.measure.examples.layer_kinds import coupled, layer_of
from largebatch.measure.examples.output_gradient import (
    Arrive,
    Begin,
    HeldInput,
    OutputGradient,
    watch_outputs,
)
from largebatch.measure.examples.parameter_owners import Owner
from largebatch.measure.examples.part import Call
from largebatch.measure.examples.refused import ExamplesRefused
from largebatch.measure.examples.tally import WantedSums
from largebatch.measure.examples.unknown import UnknownLayer


class ModuleHooks:
    """Observe each call of the owners' modules within a forward pass of the model.

    Mutable: holds the hooks and the current forward pass.

    Args:
        model: The model, whose first tensor argument has the examples as its first dimension.
        owners: The modules to observe.
        bare: Owners of one parameter each. The model uses the parameter outside of modules.
        groups: Number of groups of examples in each micro-batch; None measures each example
            separately. layout: Number of rows per example of each module call, as in
            `ForwardInHand`. If None, the numbers are found in the first forward pass.
        batch_norm_rows: Whether batch normalization in training mode is allowed, and each row
            counts as an example.
        replace: Whether the parameters' gradients may be summed from the examples' gradients
            instead of being computed by autograd.
        begin: Function that is called when a module's call begins.
        arrive: Function that is called when the gradient of a module's output is computed.
        errors: Collector of the errors within hooks.

    Attributes:
        paused: Whether forward passes are ignored.
        forward: The current forward pass.
        looked: Whether the number of rows per example of each module call is known.
    """

    def __init__(
        self,
        model: nn.Module,
        owners: Sequence[Owner],
        bare: Sequence[Owner],
        *,
        groups: int | None,
        layout: Layout | None,
        replace: bool,
        batch_norm_rows: bool,
        begin: Begin,
        arrive: Arrive,
        errors: DeferredErrors,
    ) -> None:
        self._replace, self._by_rows = replace, batch_norm_rows
        self._model, self._owners, self._bare = model, owners, bare
        self._begin, self._arrive, self._errors = begin, arrive, errors
        self._handles: list[RemovableHandle] = []
        self._want = WantedSums()
        self.paused = False
        self.forward = ForwardInHand(groups=groups)
        self.looked = layout is not None
        self.forward.layout = layout or {}
        self._shared: list[tuple[Call, SavedTensors, Tensor]] = []
        self._frozen: list[nn.Parameter] = []
        self._held: WeakSet[HeldInput] = WeakSet()

    def follow(self, want: WantedSums) -> None:
        """Register the hooks that observe the next forward passes."""
        self._want = want
        self._release()
        if self._handles:
            return
        add, model, guard = self._handles.append, self._model, self._errors.guard
        first = guard(self._forward_begins)
        add(model.register_forward_pre_hook(first, with_kwargs=True, prepend=True))
        for owner in self._owners:
            module = owner.module
            layer = layer_of(module, replace=self._replace)
            if layer.may_replace:
                add(module.register_forward_pre_hook(self._before(owner, layer)))
            after = self._after(owner, layer)
            add(module.register_forward_hook(after, with_kwargs=True, always_call=True))
        for name, module in model.named_modules():
            if isinstance(module, (_BatchNorm, nn.Embedding)):
                add(module.register_forward_pre_hook(guard(self._refuser(name))))
        add(model.register_forward_hook(guard(self._forward_ends)))

    def rest(self) -> None:
        """Remove all hooks."""
        self._release()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _release(self) -> None:
        for held in list(self._held):
            held.release()
        self._held.clear()

    def _idle(self) -> bool:
        return self.paused or not torch.is_grad_enabled()

    def _forward_begins(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._idle():
            return
        first = args[0] if args else None
        if not isinstance(first, Tensor):
            leaves = tree_flatten((args, kwargs))[0]
            first = next((x for x in leaves if isinstance(x, Tensor)), None)
        rows = first.shape[0] if first is not None and first.dim() else 0
        if rows > 1 and not self.looked:
            self.looked = self.paused = True
            try:
                owners = self._owners
                self.forward.layout = layout_of(module, args, kwargs, rows=rows, owners=owners)
            finally:
                self.paused = False
        self.forward.begin(rows)
        self._shared = []

    def _forward_ends(self, module: nn.Module, args: Any, out: Any) -> None:
        if self._idle():
            return
        bare = list(self._bare_calls())
        self.forward.end(bare)
        if not self._shared and not self._bare:
            return
        consumers = consumers_of([x for x in tree_flatten(out)[0] if isinstance(x, Tensor)])
        for call, kept, output in (*bare, *self._shared):
            self._watch(call, kept, output, consumers)
        self._shared = []

    def _bare_calls(self) -> Iterator[tuple[Call, SavedTensors, Tensor]]:
        """Yield one call for each parameter outside of modules, with the parameter as output."""
        rows = self.forward.rows
        for owner in self._bare:
            (parameter,) = owner.parameters.values()
            call = Call(owner, BareLayer(), rows, self.forward.parts(rows), shared=True)
            yield call, (), parameter

    def _watch(self, call: Call, kept: SavedTensors, tensor: Tensor, consumers: Any) -> None:
        kept = tuple(x.detach().expand(call.rows, *x.shape) for x in kept)

        def arrive(each: Tensor) -> None:
            with torch.no_grad():
                self._arrive(call, kept, each)

        source = get_gradient_edge(tensor)
        if source.node in consumers and watch_shared(
            source, tensor.shape, consumers, rows=call.rows, arrive=arrive, errors=self._errors
        ):
            self._begin(call)

    def _before(self, owner: Owner, layer: Any) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if not args or not (self._want.sqnorm or self._want.squares) or self._idle():
                return
            shape = args[0].shape
            parts = self.forward.parts(self.forward.rows or shape[0])
            if layer.replaces(module, shape, rows=parts, squares=self._want.squares) and (
                self.forward.times(owner, shape[0])
            ):
                self._frozen = [p for p in owner.parameters.values() if p.requires_grad]
                for parameter in self._frozen:
                    parameter.requires_grad_(False)

        return hook

    def _after(self, owner: Owner, known: Any) -> Callable[..., Any]:
        def given(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
            replaced = self._frozen
            if replaced:
                self._frozen = []
                for parameter in replaced:
                    parameter.requires_grad_(True)
            if out is None or self.paused or not torch.is_grad_enabled():
                return None
            if isinstance(out, Tensor) and owner.known:
                if not (replaced or out.requires_grad):
                    return None
                kept = known.keep(module, args, kwargs)
                return self._given(owner, known, kept, out, replaced)
            self._mixed(owner, out, args, kwargs)
            return None

        guarded = self._errors.guard(given)

        def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
            found = guarded(module, args, kwargs, out)
            if found is None:
                return None
            # `OutputGradient` is not guarded, because checkpointing ends its second forward by an
            # error.
            pass_on: Any = OutputGradient.apply
            return pass_on(*found)

        return hook

    def _mixed(self, owner: Owner, out: Any, args: Any, kwargs: Any) -> None:
        """Observe all output tensors of an unknown module that require a gradient."""
        outputs = [x for x in tree_flatten(out)[0] if isinstance(x, Tensor) and x.requires_grad]
        if not outputs:
            return
        rows = self.forward.rows or outputs[0].shape[0]
        layer = UnknownLayer(times=rows // self.forward.parts(rows))
        kept = layer.keep(owner.module, args, kwargs)
        call = self._call(owner, layer, kept, outputs[0], replaced=False)
        if call is not None:
            held = HeldInput(tuple([x.detach() for x in kept]))
            self._held.add(held)
            watch_outputs(outputs, call, held, arrive=self._arrive, errors=self._errors)

    def _given(
        self,
        owner: Owner,
        layer: Any,
        kept: SavedTensors,
        output: Tensor,
        replaced: list[nn.Parameter],
    ) -> Any:
        """Return the arguments of `OutputGradient`; None if all examples share the module call."""
        call = self._call(owner, layer, kept, output, replaced=bool(replaced))
        if call is None:
            return None
        return (self._arrive, call, output, *replaced, *[x.detach() for x in kept])

    def _call(
        self, owner: Owner, layer: Any, kept: SavedTensors, output: Tensor, *, replaced: bool
    ) -> Call | None:
        """Return the module call that begins; None if all examples share the call.

        A module call that all examples share is observed from the end of the forward pass.
        """
        call = self.forward.call(owner, layer, kept, output, replaced=replaced)
        if call.shared:
            self._shared.append((call, kept, output))
            return None
        self._begin(call)
        return call

    def _refuser(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            cause = coupled(module, name, batch_norm_rows=self._by_rows)
            if cause is not None and torch.is_grad_enabled():
                raise ExamplesRefused(cause)

        return hook
