"""Clocks, intervals and schedulers of a run in hand, and what the ranks compare."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

import largebatch as lb
from largebatch.act.controller import Controller
from largebatch.act.loader import BatchLoader
from largebatch.act.needs import check_budget, check_needs
from largebatch.act.run_facts import clocks_of, digest_of, run_facts
from largebatch.core.decider import Decider
from largebatch.core.rule import Rule, chain
from largebatch.measure.meter import Meter
from largebatch.rules.adascale import AdaScale
from small_rules import Factor, Falling, Growing
from small_runs import data, loss_of, sgd, small_model, train


def controller(rule: Rule | None = None, *, base_batch_size: int = 4) -> Controller:
    model = small_model()
    batches = BatchLoader(data(), batch_size=8, max_micro_batch_size=4)
    rule = rule or chain()
    return Controller(model, sgd(model), rule, batches, base_batch_size=base_batch_size)


def test_before_the_first_step_all_clocks_are_zero_and_no_interval_has_passed() -> None:
    control = controller()
    clocks = (control.base_steps, control.samples, control.optimizer_steps, control.skipped)
    assert clocks == (0, 0, 0, 0)
    assert (control.lr_multiplier, control.finished) == (1.0, False)
    assert not control.every(samples=1)


def test_every_follows_samples_while_the_batch_grows() -> None:
    control = controller(Growing(first=8, after_samples=24))
    passed: dict[str, list[int]] = {"samples": [], "base_steps": [], "steps": []}
    for batch in control.steps(samples=88):
        for x, y in batch:
            control.backward(loss_of(control.model, x, y))
        control.step()
        for unit, interval in {"samples": 20, "base_steps": 5, "steps": 2}.items():
            if control.every(**{unit: interval}):
                passed[unit].append(control.samples)
    # samples after each step: 8 16 24 40 56 72 88
    assert passed == {
        "samples": [24, 40, 72, 88],
        "base_steps": [24, 40, 72, 88],
        "steps": [16, 40, 72],
    }


@pytest.mark.parametrize(
    "intervals", [{}, {"samples": 0}, {"samples": -3.0}, {"samples": 8, "steps": 1}]
)
def test_every_takes_one_interval_above_zero(intervals: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"control\.every\(samples=50_000\)"):
        controller().every(**intervals)


def test_several_schedulers_tick_alike_and_see_the_users_rate_alone() -> None:
    control = controller(Factor(), base_batch_size=4)
    seen: list[float] = []

    def one(at: int) -> float:
        seen.append(control.optimizer.param_groups[0]["lr"])
        return 1.0

    first = LambdaLR(control.optimizer, one)
    second = LambdaLR(control.optimizer, lambda at: 1.0)
    ticks = []
    for batch in control.steps(steps=3):
        for x, y in batch:
            control.backward(loss_of(control.model, x, y))
        control.step()
        ticks.append((control.advance(first), control.advance(second), control.advance(first)))
    assert ticks == [(2, 2, 0)] * 3
    assert (first.last_epoch, second.last_epoch) == (6, 6)
    assert set(seen) == {0.05}


def test_a_scheduler_that_is_advanced_seldom_catches_up() -> None:
    control = controller()
    scheduler = LambdaLR(control.optimizer, lambda at: 1.0)
    train(control, samples=40)
    assert control.advance(scheduler) == 10 == scheduler.last_epoch


def test_an_evaluation_moves_reduce_on_plateau_and_nothing_else() -> None:
    control = controller()
    clocked = LambdaLR(control.optimizer, lambda at: 1.0)
    plateau = ReduceLROnPlateau(control.optimizer)
    train(control, samples=8)
    with pytest.raises(ValueError, match="metric"):
        control.advance(plateau)
    assert control.advance(plateau, metric=1.0) == 1
    assert control.advance(clocked) == 2


def decider(rule: Rule | None = None) -> Decider:
    return Decider.start(rule or AdaScale(), base_batch_size=4, batch_size=8)


def test_the_digest_differs_as_soon_as_a_clock_or_a_state_does() -> None:
    start = decider()
    state = (replace(start.state[0], measured_at=1),)
    others = [
        replace(start, step=1),
        replace(start, samples=1),
        replace(start, base_steps=5e-324),
        replace(start, batch_size=9),
        replace(start, measure=frozenset()),
        replace(start, state=state),
    ]
    digests = {digest_of(clocks_of(other)) for other in [start, *others]}
    assert len(digests) == 7
    assert digest_of(clocks_of(decider())) == digest_of(clocks_of(start)) < 2**32
    assert clocks_of(start)["samples"] == 0


def test_the_facts_of_a_run_are_plain_values() -> None:
    facts = run_facts(decider())
    assert facts["rule"]["rules"][0]["kind"] == "AdaScale"
    assert (facts["base_batch_size"], facts["batch_size"], facts["budget"]) == (4, 8, None)


def test_a_rule_over_the_run_is_refused_where_its_length_is_unknown() -> None:
    with pytest.raises(ValueError, match=r"Falling needs 'budget'.*budget=lb\.Budget"):
        check_budget(decider(Falling()))


def test_a_statistic_that_the_meter_lacks_is_refused_by_name() -> None:
    model = small_model()
    meter = Meter(model)
    meter.bind(torch.optim.RMSprop(model.parameters()))
    check_needs(decider(), meter=meter)
    adam = decider(AdaScale(statistic="preconditioned_moments"))
    with pytest.raises(ValueError, match=r"AdaScale needs 'preconditioned_moments'.*AdamW"):
        check_needs(adam, meter=meter)
    meter.bind(torch.optim.AdamW(model.parameters()))
    check_needs(adam, meter=meter)


def test_a_control_shows_its_clocks_and_its_last_decision() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with lb.attach(
        model, optimizer, lb.LinearScaling(), batch_size=8, base_batch_size=4
    ) as control:
        assert "no step yet" in repr(control)
        for _ in range(2):
            model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()
        text = "<Attached: 1 optimizer steps, 8 samples, 2 base steps, lr x 2>"
        assert repr(control) == text
