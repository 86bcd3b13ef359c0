"""One control for several optimizers over one model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

import largebatch as lb
from largebatch.act.attached import Attached
from largebatch.core.errors import LargeBatchError, MicroBatchMissed
from small_runs import weights

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(160, 4, generator=GENERATOR), torch.randn(160, 2, generator=GENERATOR)
RULE = lb.AdaScale()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def halves(model: nn.Sequential, *kinds: type[Optimizer], lr: Sequence[float] = (0.1, 0.1)) -> Any:
    first, second = kinds
    return (
        first(model[0].parameters(), lr=lr[0]),
        second(model[2].parameters(), lr=lr[1]),
    )


def attach(model: nn.Module, optimizer: Any, rule: Any = RULE, **more: Any) -> Attached:
    return lb.attach(model, optimizer, rule, batch_size=16, base_batch_size=4, **more)


def accumulate(model: nn.Module, step: int) -> None:
    for at in range(16 * step, 16 * step + 16, 4):
        (mse_loss(model(X[at : at + 4]), Y[at : at + 4]) / 4).backward()


def run(
    model: nn.Module, members: Sequence[Optimizer], control: Any = None, *, steps: Any = range(5)
) -> list[float]:
    """The gain of each step."""
    gains = []
    for step in steps:
        accumulate(model, step)
        for member in members:
            member.step()
        for member in members:
            member.zero_grad()
        if isinstance(control, Attached):
            control.advance()
            gains.append(control.gain)
    return gains


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_sgds_are_one_over_all_parameters(order) -> None:
    alone, both = net(), net()
    one = SGD(alone.parameters(), lr=0.1, momentum=0.9)
    two = [SGD(both[at].parameters(), lr=0.1, momentum=0.9) for at in (0, 2)]
    expected = run(alone, [one], attach(alone, one))
    got = run(both, [two[at] for at in order], attach(both, two))
    assert got == expected
    assert max(got) > 1.2
    assert all(map(torch.equal, weights(alone), weights(both)))


def test_watch_measures_two_optimizers_as_one() -> None:
    alone, both = net(), net()
    one, two = SGD(alone.parameters(), lr=0.1), halves(both, SGD, SGD)
    first, second = (lb.watch(m, o, batch_size=16) for m, o in ((alone, one), (both, list(two))))
    run(alone, [one])
    run(both, two)
    assert len(first.series) == 5
    assert second.series == first.series
    assert "SGD + SGD" in second.label
    assert second.dropped == 0


def rates(members: Sequence[Optimizer]) -> list[float]:
    return [group["lr"] for member in members for group in member.param_groups]


def spied(members: Sequence[Optimizer]) -> list[list[float]]:
    """The rates inside each step, noted by hooks that run after those of the control."""
    inside: list[list[float]] = []
    for member in members:
        member.register_step_pre_hook(lambda *_: inside.append(rates(members)))
    return inside


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_all_rates_are_multiplied_in_each_step_and_restored_after_it(order) -> None:
    model = net()
    members = halves(model, SGD, Adam, lr=(0.1, 0.003))
    control = attach(model, list(members), lb.LinearScaling())
    inside = spied(members)
    accumulate(model, 0)
    for at in order:
        assert rates(members) == [0.1, 0.003]
        members[at].step()
    assert rates(members) == [0.1, 0.003]
    assert inside == [pytest.approx([0.4, 0.012])] * 2
    assert control.optimizer_steps == 1


def broken(*_: Any) -> None:
    raise RuntimeError("broken")


@pytest.mark.parametrize("at", [0, 1])
def test_after_an_exception_in_either_step_the_rates_are_the_users(at) -> None:
    model = net()
    members = halves(model, SGD, Adam, lr=(0.1, 0.003))
    control = attach(model, list(members), lb.LinearScaling())
    inside = spied(members)
    handle = members[at].register_step_post_hook(broken)
    accumulate(model, 0)
    if at == 1:
        members[0].step()
    with pytest.raises(RuntimeError, match="broken"):
        members[at].step()
    assert rates(members) == [0.1, 0.003]
    assert len(inside) == at + 1
    handle.remove()
    for member in members:
        member.zero_grad()
    run(model, members, control, steps=[1])
    assert rates(members) == [0.1, 0.003]
    assert control.optimizer_steps == 2  # the step that raised was decided, too


@pytest.mark.parametrize("at", [0, 1])
def test_a_second_step_of_one_before_the_other_is_refused_by_name(at) -> None:
    model = net()
    members = halves(model, SGD, Adam)
    attach(model, list(members))
    accumulate(model, 0)
    members[at].step()
    before = weights(model)
    twice, waiting = ("SGD", "Adam") if at == 0 else ("Adam", "SGD")
    with pytest.raises(
        LargeBatchError,
        match=rf"Optimizer number {at} of the list \({twice}\) stepped twice before {waiting} "
        rf"\(number {1 - at}\) stepped",
    ):
        members[at].step()
    assert all(map(torch.equal, before, weights(model)))
    assert rates(members) == [0.1, 0.1]


def test_a_backward_between_the_steps_is_refused() -> None:
    model = net()
    members = halves(model, SGD, Adam)
    attach(model, list(members))
    accumulate(model, 0)
    members[0].step()
    accumulate(model, 1)
    before = weights(model)
    with pytest.raises(LargeBatchError, match=r"between the step\(\) calls of SGD \+ Adam"):
        members[1].step()
    assert all(map(torch.equal, before, weights(model)))


def test_a_forward_between_the_steps_is_free() -> None:
    model = net()
    members = halves(model, SGD, Adam)
    control = attach(model, list(members))
    for step in range(2):
        accumulate(model, step)
        members[0].step()
        model(X[:4]).sum()
        members[1].step()
        for member in members:
            member.zero_grad()
    assert control.optimizer_steps == 2


def test_advance_between_the_steps_is_refused_by_name() -> None:
    model = net()
    members = halves(model, SGD, Adam)
    control = attach(model, list(members))
    accumulate(model, 0)
    members[0].step()
    with pytest.raises(
        LargeBatchError, match=r"after SGD \(number 0\) had stepped, but before Adam \(number 1\)"
    ):
        control.advance()
    with pytest.raises(MicroBatchMissed, match="without a backward call"):
        members[1].step()  # the step was closed: its gradient does not decide twice
    for member in members:
        member.zero_grad()
    run(model, members, control, steps=[1])
    assert control.optimizer_steps == 2


def test_zeroing_one_optimizer_after_its_step_is_free() -> None:
    model = net()
    members = halves(model, SGD, SGD)
    control = attach(model, list(members))
    for step in range(2):
        accumulate(model, step)
        for member in members:
            member.step()
            member.zero_grad()
        control.advance()
    assert (control.optimizer_steps, control.skipped) == (2, 0)


def test_a_parameter_of_two_optimizers_is_refused() -> None:
    model = net()
    members = [SGD(model.parameters(), lr=0.1), Adam(model[2].parameters(), lr=0.1)]
    for door in (attach, lambda m, o: lb.watch(m, o, batch_size=16)):
        with pytest.raises(ValueError, match=r"Optimizers 0 \(SGD\) and 1 \(Adam\) share"):
            door(model, members)


def test_an_optimizer_that_is_given_twice_is_refused() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="share a parameter"):
        attach(model, [optimizer, optimizer])


def test_parameters_that_no_optimizer_has_are_refused_as_with_one() -> None:
    model = nn.Sequential(*net(), nn.Linear(2, 2))
    texts = []
    for optimizer in (SGD(model[:3].parameters(), lr=0.1), list(halves(model, SGD, SGD))):
        with pytest.raises(ValueError, match=r"3\.weight") as error:
            attach(model, optimizer)
        texts.append(str(error.value))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("members", [[], [3], ["sgd"]])
def test_a_list_without_optimizers_is_refused(members) -> None:
    with pytest.raises(ValueError, match=r"optimizer"):
        attach(net(), members)


def test_a_scaler_is_refused_for_several_and_a_disabled_one_is_none() -> None:
    model = net()
    members = list(halves(model, SGD, SGD))
    with pytest.raises(ValueError, match=r"A GradScaler was given for 2 optimizers.*bfloat16"):
        attach(model, members, scaler=torch.amp.GradScaler("cpu"))
    control = attach(model, members, scaler=torch.amp.GradScaler("cpu", enabled=False))
    run(model, members, control)
    assert control.optimizer_steps == 5


def test_the_controller_refuses_a_list() -> None:
    model = net()
    batches = lb.BatchLoader((X, Y), batch_size=16, max_micro_batch_size=4)
    with pytest.raises(ValueError, match=r"A list of 2 optimizers was given.*lb\.attach"):
        lb.Controller(model, list(halves(model, SGD, SGD)), RULE, batches, base_batch_size=4)


def test_each_scheduler_ticks_in_base_steps() -> None:
    model = net()
    members = halves(model, SGD, Adam, lr=(0.1, 0.003))
    control = attach(model, list(members), lb.LinearScaling())
    schedulers = [LambdaLR(member, lambda at: 0.5**at) for member in members]
    for step in range(2):
        accumulate(model, step)
        for member in members:
            member.step()
            member.zero_grad()
        assert [control.advance(scheduler) for scheduler in schedulers] == [4, 4]
    assert rates(members) == pytest.approx([0.1 * 0.5**8, 0.003 * 0.5**8])


def test_a_resumed_run_goes_on_as_the_uninterrupted_one() -> None:
    whole = net()
    members = halves(whole, SGD, Adam)
    control = attach(whole, list(members))
    run(whole, members, control, steps=range(3))
    saved = (
        {name: value.clone() for name, value in whole.state_dict().items()},
        [torch.load(_bytes(member.state_dict())) for member in members],
        control.state_dict(),
    )
    expected = run(whole, members, control, steps=range(3, 8))
    model = net()
    resumed = halves(model, SGD, Adam)
    again = attach(model, list(resumed))
    model.load_state_dict(saved[0])
    for member, state in zip(resumed, saved[1], strict=True):
        member.load_state_dict(state)
    again.load_state_dict(saved[2])
    assert run(model, resumed, again, steps=range(3, 8)) == expected
    assert all(map(torch.equal, weights(whole), weights(model)))
    assert again.base_steps == control.base_steps


def _bytes(value: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return buffer


def hooks(members: Sequence[Optimizer], model: nn.Module) -> list[Any]:
    return [
        [
            len(member._optimizer_step_pre_hooks),
            len(member._optimizer_step_post_hooks),
            len(member._optimizer_state_dict_pre_hooks),
            "step" in vars(member),
        ]
        for member in members
    ] + [[len(m._forward_pre_hooks), len(m._forward_hooks)] for m in model.modules()]


@pytest.mark.parametrize("door", ["attach", "watch"])
@pytest.mark.parametrize("midway", [False, True])
def test_close_leaves_nothing_behind(door, midway) -> None:
    model = net()
    members = halves(model, SGD, Adam)
    before = hooks(members, model)
    control: Any = (
        attach(model, list(members))
        if door == "attach"
        else lb.watch(model, list(members), batch_size=16)
    )
    run(model, members, control, steps=range(2))
    if midway:
        accumulate(model, 2)
        members[0].step()
    control.close()
    assert hooks(members, model) == before
    assert rates(members) == [0.1, 0.1]
    accumulate(model, 3)
    members[0].step()
    members[0].step()  # as often as the user likes


def test_each_member_is_claimed_until_the_control_is_closed() -> None:
    model = net()
    members = halves(model, SGD, SGD)
    control = attach(model, list(members))
    whole = SGD(model.parameters(), lr=0.1)
    for taken in ([members[0], members[1]], [members[1], members[0]]):
        with pytest.raises(ValueError, match="already uses this optimizer"):
            attach(model, taken)
        with pytest.raises(ValueError, match="already uses this optimizer"):
            lb.watch(model, taken, batch_size=16)
    control.close()
    attach(model, list(members)).close()
    single = attach(model, whole)
    single.close()


def test_a_list_of_one_is_that_one() -> None:
    alone, listed = net(), net()
    one, other = SGD(alone.parameters(), lr=0.1), SGD(listed.parameters(), lr=0.1)
    assert run(alone, [one], attach(alone, one)) == run(listed, [other], attach(listed, [other]))


@pytest.mark.parametrize("rule", [lb.AdaScale(), lb.SqrtScaling()])
def test_adam_and_muon_train_an_mlp(rule) -> None:
    model = net()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    members = [Adam(others, lr=0.003), torch.optim.Muon(matrices, lr=0.02)]
    control = attach(model, members, rule)
    inside = spied(members)
    first = float(mse_loss(model(X), Y).detach())
    run(model, members, control, steps=[step % 10 for step in range(20)])
    assert float(mse_loss(model(X), Y).detach()) < first
    assert control.optimizer_steps == 20
    assert rates(members) == [0.003, 0.02]
    factors = {round(muon / 0.02, 9) for _, muon in inside}
    assert all(adam / 0.003 == pytest.approx(muon / 0.02) for adam, muon in inside)
    assert max(factors) > 1.1


def test_a_step_that_is_not_finite_moves_no_member() -> None:
    model = net()
    members = halves(model, SGD, Adam)
    control = attach(model, list(members))
    accumulate(model, 0)
    next(model.parameters()).grad.fill_(torch.nan)
    before = weights(model)
    for member in members:
        member.step()
    assert all(map(torch.equal, before, weights(model)))
    assert (control.optimizer_steps, control.skipped) == (0, 1)
    for member in members:
        member.zero_grad()
    run(model, members, control, steps=range(2))
    assert control.optimizer_steps == 2


def test_watch_leaves_out_a_step_in_which_one_steps_twice_and_never_raises() -> None:
    def train(model: nn.Module, members: Sequence[Optimizer]) -> None:
        for step in range(8):
            accumulate(model, step)
            members[0].step()
            if step == 1:
                members[0].step()
            if step < 5:
                members[1].step()
            for member in members:
                member.zero_grad()

    bare, watched = net(), net()
    train(bare, halves(bare, SGD, Adam))
    members = halves(watched, SGD, Adam)
    noise = lb.watch(watched, list(members), batch_size=16)
    with pytest.warns(
        RuntimeWarning, match=r"Optimizer number 0 of the list \(SGD\) stepped twice"
    ) as caught:
        train(watched, members)
    assert len(caught) == 1
    assert all(map(torch.equal, weights(bare), weights(watched)))
    assert len(noise.series) == 6  # the second step of one came after it was measured
    assert noise.dropped == 2
    assert len(noise.observer._step.roots) <= 4


def test_a_check_of_several_optimizers_says_what_it_does_not_time() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    first, second = model[0], model[2]
    adam, sgd = torch.optim.Adam(first.parameters()), torch.optim.SGD(second.parameters(), lr=0.1)
    with lb.attach(model, [adam, sgd], lb.AdaScale(), batch_size=64, base_batch_size=16) as control:
        batch = torch.randn(16, 8), torch.arange(16) % 2
        found = lb.check(
            control, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), batch, seconds=0.1
        )
    assert "several optimizers (Adam + SGD)" in str(found)
    assert "error" not in {finding.level for finding in found.findings}
