"""Test that an epoch in Lightning's Trainer is what the Trainer takes from the loader."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.utilities import CombinedLoader
from lightning_runs import NOISES, Module, fit, loader, scaled, trainer_of
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import largebatch as lb
from distributed import run_program
from small_runs import data

pytestmark = [pytest.mark.filterwarnings(noise) for noise in NOISES]

DATA = TensorDataset(*data(100))


def of(**options: Any) -> DataLoader[Any]:
    return DataLoader(DATA, **{"batch_size": 4, **options})


def subset(samples: int = 24) -> SubsetRandomSampler:
    return SubsetRandomSampler(range(samples))


def in_batches(batches: Any) -> DataLoader[Any]:
    return DataLoader(DATA, batch_sampler=batches)


EPOCHS: dict[str, tuple[Callable[[], Any], dict[str, Any], int]] = {
    "in order": (of, {}, 100),
    "last dropped": (lambda: of(batch_size=12, drop_last=True), {}, 96),
    "subset sampler": (lambda: of(sampler=subset()), {}, 24),
    "subset sampler, short": (lambda: of(sampler=subset(22)), {}, 22),
    "drawn": (lambda: of(sampler=RandomSampler(DATA, num_samples=36)), {}, 36),
    "weighted": (lambda: of(sampler=WeightedRandomSampler([1.0] * 100, 48)), {}, 48),
    "batch sampler": (lambda: in_batches(BatchSampler(subset(23), 4, drop_last=False)), {}, 23),
    "own batches": (lambda: in_batches([[1, 2, 3], [4, 5, 6], [7, 8]]), {}, 8),
    "limit": (of, {"limit_train_batches": 6}, 24),
    "limit beyond": (lambda: of(sampler=subset(22)), {"limit_train_batches": 60}, 22),
    "part": (of, {"limit_train_batches": 0.5}, 48),
    "limit of own batches": (
        lambda: in_batches([[1, 2, 3], [4, 5, 6], [7, 8]]),
        {"limit_train_batches": 2},
        6,
    ),
    "overfit": (of, {"overfit_batches": 3}, 12),
    "reloaded": (of, {"reload_dataloaders_every_n_epochs": 1}, 100),
}


class Loading(Module):
    """A module that brings its loaders, one for each epoch."""

    def __init__(self, *makes: Callable[[], Any]) -> None:
        super().__init__()
        self.makes = makes

    def train_dataloader(self) -> Any:
        return self.makes[min(self.current_epoch, len(self.makes) - 1)]()


def fitted(make: Callable[[], Any], rule: lb.Rule | None = None, **options: Any) -> Any:
    callback = scaled(rule or lb.LinearScaling(), base_batch_size=4)
    trainer_of(callback, **{"max_epochs": 2, **options}).fit(Loading(make))
    return callback.control


@pytest.mark.parametrize("name", EPOCHS)
def test_an_epoch_is_what_the_trainer_takes(name: str) -> None:
    make, options, samples = EPOCHS[name]
    control = fitted(make, **options)
    assert control.decider.dataset_size == samples
    assert control.samples == 2 * samples


@pytest.mark.parametrize("name", ["subset sampler", "drawn", "weighted", "limit", "own batches"])
def test_legw_warms_up_over_what_the_trainer_takes(name: str) -> None:
    make, options, samples = EPOCHS[name]
    record = lb.MemoryRecord()
    callback = scaled(lb.methods.legw(warmup_epochs=1.0), base_batch_size=2, record=record)
    options = {"max_epochs": 40, "accumulate_grad_batches": 2, **options}
    trainer_of(callback, **options).fit(Loading(make))
    scale = record.steps[0][0].scale
    warm = [
        seen.base_steps
        for seen, decision in record.steps
        if seen.scale == scale and decision.lr_multiplier > scale**0.5 - 1e-9
    ]
    # the warm-up in base steps is its epochs x scale x dataset_size / base batch
    assert warm[0] == pytest.approx(scale * samples / 2, abs=scale)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([DATA[0]] * 40)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(Stream(), batch_size=4, drop_last=True),
        lambda: CombinedLoader({"a": of(), "b": of()}, "min_size"),
    ],
    ids=["stream", "combined"],
)
def test_an_epoch_of_unknown_length_must_be_given(make: Callable[[], Any]) -> None:
    class Pairs(Loading):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch["a"] if isinstance(batch, dict) else batch, 0)

    told = {"base_batch_size": 4, "batch_size": 12}
    with pytest.raises(ValueError, match="dataset_size=60_000"):
        trainer_of(scaled(lb.methods.legw(), **told)).fit(Pairs(make))
    callback = scaled(lb.methods.legw(), dataset_size=40, **told)
    trainer_of(callback, max_epochs=1).fit(Pairs(make))
    assert callback.control.decider.dataset_size == 40


def test_batches_of_unequal_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="have 1 to 3 samples"):
        fitted(lambda: in_batches([[1, 2], [4], [7, 8, 9]]))
    with pytest.raises(ValueError, match="but an optimizer step has 6 samples"):
        callback = scaled(base_batch_size=2, batch_size=7)
        trainer_of(callback).fit(Module(), in_batches([[1, 2], [4, 5], [7]]))


def test_a_later_epoch_of_another_length_is_warned_of() -> None:
    callback = scaled(lb.LinearScaling())
    trainer = trainer_of(callback, max_epochs=2, reload_dataloaders_every_n_epochs=1)
    with pytest.warns(UserWarning, match=r"epoch 1 gives 24 .* previous loader gave 100.*, 100\."):
        trainer.fit(Loading(of, lambda: of(sampler=subset())))
    assert callback.control.decider.dataset_size == 100
    assert callback.control.samples == 124


def test_a_resumed_fit_keeps_the_epoch_that_it_was_started_with(tmp_path: Path) -> None:
    path = tmp_path / "first.ckpt"
    _, trainer = fit(scaled(), train=loader(48), max_epochs=1)
    trainer.save_checkpoint(path)
    resumed = scaled()
    with pytest.warns(
        UserWarning, match=r"saved run has 48 samples per epoch.* has 24 samples\..* with 48"
    ):
        trainer_of(resumed, max_epochs=2, limit_train_batches=6).fit(
            Module(), loader(48), ckpt_path=path
        )
    assert resumed.control.decider.dataset_size == 48
    assert resumed.control.samples == 72
    given = scaled(dataset_size=24)
    with pytest.raises(lb.errors.CheckpointError, match="dataset_size=48, but this run has"):
        trainer_of(given, max_epochs=2).fit(Module(), loader(48), ckpt_path=path)


PROGRAM = """
import json, sys, warnings
import torch
import torch.distributed as dist
torch.set_num_threads(1)
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset
from lightning_runs import Module, data, scaled, trainer_of
import largebatch as lb

class Loading(Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def train_dataloader(self):
        return self.make(self.trainer.global_rank)

def injected(rank):
    return DataLoader(TensorDataset(*data(45)), batch_size=4, shuffle=True)

def subset(rank):
    return DataLoader(
        TensorDataset(*data(45)), batch_size=4, sampler=SubsetRandomSampler(range(21))
    )

def shards(rank):
    return DataLoader(TensorDataset(*data((40, 39)[rank], seed=rank)), batch_size=4)

found = {}
for make, options in (
    (injected, {}),
    (subset, {}),
    (shards, {"use_distributed_sampler": False}),
    (shards, {"use_distributed_sampler": False, "limit_train_batches": 3}),
):
    callback = scaled(lb.LinearScaling())
    trainer = trainer_of(callback, strategy="ddp", devices=2, max_epochs=1,
                         accumulate_grad_batches=1, **options)
    trainer.fit(Loading(make))
    name = " ".join([make.__name__, *options])
    found[name] = [callback.control.decider.dataset_size, callback.control.samples]
if trainer.is_global_zero:
    json.dump(found, open(sys.argv[1], "w"))
"""


@pytest.mark.distributed
def test_an_epoch_is_summed_over_the_processes(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAM)
    here = Path(__file__).parent
    done = run_program(
        "train.py", "out.json", cwd=tmp_path, path=os.pathsep.join(map(str, (here, here.parent)))
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "out.json").read_text()) == {
        "injected": [46, 46],
        "subset": [22, 22],
        "shards use_distributed_sampler": [79, 79],
        "shards use_distributed_sampler limit_train_batches": [24, 24],
    }
