"""Measure the gradients of single examples, or of groups of examples, in a training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from largebatch.measure.examples.example_counts import ExampleCounts
from largebatch.measure.examples.example_gradients import ExampleGradients
from largebatch.measure.examples.layer_kinds import approximation_of
from largebatch.measure.examples.statistics import statistics_of, want_of
from largebatch.measure.parameters import Parameters, bare, replica
from largebatch.measure.part_source import BackwardParts, PartSource
from largebatch.measure.statistics import Statistic
from largebatch.measure.taps import LeafHooks, See, Tap


class PerExample:
    """Measure exact statistics of single examples' gradients in ordinary backward calls.

    Use `PerExample` if the loop makes one backward call per step on one process.

    >>> import largebatch as lb
    >>> import torch
    >>> model = nn.Linear(2, 1)
    >>> meter = lb.Meter(model, examples=PerExample())
    >>> meter.bind(torch.optim.SGD(model.parameters(), lr=0.1)), meter.least_samples
    (None, 2)

    The first dimension of the model's first tensor argument must be the examples, and the loss must
    be a mean over the examples. An example's gradient is then the number of examples times the
    example's contribution to the micro-batch's gradient. If the loss is a mean over tokens, an
    example is a sequence, and all sequences of a micro-batch have equal weights. If the loss is a
    sum over the examples, every gradient is multiplied by the number of examples, which changes
    neither the noise scale nor the gain.

    In the first measured step, a copy of the model runs three times on copies of the input, in
    evaluation mode, to find the dimension of the examples in each module. The sum of the examples'
    gradients is then compared with each parameter's gradient.

    Mutable: holds the measurements of the current training step.

    Args:
        groups: Number of groups of consecutive examples in each micro-batch. If `groups` does not
            divide the number of examples, the next smaller divisor is used. Measuring groups takes
            less time than measuring single examples. The estimates from groups are unbiased, too,
            but less certain than estimates from single examples. The default `groups=None` measures
            each example separately.
        exact_training: Whether a measured step trains exactly as an unmeasured step, to the last
            bit. If False, some layers sum the parameter's gradient from the examples' gradients,
            which is faster than autograd and differs from autograd's gradient by rounding. If True,
            an error within the forward or backward call is raised after the backward call has
            ended, so that the gradients are complete.
        batch_norm_rows: Whether batch normalization in training mode is allowed; if False, batch
            normalization in training mode raises an error. If True, an example's contribution is
            the share of the example's rows in the gradient of each layer. The contributions of all
            examples add up to the batch's gradient. But the variance of these contributions is not
            the variance of gradients from different batches. `experiments/batch_norm_rows` measures
            the difference between the two variances.

    Attributes:
        counts: Counter of the examples, and groups of examples, in the current training step.

    Raises:
        ValueError: `groups` is not a whole number, or is below 2.
        LargeBatchError: The examples depend on each other during training (as in batch
            normalization in training mode), or a parameter's gradient cannot be split into the
            examples' contributions.
    """

    adds_up = False

    def __init__(
        self,
        *,
        groups: int | None = None,
        exact_training: bool = False,
        batch_norm_rows: bool = False,
    ) -> None:
        if groups is not None and not (isinstance(groups, int) and groups >= 2):
            raise ValueError(
                f"groups={groups!r} was given, but groups must be a whole number of at least 2, "
                "because one group has no variance. Pass lb.PerExample(groups=4). To measure every "
                "example by itself, pass lb.PerExample()."
            )
        self._groups = groups
        self._exact, self._rows = exact_training, batch_norm_rows
        self._gradients = ExampleGradients(
            groups=groups, exact_training=exact_training, batch_norm_rows=batch_norm_rows
        )
        self._model: nn.Module | None = None
        self.counts = ExampleCounts()

    @property
    def groups(self) -> int | None:
        """Return the number of groups per micro-batch; None means that every example is a group."""
        return self._groups

    @property
    def exact_training(self) -> bool:
        """Return whether a measured step trains exactly as an unmeasured step."""
        return self._exact

    @property
    def batch_norm_rows(self) -> bool:
        """Return whether batch normalization in training mode is allowed."""
        return self._rows

    def take_layout(self, of: PerExample) -> None:
        """Copy the rows per example of each module from another `PerExample`, before `bind`."""
        self._gradients.take_layout(of._gradients.layout)

    @property
    def extra_bytes(self) -> int | None:
        """Estimate the additional peak memory of the next backward call due to measuring, in bytes.

        The estimate is None until the first measured forward pass has ended.
        """
        return self._gradients.extra_bytes

    @property
    def approximation(self) -> str | None:
        """Return in words how inaccurate the measurement is; None if the measurement is exact.

        The measurement is inaccurate if `batch_norm_rows` allows batch normalization in training
        mode.
        """
        return None if self._model is None else approximation_of(self._model)

    def check(self, model: nn.Module, *, tap: Tap | None) -> None:
        if not isinstance(tap, LeafHooks | None):
            raise ValueError(
                f"tap={type(tap).__name__}() was given, but lb.PerExample() supports only the "
                "default tap. Leave tap= out: lb.Meter(model, examples=lb.PerExample())."
            )
        inside = replica(model)
        for module in (model, model if inside is None else inside.module):
            if "_orig_mod" in dict(module.named_children()):
                raise ValueError(
                    "The model is compiled, so lb.PerExample() cannot observe the calls of its "
                    "modules. Measure micro-batches instead, meter=lb.Meter(model), or do not call "
                    "torch.compile."
                )

    def statistics(self, given: Sequence[Statistic] | None) -> tuple[Statistic, ...]:
        return statistics_of(self._gradients, also=given)

    def bind(self, model: nn.Module, parameters: Parameters) -> None:
        _check_real(parameters)
        self._model = bare(model)
        self._gradients.bind(self._model, parameters)

    def number_backwards(self, task: Callable[[], int]) -> None:
        self._gradients.task = task

    def see_for(self, chosen: Sequence[Statistic]) -> See | None:
        return self._gradients.see if chosen else None

    def open(self, chosen: Sequence[Statistic]) -> None:
        self._gradients.open(want_of(chosen))
        self.counts.open()

    def begin(self) -> None:
        self._gradients.begin()

    def end(self, task: int) -> None:
        if self._gradients.want:
            part = self._gradients.end(task)
            self.counts.add(part.rows, part.parts)

    def release(self) -> None:
        self._gradients.forget()

    def rest(self) -> None:
        self._gradients.rest()


def _check_real(parameters: Parameters) -> None:
    for name, tensor in zip(parameters.names, parameters.tensors, strict=True):
        if tensor.is_complex():
            raise ValueError(
                f"lb.PerExample() does not support complex parameters, but the parameter {name} "
                f"is complex ({tensor.dtype}). Measure micro-batches instead: "
                "meter=lb.Meter(model)."
            )


def part_source_of(examples: PerExample | None) -> PartSource:
    """Return the source of separate gradients for the argument `examples` of `lb.Meter`.

    If `examples` is None, the gradient of each backward call is measured separately.

    Raises:
        ValueError: `examples` is neither None nor a `PerExample`.
    """
    if examples is None:
        return BackwardParts()
    if isinstance(examples, PerExample):
        return examples
    raise ValueError(
        f"examples={examples!r} was given, but examples must be None or an lb.PerExample. Pass "
        "lb.Meter(model, examples=lb.PerExample())."
    )
