"""Writes the folder 0.1.0: records, states, checkpoints and schedules, and what followed on them.

It was run with version 0.1.0, before any module moved:

    PYTHONPATH=src python tests/old/write.py

It is kept as the account of how the files were made. No test imports or runs it, so it may name
modules that no longer exist. Do not run it again: files of a later version prove nothing about
those of 0.1.0.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
FOLDER = HERE / "0.1.0"
sys.path[:0] = [str(HERE), str(HERE.parent / "rules")]
if not (FOLDER / "states.jsonl").exists():  # `old_files` reads them when it is imported
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "states.jsonl").write_text("")
    (FOLDER / "runs.json").write_text("{}")

import old_files  # noqa: E402
import old_runs  # noqa: E402
from battery import ROWS  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from largebatch.cli.main import cli  # noqa: E402

import largebatch as lb  # noqa: E402
from largebatch.act.control import facts_of  # noqa: E402
from largebatch.core.codec import decode, encode  # noqa: E402
from largebatch.core.decider import Decider  # noqa: E402
from largebatch.core.measurement import Reading, noise_scale  # noqa: E402
from largebatch.core.rule import names_within  # noqa: E402
from largebatch.core.run_state import state_of  # noqa: E402
from largebatch.rules import FACTORS, KINDS, RULES  # noqa: E402

OPTIMIZER = {"name": "SGD", "momentum": 0.9, "dampening": 0.0}

OTHER_METHODS = {
    "adascale-every-5": lambda: lb.methods.adascale(every=5),
    "adaptive-growth-often": lambda: lb.methods.adaptive_growth(kappa=0.3, patience=1, every=3),
    "adasgd-every-step": lambda: lb.methods.adasgd(every=1, max=300, scaling=lb.LinearScaling()),
    "batch-ramp": lambda: lb.methods.batch_ramp(start=64, increment=32, samples=4000, size=256),
    "batch-steps": lambda: lb.methods.batch_steps("0:64 1K:96 2.5K:400"),
    "full-gradient-growth-often": lambda: lb.methods.full_gradient_growth(
        eps0=1.2, check=3, max=400
    ),
    "linear-growth": lambda: lb.methods.linear_growth(),
    "warmup-growth": lambda: lb.methods.warmup_growth(),
}
"""Other rules that `lb.methods` builds, which are not in `METHODS`."""

CHAINS = {
    "adascale-cosine": lb.chain(lb.AdaScale(), lb.Schedule(factor=lb.Cosine())),
    "growth-noise-bound": lb.chain(
        lb.Growth(stages=lb.Stages(batch=(1.0, 3.0, 9.0, 27.0))),
        lb.Every(lb.ClampToNoiseScale(kappa=0.2), steps=4),
    ),
    "linear-warm-up-clamped": lb.chain(
        lb.LinearScaling(), lb.WarmUp(fraction=0.4), lb.ClampLr(min=0.9, max=1.5)
    ),
    "norm-test-bounded": lb.chain(
        lb.NormTest(), lb.LimitGrowth(factor=1.5), lb.ClampBatch(max=500, multiple_of=16)
    ),
    "norm-test-steady": lb.chain(lb.NormTest(denominator="unbiased"), lb.Hysteresis()),
    "norm-test-noise-bound": lb.chain(
        lb.Every(lb.NormTest(eta=0.3), steps=4), lb.ClampToNoiseScale(), lb.SqrtScaling()
    ),
    "step-clock-schedule": lb.chain(
        lb.Growth(), lb.StepClock(), lb.Schedule(factor=lb.Linear(), over=lb.Budget(base_steps=40))
    ),
}
"""Rules that bound others, after one that gives them something to bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Holds the settings of synthetic runs.

    Args:
        base_batch_size, ranks, dataset_size: of the run; the first batch has 64 samples.
        unit: of the budget.
    """

    base_batch_size: int
    ranks: int
    dataset_size: int
    unit: str

    def start(self, rule: lb.Rule, *, steps: int) -> Decider:
        """Return a run whose budget is about this many steps of its first batch."""
        longer = 4 if "batch" in rule.changes and "budget" not in rule.needs else 1
        amount = {
            "samples": 64 * steps * longer,
            "base_steps": 64.0 * steps * longer / self.base_batch_size,
        }[self.unit]
        tests = "batch" in rule.changes and not {"budget", "dataset_size"} & rule.needs
        return Decider.start(
            rule,
            base_batch_size=self.base_batch_size,
            batch_size=64,
            ranks=self.ranks,
            dataset_size=20_000 if tests else self.dataset_size,  # room for a batch to grow
            budget=lb.Budget(**{self.unit: amount}),
        )


FOR_RULES = Setting(base_batch_size=32, ranks=1, dataset_size=500, unit="samples")
FOR_METHODS = Setting(base_batch_size=16, ranks=2, dataset_size=800, unit="base_steps")


def rounded(value: float) -> float:
    """Return five digits of a number, which keeps the files small."""
    return float(f"{value:.5g}")


def reading(decider: Decider, at: int, *, steps: int, draw: random.Random) -> Reading:
    """Return what a meter might read in one step.

    Losses fall, and rise once. The gradient shrinks while its noise grows. Some unbiased squared
    norms are negative. One step is not finite."""
    noise, wave, chance = draw.gauss(0.0, 1.0), draw.gauss(0.0, 1.0), draw.random()
    samples = decider.batch_size
    if at % 11 == 9 and "AutoWarmUp" not in names_within(decider.rule):
        samples = samples // 2 + 1
    if at == 13:
        return Reading(samples=samples, finite=False, loss=math.nan, batch_sqnorm=math.inf)
    part = at / steps
    rise = 6.0 * (part - 0.5) if 0.5 < part < 0.62 else 0.0
    loss = rounded(0.3 + 2.2 * math.exp(-4.0 * part) + 0.03 * noise + rise)
    signal = 2.0 * math.exp(-5.0 * part)
    loud = 2.0 if "Accordion" in names_within(decider.rule) else 120.0
    variance = rounded(loud * math.exp(0.25 * wave) * (1.0 + part))
    share = 0.2 if chance < 0.2 else math.exp(0.3 * noise)
    batch_sqnorm = rounded(signal * math.exp(0.1 * noise) + variance / samples * share)
    moments = lb.GradientMoments(
        batch_size=samples,
        parts=8 if at % 3 else 4,
        batch_sqnorm=batch_sqnorm,
        variance=variance,
        source="temporal" if at % 17 == 4 else "micro-batches",
    )
    preconditioned = lb.GradientMoments(
        batch_size=samples,
        parts=4,
        batch_sqnorm=rounded(10.0 * batch_sqnorm),
        variance=rounded(9.0 * variance),
        source="examples",
    )
    wanted = decider.measure if at % 10 != 7 else frozenset()
    return Reading(
        samples=samples,
        loss=None if at % 19 == 6 else loss,
        batch_sqnorm=batch_sqnorm,
        moments=moments if "moments" in wanted else None,
        preconditioned_moments=preconditioned if "preconditioned_moments" in wanted else None,
        inner_product_variance=(
            rounded(variance * batch_sqnorm * 0.4) if "inner_product_variance" in wanted else None
        ),
        coordinate_noise_scale=(
            rounded(noise_scale(variance=3.0 * variance, sqnorm=max(signal, 0.05)))
            if "coordinate_noise_scale" in wanted
            else None
        ),
        full_sqnorm=rounded(signal) if "full_sqnorm" in wanted else None,
        extra_samples=decider.dataset_size or 0 if "full_sqnorm" in wanted else 0,
    )


def length(rule: lb.Rule) -> int:
    """Return the steps of a synthetic run. The search for a learning rate needs more."""
    return 100 if "AutoWarmUp" in names_within(rule) else 44


def simulate(
    decider: Decider, record: lb.JsonlRecord, *, seed: str, cut: int, first: int = 0
) -> tuple[Decider, dict[str, Any]]:
    """Write a run's record, and return its end and its state before the step `cut`."""
    steps, draw = length(decider.rule), random.Random(seed)
    decision, lost, state = None, 0, {}
    record.start({**facts_of(decider), "optimizer": OPTIMIZER})
    for at in range(first, steps):
        if at == cut:
            state = state_of(decider, decision=decision, lost_in_a_row=lost)
        if decider.finished and at >= 30:
            break
        seen = decider.see(reading(decider, at, steps=steps, draw=draw), base_lr=0.1)
        decider, decision = decider.decide(seen)
        lost = 0 if seen.finite else lost + 1
        record.write(seen, decision)
    record.close()
    return decider, state


def as_read(rule: lb.Rule) -> lb.Rule:
    """Return the rule as it is read from a header. A whole number that a user gave for a float is
    read as a float, and 0.1.0 does not resume the one from a state of the other."""
    plain = json.loads(json.dumps(encode(rule, kind=True)))
    return decode(lb.Rule, plain, kinds=KINDS)


def write_records(scratch: Path) -> None:
    """Write a record and a state of each rule and method."""
    cases = [("rules/" + row.name, row.rule, FOR_RULES) for row in ROWS]
    methods = {name: method.rule for name, method in lb.methods.METHODS.items()} | OTHER_METHODS
    cases += [("methods/" + name, build(), FOR_METHODS) for name, build in methods.items()]
    cases += [("chains/" + name, rule, FOR_RULES) for name, rule in CHAINS.items()]
    cases += [("own-rule", old_runs.OwnRule(), FOR_RULES)]
    lines = []
    for number, (name, given, setting) in enumerate(cases):
        rule = given if name == "own-rule" else as_read(given)
        path = scratch / f"{number}.jsonl"
        steps = length(rule)
        cut = 14 + number % 12 if steps == 44 else 20 + 25 * (number % 3)
        decider = setting.start(rule, steps=steps)
        _, state = simulate(decider, lb.JsonlRecord(path), seed=name, cut=cut)
        packed = FOLDER / "records" / f"{name}.jsonl.gz"
        packed.parent.mkdir(parents=True, exist_ok=True)
        packed.write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))
        lines.append({"name": name, "cut": cut, "state": state})
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    (FOLDER / "states.jsonl").write_text(text)


def write_interrupted(scratch: Path) -> None:
    """Write the record of a run that was killed after 12 steps, resumed from step 8 and killed
    again."""
    path = scratch / "interrupted.jsonl"
    decider = FOR_RULES.start(lb.AdaScale(), steps=44)
    simulate(decider, lb.JsonlRecord(path), seed="interrupted", cut=8)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:13], lines[0], *lines[9:20]]) + lines[20][:100])
    shutil.copy(path, FOLDER / "interrupted.jsonl")


def write_kinds() -> None:
    """Write the kinds that 0.1.0 knows: its rules and factors."""
    kinds = sorted({"Chain", *RULES, *FACTORS})
    (FOLDER / "kinds.json").write_text(json.dumps(kinds, indent=0) + "\n")


def write_runs() -> None:
    """Write a checkpoint of each real run, and what followed."""
    runs: dict[str, Any] = {}
    for name, run in old_runs.RUNS.items():
        control = run.build()
        run.train(control, stop_after=run.cut)
        assert control.optimizer_steps == run.cut, name
        save(name, control.model, control)
        again = run.build()
        load(name, again.model, again)
        runs[name] = run.train(again)
    control, model = attached()
    old_runs.train_attached(control, model, steps=7)
    save("attach", model, control)
    control, model = attached()
    load("attach", model, control)
    runs["attach"] = old_runs.train_attached(control, model, steps=9)
    (FOLDER / "runs.json").write_text(flat(runs))


def flat(runs: dict[str, Any]) -> str:
    """Return JSON with one step per line. What was computed in float32 has seven digits."""
    lines = []
    for name, run in runs.items():
        weights = [float(f"{weight:.7g}") for weight in run["end"]["weights"]]
        end = json.dumps({**run["end"], "weights": weights}, separators=(",", ":"))
        steps = []
        for step in run["steps"]:
            losses = [float(f"{loss:.7g}") for loss in step["losses"]]
            steps.append(json.dumps({**step, "losses": losses}, separators=(",", ":")))
        rows = ",\n".join(steps)
        lines.append(f'{json.dumps(name)}:{{"end":{end},"steps":[\n{rows}]}}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def attached() -> tuple[Any, torch.nn.Module]:
    model = old_runs.small_model()
    return old_runs.attach(model), model


def save(name: str, model: torch.nn.Module, control: Any) -> None:
    checkpoints = lb.Checkpoints(FOLDER / "checkpoints" / name)
    state = {
        "model": model.state_dict(),
        "optimizer": control.optimizer.state_dict(),
        "control": control.state_dict(),
    }
    checkpoints.save(state, step=control.optimizer_steps)


def load(name: str, model: torch.nn.Module, control: Any) -> None:
    state = lb.Checkpoints(FOLDER / "checkpoints" / name).load().state
    control.load_state_dict(state["control"])
    model.load_state_dict(state["model"])
    control.optimizer.load_state_dict(state["optimizer"])


def write_loaders() -> None:
    """Write the state of each loader after seven steps, and the samples of the next nine."""
    found = {}
    for name, build in old_runs.LOADERS.items():
        loader = old_files.bound(build())
        if loader.wants_fit:
            loader.fit(2)
        old_files.samples_of(loader, steps=7)
        state = loader.state_dict()
        found[name] = {"state": state, "samples": old_files.samples_of(loader, steps=9)}
    lines = [f"{json.dumps(n)}:{json.dumps(f, separators=(',', ':'))}" for n, f in found.items()]
    (FOLDER / "loaders.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def write_train(scratch: Path) -> None:
    """Write the record of a run of `largebatch train`, and its checkpoint after half of the
    steps."""
    folder = FOLDER / "train"
    folder.mkdir()
    old_files.train_workload(
        old_runs.workload(),
        method="adascale",
        scale=4,
        budget="64base",
        record=scratch / "train.jsonl",
        checkpoint=scratch / "checkpoints",
        checkpoint_every="1steps",
        keep=10**6,
    )
    paths = lb.Checkpoints(scratch / "checkpoints").paths
    middle = len(paths) // 2
    state = lb.Checkpoints(scratch / "checkpoints").load(paths[middle]).state
    state["seconds"] = 1.0  # so that the file does not depend on how fast the machine was
    lb.Checkpoints(folder).save(state, step=state["control"]["step"])
    shutil.copy(scratch / "train.jsonl", folder / "record.jsonl")


def write_schedules(scratch: Path) -> None:
    """Write schedules with `largebatch plan`, and the record of a run that follows each."""
    folder = FOLDER / "schedules"
    folder.mkdir()
    for name, schedule in {
        "growth": "growth",
        "seesaw": "seesaw",
        "linear-growth": "linear-growth",
        "steps": "0:4 500:8 1K:24",
    }.items():
        path = folder / f"{name}.json"
        limit = ["--memory-limit", "16"] if name == "seesaw" else []
        budget = "600" if name == "seesaw" else "1500"
        words = ["plan", "--dry-run", schedule, "--budget", budget, "--base-batch", "4", *limit]
        done = CliRunner().invoke(cli, [*words, "--out", str(path)])
        assert done.exit_code == 0, done.output
        record = scratch / f"{name}.jsonl"
        old_files.train_workload(old_runs.workload(), schedule=path, record=record)
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(record.read_bytes(), 9, mtime=0))


def main() -> None:
    assert lb.__version__ == "0.1.0", "these are the files of 0.1.0"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shutil.rmtree(FOLDER)
    FOLDER.mkdir()
    with tempfile.TemporaryDirectory() as name:
        write_kinds()
        write_records(Path(name))
        write_interrupted(Path(name))
        write_runs()
        write_loaders()
        write_train(Path(name))
        write_schedules(Path(name))


if __name__ == "__main__":
    main()
