"""Measures a step: parts seen by a tap, statistics over them, one reduction over the ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from largebatch.core.errors import LargeBatchError, MicroBatchMissed, RanksDisagree
from largebatch.core.measurement import Reading, Source
from largebatch.measure.estimate import Parts, source_of
from largebatch.measure.examples.statistics import statistics_of, want_of
from largebatch.measure.examples.tap import PerExample
from largebatch.measure.full_gradient import FullGradient
from largebatch.measure.parameters import Parameters, bare, replica
from largebatch.measure.preconditioned import PreconditionedNorms
from largebatch.measure.ranks import Ranks
from largebatch.measure.squared_norms import SquaredNorms
from largebatch.measure.squares import squared_norm, squared_norms, squarer
from largebatch.measure.statistics import BATCH, Statistic, Totals, choose, gradients_of
from largebatch.measure.sums import Sums, rows_of
from largebatch.measure.taps import LeafHooks, See, Tap

LOSS, FULL = "loss", "full_sqnorm"


class Meter:
    """A tap, the statistics and one reduction.

    Mutable: holds what the step in hand has shown so far.

    Args:
        model: the model, bare or in DistributedDataParallel.
        statistics: what can be measured; None is `SquaredNorms()` and, where the optimizer is of
            the Adam family or Adagrad, `PreconditionedNorms()`. Only what a rule asks for is
            computed.
        tap: where gradients are seen; None is `LeafHooks()`.
        examples: `PerExample()` takes single examples for the parts, in place of micro-batches and
            ranks, and brings its own statistics, to which `CoordinateNoiseScale()` may be added.
        full: over which data the full gradient is taken, in steps in which a rule asks for it.
        group: process group that shares the batch; None is the default group.

    Raises:
        ValueError: several processes and a model that is not in DistributedDataParallel, or
            `examples` with another tap, other statistics or a compiled model.
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
    ) -> None:
        self.model = model
        self.ranks = Ranks(group)
        self.tap: Tap = tap or LeafHooks()
        self.examples, self.full = examples, full
        usual: tuple[Statistic, ...] = (SquaredNorms(), PreconditionedNorms())
        self._offered = usual if statistics is None else tuple(statistics)
        if examples is not None:
            _check_examples(examples, model, tap=tap)
            self._offered = statistics_of(examples, also=statistics)
        self.statistics: tuple[Statistic, ...] = ()
        if len({s.name for s in self._offered}) < len(self._offered):
            raise ValueError(
                "Two statistics give the same moments, so rules could not tell them apart. Choose "
                "one of each name: lb.Meter(model, statistics=[lb.TemporalMoments()])."
            )
        self.replica = replica(model)
        if self.ranks.count > 1 and self.replica is None:
            raise ValueError(
                f"{self.ranks.count} processes run, but the model is not replicated: each would "
                "train its own. Use model = torch.nn.parallel.DistributedDataParallel(model)."
            )

    @property
    def provides(self) -> frozenset[str]:
        """Names of the statistics that it can measure."""
        passes = frozenset() if self.full is None else frozenset({FULL})
        return passes | frozenset(statistic.name for statistic in self.statistics)

    @property
    def least_parts(self) -> int:
        """Parts that a step needs over all ranks for its statistics."""
        return 2 if any(statistic.parts for statistic in self.statistics) else 1

    @property
    def least_samples(self) -> int:
        """Samples that a step needs over all ranks for its statistics: a part has one or more."""
        return 2 if self.examples is not None else self.least_parts

    @property
    def rank(self) -> int:
        """This process among those that share the batch."""
        return self.ranks.rank

    @property
    def rank_count(self) -> int:
        """How many processes share the batch."""
        return self.ranks.count

    @property
    def leader(self) -> bool:
        """Whether this is the first rank."""
        return self.ranks.rank == 0

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Checks that all ranks hold the same facts; see `Ranks.agree`."""
        over = {} if self.full is None else {"samples of the full gradient": self.full.samples}
        self.ranks.agree({**facts, **over})

    @property
    def reduces(self) -> bool:
        """Whether the step in hand is averaged over the ranks by the tap and not by DDP."""
        return self.tap.reduces and self.see is not None

    def bind(self, optimizer: Optimizer, *, also: Sequence[str] = ()) -> None:
        """Told once whose parameters to measure, and under which names `also` to sum.

        Raises:
            ValueError: optimizer and model do not match, or a statistic does not suit them.
        """
        self.parameters = Parameters.of(self.model, optimizer)
        self.statistics = tuple(s for s in self._offered if s.supports(optimizer))
        self.tap.bind(self.parameters, self.ranks)
        if self.examples is not None:
            self.examples.bind(bare(self.model), self.parameters)
        for statistic in self.statistics:
            statistic.bind(self.parameters, optimizer)
        self.sums = Sums(self.ranks, device=self.parameters.tensors[0].device)
        on_cpu = all(p.device.type == "cpu" for p in self.parameters.tensors)
        self._squares = [(p, squarer(p)) for p in self.parameters.tensors] if on_cpu else None
        self._factors: dict[float, Tensor] = {}
        self.see: See | None = None
        self._plans: dict[frozenset[str], tuple[list[Statistic], See | None]] = {}
        # Every statistic's sums, wanted or not: ranks that disagree about what is wanted must still
        # send equally many numbers, or the digest could not say so.
        names = [name for s in self.statistics for name in (*s.of_parts, *s.of_batch)]
        self._rows = rows_of([LOSS, BATCH, *also, *names])
        self.open(frozenset())

    def open(self, wanted: frozenset[str]) -> None:
        """A step begins in which these statistics are wanted."""
        if wanted not in self._plans:
            chosen = choose(self.statistics, wanted)
            see = _see_all([s.see for s in chosen if s.parts])
            if self.examples is not None:
                see = self.examples.see if chosen else None
            self._plans[wanted] = chosen, see
        self.active, self.see = self._plans[wanted]
        self._full = self.full if FULL in wanted else None
        if self.examples is not None:
            self.examples.open(want_of(frozenset(s.name for s in self.active)))
        self.sums.open(self._rows)
        self._parts, self._samples, self._weight = 0, 0, 0.0
        self.rows: list[int] = []
        self.groups: list[int] = []
        self._anchor: Tensor | None = None
        for statistic in self.active:
            statistic.open()
        if self.see is None:
            self.tap.rest()

    def backward(
        self, loss: Tensor, *, share: float, weight: float, samples: int, last: bool
    ) -> None:
        """Runs the backward of share * loss, whose gradient is one part of the step.

        Args:
            loss: mean over the micro-batch, a scalar.
            share: factor of this micro-batch in the step's gradient on this rank.
            weight: of the micro-batch, in whatever unit all weights of the step are.
            samples: in the micro-batch.
            last: whether it is this rank's last one of the step.
        """
        if self._parts and self._anchor is not None and self._anchor.grad is None:
            raise MicroBatchMissed(
                "The gradient was cleared within a step, so the micro-batches before this one are "
                "lost. Leave zero_grad to control.step()."
            )
        # As the loss's own gradient the share costs no product, neither forward nor backward.
        factor = self._factors.get(share)
        if factor is None or factor.dtype is not loss.dtype or factor.device != loss.device:
            factor = self._new_factor(share, loss)
        if self.examples is not None:
            self.examples.begin()
        if self.see is None:
            loss.backward(gradient=factor)
        else:
            self.tap.begin(self.see)
            loss.backward(gradient=factor)
            self.tap.end(last=last)
        self.sums.add(LOSS, loss.detach(), coefficient=weight)
        self.close_part(coefficient=weight / share**2)
        if self.rows and self.rows[-1] != samples:
            if not self.rows[-1]:
                raise LargeBatchError(
                    "No parameter of the optimizer got a gradient from this loss, so no example "
                    "has one. Compute it from what the model gave: "
                    "control.backward(loss_fn(model(x), y))."
                )
            raise LargeBatchError(
                f"The model got {self.rows[-1]} examples, of a micro-batch with {samples} samples. "
                "Give it all of them, as the first dimension of its first argument, or measure "
                "micro-batches instead: meter=lb.Meter(model)."
            )
        if not self._parts:
            held = (p for p in self.parameters.tensors if p.grad is not None)
            self._anchor = next(held, None)
        self._parts += 1
        self._samples += samples
        self._weight += weight

    def close_part(self, *, coefficient: float, task: int = 0) -> None:
        """A backward is over, whose squared norm counts `coefficient` times."""
        if self.examples is not None and self.active:
            part = self.examples.end(task)
            self.rows.append(part.rows)
            self.groups.append(part.parts)
        for statistic in self.active:
            statistic.close_part(self.sums, coefficient=coefficient)
        if self.examples is not None:
            self.examples.forget()

    def close(self, *, planned_weight: float, digest: int = 0, exhausted: bool = False) -> Reading:
        """Combines the parts over the ranks: one collective, one host sync.

        Args:
            planned_weight: E, the total weight with which the shares were made.
            digest: of the state that must be the same on all ranks; below 2^32.
            exhausted: whether this rank has no more data.

        Raises:
            RanksDisagree: the ranks' digests differ.
        """
        self.close_batch()
        numbers = {
            "parts": sum(self.groups) or self._parts, "samples": self._samples,
            "weight": self._weight, "exhausted": exhausted,
        }  # fmt: skip
        sums = self.reduce(numbers, digest=digest)
        count = round(sums["parts"])
        source = self.source(count)
        parts = _parts(count, sums["samples"], sums["weight"], source)
        factor = (planned_weight / parts.weight) ** 2
        totals = Totals(sums=sums, parts=parts, batch_factor=factor)
        return self.read(totals, losses=parts.weight)

    def source(self, parts: int) -> Source:
        """What the parts of the step are."""
        return "examples" if self.rows else source_of(ranks=self.ranks.count, parts=parts)

    def close_batch(self) -> None:
        """Looks at the batch's gradient, which is complete and not yet clipped."""
        share = 1.0 if self.ranks.rank == 0 else 0.0
        row = self.tap.row()
        if row is not None:
            squares = [squared_norm(row)]
        elif self._squares is None:
            squares = squared_norms(gradients_of(self.parameters))
        else:
            squares = [square(g) for p, square in self._squares if (g := p.grad) is not None]
        self.sums.add(BATCH, *squares, coefficient=share)
        for statistic in self.active:
            statistic.close_batch(self.sums, share=share)

    def reduce(self, numbers: Mapping[str, float], *, digest: int) -> dict[str, float]:
        """The step's sums over the ranks, with this rank's numbers among them."""
        self.sums.put(numbers)
        if self.ranks.count == 1:
            return self.sums.reduce()
        self.sums.put({"digest": digest, "first digest": digest if self.leader else 0})
        sums = self.sums.reduce()
        if sums["digest"] != self.ranks.count * sums["first digest"]:
            raise RanksDisagree("The ranks took different decisions in an earlier step.")
        return sums

    def read(self, totals: Totals, *, losses: float) -> Reading:
        """What the sums over all ranks say; the loss is the mean over a weight of `losses`."""
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
        """Multiplies every gradient in place."""
        gradients = gradients_of(self.parameters)
        if gradients:
            torch._foreach_mul_(gradients, factor)

    def clear(self, optimizer: Optimizer) -> None:
        """Clears the gradients after the optimizer's step."""
        self.tap.clear(optimizer)

    def _pass(self, full: FullGradient) -> dict[str, Any]:
        self.tap.rest()
        if self.examples is not None:
            self.examples.rest()
        sqnorm = full.sqnorm(bare(self.model), self.parameters, self.ranks)
        return {FULL: sqnorm, "extra_samples": full.samples}

    def _new_factor(self, share: float, loss: Tensor) -> Tensor:
        if len(self._factors) > 64:
            self._factors.clear()
        factor = torch.full((), share, dtype=loss.dtype, device=loss.device)
        self._factors[share] = factor
        return factor


@lru_cache(maxsize=64)  # the same in almost every step
def _parts(count: int, samples: float, weight: float, source: Source) -> Parts:
    return Parts.proportional(count=count, samples=samples, weight=weight, source=source)


def _check_examples(examples: object, model: nn.Module, *, tap: Tap | None) -> None:
    if not isinstance(examples, PerExample):
        raise ValueError(
            f"examples takes a way to see them, not {examples!r}: "
            "lb.Meter(model, examples=lb.PerExample())."
        )
    if not isinstance(tap, LeafHooks | None):
        raise ValueError(
            "lb.PerExample() needs the usual tap. Leave the other one out: "
            "lb.Meter(model, examples=lb.PerExample())."
        )
    inside = replica(model)
    for module in (model, model if inside is None else inside.module):
        if "_orig_mod" in dict(module.named_children()):
            raise ValueError(
                "torch.compile leaves no calls of single modules to follow. Measure micro-batches "
                "instead, meter=lb.Meter(model), or leave out torch.compile."
            )


def _see_all(sees: list[See]) -> See | None:
    if len(sees) < 2:
        return sees[0] if sees else None

    def see(index: int, gradient: Tensor) -> None:
        for one in sees:
            one(index, gradient)

    return see
