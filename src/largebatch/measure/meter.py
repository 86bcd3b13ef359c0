"""Measure a step: a tap sees its parts, statistics add them up, one collective sums the ranks."""

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
    """Measures each step's gradient: a source of parts, a tap, statistics and one reduction.

    Mutable: holds what the step in hand has shown so far.

    Args:
        model: the model, bare or in DistributedDataParallel.
        statistics: what can be measured; None is `SquaredNorms()` and, if the optimizer is SGD,
            Adagrad or of the Adam family, `PreconditionedNorms()`. Only what a rule asks for is
            computed.
        tap: where gradients are seen; None is `LeafHooks()`.
        examples: `PerExample()` takes single examples for the parts, in place of micro-batches and
            ranks, and brings its own statistics, to which `CoordinateNoiseScale()` may be added.
        full: over which data the full gradient is taken, in steps in which a rule asks for it.
        group: process group that shares the batch; None is that of the model's
            DistributedDataParallel.
        replicated: whether the user averages, or sums, the gradients over the ranks between the
            last backward and `optimizer.step()`, in place of DistributedDataParallel. In the first
            step the ranks' weights are compared. Under `lb.attach` and `lb.watch` only.

    Raises:
        ValueError: several processes and a model that is not replicated, a model with sharded
            parameters, or `examples` with another tap, other statistics or a compiled model.
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
                "Two statistics give the same moments, so rules could not tell them apart. Choose "
                "one of each name: lb.Meter(model, statistics=[lb.measure.TemporalMoments()])."
            )
        if self.ranks.count > 1 and self.replica is None and not replicated:
            raise ValueError(
                f"{self.ranks.count} processes run, and the model is not in "
                "DistributedDataParallel. Use "
                "model = torch.nn.parallel.DistributedDataParallel(model). If your loop averages "
                "the gradients over the ranks by itself, use "
                "meter=lb.Meter(model, replicated=True)."
            )
        self.replicated = replicated and self.ranks.count > 1 and self.replica is None

    @property
    def provides(self) -> frozenset[str]:
        """Return the names of the statistics that it can measure."""
        passes = frozenset() if self.full is None else frozenset({FULL})
        return passes | frozenset(statistic.name for statistic in self.statistics)

    @property
    def least_parts(self) -> int:
        """Return how many parts a step needs over all ranks for its statistics."""
        return 2 if any(statistic.parts for statistic in self.statistics) else 1

    @property
    def least_samples(self) -> int:
        """Return how many samples a step needs over all ranks for its statistics."""
        return self.part_source.counts.least_samples(self.least_parts)

    @property
    def rank(self) -> int:
        """Return this process's number among those that share the batch."""
        return self.ranks.rank

    @property
    def rank_count(self) -> int:
        """Return how many processes share the batch."""
        return self.ranks.count

    @property
    def leader(self) -> bool:
        """Return whether this is the first rank."""
        return self.ranks.rank == 0

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Check that all ranks hold the same facts; see `Ranks.agree`."""
        over = {} if self.full is None else {"samples of the full gradient": self.full.samples}
        self.ranks.agree({**facts, **over})

    @property
    def reduces(self) -> bool:
        """Return whether the tap, and not DDP, averages the step in hand over the ranks."""
        return self.tap.reduces and self.see is not None

    def bind(self, optimizer: Optimizer, *, also: Sequence[str] = ()) -> None:
        """Set once whose parameters to measure, and the names of further sums, `also`.

        Raises:
            ValueError: optimizer and model do not match, or a statistic does not suit them.
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
        # Every statistic's sums, wanted or not: ranks that disagree about what is wanted must still
        # send equally many numbers, or the digest could not say so.
        names = [name for s in self.statistics for name in (*s.of_parts, *s.of_batch)]
        self._rows = rows_by_name([LOSS, BATCH, *also, *names])
        self.open(frozenset())

    def open(self, wanted: frozenset[str]) -> None:
        """Begin a step in which these statistics are wanted."""
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
        """Run the backward of share * loss, whose gradient is one part of the step.

        Args:
            loss: mean over the micro-batch, a scalar.
            share: factor of this micro-batch in the step's gradient on this rank.
            weight: of the micro-batch, in whatever unit all weights of the step are.
            samples: in the micro-batch.
            last: whether it is this rank's last one of the step.
        """
        self._check_accumulated()
        # As the loss's own gradient the share costs no product, neither forward nor backward.
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
        """End a backward, whose squared norm counts `coefficient` times; `task` is its number."""
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
        """Combine the parts over the ranks: one collective, one host sync.

        Args:
            planned_weight: E, the total weight with which the shares were made.
            digest: of the state that must be the same on all ranks; below 2^32.
            exhausted: whether this rank has no more data.
            problem: an error that the caller has found on this rank.

        Raises:
            RanksDisagree: the ranks' digests differ.
            LargeBatchError: the first problem that a rank has found, on every rank.
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
        """Square the batch's gradient, which is complete and not yet clipped."""
        share = 1.0 if self.ranks.rank == 0 else 0.0
        row = self.tap.row()
        squares = self._squares.scalars() if row is None else [squared_norm(row)]
        self.sums.add(BATCH, *squares, coefficient=share)
        for statistic in self.active:
            statistic.close_batch(self.sums, share=share)

    def squared_gradients(self) -> list[Tensor]:
        """Return scalars whose sum is the squared norm of the gradients that are there now."""
        return self._squares.scalars()

    def reduce(
        self, numbers: Mapping[str, float], *, digest: int, problem: LargeBatchError | None = None
    ) -> dict[str, float]:
        """Return the step's sums over the ranks, with this rank's numbers among them.

        Raises:
            RanksDisagree: the ranks' digests differ.
            LargeBatchError: the first problem that a rank has found, on every rank.
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
            raise RanksDisagree("The ranks took different decisions in an earlier step.")
        return sums

    def read(self, totals: Totals, *, losses: float) -> Reading:
        """Return what the sums over all ranks say; `losses` is the weight of the summed loss."""
        sums, parts = totals.sums, totals.parts
        moments: dict[str, Any] = {s.name: s.read(totals) for s in self.active}
        finite = all(map(math.isfinite, sums.values()))
        if self._full is not None and finite:  # else no rule would see it
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
            f"{change.split('.')[0]}. Leave zero_grad to control.step(), and clip once a step: "
            "control.step(clip_norm=1.0)."
        )
        if self.ranks.count == 1:
            raise error
        self._problem = self._problem or error  # every rank raises it when the step is closed

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
