"""Test which uses in Lightning raise an error before the first training step."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from lightning_runs import NOISES, LargeBatch, Module, loader, scaled, trainer_of
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torch.utils.data import DataLoader, IterableDataset

import largebatch as lb
from largebatch.integrations.lightning_checks import check_trainer
from small_runs import data, small_model, weights

pytestmark = [pytest.mark.filterwarnings(noise) for noise in NOISES]


def refused(
    message: str, *, callback: LargeBatch | None = None, module: Module | None = None,
    train: Any = None, extra: Any = (), **options: Any,
) -> None:  # fmt: skip
    module = module or Module()
    trainer = trainer_of(callback or scaled(), *extra, **options)
    with pytest.raises(ValueError, match=message):
        trainer.fit(module, loader() if train is None else train)
    assert trainer.global_step == 0
    for a, b in zip(weights(module.net), weights(small_model()), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "rule", [lb.ClampBatch(max=64), lb.chain(lb.AdaScale(), lb.ClampBatch(max=64))]
)
def test_lightning_refuses_a_rule_about_the_batch(rule: lb.Rule) -> None:
    with pytest.raises(ValueError, match=r"ClampBatch changes or bounds the batch.*Fabric"):
        scaled(rule)


def test_lightning_refuses_a_length_given_twice() -> None:
    with pytest.raises(ValueError, match="given only once"):
        scaled(base_steps=10, budget=lb.Budget(samples=60))


def test_lightning_refuses_manual_optimization() -> None:
    module = Module()
    module.automatic_optimization = False
    refused("manual optimization", module=module, accumulate_grad_batches=1)


class Several(Module):
    def configure_optimizers(self) -> list[Optimizer]:
        return [torch.optim.SGD([p], lr=0.1) for p in self.parameters()]


def test_several_optimizers_are_refused_by_lightning_itself() -> None:
    with pytest.raises(RuntimeError, match="multiple optimizers is only supported with manual"):
        trainer_of(scaled()).fit(Several(), loader())


def lbfgs(model: nn.Module) -> Optimizer:
    return torch.optim.LBFGS(model.parameters())


def test_lightning_refuses_an_optimizer_that_calls_its_closure_more_than_once() -> None:
    refused("L-BFGS", module=Module(lbfgs))


class OwnStrategy(SingleDeviceStrategy):
    """A strategy that is not supported."""


def test_lightning_refuses_an_unverified_strategy() -> None:
    refused("OwnStrategy is not supported", strategy=OwnStrategy())


@pytest.mark.parametrize("strategy", [FSDPStrategy, type("DeepSpeed", (DDPStrategy,), {})])
def test_lightning_refuses_sharded_strategies(strategy: type) -> None:
    trainer = trainer_of()
    trainer.strategy.__class__ = strategy  # a CPU alone cannot run them
    with pytest.raises(ValueError, match=f"{strategy.__name__} is not supported"):
        check_trainer(trainer, Module())


def test_lightning_refuses_a_gradient_accumulation_that_changes() -> None:
    refused(
        "changes the batch size between epochs",
        extra=[GradientAccumulationScheduler({0: 2, 1: 4})],
        accumulate_grad_batches=1,
    )


def test_lightning_refuses_one_backward_per_step_on_one_process() -> None:
    refused("accumulate_grad_batches=2", accumulate_grad_batches=1)


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*data(), strict=True)


def batches() -> DataLoader[Any]:
    x, y = data()
    return DataLoader(list(zip(x.split(4), y.split(4), strict=True)), batch_size=None)


def test_lightning_refuses_data_whose_batch_size_is_unknown() -> None:
    refused(r"LargeBatch\(\.\.\., batch_size=512\)", train=batches())
    refused("batch_size=9", callback=scaled(batch_size=10), train=batches())
    refused("drop_last=True", train=DataLoader(Endless(), batch_size=4))


def test_lightning_refuses_batches_of_another_size_than_the_callback_was_given() -> None:
    refused(
        "an optimizer step has 12 samples: 4 per batch of the DataLoader x 3 micro-batches",
        callback=scaled(batch_size=4),
    )


def test_lightning_accepts_data_without_a_length_if_every_batch_is_whole() -> None:
    callback = scaled()
    train = DataLoader(Endless(), batch_size=4, drop_last=True)
    trainer_of(callback, max_epochs=1).fit(Module(), train)
    assert callback.control.samples == 48


def cosine(optimizer: Optimizer) -> LRScheduler:
    return CosineAnnealingLR(optimizer, T_max=40)


class OwnStep(Module):
    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step()


def test_lightning_refuses_a_scheduler_whose_unit_of_steps_is_not_given() -> None:
    refused("schedulers_in_base_steps=True", module=Module(schedule=cosine))


def test_lightning_refuses_a_scheduler_that_the_module_steps_itself() -> None:
    refused(
        "cannot advance in base steps",
        callback=scaled(schedulers_in_base_steps=True),
        module=OwnStep(schedule=cosine),
    )


class Keeping(Module):
    """Accumulates in its own way: it does not clear the gradients that a step has used."""

    def optimizer_zero_grad(self, *args: Any) -> None:
        pass


def test_lightning_refuses_gradients_that_are_not_cleared() -> None:
    with pytest.raises(lb.errors.MicroBatchMissed, match="had a gradient before"):
        trainer_of(scaled()).fit(Keeping(), loader())


def test_there_are_no_clocks_before_a_fit() -> None:
    with pytest.raises(lb.LargeBatchError, match=r"before training starts\. Call trainer\.fit"):
        scaled().control  # noqa: B018


def test_without_lightning_the_error_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['lightning'] = sys.modules['lightning.pytorch'] = None\n"
        "import largebatch.integrations.lightning"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip install 'largebatch[lightning]'" in done.stderr
    assert "ImportError" in done.stderr
