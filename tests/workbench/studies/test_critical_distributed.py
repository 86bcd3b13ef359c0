"""Test that two ranks find the same critical batch size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from distributed import run_on_ranks
from largebatch.workbench.studies.critical.result import Critical
from largebatch.workbench.studies.critical.run_methods import critical
from largebatch.workbench.studies.critical.settings import Settings
from largebatch.workbench.workloads import Data, Workload, sgd

pytestmark = pytest.mark.distributed


def data() -> Data:
    draw = torch.Generator().manual_seed(1)
    y = torch.randint(0, 3, (400,), generator=draw)
    x = 2.0 * nn.functional.one_hot(y, 6) + torch.randn(400, 6, generator=draw)
    return Data(train=(x, y), validation=(x[:50], y[:50]), test=(x[:50], y[:50]))


def found() -> Critical:
    workload = Workload(
        name="blobs",
        summary="a linear classifier",
        model=lambda: nn.Linear(6, 3),
        data=data,
        loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        optimizer=sgd(momentum=0.9),
        base_batch_size=8,
        base_lr=0.01,
        micro_batch_size=64,
        budget_epochs=2,
    )
    return critical(workload, settings=Settings(seeds=2, doublings=2, points=1))


def timeless(result: Critical) -> Critical:
    return replace(result, answers=tuple(replace(a, seconds=0.0) for a in result.answers))


def test_both_ranks_find_the_same_critical_batch() -> None:
    first, second = map(timeless, run_on_ranks(found, 2))
    assert first == second
    assert first.ranks == 2
    assert any(finding.batch is not None for answer in first.answers for finding in answer.findings)


def test_two_ranks_find_what_one_process_finds() -> None:
    first, _ = run_on_ranks(found, 2)
    alone = found()
    for together, single in zip(first.answers[1].trials, alone.answers[1].trials, strict=True):
        assert together.losses == pytest.approx(single.losses, rel=1e-3)
