"""Record the backward calls of one step with hooks, and measure their gradients.

torch has only a private interface for callbacks at the end of a backward call. Only this file and
`hook_check` use the private interface for callbacks.
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
    """Record the forward pass of each backward call, and which parameters got a gradient.

    The batch's gradient is squared when a backward call ends, after DistributedDataParallel has
    reduced the gradient and before the user clips it. A later backward call of the same step
    replaces the squared norm. Hooks raise no errors (except out-of-memory errors). An error is kept
    in `problem` until the end of the step, when all ranks raise it.

    Mutable: holds what was recorded in the current step.

    Args:
        meter: The meter that measures the gradients.
        tap: The tap whose hooks are registered on the parameters.
        samples: Function that counts the samples of a forward pass, as in `Forwards`.
        micro_batches: User-supplied number of micro-batches per step on each rank, or None.
        looks_only: Whether no decision depends on the measurement, so that even an out-of-memory
            error in a hook does not stop the training.

    Attributes:
        roots: The outermost backward calls of the step that have ended.
        running: Backward calls that have not ended, by their number in autograd.
        problem: The first error of the step; None if no error was kept.
        adds_up: Whether the gradients of one forward pass are added up before the sum is squared.
            dropped: Name of the call that dropped backward calls in the current step; empty if no
            call did.
        gradients: Gradient of each parameter by name after the step's only backward call, if
            forward passes are kept.
        skipped: Function that returns whether a gradient scaler skipped the last step, called if
            gradients were cleared.
        forgot: Whether the backward calls of a skipped step were removed from the current step.
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
        """Set the optimizer whose parameters are measured; the meter must be bound before."""
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
        """Use another meter, which is already bound, for the next steps."""
        self.meter = meter
        self._tensors = meter.parameters.tensors
        self._batch_names = {BATCH, *(n for s in meter.statistics for n in s.of_batch)}

    @property
    def rows(self) -> float:
        """Return the number of rows in the forward pass of a backward call; 0 if unknown.

        If backward calls reached several forward passes, the largest number is returned.
        """
        sizes = self.forwards.samples
        return max((sizes[n] for n in self._reached if n in sizes), default=0.0)

    def open(self) -> None:
        """Forget the records of the last step at the beginning of a step."""
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
        """Remove all hooks from the model."""
        self.tap.rest()
        self.forwards.remove()

    def fail(self, error: LargeBatchError) -> None:
        """Keep an error if no other error was kept in the current step."""
        self.problem = self.problem or error

    @contextmanager
    def part(self) -> Iterator[None]:
        """Treat all backward calls within the context as one micro-batch."""
        if self._block is not None:
            raise MicroBatchMissed(
                "control.part() was entered inside another control.part() block. Write one block "
                "after the other, one for each micro-batch: "
                "with control.part(): loss_fn(model(x), y).backward()."
            )
        self.square_open_part()
        self._blocks += 1
        number = self._block = self._blocks
        try:
            yield
        except GeneratorExit:  # the user left a generator inside the block
            self._leave(number)
            raise
        self._leave(number)

    def _leave(self, block: int) -> None:
        if self._block == block:  # the step was not dropped inside the block
            self.square_open_part()
            self._block = None

    def _on_output(self, number: int) -> None:
        """Record that the running backward call started from forward pass `number`."""
        try:
            self._reached.add(number)
            if self.watching:
                self._backward().root.forwards.add(number)
        except Exception as error:
            self._on_error(error)

    def _on_gradient(self, index: int, gradient: Tensor) -> None:
        # This method runs once per parameter and backward call, so it must be fast.
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
        """Keep an exception of a hook, or raise torch.OutOfMemoryError so that a loop can retry."""
        if isinstance(error, torch.OutOfMemoryError) and not self._looks_only:
            raise error
        self.fail_by(error)

    def fail_by(self, error: Exception) -> None:
        """Keep an exception as the problem of the step, which all ranks raise together."""
        if not isinstance(error, LargeBatchError):
            kept = LargeBatchError(
                f"The gradients of this step could not be measured: {type(error).__name__}: "
                f"{error}. To train without measuring, call control.close()."
            )
            kept.__cause__ = error
            error = kept
        self.fail(error)

    def _backward(self) -> Backward:
        task = torch._C._current_graph_task_id()  # a reentrant checkpoint has its own number
        backward = self.running.get(task)
        if backward is None:
            if self.roots:  # with a second backward call, the step is not repeated
                self.gradients, self.forwards.kept = None, []
            thread, after = threading.get_ident(), self.forwards.in_step
            around = [
                one  # nested forwards are not counted: a larger count means a failed backward
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
            # Compiled autograd does not support this callback.
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
        if not wanted or not self.meter.part_source.adds_up:  # single examples are never added up
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
            self._forget_roots(index)  # the blocks show which backward calls count
        else:
            self.fail(MicroBatchMissed(change))

    def learn(self, joins: list[bool]) -> None:
        """Remember which backward calls belonged to the same micro-batch as the preceding call."""
        self._joins = joins

    def _joins_open_part(self, root: Backward) -> bool:
        """Return whether a backward call probably belongs to the unfinished micro-batch.

        At its first gradient, a backward call has not reached all of its forward passes. If the
        reached forward passes do not decide, the micro-batches of the last step decide. The
        decision is checked at the end of the step.
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
        """Remove the backward calls and the forward passes of a skipped step."""
        before = max((one.after for one in self.roots), default=0)
        root.after -= before
        self.forwards.base += before
        self._forget_roots(index)
        self.problem, self.forgot = None, True

    def _when_backward_ends(self, task: int) -> None:
        # A callback that is queued within this callback runs after DDP's own callback, which ends
        # the all-reduce.
        Variable._execution_engine.queue_callback(partial(self._end_backward, task))

    def _end_backward(self, task: int) -> None:
        backward = self.running.pop(task, None)
        if backward is None:
            return  # the step was dropped during the backward call
        try:
            self._end(backward, task)
        except Exception as error:
            self._on_error(error)

    def _end(self, backward: Backward, task: int) -> None:
        meter = self.meter
        if not backward.indices:
            if not self.running:
                meter.part_source.begin()  # discards the data of a torch.autograd.grad call
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
        """Copy the gradients of the first backward call before the user can clip them."""
        pairs = zip(self.meter.parameters.names, self._tensors, strict=True)
        self.gradients = {
            name: None if tensor.grad is None else tensor.grad.detach().clone()
            for name, tensor in pairs
        }

    def square_open_part(self) -> None:
        """Square the sum of the unfinished micro-batch's gradients, because it is now complete."""
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
