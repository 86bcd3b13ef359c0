"""Run a rule on a workload and return its validation curve; train and compare use this function.

By default, the micro-batch is one base batch, or smaller if the workload sets a smaller micro-batch
size. With micro-batches of one base batch, a step of scale S consists of S gradients of base
batches, from which the AdaScale paper estimates the variance. Batch normalization sees the same
number of samples at every scale if the micro-batch size is the same. If the method sets the batch
size, the number of micro-batches is 2, 4 or a multiple of 8, so that runs on 1, 2, 4 or 8 processes
take the same decisions.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from largebatch.act.controller import Controller
from largebatch.act.loader import BatchLoader
from largebatch.act.micro_batches import MicroBatches
from largebatch.act.stream import seed_of
from largebatch.checks.fit import fit_micro_batch
from largebatch.core.errors import LargeBatchError, Stopped
from largebatch.core.protocols import Sink
from largebatch.core.version import __version__
from largebatch.measure.full_gradient import FullGradient
from largebatch.measure.meter import Meter
from largebatch.measure.parameters import bare
from largebatch.studies.training_loop import train_until
from largebatch.workbench.runs.checkpoint import Saver, Saving
from largebatch.workbench.runs.distributed import Process
from largebatch.workbench.runs.logger_options import ResumableLoggers
from largebatch.workbench.runs.results import Environment, Report, RunResult
from largebatch.workbench.runs.run_log import RunLog
from largebatch.workbench.runs.run_spec import RunSpec
from largebatch.workbench.runs.signals import stopping
from largebatch.workbench.workloads import Batch, Data, evaluate


@dataclass(slots=True, kw_only=True)
class _Training:
    """Hold the objects of a run during training. Mutable: trains the model."""

    spec: RunSpec
    process: Process
    data: Data
    bare: nn.Module
    model: nn.Module
    control: Controller
    log: RunLog
    saver: Saver | None
    diverged: bool = False

    def go(self) -> None:
        """Train until the budget is used up or the run diverges."""
        control = self.control
        diverged = train_until(
            control,
            self._loss,
            self.spec.budget,
            clip_norm=self.spec.clip_norm,
            during_backward=_out_of_memory_named,
            after_step=self._after_step,
        )
        self.diverged = diverged is not None
        if self.diverged:
            return
        if not control.finished:
            self._stopped()
        if not self.log.points or self.log.points[-1].samples < control.samples:
            self.evaluate()
            if self.saver is not None:
                self.saver.save()

    def fit(self, report: Report | None) -> None:
        """Find the largest micro-batch that fits into memory, if the run requests the search."""
        if self.control.batches.wants_fit:
            found = fit_micro_batch(self.control, self._loss)
            if report is not None and self.process.leader:
                report(str(found))

    def _loss(self, model: nn.Module, micro_batch: Batch) -> Tensor:
        return loss_on(self.process, self.spec)(model, micro_batch)

    def _after_step(self) -> None:
        """Evaluate and save the run when their intervals have passed."""
        spec, control = self.spec, self.control
        every = {spec.budget.unit: spec.budget.amount / max(spec.evaluations, 1)}
        if spec.evaluations and not control.finished and control.every(**every):
            self.evaluate()
        if self.saver is not None and not control.finished and self.saver.due:
            self.saver.save()

    def _stopped(self) -> None:
        assert self.saver is not None, "only a run with a checkpoint directory can be stopped"
        self.saver.save()
        raise Stopped(
            f"The run stopped after {self.control.optimizer_steps} steps and "
            f"{self.control.samples} samples, and the run is saved in the directory "
            f"{self.saver.saving.checkpoints.directory}. To resume the run, repeat the call with "
            "resume=True."
        )

    def evaluate(self) -> None:
        """Evaluate the model and add a point to the validation curve, only on the first rank."""
        if self.process.leader:
            metrics = evaluate(self.bare, self.spec.workload, self.data.validation)
            self.log.add_point(self.control, metrics)


@contextmanager
def _out_of_memory_named(batch: MicroBatches) -> Iterator[None]:
    """Raise an error that names a smaller micro-batch size if the memory is too small."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise LargeBatchError(
            f"A micro-batch of {batch.size} samples did not fit into memory. Pass a smaller "
            f"micro-batch size: max_micro_batch_size={max(batch.size // 2, 1)}. The value 'auto' "
            "finds the largest size that fits."
        ) from error


def run(
    spec: RunSpec,
    *,
    process: Process,
    record: Sink | None = None,
    report: Report | None = None,
    label: str = "",
    saving: Saving | None = None,
    loggers: ResumableLoggers | None = None,
) -> RunResult:
    """Train a run and return the same result on every rank.

    torch's random generators, which dropout uses, are seeded for the run and restored afterwards. A
    diverged run is a result, not an error.

    Args:
        spec: Settings of the run.
        process: Device of this process, and its rank.
        record: Sink to which the first rank writes each training step.
        report: Function that the first rank calls after each training step.
        label: Name of the run for `report`.
        saving: Where and how often the run is saved. If given, SIGTERM and Ctrl-C finish the
            current training step and save the run.
        loggers: Loggers whose state is saved in a checkpoint.

    Raises:
        Stopped: A signal stopped the run after the run was saved.
        ValueError: The settings do not fit together. The settings are checked before any training
            step.
        LargeBatchError: The data are missing, or the loss or the model breaks a requirement.
    """
    training = _prepare(spec, process, RunLog(spec, record, report, label, loggers=loggers), saving)
    with torch.random.fork_rng(devices=process.accelerators), closing(training.log):
        torch.manual_seed(seed_of("training", spec.seed, process.rank))
        if training.saver is None:
            training.fit(report)
            training.go()
        else:
            saver = training.saver
            with stopping(training.control, announce=saver.saving.on_stop):
                _resume(training, saver, report)
                training.fit(report)
                training.go()
    result = _result(training) if process.leader else None
    if process.ranks > 1:
        everyone = [result]
        dist.broadcast_object_list(everyone, src=0, device=process.device)
        (result,) = everyone
    assert result is not None
    return result


def _resume(training: _Training, saver: Saver, report: Report | None) -> None:
    checkpoint = saver.resume()
    if checkpoint is not None and report is not None and training.process.leader:
        for corrupted in checkpoint.passed_over:
            report(corrupted)
        report(f"The run resumes from {checkpoint.path}.")


def controller_of(
    spec: RunSpec, process: Process, data: Data, *, record: Sink | None
) -> Controller:
    """Return the controller of a fresh model, replicated if several processes share the batch."""
    workload = spec.workload
    usual = min(workload.micro_batch_size, workload.base_batch_size)
    bare, optimizer = workload.fresh(seed=spec.seed, lr=spec.lr, device=process.device)
    batches = BatchLoader(
        data.train,
        batch_size=spec.batch_size,
        max_micro_batch_size=spec.max_micro_batch_size or usual,
        seed=spec.seed,
    )
    model = process.replicate(bare)
    full = None
    if "full_sqnorm" in spec.rule.needs:
        most = workload.micro_batch_size
        full = FullGradient(data.train, loss_on(process, spec), micro_batch_size=most)
    return Controller(
        model,
        optimizer,
        spec.whole_rule,
        batches,
        base_batch_size=workload.base_batch_size,
        meter=Meter(model, full=full),
        record=record,
    )


def loss_on(process: Process, spec: RunSpec) -> Callable[[nn.Module, Batch], Tensor]:
    """Return the workload's loss as a function that moves the micro-batch to this device."""

    def loss(model: nn.Module, micro_batch: Batch) -> Tensor:
        return spec.workload.loss(model, process.moved(micro_batch))

    return loss


def _prepare(spec: RunSpec, process: Process, log: RunLog, saving: Saving | None) -> _Training:
    data = spec.workload.data()
    control = controller_of(spec, process, data, record=log)
    model = control.model
    inside = bare(model)
    saver = (
        None
        if saving is None
        else Saver(
            saving,
            spec=spec,
            facts=data.facts,
            process=process,
            model=inside,
            optimizer=control.optimizer,
            control=control,
            log=log,
        )
    )
    return _Training(
        spec=spec,
        process=process,
        data=data,
        bare=inside,
        model=model,
        control=control,
        log=log,
        saver=saver,
    )


def _result(training: _Training) -> RunResult:
    spec, control, points = training.spec, training.control, training.log.points
    diverged = training.diverged
    validation = {} if diverged else points[-1].validation
    test = {} if diverged else evaluate(training.bare, spec.workload, training.data.test)
    steps = max(control.optimizer_steps, 1)
    return RunResult(
        workload=spec.workload.name,
        method=spec.method,
        scale=spec.scale,
        seed=spec.seed,
        lr=spec.workload.base_lr if spec.lr is None else spec.lr,
        clip_norm=spec.clip_norm,
        budget=spec.budget,
        base_batch_size=spec.workload.base_batch_size,
        batch_size=spec.batch_size,
        steps=control.optimizer_steps,
        samples=control.samples,
        base_steps=control.base_steps,
        mean_gain=control.base_steps / steps,
        mean_lr_multiplier=training.log.multipliers / steps,
        skipped=control.skipped,
        diverged=diverged or not all(map(math.isfinite, validation.values())),
        validation=validation,
        test=test,
        curve=tuple(points),
        seconds=training.log.seconds,
        extra_samples=training.log.extra_samples,
        settings=environment_of(training.data, training.process),
    )


def environment_of(data: Data, process: Process) -> Environment:
    """Return the software versions and the machine of this process."""
    return Environment(
        largebatch=__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        threads=torch.get_num_threads(),
        device=process.device.type,
        ranks=process.ranks,
        data={name: str(fact) for name, fact in data.facts.items()},
    )
