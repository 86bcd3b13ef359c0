"""Define `lb.watch`, which measures the gradient noise of an existing training loop."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from largebatch.act.claim import Claim, refuse_second
from largebatch.act.guards import (
    check_batch_size,
    check_micro_batches,
    check_not_joined,
    check_parts,
    has_closure,
)
from largebatch.act.joint_optimizers import joined, members_of, optimizer_names
from largebatch.act.moved_parameters import MovedParameters
from largebatch.act.scaling import LossScale
from largebatch.act.step_hooks import StepHooks
from largebatch.analysis.noise import (
    NoiseEstimate,
    NotEnough,
    check_dataset_size,
    estimate_noise,
)
from largebatch.core.errors import LargeBatchError
from largebatch.core.measurement import GradientMoments, Reading
from largebatch.measure.forwards import Samples
from largebatch.measure.hook_check import check_hooks
from largebatch.measure.meter import Meter
from largebatch.measure.observer import Observer

MOMENTS = frozenset({"moments"})

PAIRS_ARE_OFF = (
    "the weights moved between the two steps of a pair (in our tests, the median estimate was "
    "1.5 times the true noise scale)"
)
"""Reason why the noise scale is approximate if it comes from pairs of consecutive steps. The factor
1.5 was measured in `experiments/batch_norm_rows`, at the learning rate of that experiment.
"""

MOVING = "approximate while the weights move within an epoch"
"""Reason why the noise scale of a data set is approximate: while the weights move, the samples that
remain in the epoch have another mean gradient.
"""


class Watch:
    """Measure and show the gradient noise of a training loop; `lb.watch` builds this object.

    A watch does not change the training by a single bit. After construction, neither its hooks nor
    `part`, `micro_batch` and `drop` raise an exception. A step that cannot be measured is left out
    and counted, and a warning explains the first such step. A step that a GradScaler skips is left
    out without a warning.

    This class is mutable: it stores two numbers per measured step.

    Args:
        optimizer: Optimizer, or list of optimizers, whose steps are measured.
        observer: Observer that measures the gradients of the loop; the watch binds the observer to
            the optimizer.
        steps: Number of measured steps to keep; older steps are forgotten.
        scaler: GradScaler that scales the losses for half precision.
        dataset_size: Number of samples of a data set whose epochs are drawn without replacement.

    Attributes:
        dropped: Number of steps that were left out because they could not be measured.

    Raises:
        ValueError: The optimizer does not belong to the model, or another control already uses the
            optimizer.
    """

    def __init__(
        self,
        optimizer: Optimizer | Sequence[Optimizer],
        observer: Observer,
        *,
        steps: int,
        scaler: GradScaler | None = None,
        dataset_size: int | None = None,
    ) -> None:
        optimizer = joined(optimizer)
        members = members_of(optimizer)
        for member in members:
            refuse_second(member, self)
        observer.bind(optimizer)
        self.observer, self.dropped = observer, 0
        self._dataset_size = dataset_size
        self._optimizer_name = optimizer_names(optimizer)
        self._moved = MovedParameters(optimizer, observer.meter.parameters)
        self._scale = LossScale(scaler, optimizer)
        self._scale.open()
        observer.skipped = self._skipped
        self._series: deque[tuple[float, float]] = deque(maxlen=steps)
        self._last: GradientMoments | None = None
        self._left_out = False  # whether the current step is left out
        self._off = ""
        observer.open(MOMENTS)
        self._claims = [Claim(member, self) for member in members]
        self._hooks = StepHooks(
            members,
            before=self._before_step,
            after=self._after_step,
            refuse=self._refuse,
            abandon=self._begin,
        )

    @classmethod
    def off(cls, cause: str) -> Watch:
        """Return a watch that measures nothing and has no hooks, for this cause."""
        watch = cls.__new__(cls)
        watch._off, watch._left_out, watch.dropped = cause, False, 0
        watch._series, watch._last, watch._dataset_size = deque(), None, None
        return watch

    exclusive = True
    """Whether this watch excludes any other control of the same optimizer; always True."""
    finished = False
    """Whether the budget is used up; always False, because a watch has no budget."""

    @property
    def series(self) -> list[tuple[float, float]]:
        """Pairs (variance of one sample's gradient, squared norm of the true gradient), one per
        measured step.
        """
        return list(self._series)

    @property
    def estimate(self) -> NoiseEstimate | NotEnough:
        """Noise scale in samples with its 95 % confidence interval, or the reason why it is
        unknown.
        """
        return estimate_noise(self.series, dataset_size=self._dataset_size)

    @property
    def label(self) -> str:
        """One line that says how, how often, and how exactly the noise scale was measured."""
        if self._off:
            return f"nothing is measured: {self._off}"
        if self._last is None:
            return "no step has been measured yet"
        often = self.observer.schedule.words
        source = self._last.source
        examples = self.observer.meter.examples
        rough = PAIRS_ARE_OFF if source == "temporal" else None
        if examples is not None:
            rough = examples.approximation
        exact = "exact" if rough is None else f"approximate: {rough}"
        if source == "examples" and rough is None:
            exact = "exact if the loss is a mean over the examples"
        parts = "pairs of consecutive steps" if source == "temporal" else source
        if self._dataset_size is not None:
            exact += f"; for the data set of {self._dataset_size} samples, the estimate is {MOVING}"
        left = f"; {self.dropped} steps were left out" if self.dropped else ""
        return (
            f"measured from {parts}, {often}; noise scale of the raw gradient, before "
            f"{self._optimizer_name} changes it; the estimate is {exact}{left}"
        )

    @property
    def control(self) -> Watch:
        """Use the watch itself instead of its `control`, which is deprecated and will be removed in
        0.3.
        """
        warnings.warn(
            "noise.control is deprecated and will be removed in 0.3. Call the methods of noise "
            "itself, for example noise.close().",
            DeprecationWarning,
            stacklevel=2,
        )
        return self

    def drop(self) -> None:
        """Discard the gradients measured so far in the current step, as `Attached.drop` does."""
        self._without_raising(lambda: self.observer.drop(by="noise.drop()"))

    @contextmanager
    def part(
        self, *, samples: float | Tensor | None = None, weight: float | Tensor | None = None
    ) -> Iterator[None]:
        """Count all backward calls inside the `with` block as one micro-batch, as `Attached.part`
        does.

        An exception that the user's own code raises inside the block reaches the user unchanged.
        """
        if self._off:
            yield
            return
        block = self.observer.part(samples=samples, weight=weight)
        entered = self._without_raising(block.__enter__)
        try:
            yield
        except BaseException as error:
            kind, own = type(error), error
            if entered:
                self._without_raising(lambda: block.__exit__(kind, own, own.__traceback__))
            raise
        if entered:
            self._without_raising(lambda: block.__exit__(None, None, None))

    def micro_batch(self, samples: float | Tensor, *, weight: float | Tensor | None = None) -> None:
        """Set the number of samples of one micro-batch, as `Attached.micro_batch` does."""
        self._without_raising(lambda: self.observer.size(samples, weight=weight))

    def close(self) -> None:
        """Remove every hook from model and optimizer; the measured numbers remain available."""
        if self._off:
            return
        self._hooks.close()
        for claim in self._claims:
            claim.release()
        self._claims = []
        self.observer.detach()

    def __str__(self) -> str:
        return f"{self.estimate}\n{self.label}"

    def _before_step(self, first: bool, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not first:
            return
        if has_closure(args, kwargs):
            self._leave_out(
                "optimizer.step(closure) runs the backward call inside the step, but the gradients "
                "are measured before the step. Run the closure before the step: closure(); "
                "optimizer.step()."
            )
        elif self.observer.measures and not self._left_out:
            self._without_raising(self._measure)

    def _after_step(self, last: bool) -> None:
        if last:
            self._begin()

    def _refuse(self, error: LargeBatchError) -> None:
        self._leave_out(str(error))
        # Without this, the gradients of the refused step would be kept until a step ends.
        self._without_raising(lambda: self.observer.open(MOMENTS))

    def _begin(self) -> None:
        self._hooks.begin()
        self._left_out = False
        self._without_raising(lambda: self.observer.open(MOMENTS))

    def _measure(self) -> None:
        check_not_joined(self.observer.meter.replica)
        self._moved.check()
        reading = self.observer.close(loss_scale=self._scale.open())
        if reading.finite and reading.moments is not None:
            self._append(reading, reading.moments)

    def _append(self, reading: Reading, moments: GradientMoments) -> None:
        pair = (moments.variance, moments.sqnorm)
        if all(map(math.isfinite, pair)):
            self._series.append(pair)
            self._last = moments

    def _skipped(self) -> bool:
        """Return whether the scaler has skipped a step since the last measured step."""
        if not self._scale.lowered:
            return False
        self._scale.open()
        return True

    def _without_raising(self, act: Callable[[], object]) -> bool:
        """Call `act` and return True; if `act` raises an exception, leave out the current step and
        return False.
        """
        if self._off:
            return False
        try:
            act()
        except LargeBatchError as error:
            self._leave_out(str(error))
        except Exception as error:
            self._leave_out(f"{type(error).__name__}: {error}")
        else:
            return True
        return False

    def _leave_out(self, cause: str) -> None:
        if self._left_out:
            return
        self._left_out = True
        self.dropped += 1
        if self.dropped == 1:
            warnings.warn(
                "lb.watch could not measure a step and left it out. The training is not "
                f"changed, and noise.dropped counts such steps. {cause}",
                RuntimeWarning,
                stacklevel=2,
            )


def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    batch_size: int,
    micro_batches: int | None = None,
    samples: Samples | None = None,
    meter: Meter | None = None,
    scaler: GradScaler | None = None,
    steps: int = 2000,
    dataset_size: int | None = None,
) -> Watch:
    """Measure the gradient noise of an existing training loop without changing the training.

        noise = lb.watch(model, optimizer, batch_size=512)
        ...                                          # train as before
        print(noise)                                 # noise scale 1240 [980, 1610] samples (...)

    On one process, a loop with one backward call per step is measured from the gradients of single
    examples, in every 8th of the first 128 steps and in every 160th later step. If the model's
    examples depend on each other, or cannot be separated, `watch` compares consecutive steps
    instead. Comparing consecutive steps is approximate, and the printed label says so.

    By default, the true gradient is the mean gradient over fresh samples of the distribution. If
    training repeats a small data set many times, pass `dataset_size`: the true gradient is then the
    mean gradient over the data set. With `dataset_size`, the noise scale is approximate while the
    weights move within an epoch. In one test, late in training and at a large learning rate, the
    estimate was a third of the true noise scale (docs/explanation/noise-scale.md).

    >>> import torch, largebatch as lb
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> noise = lb.watch(model, optimizer, batch_size=8)
    >>> for x in torch.randn(16, 2, 4, 3): sum(model(part).square().mean() for part in x).backward()
    >>> print(noise.label)
    no step has been measured yet

    Args:
        model: Model to train: a plain module, or one in DistributedDataParallel if several
            processes share the batch.
        optimizer: Any torch optimizer, or a list of the optimizers that together update the model.
        batch_size: Number of samples per optimizer step, over all ranks and micro-batches.
        micro_batches, samples: These arguments have the same meaning as in `attach`.
        meter: Meter that measures the gradients; if None, `watch` chooses how to measure.
        scaler: GradScaler that scales the losses of the loop for half precision.
        steps: Number of measured steps to keep; older steps are forgotten.
        dataset_size: Number of samples, over all ranks, of a data set whose epochs are drawn
            without replacement, as shuffling loaders do. None if samples are fresh or drawn with
            replacement.

    Raises:
        ValueError: The arguments do not fit together; the error is raised before any training step.
    """
    check_parts(model, optimizer, None)
    check_batch_size(batch_size)
    _check_dataset_size(dataset_size, batch_size=batch_size)
    check_micro_batches(micro_batches)
    try:
        check_hooks()
    except LargeBatchError as error:
        warnings.warn(
            f"lb.watch measures nothing in this run; the training is not changed. {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return Watch.off(str(error))
    observer = Observer(
        meter or Meter(model),
        batch_size=batch_size,
        micro_batches=micro_batches,
        samples=samples,
        chooses=meter is None,
        looks_only=True,
    )
    return Watch(optimizer, observer, steps=steps, scaler=scaler, dataset_size=dataset_size)


def _check_dataset_size(size: int | None, *, batch_size: int) -> None:
    if size is None:
        return
    check_dataset_size(size)
    if size < batch_size:
        raise ValueError(
            f"dataset_size={size} was given, but one batch has {batch_size} samples, which is "
            "more than can be drawn without replacement. Count samples, not batches: "
            "dataset_size=len(dataset)."
        )
