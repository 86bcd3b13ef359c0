"""Notes the backward calls of one step, as hooks show them, and closes what they contributed.

Torch calls back at the end of a backward by a private interface, which only this file uses.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.autograd.variable import Variable
from torch.optim import Optimizer

from largebatch.core.errors import LargeBatchError, MicroBatchMissed
from largebatch.measure.accumulated import CLEARED, AccumulatedGradients
from largebatch.measure.backwards import Backward
from largebatch.measure.forwards import Forwards, Samples
from largebatch.measure.hand_reduced import HandReduced
from largebatch.measure.meter import LOSS, Meter
from largebatch.measure.part_buffer import PartBuffer
from largebatch.measure.squares import squared_norm
from largebatch.measure.statistics import BATCH
from largebatch.measure.taps import LeafHooks

LEFT_OVER = "left over"


class StepRecorder:
    """Notes which forward pass each backward came from, and which parameters got a gradient.

    The batch's gradient is squared when a backward ends, after DistributedDataParallel has reduced
    it and before the user clips it; a later backward of the same step replaces it. A hook does not
    raise: what it finds waits in `problem` for the end of the step, where all ranks raise it.

    Mutable: holds what the step in hand has shown so far.

    Args:
        meter: what measures the gradients.
        tap: whose hooks are on the parameters.
        samples: as in `Forwards`.
        micro_batches: micro-batches per step on each rank, if they were given.
        looks_only: whether even memory that runs out in a hook must not stop the training.

    Attributes:
        roots: the outermost backward calls of the step that have ended.
        running: backward calls that have not ended, by the number of their graph task.
        problem: the first error that was found in the step.
        adds_up: whether gradients of one forward pass are added up before they are squared.
        dropped: the call that dropped backward calls in this step; empty if none did.
        gradients: name -> gradient after the step's one backward, if forward passes are kept.
        skipped: asked when gradients were cleared: whether a scaler has skipped the step before.
        forgot: whether a skipped step's backward calls were dropped from the step in hand.
    """

    def __init__(
        self,
        meter: Meter,
        tap: LeafHooks,
        *,
        samples: Samples | None,
        micro_batches: int | None,
        looks_only: bool = False,
    ) -> None:
        self.meter, self.tap = meter, tap
        self._samples_of, self._given = samples, micro_batches
        self._looks_only = looks_only
        self.adds_up = False
        self._joins: list[bool] = []
        self._blocks = 0
        self.dropped = ""
        self.skipped: Callable[[], bool] = lambda: False
        self.forgot = False

    def bind(self, optimizer: Optimizer) -> None:
        """Set once whose parameters to measure; the meter is bound already."""
        meter = self.meter
        self.forwards = Forwards(
            meter.model, samples=self._samples_of, reached=self._on_output, failed=self._on_error
        )
        self.accumulated = AccumulatedGradients(optimizer.param_groups)
        tensors = meter.parameters.tensors
        self.by_hand = HandReduced(tensors, meter.ranks) if meter.replicated else None
        self._buffer = PartBuffer()
        self._see = self._on_gradient
        self.use(meter)

    def use(self, meter: Meter) -> None:
        """Take another meter for the coming steps, bound already."""
        self.meter = meter
        self._tensors = meter.parameters.tensors
        self._batch_names = {BATCH, *(n for s in meter.statistics for n in s.of_batch)}

    @property
    def rows(self) -> float:
        """Return the rows of the forward passes that a backward reached, which all have as many; 0
        if unknown."""
        sizes = self.forwards.samples
        return max((sizes[n] for n in self._reached if n in sizes), default=0.0)

    def open(self) -> None:
        """Begin a step."""
        self.running: dict[int, Backward] = {}
        self.roots: list[Backward] = []
        self._reached: set[int] = set()
        self._block: int | None = None
        self.forgot = False
        self._filling = 1
        self._open_block: int | None = None
        self._open_after = 0
        self._open_forwards: set[int] = set()
        self._unsquared: list[Backward] = []
        self.problem: LargeBatchError | None = None
        self.accumulated.forget()
        if self.by_hand is not None:
            self.by_hand.forget()
        self._buffer.clear()
        self.gradients: Mapping[str, Tensor | None] | None = None
        self.forwards.follow()
        self.forwards.open()
        self.forwards.paused = False
        self.tap.reset()
        self.watching, self._see_part = bool(self.meter.active), self.meter.see
        if self.watching:
            self.tap.begin(self._see)
        else:
            self.tap.rest()

    def detach(self) -> None:
        """Take every hook off the model."""
        self.tap.rest()
        self.forwards.remove()

    def fail(self, error: LargeBatchError) -> None:
        """Keep the first problem of the step."""
        self.problem = self.problem or error

    @contextmanager
    def part(self) -> Iterator[None]:
        """Take all backward calls within the context for one part."""
        if self._block is not None:
            raise MicroBatchMissed(
                "control.part() was entered inside another control.part(). Give each micro-batch a "
                "block of its own, one after the other."
            )
        self.square_open_part()
        self._blocks += 1
        number = self._block = self._blocks
        try:
            yield
        except GeneratorExit:  # a generator was left inside of the block, perhaps a step later
            self._leave(number)
            raise
        self._leave(number)

    def _leave(self, block: int) -> None:
        if self._block == block:  # the step was not dropped inside of it
            self.square_open_part()
            self._block = None

    def _on_output(self, number: int) -> None:
        """The running backward came from this forward pass."""
        try:
            self._reached.add(number)
            if self.watching:
                self._backward().root.forwards.add(number)
        except Exception as error:
            self._on_error(error)

    def _on_gradient(self, index: int, gradient: Tensor) -> None:
        # called once for each parameter and backward, so it is written to be fast
        try:
            backward = self.running.get(torch._C._current_graph_task_id()) or self._backward()
            indices = backward.indices
            if not indices:
                self._first_gradient(backward, index)
            indices.append(index)
            order = self.tap.counts[index]
            if order > backward.order:
                backward.order = order
            if order == 1:
                before = self._tensors[index].grad
                if before is not None:
                    self.meter.sums.add(LEFT_OVER, squared_norm(before))
            if self.by_hand is not None:
                self.by_hand.see(index, gradient)
            if backward.filling:
                self._buffer.add(index, gradient)
            elif self._see_part is not None:
                self._see_part(index, gradient)
        except Exception as error:
            self._on_error(error)

    def _on_error(self, error: Exception) -> None:
        """Keep an exception of a hook; torch.OutOfMemoryError goes on, so that a loop can retry."""
        if isinstance(error, torch.OutOfMemoryError) and not self._looks_only:
            raise error
        self.fail_by(error)

    def fail_by(self, error: Exception) -> None:
        """Keep any exception as a problem of the step, so that all ranks raise together."""
        if not isinstance(error, LargeBatchError):
            kept = LargeBatchError(
                f"Measuring failed in this step: {type(error).__name__}: {error}. To train "
                "without measuring, close the control: control.close()."
            )
            kept.__cause__ = error
            error = kept
        self.fail(error)

    def _backward(self) -> Backward:
        task = torch._C._current_graph_task_id()  # a reentrant checkpoint's is another
        backward = self.running.get(task)
        if backward is None:
            if self.roots:  # one that follows it: the step is not repeated
                self.gradients, self.forwards.kept = None, []
            thread, after = threading.get_ident(), self.forwards.in_step
            around = [
                one  # forward passes within it are not counted: an earlier one has failed
                for one in self.running.values()
                if one.thread == thread and one.after == after
            ]
            backward = Backward(
                after=after,
                outer=around[-1] if around else None,
                thread=thread,
                block=self._block,
                start=self.meter.sums.mark(),
            )
            # it fails under compiled autograd
            Variable._execution_engine.queue_callback(partial(self._when_backward_ends, task))
            self.running[task] = backward
        return backward

    def _first_gradient(self, backward: Backward, index: int) -> None:
        root = backward.root
        if not root.begun:
            root.begun = True
            self._check_accumulated(root, index)
        if root.filling or (backward is not root and root.indices):
            backward.filling = root.filling
            return
        wanted = root.block is not None or self.adds_up
        if not wanted or not self.meter.part_source.adds_up:  # single examples need no sum
            return
        if self._unsquared and not self._joins_open_part(root):
            self.square_open_part()
        self._open_block = root.block
        backward.filling = root.filling = self._filling

    def _check_accumulated(self, root: Backward, index: int) -> None:
        change = self.accumulated.change()
        if change is None:
            return
        if change == CLEARED and self.skipped():
            self._forget_skipped(root, index)
            return
        lost = all(one.block is None for one in self.roots)
        if change == CLEARED and root.block is not None and lost:
            self._forget_roots(index)  # the blocks say which backward calls are meant
        else:
            self.fail(MicroBatchMissed(change))

    def learn(self, joins: list[bool]) -> None:
        """Remember which backward calls were of the same part as the one before them."""
        self._joins = joins

    def _joins_open_part(self, root: Backward) -> bool:
        """Return whether a backward seems to be of the open part, as far as it is known.

        At its first gradient a backward has not reached all of its forward passes, so the last
        step's parts decide where these do not. The step's end checks it.
        """
        if root.block is not None or self._open_block is not None:
            return root.block == self._open_block
        if root.forwards & self._open_forwards:
            return True
        at = len(self.roots)
        if at < len(self._joins):
            return self._joins[at]
        return not root.forwards and root.after == self._open_after

    def _forget_roots(self, index: int) -> None:
        names = self.meter.sums.names
        self.meter.sums.drop(names - {LOSS})
        self.roots.clear()
        if self.by_hand is not None:
            self.by_hand.forget()
        self.tap.reset()
        self.tap.counts[index] = 1

    def _forget_skipped(self, root: Backward, index: int) -> None:
        """Drop the backward calls of a step that was skipped, and their forward passes."""
        before = max((one.after for one in self.roots), default=0)
        root.after -= before
        self.forwards.base += before
        self._forget_roots(index)
        self.problem, self.forgot = None, True

    def _when_backward_ends(self, task: int) -> None:
        # Queued once more, it runs after the callback in which DDP finishes its reduction.
        Variable._execution_engine.queue_callback(partial(self._end_backward, task))

    def _end_backward(self, task: int) -> None:
        backward = self.running.pop(task, None)
        if backward is None:
            return  # of a step that was dropped while it ran
        try:
            self._end(backward, task)
        except Exception as error:
            self._on_error(error)

    def _end(self, backward: Backward, task: int) -> None:
        meter = self.meter
        if not backward.indices:
            if not self.running:
                meter.part_source.begin()  # drops what a torch.autograd.grad has shown
            return
        if not backward.filling:
            meter.close_part(coefficient=1.0, task=task)
        if backward.outer is not None and backward.root in self.running.values():
            outer = backward.outer
            outer.indices += backward.indices
            outer.order = max(outer.order, backward.order)
        else:
            backward.outer = None
            backward.stop = meter.sums.mark()
            self.roots.append(backward)
            if backward.filling:
                self._unsquared.append(backward)
                self._open_forwards |= backward.forwards
                self._open_after = backward.after
        if not self.running:
            meter.part_source.begin()
        self.accumulated.note()
        if self.forwards.keeps and len(self.roots) == 1:
            self._keep_gradients()
        if self.by_hand is None and (self._given is None or max(self.tap.counts) >= self._given):
            meter.sums.drop(self._batch_names & meter.sums.names)
            meter.close_batch()

    def _keep_gradients(self) -> None:
        """Copy what the first backward gave, which the user may clip before the step."""
        pairs = zip(self.meter.parameters.names, self._tensors, strict=True)
        self.gradients = {
            name: None if tensor.grad is None else tensor.grad.detach().clone()
            for name, tensor in pairs
        }

    def square_open_part(self) -> None:
        """Square the part that was added up, which is complete."""
        whole, self._unsquared, self._open_forwards = self._unsquared, [], set()
        self._open_block = None
        self._filling += 1
        if not whole or self.meter.see is None:
            self._buffer.clear()
            return
        sums = self.meter.sums
        start = sums.mark()
        self._buffer.empty_into(self.meter.see)
        self.meter.close_part(coefficient=1.0)
        for backward in whole:
            backward.start = backward.stop = start
        whole[0].stop = sums.mark()
