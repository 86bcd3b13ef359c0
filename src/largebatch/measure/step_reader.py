"""Compute the reading of a step from the micro-batches of all ranks, and check the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from largebatch.core.errors import MicroBatchMissed
from largebatch.core.measurement import Reading
from largebatch.measure import first_step
from largebatch.measure.backwards import Group, is_plain
from largebatch.measure.first_sizes import FirstSizes
from largebatch.measure.meter import Meter
from largebatch.measure.meter_choice import MeterChoice
from largebatch.measure.shares import equal_samples, missing_weights, parts_of
from largebatch.measure.statistics import Totals
from largebatch.measure.step_parts import StepParts
from largebatch.measure.step_recorder import LEFT_OVER, StepRecorder

FINAL = "final"


class StepReader:
    """Compute the reading of each step that `StepRecorder` recorded and `StepParts` grouped.

    Mutable: holds what earlier steps have shown about the training loop.

    Args:
        step: The recorder of the backward calls.
        parts: The object that groups the backward calls by micro-batch.
        choice: The object that may replace the meter.
        batch_size: Number of samples in one optimizer step over all ranks.
        reduction: Whether the loss of each rank is a "mean" over its own samples or a "sum", as in
            `Observer`.
        counts_samples: Whether the user passed a function that counts the samples of a forward
            pass.

    Attributes:
        first: Whether no step was measured before the current step. links: Whether outputs of the
            model report backward calls.
    """

    def __init__(
        self,
        step: StepRecorder,
        parts: StepParts,
        choice: MeterChoice,
        *,
        batch_size: int,
        reduction: str,
        counts_samples: bool,
    ) -> None:
        self._step, self._parts, self._choice = step, parts, choice
        self.batch_size, self._reduction = batch_size, reduction
        self._counts_samples = counts_samples
        self.first = self.links = True
        self._needs_links = False
        self._knows_variance = False
        self._of_parts: Sequence[float] = ()

    @property
    def meter(self) -> Meter:
        """Return the meter of the current step."""
        return self._step.meter

    def use(self, meter: Meter) -> None:
        """Use another meter, which is already bound, for the next steps."""
        self._step.use(meter)
        self._knows_variance = True  # a later step with one gradient is a short step

    def read(self, *, digest: int, unscale: float) -> Reading:
        """Return the reading of the current step, and record the measurement in the timetable.

        Args:
            digest: Digest of the state that must be the same on all ranks.
            unscale: Factor of the squared norms that removes the scale of the losses.

        Raises:
            LargeBatchError: The step cannot be measured. The docstring of `Observer.close` lists
                the reasons.
        """
        meter = self.meter
        numbers, groups = self._numbers()
        sums = meter.reduce(numbers, digest=digest, problem=self._step.problem)
        self._check_weights(sums)
        if self.first and sums["assumed"] == sums["parts"]:
            equal_samples(sums, batch_size=self.batch_size)
        if not self._step.watching:
            totals = self._totals(sums, held=1.0 / meter.rank_count, unscale=unscale)
            reading = meter.read(totals, losses=sums["losses"])
            return replace(reading, batch_sqnorm=None)
        self._check_left_over(sums)
        held = self._held(sums)
        totals = self._totals(sums, held=held or 1.0 / meter.rank_count, unscale=unscale)
        self._check(sums, totals, groups)
        self._settle(groups, parts=round(sums["parts"]))
        reading = meter.read(totals, losses=sums["losses"])
        return self._measured(reading, held=held, unclear=bool(sums["unclear"]))

    def _measured(self, reading: Reading, *, held: float | None, unclear: bool) -> Reading:
        """Return the reading without the values that are unknown in the current step."""
        names = [statistic.name for statistic in self.meter.active]
        if held is None or unclear:
            unknown: dict[str, Any] = dict.fromkeys(names)
            norm = None if held is None else reading.batch_sqnorm
            return replace(reading, batch_sqnorm=norm, **unknown)
        timetable = self._choice.timetable
        if not timetable.completes:
            if reading.finite:
                timetable.close()
            return replace(reading, moments=None)
        if reading.finite and any(getattr(reading, name) is not None for name in names):
            timetable.close()
        return reading

    def _settle(self, groups: Sequence[Group], *, parts: int) -> None:
        """Prepare the next step from what the current step has shown about the loop."""
        forwards = self._step.forwards
        if self.first:
            self._parts.expect(parts)
        self.first = forwards.keeps = forwards.marks = False
        self._step.dropped = ""
        by_rows = self._parts.by_rows and not forwards.traced
        forwards.sized = self._counts_samples or by_rows
        self._needs_links = self._needs_links or self._parts.unclear
        plain = is_plain(groups, forwards=forwards.in_step)
        self.links = by_rows or self._needs_links or not plain
        forwards.link(self.links)

    def _numbers(self) -> tuple[dict[str, float], Sequence[Group]]:
        """Return this rank's numbers of the step; keep an exception as the step's problem."""
        meter = self.meter
        shares, groups = self._parts.shares()
        numbers = shares.numbers()
        first = self.first and self._step.watching
        numbers |= {"losses": 0.0, "unclear": float(self._parts.unclear)}
        numbers["assumed"] = self._parts.assumed * numbers["parts"]
        if first:
            numbers |= first_step.facts(FirstSizes(), first=None, weights=None)
        try:
            if first:
                numbers |= self._facts(groups)
            if self._step.by_hand is not None:
                meter.close_batch()
                if self._step.watching:
                    self._step.by_hand.compare(meter.sums)
            elif not self._step.watching:
                meter.close_batch()  # a clipped gradient shows whether the step is finite
            elif self._step.accumulated.changed:
                meter.sums.add(FINAL, *meter.squared_gradients())
            numbers["losses"] = self._parts.weigh(shares, groups)
        except Exception as error:  # the other ranks wait for this rank
            self._step.fail_by(error)
        return numbers, groups

    def _facts(self, groups: Sequence[Group]) -> dict[str, float]:
        sizes = self._parts.sizes(groups)
        self._of_parts = sizes.of_parts
        return first_step.facts(
            sizes,
            first=self._step.forwards.first,
            weights=self.meter.parameters.tensors if self.meter.replicated else None,
        )

    def _check_left_over(self, sums: dict[str, float]) -> None:
        if sums[LEFT_OVER] > 0.0:  # NaN is reported by the reading
            error = MicroBatchMissed(_left_over(self._step.dropped))
            if self.meter.rank_count > 1:  # another rank may know which call dropped the gradients
                self.meter.ranks.raise_together(error if self._step.dropped else None)
            raise error

    def _check(self, sums: dict[str, float], totals: Totals, groups: Sequence[Group]) -> None:
        self._check_samples(sums["samples"])
        self._check_variance(totals, groups)
        if self.first and not (self._choice.coming and self._choice.by_examples):
            first_step.check_first_step(
                sums,
                batch_size=self.batch_size,
                ranks=self.meter.rank_count,
                replicated=self.meter.replicated,
                alike=self._step.by_hand is not None and self._step.by_hand.reduced_early(sums),
                of_parts=self._of_parts,
            )

    def _check_weights(self, sums: dict[str, float]) -> None:
        passed, parts = round(sums["weighted"]), round(sums["parts"])
        if passed not in (0, parts):
            raise MicroBatchMissed(missing_weights(passed=passed, parts=parts))

    def _held(self, sums: dict[str, float]) -> float | None:
        """Return the batch's gradient divided by the ranks' summed gradients; None if unknown."""
        by_hand = self._step.by_hand
        return 1.0 / self.meter.rank_count if by_hand is None else by_hand.factor(sums)

    def _totals(self, sums: dict[str, float], *, held: float, unscale: float) -> Totals:
        ranks = self.meter.rank_count
        label = self.meter.part_source.counts.label(ranks=ranks, parts=round(sums["parts"]))
        parts = parts_of(sums, source=label)
        share = 1.0 if self._reduction == "sum" else 1.0 / ranks
        return Totals(
            sums=sums,
            parts=parts,
            part_factor=(share * parts.weight) ** 2 * unscale,
            batch_factor=(share / held) ** 2 * unscale,
        )

    def _check_variance(self, totals: Totals, groups: Sequence[Group]) -> None:
        if totals.parts.count > 1:
            self._knows_variance = True  # a later step with one gradient is a short step
        if self._knows_variance:
            return
        cause = self.meter.part_source.counts.missing_variance(self.meter.active)
        if cause is None:
            return
        choice = self._choice
        if choice.allowed and choice.coming is None:
            given = 0 if self._parts.sizes_known else self.batch_size
            choice.choose(self._step, groups, batch_size=given)
            chosen = choice.coming is not None
            self._parts.by_rows = chosen and self._step.rows == self.batch_size
        if choice.coming is None:
            raise choice.no_variance(cause)

    def _check_samples(self, samples: float) -> None:
        """Check the number of samples; the last step of an epoch may have fewer samples."""
        if samples < self.batch_size and self._knows_variance:
            return
        self.meter.part_source.counts.check_batch(samples, batch_size=self.batch_size)


def _left_over(dropped: str) -> str:
    if dropped:
        return (
            f"{dropped} dropped the earlier backward calls, but the gradients of these calls were "
            "not cleared, so the optimizer would get the dropped gradients, too. Call "
            "control.advance() only after optimizer.step() (with accelerate: "
            "if accelerator.sync_gradients: control.advance(scheduler)), or clear the gradients "
            "that you drop: optimizer.zero_grad()."
        )
    return (
        "A parameter had a gradient before the first backward call of this step, so the optimizer "
        "would get the sum of the old and the new gradient. Call optimizer.zero_grad() after each "
        "optimizer.step()."
    )
