"""Test that a fit resumes from the Trainer's checkpoint bit by bit, or raises an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_runs import NOISES, Module, assert_same_bits, decisions, loader, scaled, trainer_of
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, TensorDataset

import largebatch as lb
from small_runs import data

MOVED = "ignore:The dirpath has changed"
"""A ModelCheckpoint warns that the resumed fit saves elsewhere."""

pytestmark = [pytest.mark.filterwarnings(noise) for noise in (*NOISES, MOVED)]


def falling(optimizer: Optimizer) -> LRScheduler:
    return LambdaLR(optimizer, lambda step: 0.97**step)


class Resumable(DataLoader[Any]):
    """A loader that resumes in mid-epoch from its saved state."""

    taken = 0
    begin = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        begin, self.begin = self.begin, 0
        for at, batch in enumerate(super().__iter__()):
            if at >= begin:
                self.taken = at + 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.begin = state["taken"]


def resumable(samples: int) -> Resumable:
    return Resumable(TensorDataset(*data(samples)), batch_size=4)


def run(
    folder: Path, *, epochs: int = 4, every: int = 8, train: Any = None, ckpt: Path | None = None
) -> tuple[Module, lb.MemoryRecord]:
    record, module = lb.MemoryRecord(), Module(schedule=falling)
    saving = ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=every, filename="{step}")
    trainer = trainer_of(
        scaled(record=record, schedulers_in_base_steps=True), saving, max_epochs=epochs,
        enable_checkpointing=True, gradient_clip_val=0.5,
    )  # fmt: skip
    trainer.fit(module, loader() if train is None else train, ckpt_path=ckpt)
    return module, record


def test_a_resumed_fit_equals_the_uninterrupted_fit_bit_for_bit(tmp_path: Path) -> None:
    whole, record = run(tmp_path / "whole")
    run(tmp_path / "first", epochs=2)
    rest, after = run(tmp_path / "rest", ckpt=tmp_path / "first" / "step=8.ckpt")
    assert_same_bits(whole, rest)
    assert decisions(record)[8:] == decisions(after)
    assert after.steps[0][0].samples == 96


def test_a_run_saved_within_an_epoch_resumes_where_its_loader_resumes(
    tmp_path: Path,
) -> None:
    whole, record = run(tmp_path / "whole", epochs=2, every=2, train=resumable(41))
    rest, after = run(
        tmp_path / "rest",
        epochs=2,
        every=2,
        train=resumable(41),
        ckpt=tmp_path / "whole" / "step=2.ckpt",
    )
    assert [seen.batch_size for seen, _ in after.steps] == [12, 5, 12, 12, 12, 5]
    assert decisions(record)[2:] == decisions(after)
    assert_same_bits(whole, rest)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
def test_a_loader_that_begins_anew_is_counted_as_what_it_gives(tmp_path: Path) -> None:
    run(tmp_path / "whole", epochs=1, every=2, train=loader(41))
    _, after = run(
        tmp_path / "rest",
        epochs=2,
        every=2,
        train=loader(41),
        ckpt=tmp_path / "whole" / "step=2.ckpt",
    )
    first = [seen.batch_size for seen, _ in after.steps][:2]
    assert first == [12, 8]  # the first five micro-batches of four samples


def test_the_state_is_plain_values_that_a_careful_load_reads(tmp_path: Path) -> None:
    run(tmp_path, epochs=1, every=4)
    saved = torch.load(tmp_path / "step=4.ckpt", weights_only=True)
    assert saved["callbacks"]["LargeBatch"]["samples"] == 48


def test_a_fit_whose_budget_is_used_up_takes_no_further_step(tmp_path: Path) -> None:
    path = tmp_path / "end.ckpt"
    for expected in (5, 5):
        callback = scaled(budget=lb.Budget(samples=60))
        trainer = trainer_of(callback, max_epochs=-1)
        trainer.fit(Module(), loader(), ckpt_path=path if path.exists() else None)
        trainer.save_checkpoint(path)
        assert callback.control.optimizer_steps == trainer.global_step == expected


def test_a_checkpoint_without_clocks_is_refused(tmp_path: Path) -> None:
    bare = trainer_of(max_epochs=1)
    bare.fit(Module(), loader())
    bare.save_checkpoint(tmp_path / "bare.ckpt")
    with pytest.raises(lb.errors.CheckpointError, match="no state of LargeBatch"):
        trainer_of(scaled()).fit(Module(), loader(), ckpt_path=tmp_path / "bare.ckpt")


def test_a_second_fit_of_the_same_trainer_is_refused_and_a_new_trainer_begins_anew() -> None:
    callback = scaled()
    trainer = trainer_of(callback, max_epochs=1)
    trainer.fit(Module(), loader())
    trainer.fit_loop.max_epochs = 2
    with pytest.raises(lb.errors.CheckpointError, match="resumes after step 4"):
        trainer.fit(Module(), loader())
    trainer_of(callback, max_epochs=1).fit(Module(), loader())
    assert callback.control.samples == 48


def test_a_state_of_another_rule_is_refused(tmp_path: Path) -> None:
    first = trainer_of(scaled(), max_epochs=1)
    first.fit(Module(), loader())
    first.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(lb.errors.CheckpointError, match="saved with rule"):
        trainer_of(scaled(lb.LinearScaling())).fit(
            Module(), loader(), ckpt_path=tmp_path / "a.ckpt"
        )
