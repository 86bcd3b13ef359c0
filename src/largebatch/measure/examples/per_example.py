"""Single examples, or groups of them, as the parts of a step: `lb.Meter(model, examples=...)`."""

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
    """Exact statistics of single examples' gradients, from ordinary backward calls.

        meter = lb.Meter(model, examples=lb.PerExample())

    The first dimension of the model's first tensor argument is the examples, and the loss is a mean
    over them: an example's gradient is its share of the micro-batch's, times their number. If a
    mean is over tokens, an example is a sequence, and all of a micro-batch count alike. A sum of
    losses in place of a mean multiplies every gradient by the number of examples: noise scale and
    gain stay as they are.

    In the first measured step a copy of the model runs three times on copies of its input, in
    evaluation mode, to find the dimension of the examples in each module. The result is compared
    with each parameter's gradient. `ExampleGradients` says how the gradients are seen.

    Mutable: holds what the step in hand has shown so far.

    Args:
        groups: None takes each example by itself. A number takes so many groups of consecutive
            examples in each micro-batch, or the largest smaller number that divides it: cheaper,
            and as unbiased, with the uncertainty of so few parts.
        exact_training: whether a measured step trains exactly as an unmeasured one, to the last
            bit. Otherwise some layers form the parameter's gradient from the examples' gradients,
            which is cheaper and differs from autograd's gradient by rounding. With True, an error
            within the forward or the backward is raised when the backward is over, so that the
            gradients are complete.
        batch_norm_rows: whether batch normalization in training mode is measured rather than
            refused. An example's contribution is then its rows' share of each layer's gradient, for
            the input and the output gradient that the layer had in the batch. The shares add up to
            the batch's gradient, but their variance is not that of a gradient from another batch:
            `experiments/batch_norm_rows` measures the difference.

    Attributes:
        counts: the examples and the groups of the step in hand.

    Raises:
        ValueError: groups that are no whole number, or fewer than two.
        LargeBatchError: while training, for examples that depend on each other (batch normalization
            in training mode) and for a parameter whose gradient cannot be told apart by examples.
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
                "groups is a whole number, at least 2, since of one group no variance is known; "
                f"got groups={groups!r}. lb.PerExample(groups=4); for every example by itself: "
                "lb.PerExample()."
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
        """Groups of examples in each micro-batch; None for each example by itself."""
        return self._groups

    @property
    def exact_training(self) -> bool:
        """Whether a measured step trains as an unmeasured one, to the last bit."""
        return self._exact

    @property
    def batch_norm_rows(self) -> bool:
        """Whether batch normalization in training mode is measured by rows."""
        return self._rows

    def take_layout(self, of: PerExample) -> None:
        """Take over where another one found the examples, on a copy of the model; before `bind`."""
        self._gradients.take_layout(of._gradients.layout)

    @property
    def extra_bytes(self) -> int | None:
        """Estimate by how many bytes measuring raises the peak of the coming backward; None until
        the first measured forward is over."""
        return self._gradients.extra_bytes

    @property
    def approximation(self) -> str | None:
        """How far the measurement may be off, in words for a label; None where it is exact.

        It is approximate where a module that is measured by rows is in training mode.
        """
        return None if self._model is None else approximation_of(self._model)

    def check(self, model: nn.Module, *, tap: Tap | None) -> None:
        if not isinstance(tap, LeafHooks | None):
            raise ValueError(
                "lb.PerExample() needs the usual tap. Leave the other one out: "
                "lb.Meter(model, examples=lb.PerExample())."
            )
        inside = replica(model)
        for module in (model, model if inside is None else inside.module):
            if "_orig_mod" in dict(module.named_children()):
                raise ValueError(
                    "torch.compile leaves no calls of single modules to follow. Measure "
                    "micro-batches instead, meter=lb.Meter(model), or leave out torch.compile."
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
                f"lb.PerExample() was given, but {name} is complex ({tensor.dtype}), and gradients "
                "of single examples are not supported for complex parameters. Take micro-batches "
                "for the parts: meter=lb.Meter(model)."
            )


def part_source_of(examples: PerExample | None) -> PartSource:
    """Return the parts that `lb.Meter(model, examples=...)` measures; None is backward calls.

    Raises:
        ValueError: something else than a `PerExample`.
    """
    if examples is None:
        return BackwardParts()
    if isinstance(examples, PerExample):
        return examples
    raise ValueError(
        f"examples={examples!r} was given, but the only value besides None is a PerExample. Pass "
        "lb.Meter(model, examples=lb.PerExample())."
    )
