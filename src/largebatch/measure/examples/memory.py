"""Estimate the additional peak memory of measuring examples from the sizes of module calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from largebatch.measure.examples.bare_parameter import BareLayer
from largebatch.measure.examples.convolution import ConvolutionLayer
from largebatch.measure.examples.embedding import EmbeddingLayer
from largebatch.measure.examples.layer import CPU_BYTES, DEVICE_BYTES, SavedTensors
from largebatch.measure.examples.linear import LinearLayer
from largebatch.measure.examples.normalization import NormalizationLayer
from largebatch.measure.examples.part import Call
from largebatch.measure.examples.tally import WantedSums
from largebatch.measure.examples.unknown import UnknownLayer


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSize:
    """Hold the sizes of one call of a module.

    Args:
        layer: Class of the module's layer.
        group: Number that is equal for module calls with a common parameter.
        inputs: Bytes of the inputs.
        outputs: Bytes of the outputs, which are also the bytes of the outputs' gradients.
        parameters: Bytes of the measured parameters, in the type of computation.
        casts: Bytes of copies of the inputs and the output's gradient in the type of computation; 0
            if no copies are needed.
        rows: Number of examples.
        shared: Whether all examples share the module call. flat: Whether the output has one row per
            example, without positions.
        cpu: Whether the module call runs on a CPU.
    """

    layer: type
    group: int
    inputs: int
    outputs: int
    parameters: int
    casts: int = 0
    rows: int = 1
    shared: bool = False
    flat: bool = True
    cpu: bool = True

    @property
    def saved(self) -> int:
        """Return the bytes of the module's input or output, whichever is larger.

        Autograd keeps the module's input, and keeps the module's output as the input of the next
        module.
        """
        return max(self.inputs, self.outputs)

    @property
    def matrices(self) -> int:
        """Return the bytes of the examples' matrices that exist at a time (`examples_at_once`)."""
        limit = CPU_BYTES if self.cpu else DEVICE_BYTES
        return min(self.rows * self.parameters, max(limit, self.parameters))


SCRATCH: Mapping[type, Callable[[CallSize], int]] = {
    LinearLayer: lambda call: call.matrices,
    ConvolutionLayer: lambda call: 3 * call.matrices,
    NormalizationLayer: lambda call: call.inputs,
    EmbeddingLayer: lambda call: 2 * call.outputs + call.matrices,
    BareLayer: lambda call: 0,
    UnknownLayer: lambda call: 3 * call.matrices + call.inputs + call.outputs,
}
"""Temporary bytes needed to compute the examples' gradients of a module call, by type of layer."""


def size_of(call: Call, kept: SavedTensors, output: Tensor) -> CallSize:
    """Return the sizes of one call of a module."""
    owner = call.owner
    inputs = kept if call.layer.keeps_output else kept[:1]
    tensors = [x for x in (*inputs, output) if x.is_floating_point()]
    wide = sum(x.numel() for x in tensors) * owner.dtype.itemsize
    return CallSize(
        layer=type(call.layer),
        group=owner.group,
        inputs=sum(x.nbytes for x in inputs),
        outputs=output.nbytes,
        parameters=sum(p.numel() for p in owner.parameters.values()) * owner.dtype.itemsize,
        casts=wide if any(x.dtype is not owner.dtype for x in tensors) else 0,
        rows=call.rows,
        shared=call.shared,
        flat=output.dim() == 2,
        cpu=output.device.type == "cpu",
    )


def extra_bytes(calls: Sequence[CallSize], want: WantedSums, *, check: bool) -> int:
    """Estimate the additional peak memory of a training step due to measuring, in bytes.

    Until the backward call ends, three things are kept in memory: the input and the output's
    gradient of module calls that share a parameter (of all module calls if inner products are
    requested), the sums of squares, and the values that the check of the first backward call
    compares. The examples' matrices of a module call need memory while the matrices are added up.
    Autograd frees other activations at the same time. Their sizes are unknown, so the true peak may
    rise by less than the estimate.

    Args:
        calls: Sizes of the module calls in one forward pass, in the order of the calls.
        want: Sums over the examples that are requested. check: Whether the examples' sums are
            compared with the parameters' gradients, as in the first backward call.

    >>> call = CallSize(layer=LinearLayer, group=0, inputs=400, outputs=400, parameters=100, rows=9)
    >>> extra_bytes([call], WantedSums(sqnorm=True), check=False)
    0
    >>> extra_bytes([call], WantedSums(sqnorm=True), check=True)
    1100
    """
    times = Counter(call.group for call in calls)
    saved = sum(call.saved for call in calls)
    copies = int(want.squares) + 2 * int(check)
    plain = measured = saved
    gradients = held = 0
    seen: set[int] = set()
    for call in reversed(calls):
        if call.group not in seen:
            seen.add(call.group)
            gradients += call.parameters
            held += copies * call.parameters
        there = saved + gradients + call.outputs + call.inputs
        plain = max(plain, there)
        measured = max(measured, there + held + call.casts + _scratch(call, want, check=check))
        saved -= call.saved
        if times[call.group] > 1 or call.shared or want.products:
            held += _while_waiting(call)
    again = max((call.outputs for call in calls), default=0) if want.products else 0
    return max(measured, gradients + held + again) - plain


def _while_waiting(call: CallSize) -> int:
    """Return the bytes that a module call holds until the end of the backward call."""
    if call.shared:
        return call.rows * call.outputs
    return call.casts or call.inputs + call.outputs


def _scratch(call: CallSize, want: WantedSums, *, check: bool) -> int:
    """Return the bytes that a module call needs while its examples' gradients are added up."""
    if call.layer is LinearLayer and call.flat and not check:
        return call.inputs + call.outputs if want.squares else 0
    return SCRATCH[call.layer](call)
