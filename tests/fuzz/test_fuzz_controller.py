"""The `Controller` driven in any order, also a wrong one, beside plain autograd in float64.

A wrong call must raise what its docstring says and leave the run usable; whatever happened, the
gradient that the optimizer gets is the mean of the step's samples.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.act.stream_twin import naive_chunks, naive_stream
from tests.fuzz.effort import effort
from torch import Tensor, nn

import largebatch as lb
from largebatch.core.errors import (
    CheckpointError,
    LargeBatchError,
    MicroBatchMissed,
    NotFinite,
)
from largebatch.core.rule import Rule
from round_trips import through_json

SIZE = 13
"""Samples of the data set: few, so that steps straddle epochs."""


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SIZE, 3, generator=generator, dtype=torch.float64)
    return x, torch.arange(SIZE)


X, NUMBERS = data()


def model_of(seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return model


def losses_of(model: nn.Module, x: Tensor) -> Tensor:
    """Each sample's own loss, `[B]`."""
    return (model(x).squeeze(1) - x.sum(1)).square()


class Recorded(torch.optim.SGD):
    """SGD that remembers each gradient it got, and at which rate."""

    def __init__(self, parameters: Any, **options: Any) -> None:
        super().__init__(parameters, **options)
        self.got: list[tuple[list[Tensor], float]] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        gradients = [p.grad.clone() for p in self.param_groups[0]["params"]]
        self.got.append((gradients, self.param_groups[0]["lr"]))
        super().step(closure)


RULES: list[Rule] = [
    lb.chain(),
    lb.AdaScale(window=20.0),
    lb.chain(lb.AdaScale(), lb.Schedule(), lb.ClampLr(max=3.0)),
    lb.chain(lb.LinearScaling(), lb.WarmUp(fraction=0.5)),
    lb.chain(lb.Every(lb.AdaScale(), steps=3), lb.LimitGrowth(factor=1.5)),
    lb.chain(lb.SqrtScaling(), lb.ClampBatch(min=2, max=20, multiple_of=2)),
    lb.chain(lb.Observe(), lb.rules.StepClock()),
]
taps = [lb.measure.LeafHooks, lb.measure.Detached, lb.measure.Flat]
BUDGETS = [{"samples": 150}, {"steps": 12}, {"base_steps": 25.5}, {"epochs": 9.5}]
LR = 0.05


class Controllers(RuleBasedStateMachine):
    """One run, its decisions and the plain gradients beside it."""

    @initialize(
        rule=st.sampled_from(RULES),
        seed=st.integers(0, 3),
        batch_size=st.integers(1, 20),
        base_batch_size=st.integers(1, 8),
        most=st.none() | st.integers(1, 6),
        budget=st.sampled_from(BUDGETS),
        tap=st.sampled_from(taps),
        patience=st.integers(1, 3),
    )
    def build(
        self, *, budget: dict[str, float], seed: int, tap: Any, patience: int, **plan: Any
    ) -> None:
        self.budget, self.seed, self.tap, self.patience, self.plan = (
            budget, seed, tap, patience, plan,
        )  # fmt: skip
        self.record = lb.MemoryRecord()
        self.model = model_of(seed)
        self.position = self.lost = self.skipped = 0
        self.decisions: list[Any] = []
        self.fresh()

    def fresh(self) -> None:
        self.optimizer = Recorded(self.model.parameters(), lr=LR, momentum=0.5)
        most = self.plan["most"]
        batches = lb.BatchLoader(
            (X, NUMBERS), batch_size=self.plan["batch_size"], max_micro_batch_size=most,
            seed=self.seed,
        )  # fmt: skip
        self.control = lb.Controller(
            self.model,
            self.optimizer,
            self.plan["rule"],
            batches,
            base_batch_size=self.plan["base_batch_size"],
            meter=lb.Meter(self.model, tap=self.tap()),
            record=self.record,
            patience=self.patience,
        )
        self.most = most or self.plan["batch_size"]
        self.loop: Any = None
        self.step: Any = None
        self.closed = self.stopping = False

    @property
    def begun(self) -> bool:
        return self.control.decider.budget is not None

    # A step by its parts

    def open(self) -> bool:
        """Asks for the next step; False at the end of the loop."""
        if self.loop is None:
            self.loop = self.control.steps(**self.budget)
        try:
            self.step = next(self.loop)
        except StopIteration:
            self.loop = self.step = None
            return False
        self.micro_batches = iter(self.step)
        self.shares: list[tuple[Tensor, float]] = []
        self.unsound = False
        return True

    def expected_sizes(self) -> list[int]:
        budget = self.control.decider.budget
        wish = self.control.batches.batch_size
        if budget.samples is not None:
            wish = min(wish, budget.samples - self.position)
        least = 2 if self.plan["rule"].needs & {"moments"} else 1
        parts = max(-(-wish // self.most), min(least, wish))
        end = self.position + wish
        stream = naive_stream(SIZE, seed=self.seed, epochs=end // SIZE + 1)
        self.expected = stream[self.position : end]
        return [len(chunk) for chunk in naive_chunks(self.expected, parts=parts)]

    def micro_batch(self, *, weight: float | None = None, spoil: float = 1.0) -> None:
        x, numbers = next(self.micro_batches)
        self.control.backward(spoil * losses_of(self.model, x).mean(), weight=weight)
        self.shares.append((numbers, float(len(x) if weight is None else weight)))
        self.unsound = self.unsound or not math.isfinite(spoil)

    @precondition(lambda self: self.step is None and not self.closed)
    @rule(
        weights=st.none() | st.lists(st.floats(0.01, 100.0), min_size=40, max_size=40),
        clip=st.none() | st.sampled_from([1e-200, 1e-3, 0.5, 1e3, 1e200, math.inf]),
        spoil=st.sampled_from([1.0] * 12 + [math.nan, math.inf]),
        at=st.integers(0, 20),
        first=st.booleans(),
    )
    def a_step(
        self, weights: list[float] | None, clip: float | None, spoil: float, at: int, first: bool
    ) -> None:
        """A whole step, perhaps with a loss that is not finite somewhere in it."""
        if not self.open():
            assert self.control.finished or self.stopping
            return
        sizes = self.expected_sizes()
        assert self.step.accumulation == len(sizes)
        for index, size in enumerate(sizes):
            self.micro_batch(
                weight=weights[index % 40] if weights else None,
                spoil=spoil if index == at % len(sizes) else 1.0,
            )
            assert self.step.size == size
        if first:
            assert self.control.measure() is self.control.measure()
        self.finish(clip)

    def finish(self, clip: float | None) -> None:
        control = self.control
        assert torch.cat([n for n, _ in self.shares]).tolist() == self.expected
        before = copy.deepcopy(self.model.state_dict())
        naive = self.mean_gradient()
        base = (control.samples, control.base_steps, control.optimizer_steps)
        count = len(self.optimizer.got)
        batch = sum(len(n) for n, _ in self.shares)
        raised = None
        try:
            control.step(clip_norm=clip)
        except NotFinite as error:
            raised = error
        decision = control.decision
        self.decisions.append(decision)
        self.position += batch
        self.step = None
        assert control.samples == base[0] + batch == self.position
        assert (raised is not None) == self.gives_up(base[0])
        if self.unsound:
            assert len(self.optimizer.got) == count
            assert all(torch.equal(before[k], v) for k, v in self.model.state_dict().items())
            assert (control.base_steps, control.optimizer_steps) == base[1:]
        else:
            self.lost = 0
            self.check_gradient(naive, clip=clip)
            assert len(self.optimizer.got) == count + 1
            assert control.optimizer_steps == base[2] + 1
            assert control.base_steps > base[1]
        assert all(p.grad is None or not p.grad.any() for p in self.model.parameters())
        assert self.optimizer.param_groups[0]["lr"] == LR
        if raised is not None and self.loop is not None:
            self.loop.close()  # as an exception leaves a loop
            self.loop = None

    def gives_up(self, samples: int) -> bool:
        if not self.unsound:
            return False
        self.lost += 1
        self.skipped += 1
        return samples == 0 or self.lost >= self.patience

    def mean_gradient(self) -> list[Tensor]:
        """Of the step's samples, each micro-batch's mean with its weight, by plain autograd."""
        twin = copy.deepcopy(self.model)
        total = sum(weight for _, weight in self.shares)
        loss = sum(w / total * losses_of(twin, X[n]).mean() for n, w in self.shares)
        return list(torch.autograd.grad(loss, list(twin.parameters())))

    def check_gradient(self, naive: list[Tensor], *, clip: float | None) -> None:
        got, lr = self.optimizer.got[-1]
        norm = math.sqrt(sum(g.square().sum().item() for g in naive))
        if clip is not None and norm > clip:
            naive = [g * (clip / norm) for g in naive]
        for a, b in zip(got, naive, strict=True):
            scale = min(norm, clip or norm) if clip != math.inf else norm
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-12 * scale)
        assert lr == pytest.approx(LR * self.control.lr_multiplier, rel=1e-12)
        reading = self.record.steps[-1].seen if self.record_open else None
        if reading is not None:
            assert reading.batch_sqnorm == pytest.approx(norm**2, rel=1e-9)

    @property
    def record_open(self) -> bool:
        return self.control._record is not None

    # What a user may do between steps

    @precondition(lambda self: self.step is None)
    @rule(batch_size=st.integers(1, 20))
    def resize(self, batch_size: int) -> None:
        self.control.resize(batch_size)
        assert self.control.batch_size == self.control.batches.batch_size == batch_size

    @rule(batch_size=st.sampled_from([0, -1, 2.5, math.nan]))
    def a_wrong_size_is_refused(self, batch_size: float) -> None:
        before = self.control.batch_size
        with pytest.raises(ValueError):
            self.control.resize(batch_size)  # type: ignore[arg-type]
        assert self.control.batch_size == before

    @precondition(lambda self: self.step is None)
    @rule()
    def resume(self) -> None:
        """A new run goes on from the state, with the same model and another record."""
        state = through_json(self.control.state_dict())
        if self.loop is not None:
            self.loop.close()
        budget, samples = self.control.decider.budget, self.control.samples
        optimizer = self.optimizer.state_dict()
        self.record, self.decisions = lb.MemoryRecord(), []
        self.fresh()
        self.control.load_state_dict(state)
        self.optimizer.load_state_dict(optimizer)
        assert self.control.decider.budget == budget
        assert self.control.samples == samples
        assert self.control.state_dict() == state

    @precondition(lambda self: self.step is None)
    @rule(wrong=st.sampled_from(["cut", "batches", "digest", "rule", "not a state"]))
    def a_wrong_state_is_refused_and_changes_nothing(self, wrong: str) -> None:
        state: Any = self.control.state_dict()
        before, decider = dict(state), self.control.decider
        if wrong == "cut":
            del state["batches"]
        elif wrong == "batches":
            state["batches"] = {**state["batches"], "position": state["batches"]["position"] + 1}
        elif wrong == "digest":
            state["samples"] += 1
        elif wrong == "rule":
            state["rule"] = "{}"
        else:
            state = [state]
        with pytest.raises(CheckpointError):
            self.control.load_state_dict(state)
        assert self.control.decider == decider
        assert self.control.state_dict() == before

    @precondition(lambda self: self.step is None)
    @rule()
    def stop(self) -> None:
        self.control.stop()
        self.stopping = True

    @precondition(lambda self: self.begun)
    @rule(budget=st.sampled_from([{"samples": 7}, {"steps": 99}, {}, {"steps": 1, "samples": 1}]))
    def another_budget_is_refused(self, budget: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=r"exactly one amount|has the budget"):
            self.control.steps(**budget)

    @precondition(lambda self: self.step is None)
    @rule(again=st.booleans())
    def leave_the_loop(self, again: bool) -> None:
        if self.loop is not None:
            self.loop.close()
            self.loop = None
        if again and self.begun:
            self.loop = self.control.steps(**self.budget)

    # What a user may do wrong

    @precondition(lambda self: self.step is None)
    @rule()
    def nothing_is_measured_outside_a_step(self) -> None:
        loss = losses_of(self.model, X[:2]).mean()
        with pytest.raises(MicroBatchMissed):
            self.control.backward(loss)
        with pytest.raises(MicroBatchMissed):
            self.control.measure()
        with pytest.raises(MicroBatchMissed):
            self.control.step()

    @precondition(lambda self: self.step is None)
    @rule(
        wrong=st.sampled_from(
            ["no loss", "vector", "weight", "weight nan", "clip", "early", "twice", "passed over",
             "state", "load", "foreign", "next step", "cleared", "break", "error", "graph",
             "closed", "another loop"]
        ),
        taken=st.integers(0, 5),
    )  # fmt: skip
    def a_mistake_in_a_step(self, wrong: str, taken: int) -> None:
        """Is told, changes no weight, and the step is made again."""
        if self.closed or not self.open():
            return
        sizes = self.expected_sizes()
        for _ in range(min(taken, len(sizes) - 1)):
            self.micro_batch()
        before = copy.deepcopy(self.model.state_dict())
        clocks = (self.control.samples, self.control.optimizer_steps, self.control.skipped)
        self.mistake(wrong, left=len(sizes) - len(self.shares))
        if self.loop is not None:
            self.loop.close()
        self.loop = self.step = None
        assert all(torch.equal(before[k], v) for k, v in self.model.state_dict().items())
        assert clocks == (self.control.samples, self.control.optimizer_steps, self.control.skipped)
        assert self.control.batches.position == self.position
        assert all(p.grad is None or not p.grad.any() for p in self.model.parameters())

    def mistake(self, wrong: str, *, left: int) -> None:
        control, loop = self.control, self.loop
        x, _ = next(self.micro_batches)
        loss = losses_of(self.model, x).mean()
        if wrong == "no loss":
            for bad in (loss.item(), loss.detach(), None):
                with pytest.raises(ValueError, match="graph"):
                    control.backward(bad)  # type: ignore[arg-type]
        elif wrong == "vector":
            with pytest.raises(ValueError, match="shape"):
                control.backward(losses_of(self.model, x))
        elif wrong.startswith("weight"):
            for bad in (0.0, -1.0, math.nan, math.inf):
                with pytest.raises(ValueError, match="weight"):
                    control.backward(loss, weight=bad)
        elif wrong == "clip":
            for bad in (0.0, -1.0, math.nan):
                with pytest.raises(ValueError, match="clip_norm"):
                    control.step(clip_norm=bad)
        elif wrong == "early":
            with pytest.raises(MicroBatchMissed):
                control.step()
        elif wrong == "twice":
            control.backward(loss)
            with pytest.raises(MicroBatchMissed):
                control.backward(loss)
        elif wrong == "passed over" and left > 1:
            with pytest.raises(MicroBatchMissed):
                list(self.micro_batches)
        elif wrong == "state":
            with pytest.raises(CheckpointError):
                control.state_dict()
        elif wrong == "load":
            with pytest.raises(CheckpointError):
                control.load_state_dict({})
        elif wrong == "foreign":
            control.backward(loss)
            with pytest.raises(LargeBatchError, match="twice"):
                self.optimizer.step()
            self.optimizer.got.pop() if False else None
        elif wrong == "next step":
            with pytest.raises(MicroBatchMissed):
                next(loop)
        elif wrong == "cleared" and left > 1:
            control.backward(loss)
            self.optimizer.zero_grad()
            x, _ = next(self.micro_batches)
            with pytest.raises(MicroBatchMissed, match="cleared"):
                control.backward(losses_of(self.model, x).mean())
        elif wrong == "error":
            with pytest.raises(RuntimeError, match="out of memory"):
                loop.throw(RuntimeError("out of memory"))
        elif wrong == "graph":
            loss.backward()
            self.model.zero_grad()
            with pytest.raises((RuntimeError, MicroBatchMissed)):
                control.backward(loss)
        elif wrong == "another loop":
            control.backward(loss)
            other = control.steps(**self.budget)
            next(other)
            other.close()

    @precondition(lambda self: self.step is None)
    @rule()
    def close(self) -> None:
        self.control.close()
        self.control.close()
        self.closed = True
        if self.loop is not None:
            self.loop.close()
            self.loop = None

    # What always holds

    @invariant()
    def the_record_is_what_was_decided(self) -> None:
        if not hasattr(self, "control"):
            return
        written = [decision for _, decision in self.record.steps]
        assert written == self.decisions[: len(written)]
        control = self.control
        assert control.samples == control.batches.position == self.position
        assert control.skipped == self.skipped
        assert all(torch.isfinite(p).all() for p in self.model.parameters())
        assert self.optimizer.param_groups[0]["lr"] == LR
        samples = [seen.samples for seen, _ in self.record.steps]
        assert samples == sorted(set(samples))


Controllers.TestCase.settings = effort(60, steps=20)
TestControllers = Controllers.TestCase
