"""Test the runs, records and findings that all experiments share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from experiments.lab import ledger as ledgers
from experiments.lab.findings import Findings, differing, mean, write_expected
from experiments.lab.ledger import Ledger, NotMeasured
from experiments.lab.part import _unlike
from experiments.lab.rules import Lagged, Multiplied, Stages, Yoked
from experiments.lab.run import Result, Run

import largebatch as lb
from largebatch import methods


def short(**changes: object) -> Run:
    settings: dict[str, object] = {
        "workload": "digits",
        "method": "AdaScale",
        "rule": methods.adascale(),
        "scale": 4,
        "budget": lb.Budget(base_steps=12),
        "evaluations": 2,
        "keep_gains": True,
    }
    return Run(**(settings | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Result]]:
    """Return a record of two runs that were made in another process, and their results."""
    path = tmp_path_factory.mktemp("made") / "runs.jsonl"
    return path, list(Ledger(path, workers=1).results([short(), short(seed=1)]))


def test_a_run_is_made_once_and_read_back_as_it_was(made: tuple[Path, list[Result]]) -> None:
    path, (first, _) = made
    run = short()
    (again,) = Ledger(path, workers=0).results([run])
    assert again == Ledger(path, workers=0).results([short()])[0]
    assert first.validation == again.validation
    assert first.gains == again.gains != ()
    assert len(path.read_bytes().splitlines()) == 2


def test_a_run_whose_recorded_line_is_truncated_is_made_again(
    made: tuple[Path, list[Result]], tmp_path: Path
) -> None:
    path = tmp_path / "runs.jsonl"
    whole = made[0].read_bytes()
    path.write_bytes(whole[:-5])
    ledger = Ledger(path, workers=1)
    assert len(path.read_bytes().splitlines()) == 1
    ledger.results([short(), short(seed=1)])
    keys = {json.loads(line)["key"] for line in path.read_bytes().splitlines()}
    assert keys == {short().key, short(seed=1).key}


def test_a_missing_run_is_an_error_if_no_run_may_be_made(tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match="lacks 1 of the 1 runs"):
        Ledger(tmp_path / "none.jsonl", workers=0).results([short()])


def test_losses_that_are_not_finite_go_to_json_and_back() -> None:
    nan = float("nan")
    result = Result(
        steps=1, samples=2, base_steps=1.0, mean_gain=1.0, mean_multiplier=1.0, diverged=True,
        train={}, validation={"loss": nan}, test={}, curve=((1, 2, 1.0, nan),),
    )  # fmt: skip
    plain = json.loads(json.dumps(ledgers._plain(result), allow_nan=False))
    assert repr(ledgers._result(plain)) == repr(result)


def test_the_key_of_a_run_depends_on_every_field() -> None:
    others = [
        short(seed=1), short(lr=0.1), short(scale=8), short(rule=methods.linear()),
        short(budget=lb.Budget(steps=12)), short(micro_batch=8),
    ]  # fmt: skip
    assert len({run.key for run in [short(), *others]}) == 1 + len(others)


def test_a_yoked_run_has_the_multipliers_of_the_run_that_it_replays() -> None:
    own = short().make()
    yoked = Yoked(multipliers=own.gains)
    blind = short(rule=yoked, budget=lb.Budget(steps=own.steps), seed=1).make()
    assert blind.mean_multiplier == pytest.approx(own.mean_multiplier, rel=1e-5)
    assert own.mean_multiplier != 1.0


def test_a_run_yoked_to_its_own_multipliers_is_the_same_run() -> None:
    own = short().make()
    yoked = Yoked(multipliers=own.gains)
    again = short(rule=yoked, budget=lb.Budget(steps=own.steps)).make()
    assert again.validation["loss"] == pytest.approx(own.validation["loss"], rel=1e-4)


def test_a_constant_multiplier_acts_like_a_larger_learning_rate() -> None:
    budget = lb.Budget(steps=5)
    factor = short(rule=Multiplied(factor=4.0), lr=0.01, budget=budget).make()
    rate = short(rule=lb.chain(), lr=0.04, budget=budget).make()
    assert factor.validation["loss"] == pytest.approx(rate.validation["loss"], rel=1e-5)


def test_stages_take_equal_parts_of_the_budget() -> None:
    rule = lb.chain(Stages(scales=(1, 4, 2)))
    result = short(rule=rule, scale=1, budget=lb.Budget(base_steps=24), keep_gains=True).make()
    assert sorted(set(result.gains)) == [1.0, 2.0, 4.0]
    samples = {scale: scale * result.gains.count(scale) for scale in (1.0, 2.0, 4.0)}
    assert all(abs(count - 8) <= 4 for count in samples.values()), samples


def test_a_lagged_rule_decides_by_the_moments_of_the_previous_step() -> None:
    rule = Lagged(rule=lb.AdaScale())
    state, gains = rule.init(), []
    for step, variance in enumerate((640.0, 64.0, 6.4)):
        moments = lb.GradientMoments(batch_size=64, parts=4, batch_sqnorm=11.0, variance=variance)
        seen = lb.Measurement(
            step=step, samples=64 * step, base_steps=step, batch_size=64, base_batch_size=16,
            moments=moments,
        )  # fmt: skip
        state, decision = rule.update(state, seen, lb.Decision(next_batch_size=64, base_steps=4.0))
        gains.append(decision.base_steps)
    plain, at_first = lb.AdaScale(), lb.GradientMoments(
        batch_size=64, parts=4, batch_sqnorm=11.0, variance=640.0
    )  # fmt: skip
    seen = lb.Measurement(
        step=1, samples=64, base_steps=1, batch_size=64, base_batch_size=16, moments=at_first
    )
    proposed = lb.Decision(next_batch_size=64, base_steps=4.0)
    assert gains[0] == 1.0
    assert gains[1] == plain.update(plain.init(), seen, proposed)[1].base_steps


def test_numbers_outside_of_their_tolerance_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "expected.json"
    before = Findings()
    before.add("loss", mean([1.0, 1.1, 0.9]), least=0.01)
    before.add("gone", 1.0, least=0.1)
    write_expected(path, "part", before)
    assert differing(path, "part", before, exact=True) == []
    after = Findings()
    after.add("loss", 1.2, least=0.01)
    after.add("new", 1.0, least=0.1)
    assert [line.split(":")[1].strip() for line in differing(path, "part", after, exact=True)] == [
        "gone",
        "new",
        "loss",
    ]
    assert differing(path, "part", after, exact=False)[:2] == [
        "part: gone: expected, not found",
        "part: new: found, not expected",
    ]
    assert len(differing(path, "part", after, exact=False)) == 2, "1.2 is within its tolerance"


def test_a_repeated_probe_is_compared_by_its_forecast() -> None:
    def of(gain: float) -> Result:
        return Result(
            steps=1, samples=1, base_steps=1.0, mean_gain=1.0, mean_multiplier=1.0, diverged=False,
            train={}, validation={}, test={}, forecast=((8.0, gain, gain, gain),),
        )  # fmt: skip

    assert _unlike(short(), of(3.0), of(3.1)) == ""
    assert "relative differences of the forecasts" in _unlike(short(), of(3.0), of(4.0))
