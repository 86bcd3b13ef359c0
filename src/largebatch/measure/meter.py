"""Measure the gradient of each training step.

A tap observes the gradient of each micro-batch (or of each example). Statistics compute sums from
these gradients. One all-reduce per step adds up the sums of all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from largebatch.core.errors import LargeBatchError, MicroBatchMissed, RanksDisagree
from largebatch.core.measurement import Reading
from largebatch.measure.accumulated import AccumulatedGradients
from largebatch.measure.complex_gradients import multiply_each
from largebatch.measure.estimate import proportional_parts
from largebatch.measure.examples.per_example import PerExample, part_source_of
from largebatch.measure.full_gradient import FullGradient
from largebatch.measure.hook_check import check_hooks
from largebatch.measure.parameters import Parameters, bare, replica
from largebatch.measure.ranks import Ranks
from largebatch.measure.sharded import refuse_sharded
from largebatch.measure.squares import SquaredGradients, squared_norm
from largebatch.measure.statistics import BATCH, Statistic, Totals, choose, gradients_of
from largebatch.measure.sums import Sums, rows_by_name
from largebatch.measure.taps import LeafHooks, See, Tap

LOSS, FULL = "loss", "full_sqnorm"


class Meter:
    """Measure the gradient noise of each training step from the gradients of its micro-batches.

    The gradient of each micro-batch on each rank is measured separately. Two or more separately
    measured gradients per step show the variance of the gradient.

    >>> model = nn.Linear(2, 1)
    >>> meter = Meter(model)
    >>> meter.bind(torch.optim.SGD(model.parameters(), lr=0.1))
    >>> sorted(meter.provides)
    ['moments', 'preconditioned_moments']

    Mutable: holds the measurements of the current step.

    Args:
        model: The model, with or without DistributedDataParallel around it.
        statistics: The statistics that rules may request. By default, `SquaredNorms()` is used. If
            the optimizer is SGD, Adagrad or of the Adam family, `PreconditionedNorms()` is used,
            too. Only statistics that a rule requests are computed.
        tap: The object that observes gradients, by default `LeafHooks()`.
        examples: `PerExample()` measures single examples in place of micro-batches and ranks.
            `PerExample()` has its own statistics, to which only `CoordinateNoiseScale()` may be
            added.
        full: The data set whose full gradient is computed in the steps in which a rule requests it.
        group: The process group that shares the batch, by default the process group of the model's
            DistributedDataParallel.
        replicated: Whether your own code averages or sums the gradients over the ranks between the
            last backward call and `optimizer.step()`, in place of DistributedDataParallel. The
            weights of all ranks are compared in the first step. Only `lb.attach` and `lb.watch`
            support `replicated=True`.

    Raises:
        ValueError: Several processes run but the model is not replicated, the model has sharded
            parameters, or `examples` is combined with another tap, with other statistics or with a
            compiled model.
        LargeBatchError: The autograd hooks of the installed torch version do not behave as this
            package requires.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        statistics: Sequence[Statistic] | None = None,
        tap: Tap | None = None,
        examples: PerExample | None = None,
        full: FullGradient | None = None,
        group: dist.ProcessGroup | None = None,
        replicated: bool = False,
    ) -> None:
        check_hooks()
        self.model = model
        refuse_sharded(model)
        self.replica = replica(model)
        if group is None and self.replica is not None:
            group = self.replica.process_group
        self.ranks = Ranks(group)
        self.tap: Tap = tap or LeafHooks()
        self.examples, self.full = examples, full
        self.part_source = part_source_of(examples)
        self.part_source.check(model, tap=tap)
        self._offered = self.part_source.statistics(statistics)
        self.statistics: tuple[Statistic, ...] = ()
        if len({s.name for s in self._offered}) < len(self._offered):
            raise ValueError(
                "Two statistics have the same name, so a rule could not choose between them. Pass "
                "only one of them: lb.Meter(model, statistics=[lb.measure.TemporalMoments()])."
            )
        if self.ranks.count > 1 and self.replica is None and not replicated:
            raise ValueError(
                f"{self.ranks.count} processes run, but the model is not in "
                "DistributedDataParallel. Wrap the model: "
                "model = torch.nn.parallel.DistributedDataParallel(model). If your own loop "
                "averages the gradients over the ranks, use meter=lb.Meter(model, replicated=True)."
            )
        self.replicated = replicated and self.ranks.count > 1 and self.replica is None

    @property
    def provides(self) -> frozenset[str]:
        """Return the names of the statistics that this meter can measure."""
        passes = frozenset() if self.full is None else frozenset({FULL})
        return passes | frozenset(statistic.name for statistic in self.statistics)

    @property
    def least_parts(self) -> int:
        """Return the least number of micro-batches per step, over all ranks, for the statistics."""
        return 2 if any(statistic.parts for statistic in self.statistics) else 1

    @property
    def least_samples(self) -> int:
        """Return the least number of samples per step, over all ranks, that the statistics need."""
        return self.part_source.counts.least_samples(self.least_parts)

    @property
    def rank(self) -> int:
        """Return the rank of this process among the processes that share the batch."""
        return self.ranks.rank

    @property
    def rank_count(self) -> int:
        """Return the number of processes that share the batch."""
        return self.ranks.count

    @property
    def leader(self) -> bool:
        """Return whether this process has rank 0."""
        return self.ranks.rank == 0

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Check that all ranks have the same settings, as `Ranks.agree` does."""
        over = {} if self.full is None else {"samples of the full gradient": self.full.samples}
        self.ranks.agree({**facts, **over})

    @property
    def reduces(self) -> bool:
        """Return whether the tap, instead of DDP, averages this step's gradients over the ranks."""
        return self.tap.reduces and self.see is not None

    def bind(self, optimizer: Optimizer, *, also: Sequence[str] = ()) -> None:
        """Bind the meter to the optimizer's parameters; `bind` must be called only once.

        Args:
            optimizer: The optimizer whose parameters are measured.
            also: Names of additional sums that the caller computes in each step.

        Raises:
            ValueError: The optimizer and the model do not match, or a statistic does not support
                the optimizer or the model.
        """
        self.parameters = Parameters.of(self.model, optimizer)
        self.statistics = tuple(s for s in self._offered if s.supports(optimizer))
        self.tap.bind(self.parameters, self.ranks)
        self.part_source.bind(self.model, self.parameters)
        for statistic in self.statistics:
            statistic.bind(self.parameters, optimizer)
        self.sums = Sums(self.ranks, device=self.parameters.tensors[0].device)
        self._squares = SquaredGradients(self.parameters.tensors)
        self._accumulated = AccumulatedGradients(optimizer.param_groups)
        self._factors: dict[float, Tensor] = {}
        self.see: See | None = None
        self._plans: dict[frozenset[str], tuple[list[Statistic], See | None]] = {}
        # The sums of every statistic have a row, even if the statistic is not requested. Ranks that
        # request different statistics still send equally many numbers, so the digest can report the
        # disagreement.
        names = [name for s in self.statistics for name in (*s.of_parts, *s.of_batch)]
        self._rows = rows_by_name([LOSS, BATCH, *also, *names])
        self.open(frozenset())

    def open(self, wanted: frozenset[str]) -> None:
        """Begin a training step in which the statistics `wanted` are requested."""
        if wanted not in self._plans:
            chosen = choose(self.statistics, wanted)
            self._plans[wanted] = chosen, self.part_source.see_for(chosen)
        self.active, self.see = self._plans[wanted]
        self._full = self.full if FULL in wanted else None
        self.part_source.open(self.active)
        self.sums.open(self._rows)
        self._backwards, self._samples, self._weight = 0, 0, 0.0
        self._accumulated.forget()
        self._problem: LargeBatchError | None = None
        for statistic in self.active:
            statistic.open()
        if self.see is None:
            self.tap.rest()

    def backward(
        self, loss: Tensor, *, share: float, weight: float, samples: int, last: bool
    ) -> None:
        """Run the backward call of share * loss, and measure the gradient separately.

        Args:
            loss: Mean loss over the micro-batch, a scalar.
            share: Factor of the micro-batch's mean loss in this rank's loss of the training step.
            weight: Weight of the micro-batch. All weights of the step have the same unit.
            samples: Number of samples in the micro-batch.
            last: Whether the micro-batch is this rank's last one in the step.
        """
        self._check_accumulated()
        # The share is passed as the gradient of the loss, so no tensor is multiplied by the share.
        factor = self._factors.get(share)
        if factor is None or factor.dtype is not loss.dtype or factor.device != loss.device:
            factor = self._new_factor(share, loss)
        self.part_source.begin()
        if self.see is None:
            loss.backward(gradient=factor)
        else:
            self.tap.begin(self.see)
            loss.backward(gradient=factor)
            self.tap.end(last=last)
        self.sums.add(LOSS, loss.detach(), coefficient=weight)
        self.close_part(coefficient=weight / share**2)
        self.part_source.counts.check_micro_batch(samples)
        self._accumulated.note()
        self._backwards += 1
        self._samples += samples
        self._weight += weight

    def close_part(self, *, coefficient: float, task: int = 0) -> None:
        """Add the sums of a backward call that has ended.

        Args:
            coefficient: Factor of the backward call's squared norm in the step's sums. task: Number
                of the backward call; 0 if `begin` was called before the backward call.
        """
        self.part_source.end(task)
        for statistic in self.active:
            statistic.close_part(self.sums, coefficient=coefficient)
        self.part_source.release()

    def close(
        self,
        *,
        planned_weight: float,
        digest: int = 0,
        exhausted: bool = False,
        problem: LargeBatchError | None = None,
    ) -> Reading:
        """Sum the step's measurements over the ranks with one all-reduce and one host sync.

        Args:
            planned_weight: Total weight of the micro-batches that was assumed when their shares
                were computed.
            digest: Digest of the state that must be the same on all ranks, below 2^32.
            exhausted: Whether this rank has no more data.
            problem: An error that the caller found on this rank.

        Raises:
            RanksDisagree: The digests of the ranks differ.
            LargeBatchError: A rank found a problem. Every rank raises the first one.
        """
        counts = self.part_source.counts
        self.close_batch()
        numbers = {
            "parts": counts.count(self._backwards), "samples": self._samples,
            "weight": self._weight, "exhausted": exhausted,
        }  # fmt: skip
        sums = self.reduce(numbers, digest=digest, problem=self._problem or problem)
        count = round(sums["parts"])
        label = counts.label(ranks=self.ranks.count, parts=count)
        parts = proportional_parts(count, sums["samples"], sums["weight"], label)
        factor = (planned_weight / parts.weight) ** 2
        totals = Totals(sums=sums, parts=parts, batch_factor=factor)
        return self.read(totals, losses=parts.weight)

    def close_batch(self) -> None:
        """Add the squared norm of the whole batch's gradient to the sums, before clipping."""
        share = 1.0 if self.ranks.rank == 0 else 0.0
        row = self.tap.row()
        squares = self._squares.scalars() if row is None else [squared_norm(row)]
        self.sums.add(BATCH, *squares, coefficient=share)
        for statistic in self.active:
            statistic.close_batch(self.sums, share=share)

    def squared_gradients(self) -> list[Tensor]:
        """Return scalars whose sum is the squared norm of the present gradients."""
        return self._squares.scalars()

    def reduce(
        self, numbers: Mapping[str, float], *, digest: int, problem: LargeBatchError | None = None
    ) -> dict[str, float]:
        """Return the step's sums over all ranks.

        Args:
            numbers: This rank's numbers by name, which are summed over the ranks, too.
            digest: Digest of the state that must be the same on all ranks.
            problem: An error that this rank found.

        Raises:
            RanksDisagree: The digests of the ranks differ.
            LargeBatchError: A rank found a problem. Every rank raises the first one.
        """
        self.sums.put(numbers)
        if self.ranks.count == 1:
            if problem is not None:
                raise problem
            return self.sums.reduce()
        trouble = float(problem is not None)
        self.sums.put(
            {"trouble": trouble, "digest": digest, "first digest": digest if self.leader else 0}
        )
        sums = self.sums.reduce()
        if sums["trouble"] > 0:
            self.ranks.raise_together(problem)
        if sums["digest"] != self.ranks.count * sums["first digest"]:
            raise RanksDisagree(
                "The ranks took different decisions in an earlier step. Build the model, the rule "
                "and the data loader from the same arguments on every rank."
            )
        return sums

    def read(self, totals: Totals, *, losses: float) -> Reading:
        """Return the reading of a step from its sums over all ranks.

        Args:
            totals: The step's sums over all ranks. losses: Total weight of the losses in the sum of
                losses; 0 if no loss was passed.
        """
        sums, parts = totals.sums, totals.parts
        moments: dict[str, Any] = {s.name: s.read(totals) for s in self.active}
        finite = all(map(math.isfinite, sums.values()))
        if self._full is not None and finite:  # a step that is not finite reaches no rule
            moments |= self._pass(self._full)
        return Reading(
            samples=round(parts.samples),
            finite=finite,
            loss=sums[LOSS] / losses if losses else None,
            batch_sqnorm=sums[BATCH] * totals.batch_factor,
            weight=parts.weight,
            exhausted=sums.get("exhausted", 0) > 0,
            **moments,
        )

    def multiply_gradients(self, factor: float) -> None:
        """Multiply every gradient in place."""
        multiply_each(gradients_of(self.parameters), factor)

    def clear(self, optimizer: Optimizer) -> None:
        """Clear the gradients after the optimizer's step."""
        self.tap.clear(optimizer)

    def _check_accumulated(self) -> None:
        change = self._accumulated.change()
        if change is None:
            return
        error = MicroBatchMissed(
            f"{change.split('.')[0]}. Do not call optimizer.zero_grad(); control.step() does it. "
            "Clip once per step: control.step(clip_norm=1.0)."
        )
        if self.ranks.count == 1:
            raise error
        self._problem = self._problem or error  # every rank raises the error at the end of the step

    def _pass(self, full: FullGradient) -> dict[str, Any]:
        self.tap.rest()
        self.part_source.rest()
        sqnorm = full.sqnorm(bare(self.model), self.parameters, self.ranks)
        return {FULL: sqnorm, "extra_samples": full.samples}

    def _new_factor(self, share: float, loss: Tensor) -> Tensor:
        if len(self._factors) > 64:
            self._factors.clear()
        factor = torch.full((), share, dtype=loss.dtype, device=loss.device)
        self._factors[share] = factor
        return factor
