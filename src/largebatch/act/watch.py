"""`watch`: measures the gradient noise of a loop that stays as it is."""

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
from largebatch.measure.meter import Meter
from largebatch.measure.observer import Observer

MOMENTS = frozenset({"moments"})

PAIRS_ARE_OFF = (
    "the weights moved between the two steps, and in our tests the noise scale came out 1.5 times "
    "too large in the median"
)
"""Of the noise scale from pairs of steps: `experiments/batch_norm_rows`, at its learning rate."""

MOVING = "approximate while the weights move within an epoch"
"""Of the noise scale of a data set: the samples that are left then have another mean gradient."""


class Watch:
    """Shows the gradient noise of a training loop; `watch` builds it, `print` prints it.

    It changes no bit of the training. Once it is built, neither its hooks nor `part`, `micro_batch`
    and `drop` raise. A step that cannot be measured is left out and counted; the first one is named
    in a warning. A step that a scaler skips is left out without a word.

    Mutable: gathers a pair of numbers per measured step.

    Args:
        optimizer: whose steps are measured.
        observer: measures the gradients of the loop; this binds it.
        steps: how many of the last measured steps are kept.
        scaler: scales the losses in half precision.
        dataset_size: samples of a data set whose epochs are drawn without replacement.

    Attributes:
        dropped: steps left out because they could not be measured.

    Raises:
        ValueError: optimizer and model do not match, or the optimizer is under control already.
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
        self._left_out = False  # whether the step in hand is
        observer.open(MOMENTS)
        self._claims = [Claim(member, self) for member in members]
        self._hooks = StepHooks(
            members,
            before=self._before_step,
            after=self._after_step,
            refuse=self._refuse,
            abandon=self._begin,
        )

    exclusive = True
    """Whether no other control may act on the same optimizer."""
    finished = False
    """Whether its budget is used up; it has none."""

    @property
    def series(self) -> list[tuple[float, float]]:
        """(variance of one sample, squared norm of the true gradient) of each measured step."""
        return list(self._series)

    @property
    def estimate(self) -> NoiseEstimate | NotEnough:
        """The noise scale in samples with its 95 % interval, or why there is none yet."""
        return estimate_noise(self.series, dataset_size=self._dataset_size)

    @property
    def label(self) -> str:
        """What the estimate is of: the parts it comes from, how often, and whether it is exact."""
        if self._last is None:
            return "nothing is measured yet"
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
            exact += f"; of the data set of {self._dataset_size} samples, {MOVING}"
        left = f"; {self.dropped} steps left out" if self.dropped else ""
        return (
            f"from {parts}, {often}; of the bare gradient, before {self._optimizer_name} changes "
            f"it; {exact}{left}"
        )

    @property
    def control(self) -> Watch:
        """Deprecated, and removed in 0.3: the watch itself."""
        warnings.warn(
            "noise.control is deprecated, and removed in 0.3. Use noise itself: noise.close().",
            DeprecationWarning,
            stacklevel=2,
        )
        return self

    def drop(self) -> None:
        """Drop the pass in hand, as `Attached.drop` does."""
        self._without_raising(lambda: self.observer.drop(by="noise.drop()"))

    @contextmanager
    def part(
        self, *, samples: float | Tensor | None = None, weight: float | Tensor | None = None
    ) -> Iterator[None]:
        """Take all backward calls within the block for one micro-batch, as `Attached.part` does.

        An exception of the user's own code inside the block goes on to the user.
        """
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
        """Set the samples of one micro-batch, as `Attached.micro_batch` does."""
        self._without_raising(lambda: self.observer.size(samples, weight=weight))

    def close(self) -> None:
        """Take every hook off model and optimizer; the numbers stay."""
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
                "optimizer.step(closure) runs its backward inside the step, too late to be "
                "measured. Run the closure yourself: closure(); optimizer.step()."
            )
        elif self.observer.measures and not self._left_out:
            self._without_raising(self._measure)

    def _after_step(self, last: bool) -> None:
        if last:
            self._begin()

    def _refuse(self, error: LargeBatchError) -> None:
        self._leave_out(str(error))
        # else its backward calls would be kept until a step ends
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
        """Return whether the scaler has skipped a step since the last one that was measured."""
        if not self._scale.lowered:
            return False
        self._scale.open()
        return True

    def _without_raising(self, act: Callable[[], object]) -> bool:
        """Return whether it went without an error; else the step in hand is left out."""
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
                f"lb.watch leaves out a step that it cannot measure; the training is not changed, "
                f"and noise.dropped counts such steps. {cause}",
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
    """Measure the gradient noise of a loop that stays as it is, and act on nothing.

        noise = lb.watch(model, optimizer, batch_size=512)
        ...                                          # train as before
        print(noise)                                 # noise scale 1240 [980, 1610] samples (...)

    A loop with one backward call per step on one process is measured by its single examples in
    every 8th of the first 128 steps, and in every 160th later. If the model's examples depend on
    each other or cannot be told apart, consecutive steps are compared, which is approximate; the
    printed label says so.

    The true gradient is that of the distribution of fresh samples. If a small data set is passed
    over many times, give its size: the noise scale is then that of the data set's own gradient. It
    is approximate while the weights move within an epoch. Late in training, at a large learning
    rate, the estimate was a third of the true one (docs/explanation/noise-scale.md).

    Args:
        model: bare, or in DistributedDataParallel if several processes share the batch.
        optimizer: any torch optimizer, or a list of those that together move the model.
        batch_size: samples of one optimizer step, over all ranks and micro-batches.
        micro_batches, samples: as in `attach`.
        meter: how gradients are measured; None chooses.
        scaler: scales the loop's losses in half precision.
        steps: how many of the last measured steps are kept.
        dataset_size: samples of a data set whose epochs are drawn without replacement, as shuffling
            loaders do, over all ranks; None if samples are fresh or drawn with replacement.

    Raises:
        ValueError: arguments that do not fit together, before any training step.
    """
    check_parts(model, optimizer, None)
    check_batch_size(batch_size)
    _check_dataset_size(dataset_size, batch_size=batch_size)
    check_micro_batches(micro_batches)
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
            f"dataset_size={size} was given, but a batch has {batch_size} samples, more than can "
            "be drawn without replacement. Count samples and not batches: "
            "dataset_size=len(dataset)."
        )
