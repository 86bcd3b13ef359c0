"""Gain and noise scale of loops whose gradient noise is known, with weights that are told.

The loss of a unit (a sample or a token) is <w, g> with g ~ N(1, SPREAD^2) in `D` coordinates, so
the variance of a unit is SPREAD^2 times |G|^2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import largebatch as lb

D, SPREAD = 8, 3.0
TOKENS = (2, 2, 4, 60)
NOISE_SCALE = SPREAD**2 * len(TOKENS) / sum(TOKENS)
"""Of sequences with these lengths, in sequences: four of them have as many tokens as they have."""


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(D))


def draw(generator: torch.Generator, units: int) -> Tensor:
    return 1.0 + SPREAD * torch.randn(units, D, generator=generator)


def gain_of(noise_scale: float, *, batch: float, base: float) -> float:
    return (noise_scale / base + 1) / (noise_scale / batch + 1)


def parts_of() -> tuple[Linear, torch.optim.Optimizer, torch.Generator]:
    model = Linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return model, optimizer, torch.Generator().manual_seed(0)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def attached_gain(
    sizes: Callable[[torch.Generator], Sequence[int]],
    *,
    batch: int,
    base: int,
    tell: Callable[[Any, int], Any],
    steps: int = 2000,
) -> float:
    """The mean gain of the last 500 steps; each loss is a sum divided by all units of the step."""
    model, optimizer, generator = parts_of()
    control = lb.attach(model, optimizer, lb.AdaScale(), batch_size=batch, base_batch_size=base)
    gains = []
    for _ in range(steps):
        units = sizes(generator)
        for unit in units:
            tell(control, unit)
            ((draw(generator, unit) @ model.w).sum() / sum(units)).backward()
        optimizer.step()
        optimizer.zero_grad()
        gains.append(control.lr_multiplier)
    return mean(gains[-500:])


def by_samples(control: Any, units: int) -> None:
    control.micro_batch(units, weight=units)


def by_tokens(control: Any, units: int) -> None:
    control.micro_batch(1, weight=units)


def test_watch_shows_the_noise_scale_of_sequences_weighted_by_their_tokens() -> None:
    found = {}
    for told in (True, False):
        model, optimizer, generator = parts_of()
        noise = lb.watch(model, optimizer, batch_size=len(TOKENS))
        for _ in range(2000):
            for tokens in TOKENS:
                if told:
                    noise.micro_batch(1, weight=tokens)
                loss = (draw(generator, tokens) @ model.w).sum() / sum(TOKENS)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        variances, squares = zip(*noise.series, strict=True)
        found[told] = mean(variances) / mean(squares), mean(squares)
    assert found[True] == pytest.approx((NOISE_SCALE, D), rel=0.05)
    assert found[False] != pytest.approx((NOISE_SCALE, D), rel=0.5)  # nothing else shows it


@pytest.mark.parametrize("sizes", [(16, 16, 16, 16), (16, 16, 16, 2), (40, 4, 2, 2)])
def test_the_gain_of_unequal_samples_weighted_as_such(sizes) -> None:
    batch = sum(sizes)
    found = attached_gain(lambda _: sizes, batch=batch, base=batch // 4, tell=by_samples)
    expected = gain_of(SPREAD**2, batch=batch, base=batch // 4)
    assert found == pytest.approx(expected, rel=0.03)


def test_unequal_samples_without_a_weight_are_named_in_one_warning() -> None:
    with pytest.warns(RuntimeWarning, match=r"16, 16, 16, 2 samples.*weight=len\(x\)") as caught:
        attached_gain(
            lambda _: (16, 16, 16, 2),
            batch=50,
            base=12,
            tell=lambda control, n: control.micro_batch(n),
            steps=3,
        )
    assert len(caught) == 1


def test_the_gain_of_token_counts_that_differ_in_each_step() -> None:
    def sizes(generator: torch.Generator) -> list[int]:
        return torch.randint(1, 41, (4,), generator=generator).tolist()

    found = attached_gain(sizes, batch=4, base=1, tell=by_tokens)
    lengths = [sizes(torch.Generator().manual_seed(seed)) for seed in range(2000)]
    noise_scale = SPREAD**2 * mean([4 / sum(each) for each in lengths])
    assert found == pytest.approx(gain_of(noise_scale, batch=4, base=1), rel=0.03)


def test_the_gain_of_two_losses_in_a_block() -> None:
    model, optimizer, generator = parts_of()
    control = lb.attach(model, optimizer, lb.AdaScale(), batch_size=64, base_batch_size=16)
    gains = []
    for _ in range(2000):
        for _ in range(4):
            with control.part():
                ((draw(generator, 16) @ model.w).mean() / 4).backward()
                ((-0.5 * torch.ones(16, D) @ model.w).mean() / 4).backward()
        optimizer.step()
        optimizer.zero_grad()
        gains.append(control.lr_multiplier)
    expected = gain_of(SPREAD**2 / 0.25, batch=64, base=16)  # the second loss halves the mean
    assert mean(gains[-500:]) == pytest.approx(expected, rel=0.03)


def test_the_controller_with_token_weights() -> None:
    model, optimizer, generator = parts_of()
    record, gains = lb.MemoryRecord(), []
    which = (torch.arange(4000) % len(TOKENS),)
    control = lb.Controller(
        model,
        optimizer,
        lb.AdaScale(),
        lb.BatchLoader(which, batch_size=4, max_micro_batch_size=1, shuffle=False),
        base_batch_size=1,
        record=record,
    )
    for batch in control.steps(steps=3000):
        for (sequence,) in batch:
            tokens = TOKENS[int(sequence)]
            control.backward((draw(generator, tokens) @ model.w).mean(), weight=tokens)
        control.step()
        gains.append(control.lr_multiplier)
    moments = [seen.moments for seen, _ in record.steps]
    found = mean([m.variance for m in moments]) / mean([m.sqnorm for m in moments])
    assert found == pytest.approx(NOISE_SCALE, rel=0.05)
    assert mean(gains[-500:]) == pytest.approx(gain_of(NOISE_SCALE, batch=4, base=1), rel=0.03)


def test_a_batch_below_the_base_batch_has_a_gain_below_1() -> None:
    found = attached_gain(lambda _: (8, 8), batch=16, base=64, tell=lambda control, n: None)
    assert found == pytest.approx(gain_of(SPREAD**2, batch=16, base=64), rel=0.02)
