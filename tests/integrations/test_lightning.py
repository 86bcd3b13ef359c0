"""Test that a rule in Lightning's Trainer gives the same steps as a plain loop."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning_runs import (
    NOISES,
    Module,
    Plain,
    assert_same_bits,
    decisions,
    fit,
    loader,
    scaled,
    steps_of,
    trainer_of,
)
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

import largebatch as lb
from distributed import run_program
from small_rules import Facts
from small_runs import Optimize, adamw, data, sgd, small_model, weights

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.filterwarnings(noise) for noise in NOISES]


def run_plain(plain: Plain, *, epochs: int = 2, **shape: int) -> Plain:
    for _ in range(epochs):
        for parts in steps_of(**shape):
            plain.step(parts)
    return plain


def cosine(optimizer: Optimizer) -> LRScheduler:
    return CosineAnnealingLR(optimizer, T_max=40)


def fused(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=True)


# Against a plain loop


@pytest.mark.parametrize("accumulation", [2, 3])
@pytest.mark.parametrize("clip_norm", [None, 0.3])
@pytest.mark.parametrize("optimize", [sgd, adamw])
def test_the_run_is_that_of_a_plain_loop_to_the_bit(
    optimize: Optimize, clip_norm: float | None, accumulation: int
) -> None:
    record = lb.MemoryRecord()
    module, trainer = fit(
        scaled(record=record),
        module=Module(optimize),
        gradient_clip_val=clip_norm,
        accumulate_grad_batches=accumulation,
    )
    plain = Plain(optimize=optimize, clip_norm=clip_norm, batch_size=4 * accumulation)
    run_plain(plain, accumulation=accumulation)
    assert_same_bits(module.net, plain.model)
    assert decisions(record) == decisions(plain.record)
    losses = [[seen.loss for seen, _ in steps] for steps in (record.steps, plain.record.steps)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert trainer.global_step == len(record.steps) == 2 * 12 / accumulation
    assert {decision.lr_multiplier for _, decision in record.steps} != {1.0}


def test_what_is_measured_is_not_clipped_and_what_moves_the_weights_is() -> None:
    seen = {}
    for clip_norm in (None, 0.01):
        record = lb.MemoryRecord()
        module, _ = fit(scaled(record=record), gradient_clip_val=clip_norm, max_steps=1)
        seen[clip_norm] = decisions(record), weights(module)
    assert seen[None][0] == seen[0.01][0]
    assert not torch.equal(seen[None][1][0], seen[0.01][1][0])


def test_short_accumulations_and_batches_give_the_mean_over_what_is_there() -> None:
    record = lb.MemoryRecord()
    module, _ = fit(scaled(record=record), train=loader(41), gradient_clip_val=0.5)
    plain = run_plain(Plain(clip_norm=0.5), samples=41)
    assert [seen.batch_size for seen, _ in record.steps] == [12, 12, 12, 5] * 2
    for ours, theirs in zip(record.steps, plain.record.steps, strict=True):
        assert ours[1].lr_multiplier == pytest.approx(theirs[1].lr_multiplier, rel=1e-5)
        assert ours[0].loss == pytest.approx(theirs[0].loss, rel=1e-5)
        assert ours[0].moments.variance == pytest.approx(theirs[0].moments.variance, rel=1e-4)
    for a, b in zip(weights(module.net), weights(plain.model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_an_epoch_that_ends_with_a_step_of_one_micro_batch_does_not_end_the_fit() -> None:
    record = lb.MemoryRecord()
    fit(scaled(record=record), train=loader(14, drop_last=True), max_epochs=1)
    fit(scaled(record=record), train=loader(16, drop_last=True), max_epochs=1)
    assert [seen.batch_size for seen, _ in record.steps] == [12, 12, 4]
    assert record.steps[-1][0].moments is None


def test_the_batch_size_may_be_passed_if_the_loader_does_not_show_it() -> None:
    dataset = TensorDataset(*data())
    sampler = BatchSampler(SequentialSampler(dataset), batch_size=4, drop_last=True)
    train: DataLoader[Any] = DataLoader(dataset, batch_sampler=sampler)
    module, _ = fit(scaled(batch_size=12), train=train)
    assert_same_bits(module.net, run_plain(Plain()).model)


# Around training


def test_validation_sanity_checks_anomalies_and_limits_change_nothing() -> None:
    ours, theirs = Module(), Module()
    record, other = lb.MemoryRecord(), lb.MemoryRecord()
    options = {"limit_train_batches": 6, "max_epochs": 3}
    trainer_of(scaled(record=record), **options).fit(theirs, loader())
    trainer = trainer_of(
        scaled(record=other), **options, num_sanity_val_steps=2, val_check_interval=2,
        detect_anomaly=True,
    )  # fmt: skip
    trainer.fit(ours, loader(), loader(20))
    assert_same_bits(ours.net, theirs.net)
    assert decisions(record) == decisions(other)
    assert [seen.batch_size for seen, _ in record.steps] == [12, 12] * 3


def test_a_rule_that_only_observes_leaves_a_run_of_whole_steps_as_it_was() -> None:
    module, _ = fit(scaled(lb.Observe()), gradient_clip_val=0.3)
    bare = Module()
    trainer_of(gradient_clip_val=0.3).fit(bare, loader())
    assert_same_bits(module.net, bare.net)


def test_the_fit_ends_at_the_base_steps_and_logs_what_was_decided(tmp_path: Path) -> None:
    callback = scaled(base_steps=20)
    logger = CSVLogger(tmp_path, name="", version="")
    fit(callback, max_epochs=-1, logger=logger, log_every_n_steps=1)
    control = callback.control
    assert 20 <= control.base_steps < 23
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert len(rows) == control.optimizer_steps
    last = {name: float(value) for name, value in rows[-1].items() if "largebatch" in name}
    assert last == pytest.approx(
        {
            "largebatch/lr_multiplier": control.lr_multiplier,
            "largebatch/gain": control.lr_multiplier,
            "largebatch/base_steps": control.base_steps,
            "largebatch/batch_size": 12,
            "largebatch/skipped": 0,
        }
    )
    assert sum(float(row["largebatch/gain"]) for row in rows) == pytest.approx(control.base_steps)


def test_a_budget_in_samples_ends_the_fit() -> None:
    callback = scaled(budget=lb.Budget(samples=60))
    _, trainer = fit(callback, max_epochs=-1)
    assert (callback.control.samples, trainer.global_step) == (60, 5)


def test_the_rate_is_multiplied_in_the_step_alone(tmp_path: Path) -> None:
    module = Module()
    monitor = LearningRateMonitor()
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = trainer_of(scaled(), monitor, logger=logger, log_every_n_steps=1)
    trainer.fit(module, loader())
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    rates = {float(row["lr-SGD"]) for row in rows if row["lr-SGD"]}
    assert rates == {0.05}
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.05


# Schedulers


def test_a_scheduler_follows_the_base_steps() -> None:
    module = Module(schedule=cosine)
    record = lb.MemoryRecord()
    _, trainer = fit(scaled(record=record, schedulers_in_base_steps=True), module=module)
    plain = run_plain(Plain(schedule=cosine))
    assert_same_bits(module.net, plain.model)
    assert decisions(record) == decisions(plain.record)
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert scheduler.last_epoch == int(
        record.steps[-1][0].base_steps + record.steps[-1][1].base_steps
    )


def test_a_scheduler_in_optimizer_steps_or_epochs_is_left_to_lightning() -> None:
    for interval, ticks in {"step": 8, "epoch": 2}.items():
        module = Module(schedule=cosine, interval=interval)
        _, trainer = fit(scaled(schedulers_in_base_steps=False), module=module)
        assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == ticks
    module = Module(schedule=cosine, interval="epoch")
    _, trainer = fit(scaled(schedulers_in_base_steps=True), module=module)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 2


# Precision


def test_bfloat16_is_that_of_a_plain_loop() -> None:
    record = lb.MemoryRecord()
    module, _ = fit(scaled(record=record), precision="bf16-mixed", gradient_clip_val=0.3)
    plain = run_plain(Plain(autocast=torch.bfloat16, clip_norm=0.3))
    assert_same_bits(module.net, plain.model)
    assert decisions(record) == decisions(plain.record)


def half(**options: Any) -> MixedPrecision:
    """Float16 with a scaler, which Lightning makes on a CPU only if it is handed over."""
    return MixedPrecision("16-mixed", "cpu", GradScaler("cpu", **options))


@pytest.mark.parametrize("clip_norm", [None, 0.3])
def test_float16_with_a_scaler_is_that_of_a_plain_loop(clip_norm: float | None) -> None:
    record = lb.MemoryRecord()
    options = {"init_scale": 2.0**18, "growth_interval": 3}  # overflows at first
    plugin = half(**options)
    module, _ = fit(scaled(record=record), plugins=[plugin], gradient_clip_val=clip_norm)
    scaler = GradScaler("cpu", **options)
    plain = run_plain(Plain(autocast=torch.float16, scaler=scaler, clip_norm=clip_norm))
    assert plugin.scaler is not None
    assert plugin.scaler.get_scale() == scaler.get_scale()
    assert_same_bits(module.net, plain.model)
    theirs = decisions(plain.record)
    assert [d.lr_multiplier for *_, d in decisions(record)] == [d.lr_multiplier for *_, d in theirs]
    losses = [[seen.loss for seen, _ in steps] for steps in (record.steps, plain.record.steps)]
    assert [a for a in losses[0] if a] == pytest.approx([b for b in losses[0] if b])


@pytest.mark.parametrize("optimize", [sgd, fused])
def test_steps_that_the_scaler_leaves_out_are_counted(optimize: Optimize) -> None:
    record = lb.MemoryRecord()
    callback = scaled(record=record, schedulers_in_base_steps=True)
    module = Module(optimize, schedule=cosine)
    plugin = half(init_scale=2.0**40, backoff_factor=2.0**-14)
    fit(callback, module=module, plugins=[plugin])
    finite = [seen.finite for seen, _ in record.steps]
    assert callback.control.skipped == finite.count(False) > 0
    assert finite[-1]
    assert callback.control.optimizer_steps == finite.count(True)
    rates = [seen.base_lr for seen, _ in record.steps]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < rates[0]


# What is lost


class Broken(Module):
    """A module whose loss is NaN in the sixth micro-batch."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        assert loss is not None
        return loss * float("nan") if batch_idx == 5 else loss


def test_a_step_that_is_not_finite_is_skipped_and_counted() -> None:
    callback = scaled()
    module, trainer = fit(callback, module=Broken(), gradient_clip_val=0.3, max_epochs=1)
    control = callback.control
    assert (control.skipped, control.optimizer_steps, control.samples) == (1, 3, 48)
    assert trainer.callback_metrics["largebatch/skipped"] == 1
    plain = Plain(clip_norm=0.3)
    for at, parts in enumerate(steps_of()):
        if at != 1:
            plain.step(parts)
        else:  # the lost step's samples count
            plain.control.decider = replace(plain.control.decider, samples=24)
    assert_same_bits(module.net, plain.model)


class Leaving(Module):
    """A module that returns no loss for some micro-batches."""

    left: ClassVar[tuple[int, ...]] = (0, 4, 6, 7, 8)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor | None:
        return None if batch_idx in self.left else super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_micro_batches_without_a_loss_are_not_in_the_mean() -> None:
    record = lb.MemoryRecord()
    module, _ = fit(scaled(record=record), module=Leaving(), max_epochs=1)
    plain = Plain()
    micro_batches = [part for parts in steps_of() for part in parts]
    for rows in ([1, 2], [3, 5], [9, 10, 11]):
        plain.step([micro_batches[row] for row in rows])
    assert [seen.batch_size for seen, _ in record.steps] == [8, 8, 12]
    for a, b in zip(weights(module.net), weights(plain.model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class EverySecond(Module):
    """A module that skips every second optimizer step, as in Lightning's documentation."""

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        if batch_idx % 2:
            optimizer.step(closure=optimizer_closure)
        else:
            optimizer_closure()


def test_gradients_that_no_step_used_are_forgotten() -> None:
    record = lb.MemoryRecord()
    meter = lambda model: lb.Meter(model, statistics=[lb.measure.TemporalMoments()])  # noqa: E731
    callback = scaled(record=record, meter=meter)
    fit(callback, module=EverySecond(), accumulate_grad_batches=1, max_epochs=1)
    assert [seen.batch_size for seen, _ in record.steps] == [4] * 6
    assert callback.control.samples == 24


class Failing(Module):
    """A module whose gradient clipping raises an error."""

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("clipping failed")


def test_a_fit_that_fails_leaves_no_hook_and_no_rate_behind() -> None:
    module, callback = Failing(), scaled()
    trainer = trainer_of(callback)
    with pytest.raises(RuntimeError, match="clipping failed"):
        trainer.fit(module, loader())
    assert callback.control.lr_multiplier > 1.0
    optimizer = callback.control.optimizer
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


# Rules with needs of their own


@dataclass(frozen=True, kw_only=True)
class ByLoss(Facts):
    """A rule whose learning rate depends on the loss and the size of the data set."""

    needs: ClassVar[frozenset[str]] = frozenset({"loss", "dataset_size"})

    def update(self, state: None, seen: Any, proposed: Any) -> tuple[None, Any]:
        return state, proposed.scaled(seen.loss * seen.dataset_size / 1000)


def test_loss_and_data_set_size_reach_the_rule() -> None:
    module, _ = fit(scaled(ByLoss()), accumulate_grad_batches=1)
    plain = Plain(ByLoss(), batch_size=4, dataset_size=48)
    run_plain(plain, accumulation=1)
    assert_same_bits(module.net, plain.model)


# Two processes

PROGRAM = """
import json, sys
import torch
torch.set_num_threads(1)
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from lightning_runs import Module, data, scaled, trainer_of
import largebatch as lb

class Unshuffled(Module):
    def train_dataloader(self):
        dataset = TensorDataset(*data(44))
        sampler = DistributedSampler(dataset, shuffle=False)  # the Trainer's own would shuffle
        return DataLoader(dataset, batch_size=4, sampler=sampler)

record = lb.MemoryRecord()
callback = scaled(record=record, base_steps=30)
module = Unshuffled()
trainer = trainer_of(callback, strategy="ddp", devices=2, max_epochs=-1, gradient_clip_val=0.3,
                     accumulate_grad_batches=2)
trainer.fit(module)
if trainer.is_global_zero:
    steps = [(s.batch_size, s.loss, d.lr_multiplier) for s, d in record.steps]
    weights = [p.detach().flatten().tolist() for p in module.net.parameters()]
    json.dump({"steps": steps, "weights": weights}, open(sys.argv[1], "w"))
else:
    assert not record.steps
"""


@pytest.mark.distributed
def test_two_processes_are_one_up_to_rounding(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAM)
    here = Path(__file__).parent
    done = run_program(
        "train.py", "out.json", cwd=tmp_path, path=os.pathsep.join(map(str, (here, here.parent)))
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "out.json").read_text())
    # A DistributedSampler deals the 44 samples in turn: rank r has r, r + 2, ... and 22 in all.
    x, y = data(44)
    plain = Plain(clip_norm=0.3, batch_size=16)
    while plain.control.base_steps < 30:
        for at in range(0, 22, 8):
            rows = [torch.arange(r, 44, 2)[at : at + 8].split(4) for r in (0, 1)]
            plain.step([(x[part], y[part]) for rank in zip(*rows, strict=True) for part in rank])
            if plain.control.base_steps >= 30:
                break
    expected = [(s.batch_size, s.loss, d.lr_multiplier) for s, d in plain.record.steps]
    assert {size for size, *_ in expected} == {16, 12}
    assert len(two["steps"]) == len(expected)
    for ours, theirs in zip(two["steps"], expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for ours, theirs in zip(two["weights"], weights(plain.model), strict=True):
        torch.testing.assert_close(torch.tensor(ours), theirs.flatten(), rtol=1e-4, atol=1e-5)


def test_the_small_model_is_the_modules() -> None:
    assert_same_bits(Module().net, small_model())
