"""Test what loggers receive, and what happens if a logger fails."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up import run
from torch import Tensor

import largebatch as lb
import small_runs
from largebatch.core.protocols import Logger
from largebatch.core.version import __version__


@dataclass
class Told:
    """A logger that keeps its values. `failing` names the calls that raise."""

    failing: str = ""
    error: Exception = field(default_factory=lambda: OSError("no disk"))
    calls: list[Any] = field(default_factory=list)

    def start(self, facts: Mapping[str, Any]) -> None:
        self._call("start", dict(facts))

    def log(self, values: Mapping[str, float], *, step: int, samples: int) -> None:
        self._call("log", (step, samples, dict(values)))

    def close(self) -> None:
        self._call("close", None)

    def _call(self, name: str, value: Any) -> None:
        self.calls.append((name, value))
        if name == self.failing:
            raise self.error

    def of(self, name: str) -> list[Any]:
        return [value for called, value in self.calls if called == name]

    @property
    def steps(self) -> list[int]:
        return [step for step, _, _ in self.of("log")]


def feed(logged: lb.Logged, length: int, *, lost: frozenset[int] = frozenset()) -> None:
    logged.start({"base_batch_size": 64})
    for seen, decision in run(length, lost=lost):
        logged.write(seen, decision)
    logged.close()


def test_each_step_goes_to_each_logger_with_the_clocks_after_it() -> None:
    first, second = Told(), Told()
    feed(lb.Logged(first, second), 3)
    assert first.calls == second.calls
    assert [call for call, _ in first.calls] == ["start", "log", "log", "log", "close"]
    assert first.of("start") == [{"base_batch_size": 64, "version": __version__}]
    assert [(step, samples) for step, samples, _ in first.of("log")] == [
        (1, 512), (2, 1024), (3, 1536),
    ]  # fmt: skip
    seen, decision = run(1)[0]
    values = first.of("log")[0][2]
    assert values["lr"] == seen.base_lr * decision.lr_multiplier
    assert values["gain"] == values["base_steps"] == decision.base_steps > 1.0


def test_a_lost_step_keeps_its_number_counts_as_skipped_and_shows_no_nan() -> None:
    told = Told()
    feed(lb.Logged(told), 4, lost=frozenset({1, 2}))
    assert told.steps == [1, 1, 1, 2]
    assert [values["skipped"] for _, _, values in told.of("log")] == [0, 1, 2, 2]
    assert set(told.of("log")[1][2]) == {"batch_size", "base_steps", "skipped"}


def test_every_takes_multiples_lost_steps_and_the_last() -> None:
    told = Told()
    feed(lb.Logged(told, every=3), 8, lost=frozenset({4}))
    assert told.steps == [3, 4, 6, 7]  # step 4 stands for the lost one after it


def test_the_noise_scale_is_averaged_over_all_steps_also_those_not_logged() -> None:
    each, some = Told(), Told()
    feed(lb.Logged(each), 6)
    feed(lb.Logged(some, every=3), 6)
    assert some.of("log") == [each.of("log")[2], each.of("log")[5]]
    noise = [seen.moments.noise_scale for seen, _ in run(6) if seen.moments is not None]
    assert each.of("log")[5][2]["noise_scale"] != noise[5]


def test_a_logged_sink_that_starts_another_run_begins_its_averages_anew() -> None:
    told = Told()
    logged = lb.Logged(told)
    feed(logged, 3)
    feed(logged, 3)
    log = told.of("log")
    assert log[:3] == log[3:]
    assert len(told.of("start")) == 2
    logged.close()
    assert len(told.of("close")) == 2


def test_a_resumed_run_may_be_given_the_averages() -> None:
    whole, parts = Told(), Told()
    feed(lb.Logged(whole), 6)
    before, after = lb.Logged(parts), lb.Logged(parts)
    feed(before, 3)
    after.moments = before.moments
    after.start({})
    for seen, decision in run(6)[3:]:
        after.write(seen, decision)
    assert parts.of("log") == whole.of("log")


def test_a_start_without_a_close_closes_first() -> None:
    told = Told()
    logged = lb.Logged(told)
    logged.start({})
    logged.start({})
    assert [name for name, _ in told.calls] == ["start", "close", "start"]


def test_a_logger_that_cannot_start_ends_the_run_and_those_before_it_are_closed() -> None:
    first, second = Told(), Told(failing="start", error=OSError("no\nserver"))
    with pytest.raises(lb.errors.RecordError, match=r"Told could not start \(OSError: no server\)"):
        lb.Logged(first, second).start({})
    assert first.of("close") == [None]


def test_our_own_error_of_a_start_comes_through_as_it_is() -> None:
    with pytest.raises(lb.LargeBatchError, match=r"^mine$"):
        lb.Logged(Told(failing="start", error=lb.LargeBatchError("mine"))).start({})


def test_a_failing_logger_warns_once_and_is_dropped_while_the_others_continue() -> None:
    bad, good = Told(failing="log"), Told()
    with pytest.warns(RuntimeWarning, match="Told failed at step 1.*no disk.*continues") as warned:
        feed(lb.Logged(bad, good), 3)
    assert len(warned) == 1
    assert (bad.steps, good.steps) == ([1], [1, 2, 3])
    assert bad.of("close") == [None]


def test_a_logger_that_cannot_be_closed_does_not_keep_others_open() -> None:
    bad, good = Told(failing="close"), Told()
    with pytest.warns(RuntimeWarning, match="could not be closed"):
        feed(lb.Logged(good, bad), 1)
    assert good.of("close") == [None]


def test_the_warning_may_be_made_an_error() -> None:
    with pytest.raises(RuntimeWarning, match="failed at step 1"):
        feed(lb.Logged(Told(failing="log")), 3)  # warnings are errors here


@pytest.mark.parametrize("made", [lb.Logged, lambda: lb.Logged("run.csv")], ids=["none", "a path"])
def test_logging_to_something_that_is_no_logger_is_refused_with_the_line_to_paste(
    made: Callable[[], Any],
) -> None:
    with pytest.raises(ValueError, match=r"lb\.Logged\(lb\.CsvLogger\('run\.csv'\)\)"):
        made()


def test_an_interval_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        lb.Logged(Told(), every=0)


def controller(record: Any, **more: Any) -> lb.Controller:
    model = small_runs.small_model()
    batches = lb.BatchLoader(small_runs.data(), batch_size=16, max_micro_batch_size=4)
    return lb.Controller(
        model, small_runs.sgd(model), lb.AdaScale(), batches, base_batch_size=4,
        record=record, **more,
    )  # fmt: skip


def test_a_resumed_run_goes_on_at_its_step_and_with_its_skipped_steps() -> None:
    def lossy(control: lb.Controller, *, until: int) -> None:
        for batch in control.steps(steps=6):
            bad = control.samples == 16
            for x, y in batch:
                loss: Tensor = small_runs.loss_of(control.model, x, y)
                control.backward(loss * math.nan if bad else loss)
            control.step()
            if control.optimizer_steps == until - 1:
                control.stop()  # with the next step

    logger: Logger = Told()
    assert isinstance(logger, Told)
    first = controller(lb.Logged(logger))
    lossy(first, until=3)
    assert logger.steps == [1, 1, 2, 3]
    second = controller(lb.Logged(logger))
    second.load_state_dict(first.state_dict())
    lossy(second, until=6)
    assert logger.steps == [1, 1, 2, 3, 4, 5, 6]
    assert [values["skipped"] for _, _, values in logger.of("log")] == [0, *[1] * 6]
    assert len(logger.of("start")) == len(logger.of("close")) == 2


def test_a_failing_logger_changes_no_weight() -> None:
    trained = []
    for record in (None, lb.Logged(Told())):
        control = controller(record)
        small_runs.train(control, steps=5)
        trained.append(small_runs.weights(control.model))
    control = controller(lb.Logged(Told(failing="log")))
    with pytest.warns(RuntimeWarning):
        small_runs.train(control, steps=5)
    trained.append(small_runs.weights(control.model))
    for other in trained[1:]:
        assert all(map(torch.equal, trained[0], other))


def test_an_attached_run_is_logged() -> None:
    told = Told()
    model = small_runs.small_model()
    optimizer = small_runs.sgd(model)
    x, y = small_runs.data()
    with lb.attach(
        model, optimizer, lb.AdaScale(), batch_size=16, base_batch_size=4, record=lb.Logged(told)
    ) as control:
        for _ in range(3):
            for part in (slice(0, 8), slice(8, 16)):
                loss = small_runs.loss_of(model, x[part], y[part])
                control.loss(loss)
                (loss / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
            control.advance()
    assert told.steps == [1, 2, 3]
    assert all({"loss", "gain"} <= set(values) for _, _, values in told.of("log"))


def test_a_tee_writes_a_record_and_feeds_loggers(tmp_path: Path) -> None:
    told = Told()
    path = tmp_path / "run.jsonl"
    small_runs.train(controller(lb.Tee(lb.JsonlRecord(path), lb.Logged(told))), steps=4)
    record = lb.read_record(path)
    assert [step.seen.loss for step in record.steps] == [
        values["loss"] for _, _, values in told.of("log")
    ]
    assert len(record.steps) == 4
    assert json.loads(path.read_text().splitlines()[0])["header"]["base_batch_size"] == 4


class Broken:
    """A sink whose calls raise."""

    def start(self, facts: Mapping[str, Any]) -> None:
        raise lb.errors.RecordError("start")

    def write(self, seen: lb.Measurement, decision: lb.Decision) -> None:
        raise lb.errors.RecordError("write")

    def close(self) -> None:
        raise lb.errors.RecordError("close")


def test_a_tee_closes_the_others_and_passes_the_error_on() -> None:
    for sinks in (lambda a, b: (a, b), lambda a, b: (b, a)):
        told = Told()
        tee = lb.Tee(*sinks(Broken(), lb.Logged(told)))
        tee.sinks[isinstance(tee.sinks[0], Broken)].start({})
        with pytest.raises(lb.errors.RecordError, match="write"):
            tee.write(*run(1)[0])
        with pytest.raises(lb.errors.RecordError, match="close"):
            tee.close()
        assert told.of("close") == [None]


def test_a_tee_that_cannot_start_closes_what_it_started() -> None:
    told = Told()
    with pytest.raises(lb.errors.RecordError):
        lb.Tee(lb.Logged(told), Broken()).start({})
    assert told.of("close") == [None]


def test_a_tee_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lb\.Tee\(lb\.JsonlRecord"):
        lb.Tee()
