"""By how much measuring single examples raises the peak of memory, from the calls' sizes."""

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
    """The sizes of one call of a module, all in bytes.

    Args:
        layer: the class of its layer.
        group: the same number for calls that have a parameter in common.
        inputs: what it was given.
        outputs: what it returned, and what the gradient of that will take.
        parameters: the measured ones, in the dtype that examples are computed in.
        casts: copies of inputs and output gradient in that dtype; 0 if they have it already.
        rows: the examples.
        shared: whether all examples share the call.
        flat: whether its output has one row for each example, without positions.
        cpu: whether it runs on a CPU.
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
        """Bytes that autograd keeps around the call: its input, or what an activation behind it
        makes of its output."""
        return max(self.inputs, self.outputs)

    @property
    def matrices(self) -> int:
        """Bytes of the examples' matrices that are formed at a time (`examples_at_once`)."""
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
"""Bytes in which the examples of a call are formed, by layer."""


def size_of(call: Call, kept: SavedTensors, output: Tensor) -> CallSize:
    """Return the sizes of a call in hand."""
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
    """Estimate by how many bytes measuring raises the peak of a forward and backward.

    Held until the backward is over: the input and the output's gradient of calls that share a
    parameter, or of all calls where products are wanted, the sums of squares, and what the check of
    the first backward compares. While a call is added up, its matrices are there, too. Meanwhile
    autograd frees activations, of which only these calls' are known, so the peak may rise by less.

    Args:
        calls: of one forward, in its order.
        want: what is asked for.
        check: whether the backward is compared with the parameters' gradients, as the first one is.

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
    """Of a call that all examples share, each example has an output gradient of its own."""
    if call.shared:
        return call.rows * call.outputs
    return call.casts or call.inputs + call.outputs


def _scratch(call: CallSize, want: WantedSums, *, check: bool) -> int:
    """What a call's examples take while they are added up."""
    if call.layer is LinearLayer and call.flat and not check:
        return call.inputs + call.outputs if want.squares else 0
    return SCRATCH[call.layer](call)
