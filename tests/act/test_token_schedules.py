"""Batches by a string in tokens, in runs of two epochs: where they change, and resumed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import largebatch as lb
from round_trips import through_a_file
from small_runs import data, loss_of, sgd, small_model, weights

N, LENGTH, BUDGET = 50, 10, 101
"""Samples in an epoch, tokens in a sample, samples in the run: two epochs and one sample."""

TEXT = "0:4 165:6 0.6K:16"
"""From the samples 17 and 60 on: the first is within a step, the second in the second epoch."""

STARTS = [0, 4, 8, 12, 16, 20, 26, 32, 38, 44, 50, 56, 62, 78, 94]
SIZES = [4, 4, 4, 4, 4, 6, 6, 6, 6, 6, 6, 6, 16, 16, 7]

Delivered = list[tuple[int, list[list[int]]]]
"""Of each step: the samples before it, and the numbers in each of its micro-batches."""


def build() -> tuple[nn.Module, torch.optim.Optimizer, lb.Controller, lb.MemoryRecord]:
    model, record = small_model(), lb.MemoryRecord()
    optimizer = sgd(model)
    control = lb.Controller(
        model,
        optimizer,
        lb.methods.batch_steps(TEXT, tokens_per_sample=LENGTH),
        lb.BatchLoader((*data(N), torch.arange(N)), batch_size=4, max_micro_batch_size=5, seed=3),
        base_batch_size=4,
        record=record,
    )
    return model, optimizer, control, record


def pieces(cuts: tuple[int, ...] = ()) -> tuple[nn.Module, list[Any], Delivered]:
    """A run that is built anew after each of these steps: its model, record and what it was fed."""
    model, optimizer, control, record = build()
    steps: list[Any] = []
    fed: Delivered = []
    for stop in (*cuts, None):
        for batch in control.steps(samples=BUDGET):
            parts: list[Tensor] = []
            for x, y, number in batch:
                control.backward(loss_of(model, x, y))
                parts.append(number)
            fed.append((control.samples, [part.tolist() for part in parts]))
            if control.optimizer_steps + 1 == stop:
                control.stop()
            control.step()
        steps += record.steps
        if stop is not None:
            assert control.optimizer_steps == stop
            state = {"m": model.state_dict(), "o": optimizer.state_dict()}
            state = through_a_file({**state, "c": control.state_dict()})
            model, optimizer, control, record = build()
            control.load_state_dict(state["c"])
            model.load_state_dict(state["m"])
            optimizer.load_state_dict(state["o"])
    assert control.finished
    return model, steps, fed


def test_each_batch_begins_with_the_first_step_at_or_behind_its_token() -> None:
    _, steps, _ = pieces()
    assert [seen.samples for seen, _ in steps] == STARTS
    assert [seen.batch_size for seen, _ in steps] == SIZES
    reasons = {seen.step: decision.reason for seen, decision in steps if decision.reason}
    assert reasons == {
        4: "stage 2 of 3 begins; batch size 6",
        11: "stage 3 of 3 begins; batch size 16",
    }
    assert {decision.lr_multiplier for _, decision in steps} == {1.0}


@pytest.mark.parametrize(("tokens", "third"), [(560, 12), (561, 13), (620, 13), (621, 14)])
def test_a_token_is_reached_with_the_sample_that_holds_it(tokens: int, third: int) -> None:
    """At sample 56 a step begins, and the next one at 62; 561 tokens are within sample 57."""
    rule = lb.methods.batch_steps(f"0:4 165:6 {tokens}:16", tokens_per_sample=LENGTH)
    model = small_model()
    batches = lb.BatchLoader(data(N), batch_size=4, seed=3)
    control = lb.Controller(model, sgd(model), rule, batches, base_batch_size=4)
    sizes = []
    for batch in control.steps(samples=BUDGET):
        for x, y in batch:
            control.backward(loss_of(model, x, y))
        sizes.append(batch.batch_size)
        control.step()
    assert sizes.index(16) == third - 1
    assert sum(sizes) == BUDGET


def test_every_sample_comes_once_an_epoch_though_steps_reach_over_its_end() -> None:
    _, _, fed = pieces()
    order = [number for _, parts in fed for part in parts for number in part]
    assert len(order) == BUDGET
    assert sorted(order[:N]) == sorted(order[N : 2 * N]) == list(range(N))
    assert order[:N] != order[N : 2 * N]


LAST = len(SIZES)
CUTS = [*[(step,) for step in range(1, LAST)], tuple(range(1, LAST))]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_stopped_anywhere_the_batches_and_bits_are_those_of_the_whole_run(
    cuts: tuple[int, ...],
) -> None:
    """Within each stage, at both boundaries, and before the last step, which is short."""
    whole, seen, fed = pieces()
    model, also, again = pieces(cuts)
    assert again == fed
    assert also == seen
    assert all(map(torch.equal, weights(whole), weights(model)))
