"""The probe: what it reports is true, its forecast comes true, and it leaves no trace."""

from __future__ import annotations

import copy
import io
import json
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import largebatch as lb
from largebatch.analysis.efficiency import Range
from largebatch.analysis.noise import NoiseEstimate
from largebatch.checks.losses import loss_when_repeated
from largebatch.checks.samples import Pieces, repeated
from largebatch.checks.untouched import copied
from largebatch.core.codec import decode, encode
from largebatch.core.formulas import gain_from_noise_scale
from largebatch.workbench.studies.probe.checks import check_data, check_model
from largebatch.workbench.studies.probe.forecast import (
    forecast,
    mean_gain,
    noise_scale_of,
    signal_share,
    weighted_mean,
    weights,
)
from largebatch.workbench.studies.probe.probe import probe, probe_run
from largebatch.workbench.studies.probe.result import ProbeResult
from largebatch.workbench.workloads import Batch, Data, Workload, adamw, load

sys.path.insert(0, str(Path(__file__).parents[1] / "workloads"))
import known_noise as known


class NearPoint(known.Point):
    """The same, nearer to the mean: a noise scale of 100 samples."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.w.fill_(known.MEAN - 0.2)


def near(**changes: object) -> Workload:
    """The known noise with weights that stay where they are."""
    return replace(known.known_noise(), base_lr=1e-9, model=NearPoint, **changes)


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def blobs(samples: int = 600) -> Batch:
    draw = torch.Generator().manual_seed(1)
    y = torch.randint(0, 3, (samples,), generator=draw)
    return 2.0 * nn.functional.one_hot(y, 6) + torch.randn(samples, 6, generator=draw), y


def classifier(*, dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else []), nn.Linear(16, 3)
    )


# The noise scale


def test_the_interval_covers_the_true_noise_scale_for_nearly_all_seeds() -> None:
    workload = near()
    data = workload.data()
    x = data.train[0]
    variance = float(x.var(0).sum())
    truth = variance / float((workload.model().w.detach() - x.mean(0)).square().sum())
    workload = replace(workload, data=lambda: data)
    covered, pooled, values = 0, 0, []
    for seed in range(40):
        found = probe(workload, steps=64, seed=seed)
        whole, all_steps = found.noise.estimate, found.pooled.estimate
        assert whole is not None
        assert all_steps is not None
        covered += whole.low <= truth <= whole.high
        pooled += all_steps.low <= truth <= all_steps.high
        values.append(whole.noise_scale)
    print(f"true {truth:.1f}, median {np.median(values):.1f}, covered {covered}, {pooled} of 40")
    assert 34 <= covered <= 40
    assert 34 <= pooled <= 40
    assert np.median(values) == pytest.approx(truth, rel=0.25)
    assert np.std(values) > 0.02 * truth


def test_along_a_run_whose_noise_scale_moves_the_whole_runs_is_covered() -> None:
    """Exact: the share of signal in the base batch at each weight that the run came by."""
    data = near().data()
    centre, variance = data.train[0].mean(0), float(data.train[0].var(0).sum())
    covered, moved = 0, []
    for seed in range(10):
        sqnorms: list[float] = []

        def loss(model: nn.Module, batch: Batch, seen: list[float] = sqnorms) -> Tensor:
            if model.training:
                seen.append(float((model.w.detach() - centre).square().sum()))
            return known.half_square(model, batch)

        workload = replace(
            known.known_noise(), data=lambda: data, loss=loss, base_lr=0.01, budget_epochs=0.107
        )
        found = probe(workload, steps=100, seed=seed).noise.estimate
        assert found is not None
        assert len(sqnorms) == 400
        share = np.mean([q / (q + variance / 32) for q in sqnorms])
        covered += (
            found.low <= noise_scale_of(signal=float(share), base_batch_size=32) <= found.high
        )
        moved.append(sqnorms[0] / sqnorms[-1])
    assert covered >= 8
    assert min(moved) > 3


def test_too_few_steps_give_no_number_but_what_is_missing() -> None:
    found = probe(near(), steps=5)
    assert found.noise.estimate is None
    assert found.outlook is None
    assert "not enough signal yet: 5 measured steps; needed: at least 16" in str(found)
    assert "AdaScale" not in str(found)
    assert "largebatch train" not in str(found)


def test_identical_micro_batches_are_detected_twice() -> None:
    same = torch.ones(4000, known.DIMENSIONS)
    model = NearPoint()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    found = probe_run(model, optimizer, known.half_square, (same,), base_batch_size=32, steps=20)
    assert "the parts of a step have no variance between them" in str(found.noise)
    assert found.outlook is None
    assert any("repeat the samples" in c.text and not c.sound for c in found.checks)


def test_more_samples_a_step_narrow_the_interval() -> None:
    few, many = probe(near(), steps=64), probe(near(), steps=64, batch_size=256)
    assert few.noise.estimate is not None
    assert many.noise.estimate is not None
    assert many.batch_size == 256
    assert many.outlook is not None
    assert many.outlook.rows[0].batch_size == 32
    width = [e.high / e.low for e in (few.noise.estimate, many.noise.estimate)]
    assert width[1] < 0.8 * width[0]


def test_a_step_below_the_base_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size=128 for more signal"):
        probe(near(), steps=20, batch_size=16)


# The forecast


def test_the_forecast_is_the_integral_of_one_over_the_gain() -> None:
    """By hand, base batch 16: 300 steps at n = 16 (S = 4: r = 8 / 5) and 100 at n = 112
    (r = 32 / 11) take 300 * 5 / 8 + 100 * 11 / 32 = 221.875 steps."""
    shares = [signal_share(noise_scale=n, base_batch_size=16) for n in (16.0, 112.0)]
    mean = 0.75 * shares[0] + 0.25 * shares[1]
    scale = noise_scale_of(signal=mean, base_batch_size=16)
    noise = NoiseEstimate(
        noise_scale=scale, low=scale, high=scale, steps=400, variance=1.0, sqnorm=1.0
    )
    found = forecast(noise, base_batch_size=16, run_steps=400, scale=4)
    assert found.steps.value == pytest.approx(221.875)
    assert found.samples.value == pytest.approx(221.875 * 64)
    assert found.mean_gain.value == pytest.approx(400 / 221.875)


@pytest.mark.parametrize("scale", [1, 2, 8, 128])
@pytest.mark.parametrize("n", [0.0, 3.0, 500.0, float("inf")])
def test_the_gain_from_the_share_of_signal_is_the_gain_from_the_noise_scale(
    scale: int, n: float
) -> None:
    share = signal_share(noise_scale=n, base_batch_size=16)
    expected = gain_from_noise_scale(noise_scale=n, base_batch_size=16, scale=scale)
    assert mean_gain(signal=share, scale=scale) == pytest.approx(expected)


def test_steps_that_a_probe_did_not_run_weigh_as_its_last_quarter() -> None:
    ends = [(10 * i, 10 * i + 10) for i in range(8)]
    found = weights(ends, run_steps=200)
    assert found[:6] == [0.05] * 6
    assert found[6:] == pytest.approx([0.35, 0.35])
    assert sum(weights([(0, 20)], run_steps=77)) == pytest.approx(1.0)


def test_the_mean_of_equal_pieces_is_known_better_than_one() -> None:
    piece = Range(value=0.4, low=0.2, high=0.8)
    found = weighted_mean([piece] * 4, [0.25] * 4)
    assert (found.value, found.low, found.high) == pytest.approx((0.4, 0.3, 0.6))


def test_the_forecast_on_digits_is_what_adascale_then_does() -> None:
    workload = load("digits")
    data = workload.data()
    workload = replace(workload, data=lambda: data, budget_epochs=10)
    found = probe(workload, steps=669)
    assert found.outlook is not None
    told = found.outlook.forecasts[0]
    model, optimizer = workload.fresh(seed=1)
    batches = lb.BatchLoader(data.train, batch_size=128, max_micro_batch_size=32, seed=1)
    control = lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=16)
    for batch in control.steps(base_steps=found.run_steps):
        for micro_batch in batch:
            control.backward(workload.loss(model, micro_batch))
        control.step()
    assert "largebatch train digits --method adascale --scale 4" in str(
        replace(found, outlook=replace(found.outlook, scale=4))
    )
    done = control.base_steps / control.optimizer_steps
    print(f"forecast {told.mean_gain}, realised {done:.3f} in {control.optimizer_steps} steps")
    assert told.scale == 8
    assert told.mean_gain.value == pytest.approx(done, rel=0.25)
    assert told.mean_gain.low < done < told.mean_gain.high


# The checks


def test_a_sum_instead_of_a_mean_is_refused_with_the_remedy() -> None:
    def total(model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    model = classifier(dropout=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(ValueError, match=r"it is a sum over[\s\S]*reduction='mean'"):
        probe_run(model, optimizer, total, blobs(), base_batch_size=32, steps=20)
    assert loss_when_repeated(model, total, blobs()) == pytest.approx(2.0)
    assert loss_when_repeated(model, cross_entropy, blobs()) == pytest.approx(1.0)
    assert model.training
    assert model[2].training


def test_a_loss_that_depends_on_its_neighbours_is_reported() -> None:
    def contrast(model: nn.Module, batch: Batch) -> Tensor:
        z = model(batch[0])
        return torch.logsumexp(z @ z.T, dim=1).mean()

    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    found = probe_run(model, optimizer, contrast, blobs(), base_batch_size=32, steps=4)
    assert not found.checks[0].sound
    assert "depends on which samples are together" in found.checks[0].text


def test_the_model_is_described() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 4))
    model[3].weight = model[0].weight
    model[3].bias.requires_grad_(False)
    texts = {check.text: check.sound for check in check_model(model)}
    assert any("1 layers of batch norm" in text and not ok for text, ok in texts.items())
    assert any(text.startswith("Dropout (0.3)") for text in texts)
    assert any(text.startswith("3.bias frozen") for text in texts)
    assert any(text.startswith("1 parameters are tied") for text in texts)
    plain = check_model(classifier())
    assert all(check.sound for check in plain)
    assert not all(check.sound for check in check_model(classifier().eval()))


def test_unused_parameters_are_named() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found = probe_run(model, optimizer, cross_entropy, blobs(), base_batch_size=32, steps=20)
    (unused,) = [check for check in found.checks if "no gradient" in check.text]
    assert not unused.sound
    assert unused.text.startswith("spare.weight, spare.bias got no gradient")
    assert [block.noise_share for block in found.blocks] == [1.0, 0.0]


def test_repeated_data_is_counted() -> None:
    assert check_data([1, 2, 3], ranks=1).sound
    assert "1 of the first step's 3" in check_data([1, 2, 1], ranks=1).text


# The copy


def test_the_users_model_optimizer_and_generators_are_left_as_they_were() -> None:
    model = classifier(dropout=0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    x, y = blobs()
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(model, (x, y)).backward()
        optimizer.step()
    own = torch.Generator().manual_seed(4)
    loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True, generator=own)

    def state() -> dict[str, object]:
        return copy.deepcopy(
            {
                "weights": model.state_dict(),
                "gradients": [p.grad for p in model.parameters()],
                "optimizer": optimizer.state_dict(),
                "torch": torch.get_rng_state(),
                "own": own.get_state(),
                "numpy": np.random.get_state()[1].tolist(),
                "python": random.getstate(),
                "training": model.training,
            }
        )

    before = state()
    found = probe_run(model, optimizer, cross_entropy, loader, base_batch_size=32, steps=60)
    after = state()
    assert str(before) == str(after)
    assert_equal(before, after)
    assert found.steps == 60
    assert found.along[0].loss > 0.0
    assert found.along[-1].loss < found.along[0].loss, "the copy is trained"


def assert_equal(one: object, other: object) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert one == other


def test_a_run_amid_its_schedule_is_probed_at_the_rate_it_has_now() -> None:
    model = NearPoint()
    optimizer = torch.optim.SGD(model.parameters(), lr=2.5)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 4e-10)
    data = (known.load_points().train[0],)
    found = probe_run(model, optimizer, known.half_square, data, base_batch_size=32, steps=40)
    assert found.base_lr == pytest.approx(1e-9)
    first, last = found.along[0].loss, found.along[-1].loss
    assert first == pytest.approx(last, rel=0.05), "at a rate of 2.5 it diverges"


def test_the_optimizers_copy_moves_the_models_copy_with_its_own_momentum() -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    cross_entropy(model, blobs()).backward()
    optimizer.step()
    twin, twin_optimizer = copied(model, optimizer)
    assert all(a is b for a, b in zip(
        twin_optimizer.param_groups[0]["params"], twin.parameters(), strict=True
    ))  # fmt: skip
    assert all(p.grad is None for p in twin.parameters())
    mine, its = optimizer.state[model[0].weight], twin_optimizer.state[twin[0].weight]
    assert torch.equal(mine["momentum_buffer"], its["momentum_buffer"])
    assert mine["momentum_buffer"] is not its["momentum_buffer"]


def test_a_probe_with_the_same_seed_gives_the_same_result() -> None:
    first, second = (replace(probe(near(), steps=40, seed=2), seconds=0.0) for _ in range(2))
    assert first == second
    assert first != replace(probe(near(), steps=40, seed=3), seconds=0.0)


def test_a_loaders_batches_are_cut_and_everything_in_them_goes_along() -> None:
    batch = {"x": torch.arange(5), "names": list("abcde"), "pair": (torch.ones(5, 2), 7)}
    pieces = list(Pieces([batch], size=2))
    assert [piece["x"].tolist() for piece in pieces] == [[0, 1], [2, 3], [4]]
    assert [piece["names"] for piece in pieces] == [["a", "b"], ["c", "d"], ["e"]]
    assert pieces[2]["pair"][0].shape == (1, 2)
    assert pieces[2]["pair"][1] == 7
    assert repeated(batch)["names"] == list("abcdeabcde")


# What is shown


def with_adam() -> Workload:
    return replace(
        near(),
        data=lambda: Data(train=blobs(), validation=blobs(), test=blobs()),
        model=classifier,
        loss=cross_entropy,
        optimizer=adamw(),
        base_lr=1e-3,
        budget_epochs=20,
    )


def test_a_result_goes_through_json_unchanged() -> None:
    for found in (probe(near(), steps=40), probe(near(), steps=5), probe(with_adam(), steps=40)):
        assert decode(ProbeResult, json.loads(json.dumps(encode(found)))) == found


def test_with_adam_the_preconditioned_gradient_is_reported_beside_the_bare_one() -> None:
    found = probe(with_adam(), steps=200, scale=4)
    assert found.adam
    assert found.bare_noise is not None
    assert found.bare_noise != found.noise
    assert "lb.methods.adascale_adam(), batch_size=128, base_batch_size=32" in str(found)
    assert "without proof" in str(found)
    assert [found.along[0].start, found.along[-1].stop] == [0, 195], "from the sixth step on"


class Words(nn.Module):
    """Of 400 words a batch holds few, so most rows of the embedding are rarely used."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(400, 8), nn.Linear(8, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.words(words))


def test_rarely_used_rows_under_adam_are_no_noise_scale() -> None:
    draw = torch.Generator().manual_seed(2)
    words = (400 * torch.rand(3000, generator=draw) ** 4).long()
    model = Words()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.9))
    found = probe_run(
        model, optimizer, cross_entropy, (words, words % 3), base_batch_size=32, steps=200
    )
    assert found.adam
    assert not found.preconditioned
    assert "rows of an embedding" in str(found)
    assert "lb.SqrtScaling()" in str(found)
    assert "adascale_adam" not in str(found)
    assert "forecast" not in str(found)


def test_the_lines_to_paste_have_the_runs_own_numbers() -> None:
    text = str(probe(near(), steps=100, scale=8))
    assert "largebatch train" not in text, "it is no registered workload"
    assert "lb.AdaScale(), batch_size=256, base_batch_size=32)" in text
    assert "control.base_steps >= 938" in text


def test_rich_shows_the_same_words_as_the_text() -> None:
    from rich.console import Console

    found = probe(near(), steps=100)
    console = Console(width=120, record=True, file=io.StringIO())
    found.render(console)
    words = set(console.export_text().split())
    assert {word for word in str(found).split() if word not in words} == set()


ASKED: list[float] = []


@dataclass(frozen=True)
class Noting:
    """A constant schedule that notes where it was asked."""

    def __call__(self, fraction: float) -> float:
        ASKED.append(fraction)
        return 1.0


def test_a_workloads_schedule_is_followed_over_the_whole_run() -> None:
    ASKED.clear()
    probe(near(schedule=Noting()), steps=20)
    assert pytest.approx([step / 938 for step in range(20)]) == ASKED


def test_progress_is_told_after_each_step() -> None:
    told: list[tuple[int, int]] = []
    probe(near(), steps=20, progress=lambda done, total: told.append((done, total)))
    assert told == [(step, 20) for step in range(1, 21)]
