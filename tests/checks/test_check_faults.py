"""Each fault is found in a run that has it alone, and a run without any has no finding but ok."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from runs_with_faults import SAMPLES, Checkpointed, Doubled, TwoSteps, alarms, controlled, the
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.utils.data import BatchSampler, DataLoader, SubsetRandomSampler, TensorDataset

import largebatch as lb
from largebatch.checks import overhead
from largebatch.checks.finding import CheckUp, Finding, merged, named
from largebatch.checks.models import check_norms
from largebatch.checks.overhead import Ratio
from largebatch.core.errors import LargeBatchError
from small_runs import class_data, classifier, mean_loss


def check(control: lb.Controller, loss: Any = mean_loss) -> CheckUp:
    return lb.check(control, loss, seconds=0.0)


def test_a_sound_run_has_nothing_but_what_is_ok() -> None:
    found = check(controlled())
    assert alarms(found) == []
    assert {finding.name for finding in found.findings} == {
        "samples", "unused parameters", "mean loss",
    }  # fmt: skip
    assert found.sound


def test_dropout_momentum_dictionaries_and_growing_batches_are_no_fault() -> None:
    assert alarms(check(controlled(classifier(nn.Dropout(0.5))))) == []
    x, y = class_data(SAMPLES)
    items = [{"x": a, "y": b} for a, b in zip(x, y, strict=True)]

    def of_dictionary(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return mean_loss(model, (batch["x"], batch["y"]))

    loader = lb.BatchLoader(items, batch_size=32, max_micro_batch_size=16)
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    control = lb.Controller(model, optimizer, lb.AdaScale(), loader, base_batch_size=16)
    assert alarms(check(control, of_dictionary)) == []


# The loss


def test_a_sum_is_an_error() -> None:
    def total(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    found = check(controlled(), total)
    assert the(found, "mean loss").level == "error"
    assert "2 times as large" in the(found, "mean loss").seen
    assert "reduction='mean'" in the(found, "mean loss").remedy
    assert alarms(found) == ["mean loss"]
    assert not found.sound


def test_a_mean_over_tokens_is_a_warning() -> None:
    def over_tokens(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        weight = torch.tensor([1.0, 5.0, 25.0])  # as classes with weights, or masked sequences
        return nn.functional.cross_entropy(model(batch[0]), batch[1], weight=weight)

    found = check(controlled(), over_tokens)
    assert the(found, "mean loss").level == "warning"
    assert "weight=mask.sum()" in the(found, "mean loss").remedy


def test_a_loss_of_neighbours_is_a_warning() -> None:
    def contrast(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        z = model(batch[0])
        return torch.logsumexp(z @ z.T, dim=1).mean()

    found = check(controlled(), contrast)
    assert the(found, "mean loss").level == "warning"
    assert "which samples are in one micro-batch" in the(found, "mean loss").seen


def test_a_random_mean_is_a_note_and_a_random_sum_an_error() -> None:
    def noisy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return mean_loss(model, (batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]))

    def noisy_sum(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return noisy(model, batch) * len(batch[0])

    assert the(check(controlled(), noisy), "mean loss").level == "note"
    assert the(check(controlled(), noisy_sum), "mean loss").level == "error"


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    def infinite(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return mean_loss(model, batch) + torch.log(torch.tensor(0.0))

    found = check(controlled(), infinite)
    assert the(found, "finite loss").level == "error"
    assert "-inf" in the(found, "finite loss").seen


def each_sample(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def detached(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return mean_loss(model, batch).detach()


def number(model: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    return mean_loss(model, batch).item()


@pytest.mark.parametrize(
    ("loss", "what"),
    [(each_sample, "shape (16,)"), (detached, "without an autograd graph"), (number, "float")],
)
def test_a_check_reports_an_error_if_the_loss_is_no_scalar_with_a_graph(
    loss: Any, what: str
) -> None:
    found = check(controlled(), loss)
    assert the(found, "loss").level == "error"
    assert what in the(found, "loss").seen


def test_a_check_reports_what_the_loss_raises_and_does_not_raise_it() -> None:
    def broken(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        raise RuntimeError("no such thing")

    found = check(controlled(), broken)
    assert the(found, "loss").seen.endswith("raised RuntimeError: no such thing")
    assert not found.sound


def test_without_a_loss_the_rest_is_looked_at() -> None:
    found = lb.check(controlled(classifier(nn.BatchNorm1d(7)), base=32))
    assert the(found, "batch normalization").level == "warning"
    assert the(found, "loss").level == "note"
    assert "lb.check(control, loss)" in the(found, "loss").remedy


# The model


def test_unused_parameters_are_a_warning_by_name() -> None:
    found = check(controlled(Doubled()))
    assert the(found, "unused parameters").level == "warning"
    assert "2 of 4" in the(found, "unused parameters").seen
    assert "spare.weight, spare.bias" in the(found, "unused parameters").seen


def test_a_loss_that_uses_another_model_is_an_error() -> None:
    other = classifier()

    def elsewhere(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return mean_loss(other, batch)

    found = check(controlled(), elsewhere)
    assert the(found, "unused parameters").level == "error"
    assert "does not use the model" in the(found, "unused parameters").why
    assert all(parameter.grad is None for parameter in other.parameters())


def test_a_check_reports_frozen_and_tied_parameters() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 3))
    model[2].weight = model[0].weight
    model[3].bias.requires_grad_(False)
    found = check(controlled(model))
    assert the(found, "frozen parameters").seen.endswith(": 3.bias.")
    assert the(found, "tied parameters").seen.startswith("1 parameters are tied")
    assert alarms(found) == []


def test_parameters_of_another_model_are_a_note() -> None:
    model, head = classifier(), nn.Linear(3, 3)
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1)

    def with_head(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(head(model(batch[0])), batch[1])

    found = check(controlled(model, optimizer), with_head)
    assert the(found, "parameters outside the model").level == "note"
    assert "moves 2 parameters" in the(found, "parameters outside the model").seen
    assert alarms(found) == ["parameters outside the model"]


@pytest.mark.parametrize(("base", "level"), [(16, "note"), (32, "warning")])
def test_a_check_reports_batch_normalization_with_the_size_of_the_micro_batch(
    base: int, level: str
) -> None:
    found = check(controlled(classifier(nn.BatchNorm1d(7)), base=base))
    finding = the(found, "batch normalization")
    assert finding.level == level
    assert "micro-batch of 16 samples" in finding.seen
    assert alarms(found) == ["batch normalization"]


def test_synchronised_normalization_is_a_warning_on_several_ranks() -> None:
    """Torch runs it on GPUs alone, so the model is looked at and not run."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(classifier(nn.BatchNorm1d(7)))
    (found,) = check_norms(model, micro_batch=16, base=16, ranks=2)
    assert (found.name, found.level) == ("synchronized batch normalization", "warning")
    assert "1 SyncBatchNorm layer(s): 1." in found.seen
    (alone,) = check_norms(model, micro_batch=16, base=16, ranks=1)
    assert (alone.name, alone.level) == ("batch normalization", "note")


def test_evaluation_mode_is_a_warning() -> None:
    found = check(controlled(classifier().eval()))
    assert the(found, "training mode").remedy == "Call model.train()."
    assert alarms(found) == ["training mode"]


def test_a_check_reports_reentrant_activation_checkpointing_only() -> None:
    assert alarms(check(controlled(Checkpointed(reentrant=False)))) == []
    found = check(controlled(Checkpointed(reentrant=True)))
    assert the(found, "activation checkpointing").level == "note"
    assert "use_reentrant=False" in the(found, "activation checkpointing").remedy
    tied = Checkpointed(reentrant=True)
    tied.middle = tied.first
    found = check(controlled(tied))
    assert the(found, "activation checkpointing").level == "warning"


# Precision


def half(dtype: torch.dtype) -> Callable[..., Tensor]:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return mean_loss(model, batch)

    return loss


def test_float16_without_a_scaler_is_a_warning_and_with_one_sound() -> None:
    found = check(controlled(), half(torch.float16))
    assert the(found, "half precision").level == "warning"
    assert "GradScaler()" in the(found, "half precision").remedy
    found = check(controlled(scaler=GradScaler("cpu")), half(torch.float16))
    assert the(found, "half precision").seen.endswith("float16, with a gradient scaler.")
    assert alarms(found) == []


def test_a_scaler_without_float16_is_a_note() -> None:
    found = check(controlled(scaler=GradScaler("cpu")), half(torch.bfloat16))
    assert "computes in bfloat16" in the(found, "half precision").seen
    found = check(controlled(scaler=GradScaler("cpu")))
    assert the(found, "half precision").level == "note"
    assert "computes in float32" in the(found, "half precision").seen
    assert alarms(check(controlled(), half(torch.bfloat16))) == []


def test_a_loss_that_is_scaled_already_is_an_error() -> None:
    scaler = GradScaler("cpu", init_scale=1024.0)

    def scaled(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return scaler.scale(half(torch.float16)(model, batch))

    control = controlled(scaler=scaler)
    before = scaler.state_dict()
    found = check(control, scaled)
    assert the(found, "gradient scaler").level == "error"
    assert "1024" in the(found, "gradient scaler").seen
    assert scaler.state_dict() == before


# Optimizer and rule


def test_an_optimizer_that_needs_a_closure_is_an_error() -> None:
    model = classifier()
    found = check(controlled(model, TwoSteps(model.parameters(), lr=0.1)))
    assert the(found, "optimizer").level == "error"
    assert "AssertionError: closure must be provided" in the(found, "optimizer").seen
    assert alarms(found) == ["optimizer"]


def test_adascale_of_the_bare_gradient_with_adam_is_a_note() -> None:
    model = classifier()
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found = check(controlled(model, adam, rule=lb.Every(lb.AdaScale(), steps=10)))
    assert the(found, "AdaScale and Adam").level == "note"
    rule = lb.AdaScale(statistic="preconditioned_moments", exponent=0.5)
    model = classifier()
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    assert alarms(check(controlled(model, adam, rule=rule))) == []


def test_a_batch_larger_than_the_data_set_is_a_note() -> None:
    found = check(controlled(batch_size=128))
    assert f"{SAMPLES} samples, but the largest batch has 128" in the(found, "data set").seen
    found = check(controlled(rule=lb.chain(lb.AdaScale(), lb.ClampBatch(max=500))))
    assert "largest batch has 500" in the(found, "data set").seen
    assert f"ClampBatch(max={SAMPLES})" in the(found, "data set").remedy
    assert alarms(found) == ["data set"]


def test_a_batch_below_the_base_batch_is_a_note() -> None:
    found = check(controlled(base=64))
    assert "the scale is 0.5" in the(found, "base batch").seen


# A loader of the user's


def loaded(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*class_data(SAMPLES)), **{"batch_size": 16, **options})


def test_a_plain_loader_is_sound() -> None:
    assert alarms(check(controlled(source=loaded(shuffle=True)))) == []
    assert alarms(check(controlled(source=loaded(drop_last=True)))) == [], "6 * 16 leave nothing"


def test_a_check_reports_samples_that_drop_last_leaves_out() -> None:
    found = check(
        controlled(source=loaded(batch_size=20, shuffle=True, drop_last=True), batch_size=40)
    )
    assert the(found, "drop_last").level == "note"
    assert "leaves out 16 of 96 samples" in the(found, "drop_last").seen
    found = check(controlled(source=loaded(batch_size=20, drop_last=True), batch_size=40))
    assert the(found, "drop_last").level == "warning"
    assert "always the same" in the(found, "drop_last").seen
    batches = BatchSampler(SubsetRandomSampler(range(50)), 20, drop_last=True)
    loader = DataLoader(TensorDataset(*class_data(SAMPLES)), batch_sampler=batches)
    found = check(controlled(source=loader, batch_size=40))
    assert "leaves out 10 of 50 samples" in the(found, "drop_last").seen


def test_a_check_warns_if_batches_have_another_size_than_was_asked_for() -> None:
    found = check(controlled(source=loaded(), batch_size=40))
    assert "batch_size=40 was given, but each step takes 48" in the(found, "batch").seen
    assert alarms(found) == ["batch"]


def same_for_all(worker: int) -> None:
    np.random.seed(0)


def own_for_each(worker: int) -> None:
    np.random.seed(torch.initial_seed() % 2**32)
    torch.manual_seed(worker)


@pytest.mark.parametrize(("seeding", "fault"), [(same_for_all, True), (own_for_each, False)])
def test_workers_that_share_a_seed_are_a_warning(seeding: Any, *, fault: bool) -> None:
    control = controlled(source=loaded(num_workers=2, worker_init_fn=seeding))
    found = lb.check(control)
    names = [finding.name for finding in found.findings if finding.level == "warning"]
    assert names == (["workers' seeds"] if fault else [])
    if fault:
        assert "2 workers the same NumPy seed" in the(found, "workers' seeds").seen


# Attached


def test_an_attached_run_is_checked_with_a_micro_batch() -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = class_data(16)
    with lb.attach(
        model, optimizer, lb.AdaScale(), batch_size=32, base_batch_size=16, micro_batches=2
    ) as control:
        assert alarms(lb.check(control, mean_loss, (x, y), seconds=0.05)) in (
            [],
            ["cost of measuring"],
        )
        assert "lb.check(control, loss, batch)" in the(lb.check(control), "loss").remedy

        def total(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return 16 * mean_loss(model, batch) * len(batch[0])

        assert the(lb.check(control, total, (x, y)), "mean loss").level == "error"
        for _ in range(2):
            mean_loss(model, (x, y)).backward()
            lb.check(control, mean_loss, (x, y), seconds=0.05)
        optimizer.step()
        assert control.optimizer_steps == 1


# The cost of measuring


def test_the_cost_of_measuring_is_reported_with_the_bare_loop_timed_against_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(overhead, "RUN_SECONDS", 1e-4)
    finding = the(lb.check(controlled(), mean_loss, seconds=0.3), "cost of measuring")
    assert finding.level in ("ok", "note")
    assert "the plain loop timed twice" in finding.seen
    assert "2 micro-batches" in finding.seen


def test_a_cost_that_is_clear_of_its_null_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def slower(self: overhead.Timed, steps: int) -> float:
        return 3.0 * self.bare(steps)

    monkeypatch.setattr(overhead.Timed, "watched", slower)
    monkeypatch.setattr(overhead.Timed, "bare", lambda self, steps: 0.01 * steps)
    finding = the(lb.check(controlled(), mean_loss, seconds=0.3), "cost of measuring")
    assert finding.level == "note"
    assert "3.000 [3.000, 3.000]" in finding.seen
    assert "timed twice gives 1.000" in finding.seen
    assert "lb.Every(rule, steps=10)" in finding.remedy


def test_a_rule_that_measures_nothing_costs_nothing_to_time() -> None:
    names = [f.name for f in lb.check(controlled(rule=lb.LinearScaling()), mean_loss).findings]
    assert "cost of measuring" not in names


def test_the_interval_of_a_median_by_hand() -> None:
    assert Ratio.of([3.0, 1.0, 2.0]) == Ratio(2.0, 1.0, 3.0)
    assert Ratio.of([float(i) for i in range(100)]) == Ratio(49.5, 40.0, 60.0)


# Findings


def test_merged_findings_report_the_worst_rank_and_its_number() -> None:
    ok = Finding(name="x", level="ok", seen="Fine.")
    bad = Finding(name="x", level="error", seen="Bad.")
    other = Finding(name="y", level="note", seen="Other.")
    assert merged([[ok], [ok]]) == [ok]
    assert [f.seen for f in merged([[ok], [bad], [bad]])] == ["Ranks 1, 2: Bad."]
    assert [f.seen for f in merged([[ok], [ok, other]])] == ["Fine.", "Rank 1: Other."]
    assert merged([[bad], [bad]]) == [bad]


def test_the_worst_is_printed_first_with_reason_and_remedy() -> None:
    found = CheckUp(
        findings=(
            Finding(name="x", level="ok", seen="Fine."),
            Finding(name="y", level="error", seen="Bad.", why="So.", remedy="model.train()"),
        )
    )
    assert str(found).splitlines() == ["error: Bad. So. model.train()", "ok: Fine."]
    assert named(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


def test_a_check_refuses_a_bare_model_and_a_batch_for_a_controller() -> None:
    with pytest.raises(ValueError, match=r"given a Linear.* lb\.check\(control, loss\)"):
        lb.check(nn.Linear(1, 1), mean_loss)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Remove the batch: lb\.check\(control, loss\)"):
        lb.check(controlled(), mean_loss, class_data(4))


def test_in_the_middle_of_a_step_there_is_no_check() -> None:
    control = controlled()
    for batch in control.steps(steps=2):
        with pytest.raises(LargeBatchError, match="while a step is in progress"):
            lb.check(control, mean_loss)
        for micro_batch in batch:
            control.backward(mean_loss(control.model, micro_batch))
        control.step()
        check(control)
    assert control.optimizer_steps == 2
