"""Group the backward calls of one step by micro-batch, with the user's samples and weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor

from largebatch.core.errors import LargeBatchError, MicroBatchMissed
from largebatch.measure.backwards import (
    Group,
    counts_decide,
    differ_in_parameters,
    groups_of,
    joins_of,
    needs_sum,
    shared_sum,
)
from largebatch.measure.coordinates import CoordinateNoiseScale
from largebatch.measure.examples.refused import ExamplesRefused
from largebatch.measure.first_sizes import FirstSizes, first_sizes
from largebatch.measure.forwards import Samples
from largebatch.measure.meter import LOSS
from largebatch.measure.shares import PassedSizes, Shares, passed_sizes, shares_of
from largebatch.measure.step_recorder import StepRecorder

SEVERAL = (
    "The parameter {name} got {count} gradients from one forward pass of the model. Perhaps a "
    "micro-batch has several losses with one backward call each, so this step cannot be measured. "
    "Add the losses up, (loss_1 + loss_2).backward(), or put the forward and backward calls of "
    "each micro-batch into one block: with control.part(): loss_1.backward(retain_graph=True); "
    "loss_2.backward()."
)

TASKS = (
    "The micro-batches of the first step use different parameters, for example one head per task. "
    "If the micro-batches are different tasks and not samples of the same data, the differences "
    "between the tasks are measured as noise. Put the calls of all tasks into one block: "
    "with control.part(): loss_a.backward(); loss_b.backward()."
)

NO_FORWARD = (
    "lb.attach(..., samples=...) was given, but a micro-batch had no forward pass of the model. "
    "Perhaps the loop calls submodules of the model directly. Pass the samples in the loop: "
    "control.micro_batch(len(x))."
)
RETURNED_0 = (
    "The function passed as samples= returned 0 for all forward passes of a micro-batch, but a "
    "micro-batch has at least one sample. Return the number of samples: "
    "lb.attach(..., samples=lambda args, kwargs: len(args[0]))."
)


class StepParts:
    """Group the current step's backward calls on this rank by micro-batch.

    Mutable: holds the samples and weights that the user passed in the current step.

    Args:
        step: The recorder of the step's backward calls.
        batch_size: Number of samples in one optimizer step over all ranks.
        micro_batches: Number of micro-batches per step on each rank; None infers the number from
            the first step.
        samples: Function that counts the samples of a forward pass, as in `Forwards`.

    Attributes:
        passed: The user's samples and weight of each micro-batch, in the order of the calls.
        losses: Range of each loss's terms among the step's sums.
        expected: Number of micro-batches per step on each rank, given by the user or inferred from
            the first step.
        by_rows: Whether a step is one micro-batch whose samples are the rows of the model's input.
        unclear: Whether it is unknown which backward calls of the current step belong to the same
            micro-batch. assumed: Whether equal samples are assumed for all micro-batches, because
            the user passed no samples.
    """

    def __init__(
        self,
        step: StepRecorder,
        *,
        batch_size: int,
        micro_batches: int | None,
        samples: Samples | None,
    ) -> None:
        self._step, self.batch_size = step, batch_size
        self._samples_of = samples
        self._given = self.expected = micro_batches
        self.by_rows = False
        self._parts_of_ranks: int | None = None
        self._warned = self._warned_of_tasks = False
        self.unclear = self.assumed = False
        self.passed: list[PassedSizes] = []
        self.losses: list[tuple[int, int]] = []

    @property
    def sizes_known(self) -> bool:
        """Return whether the user passed the samples of this step's micro-batches."""
        return bool(self.passed) or self._samples_of is not None

    def open(self) -> None:
        """Forget the samples, weights and losses of the last step at the beginning of a step."""
        self.passed.clear()
        self.losses.clear()
        self.unclear = self.assumed = False

    def forget(self) -> None:
        """Infer the number of micro-batches from the next step, unless the user passed a number."""
        self.expected, self._parts_of_ranks = self._given, None

    def expect(self, parts: int) -> None:
        """Set the number of micro-batches over all ranks in the first step."""
        self._parts_of_ranks = parts

    def add_sizes(self, passed: PassedSizes) -> None:
        """Add the user's samples and weight of one micro-batch."""
        self.passed.append(passed)

    def add_loss(self, loss: Tensor) -> None:
        """Add the mean loss of one micro-batch.

        Raises:
            ValueError: The loss has more than one element.
        """
        if loss.numel() != 1:
            raise ValueError(
                f"A loss of shape {list(loss.shape)} was given, but the loss of a micro-batch must "
                "be one number, the mean over the samples. Pass control.loss(loss.mean())."
            )
        sums = self._step.meter.sums
        start = sums.mark()
        sums.add(LOSS, loss.detach().reshape(()))
        self.losses.append((start, sums.mark()))

    def read(self, samples: float | Tensor | None, weight: float | Tensor | None) -> PassedSizes:
        """Return the user's samples and weight as numbers.

        An invalid value raises a ValueError. On several ranks, all ranks raise the error at the end
        of the step.
        """
        try:
            return passed_sizes(samples, weight)
        except ValueError as error:
            if self._step.meter.rank_count == 1:
                raise
            self._step.fail(LargeBatchError(str(error)))
            return PassedSizes()

    def shares(self) -> tuple[Shares, list[Group]]:
        """Return the samples, weights and backward calls of this rank's micro-batches.

        After an error, placeholders are returned, so that this rank can still join the all-reduce
        in which the ranks exchange their errors.
        """
        try:
            groups = self._groups()
            usual = self._usual_sizes(groups)
            if self._step.forgot:  # drop the values that belong to the skipped step
                self.passed = self.passed[-len(usual) :]
            pieces = self._step.meter.part_source.counts.groups(len(usual))
            shares = shares_of(self.passed, usual=usual, groups=pieces)
            self._warn_of_unequal(shares)
            return shares, groups
        except Exception as error:  # the other ranks wait for this rank
            self._step.fail_by(error)
            return Shares(samples=[1.0], weights=[], groups=[1]), []

    def weigh(self, shares: Shares, groups: Sequence[Group]) -> float:
        """Apply the micro-batches' weights to the step's sums; return the losses' total weight."""
        sums, weights = self._step.meter.sums, shares.weights
        if weights and any(
            isinstance(one, CoordinateNoiseScale) for one in self._step.meter.active
        ):
            self._step.fail(
                LargeBatchError(
                    "A weight was passed, but under lb.attach "
                    "lb.measure.CoordinateNoiseScale() supports only equal weights. Leave the "
                    "weight out, control.micro_batch(len(x)), or use lb.Controller."
                )
            )
        for group, weight in zip(groups, weights, strict=False):
            for backward in group:
                sums.scale(backward.start, backward.stop, 1.0 / weight)
        if not (self.passed and self.losses):
            return float(len(self.losses))
        if len(self.losses) != len(shares.samples):
            self._step.fail(
                MicroBatchMissed(
                    f"control.loss was called {len(self.losses)} times in a step of "
                    f"{len(shares.samples)} micro-batches. Call control.loss once for each "
                    "micro-batch: control.loss(loss)."
                )
            )
        each = weights or shares.samples
        for (start, stop), weight in zip(self.losses, each, strict=False):
            sums.scale(start, stop, weight)
        return float(sum(each))

    def sizes(self, groups: Sequence[Group]) -> FirstSizes:
        """Return the sample counts of this rank's micro-batches in the first step."""
        forwards = self._step.forwards
        if not self._warned_of_tasks and differ_in_parameters(groups):
            self._warned_of_tasks = True
            warnings.warn(TASKS, RuntimeWarning, stacklevel=2)
        return first_sizes(
            groups,
            forwards.samples,
            rows=forwards.rows,
            parts=len(groups) or 1,
            passed=self.sizes_known,
            hidden=forwards.traced and forwards.in_step == self.expected,
        )

    def _groups(self) -> list[Group]:
        self._step.square_open_part()
        if not self._step.watching:
            return []
        counts, roots = self._step.tap.counts, self._step.roots
        self._step.tap.check_nodes()
        if any(one.root.begun for one in self._step.running.values()):
            raise LargeBatchError(
                "A backward call of this step raised an exception after some gradients were "
                "computed, so this step cannot be measured. Clear the gradients, "
                "optimizer.zero_grad(). The next step is measured as usual."
            )
        if not roots:
            raise MicroBatchMissed(
                _no_backward(self._step.dropped, forwards=self._step.forwards.in_step)
            )
        forwards = self._step.forwards.in_step
        groups = groups_of(roots, forwards=forwards)
        by_counts = counts_decide(roots, forwards=forwards)
        if by_counts and not self._step.forwards.linked and not self._usual_counts(counts):
            self.unclear = True
            return []
        if by_counts:
            self._check_counts(counts, parts=max(counts))
        parts = len(groups)
        self._check_number(counts, parts=parts, by_counts=by_counts)
        self._check_sums(groups)
        if self.expected is None:
            self.expected = parts
        return groups

    def _usual_counts(self, counts: Sequence[int]) -> bool:
        """Return whether all parameters with a gradient got the expected number of gradients."""
        return {count for count in counts if count} == {self.expected}

    def _check_counts(self, counts: Sequence[int], *, parts: int) -> None:
        """Check that all parameters got equally many gradients, unless `micro_batches` is set."""
        if self._given is None and any(0 < count < parts for count in counts):
            self._refuse(
                counts,
                "but other parameters got fewer gradients, so micro-batches cannot be separated",
            )

    def _check_number(self, counts: Sequence[int], *, parts: int, by_counts: bool) -> None:
        given, expected = self._given, self.expected
        doubtful = given is not None or (by_counts and not self.passed)
        if expected is not None and parts > expected and doubtful:
            limit = "in the first step" if given is None else f"micro_batches={given} allows"
            self._refuse(counts, f"more than {limit}")
        if given is not None and parts < given:
            raise MicroBatchMissed(
                f"micro_batches={given} was given, but optimizer.step() was called after {parts} "
                "micro-batches. If the number of micro-batches differs between steps, leave "
                "micro_batches out: lb.attach(..., batch_size=512)."
            )

    def _check_sums(self, groups: Sequence[Group]) -> None:
        if self._step.adds_up:
            self._learn(groups)
        several = next((group for group in groups if needs_sum(group)), shared_sum(groups))
        if several is None:
            return
        indices = [index for backward in several for index in backward.indices]
        most = max(set(indices), key=indices.count)
        name, count = self._step.meter.parameters.names[most], indices.count(most)
        if not self._step.meter.part_source.adds_up:
            raise ExamplesRefused(
                f"The parameter {name} got {count} gradients in one micro-batch, but single "
                "examples need all losses of a micro-batch in one backward call. Add the losses "
                "up: (loss_1 + loss_2).backward()."
            )
        self._step.adds_up = True
        self._step.forwards.link(True)
        self._learn(groups)
        raise LargeBatchError(SEVERAL.format(name=name, count=count))

    def _learn(self, groups: Sequence[Group]) -> None:
        if all(one.block is None for one in self._step.roots):
            self._step.learn(joins_of(self._step.roots, groups))

    def _refuse(self, counts: Sequence[int], what: str) -> None:
        name = self._step.meter.parameters.names[counts.index(max(counts))]
        raise LargeBatchError(
            f"The parameter {name} got {max(counts)} gradients in this step, {what}. Put the "
            "forward and backward calls of each micro-batch into one block, "
            "with control.part(): ..., or pass the number of micro-batches per step on each rank, "
            "lb.attach(..., micro_batches=4). If optimizer.step() was skipped or a backward call "
            "was interrupted, call control.advance() after the skipped step or the interrupted "
            "call."
        )

    def _usual_sizes(self, groups: Sequence[Group]) -> Sequence[float]:
        parts = len(groups)
        if not self._step.watching or self.unclear:
            parts = len(self.passed) or self.expected or 1
        seen = self._step.forwards.samples
        if self._samples_of is not None and not any(one.samples for one in self.passed):
            base = self._step.forwards.base
            sizes = [
                sum(seen.get(n, 0.0) for n in _forwards_of(group, base=base)) for group in groups
            ] or [sum(seen.values()) / parts] * parts
            if not all(size > 0 for size in sizes):
                raise LargeBatchError(RETURNED_0 if 0.0 in seen.values() else NO_FORWARD)
            return sizes
        counts = self._step.meter.part_source.counts
        passed = [one.samples for one in self.passed if one.samples is not None]
        counts.check_backwards(parts, sizes=passed)
        if counts.rows:
            return list(counts.rows)
        rows = self._step.rows if self.by_rows and parts == 1 else 0.0
        if rows:
            return [rows]
        ranks = self._step.meter.rank_count
        self.assumed = not passed
        each = self.batch_size / (self._parts_of_ranks or ranks * (self.expected or parts))
        return [each] * parts

    def _warn_of_unequal(self, shares: Shares) -> None:
        known = bool(self.passed) or self._samples_of is not None
        if self._warned or shares.weights or len(set(shares.samples)) < 2 or not known:
            return
        self._warned = True
        sizes = ", ".join(f"{size:g}" for size in shares.samples[:8])
        warnings.warn(
            f"The micro-batches of this step have {sizes} samples, and no weight was passed, so "
            "all micro-batches get the same share of the loss. If each share is proportional to "
            "the number of samples, as in loss * len(x) / batch_size, pass "
            "control.micro_batch(len(x), weight=len(x)). If the shares are equal, pass weight=1.",
            RuntimeWarning,
            stacklevel=2,
        )


def _forwards_of(group: Group, *, base: int) -> set[int]:
    linked = {number for backward in group for number in backward.forwards}
    return linked or {base + backward.after for backward in group}


def _no_backward(dropped: str, *, forwards: int) -> str:
    if dropped:
        return (
            f"{dropped} dropped all earlier backward calls, and no backward call followed before "
            "optimizer.step(). Call control.advance() only after optimizer.step() of all "
            "optimizers: optimizer.step(); control.advance(scheduler)."
        )
    return (
        "optimizer.step() was called without a backward call since the last optimizer step; "
        f"{forwards} forward passes were observed. Call loss.backward() before optimizer.step(). "
        "Gradients that are set in another way cannot be measured."
    )
