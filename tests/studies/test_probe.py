"""The probe of a user's own run: it checks the run, and leaves no trace in it."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from blobs import Batch, blobs, classifier, cross_entropy
from largebatch.checks.data import compare_ranks
from largebatch.checks.samples import CutBatches, repeated
from largebatch.checks.snapshot import copy_run
from largebatch.studies.probe import probe

# The checks


def test_a_sum_instead_of_a_mean_is_refused_with_the_remedy() -> None:
    def total(model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    model = classifier(dropout=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(ValueError, match=r"it is a sum\.[\s\S]*reduction='mean'"):
        probe(model, optimizer, total, blobs(), base_batch_size=32, steps=20)
    assert model.training
    assert model[2].training


def test_a_loss_that_depends_on_its_neighbours_is_reported() -> None:
    def contrast(model: nn.Module, batch: Batch) -> Tensor:
        z = model(batch[0])
        return torch.logsumexp(z @ z.T, dim=1).mean()

    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    found = probe(model, optimizer, contrast, blobs(), base_batch_size=32, steps=4)
    (mean,) = [finding for finding in found.checks if finding.name == "mean loss"]
    assert mean.level == "warning"
    assert "depends on which samples are in one micro-batch" in mean.seen


def test_the_model_is_described() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 6))
    model[3].weight = model[0].weight
    model[3].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found = probe(model, optimizer, cross_entropy, blobs(), base_batch_size=32, steps=4)
    by_name = {finding.name: finding for finding in found.checks}
    assert by_name["batch normalization"].level == "warning"
    assert "1 batch normalization layer(s)" in by_name["batch normalization"].seen
    assert "of 8 samples, but the base batch size is 32" in by_name["batch normalization"].seen
    assert "dropout with probability 0.3" in by_name["dropout"].seen
    assert by_name["frozen parameters"].seen.endswith(": 3.bias.")
    assert by_name["tied parameters"].seen.startswith("1 parameters are tied")


def test_a_plain_model_has_nothing_to_look_at_but_its_mode() -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found = probe(model, optimizer, cross_entropy, blobs(), base_batch_size=32, steps=4)
    assert {finding.level for finding in found.checks} == {"ok"}
    model.eval()
    found = probe(model, optimizer, cross_entropy, blobs(), base_batch_size=32, steps=4)
    (mode,) = [finding for finding in found.checks if finding.level != "ok"]
    assert (mode.name, mode.level) == ("training mode", "warning")


def test_a_loss_that_takes_no_pieces_is_still_probed() -> None:
    """Whether the loss is a mean is then not known, which is a note."""

    def whole_only(model: nn.Module, batch: Batch) -> Tensor:
        assert len(batch[0]) == 8
        return cross_entropy(model, batch)

    model = classifier(dropout=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found = probe(model, optimizer, whole_only, blobs(), base_batch_size=32, steps=4)
    assert found.steps == 4
    (mean,) = [finding for finding in found.checks if finding.name == "mean loss"]
    assert mean.level == "note"
    assert "AssertionError" in mean.seen


def test_unused_parameters_are_named() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found = probe(model, optimizer, cross_entropy, blobs(), base_batch_size=32, steps=20)
    (unused,) = [finding for finding in found.checks if finding.name == "unused parameters"]
    assert unused.level == "warning"
    assert "2 of 4 trainable parameters get no gradient" in unused.seen
    assert "spare.weight, spare.bias" in unused.seen
    assert [block.noise_share for block in found.blocks] == [1.0, 0.0]


def test_repeated_data_is_counted() -> None:
    assert compare_ranks([{"micro-batches": [1, 2, 3]}]) == []
    (finding,) = compare_ranks([{"micro-batches": [1, 2, 1]}])
    assert finding.level == "error"
    assert "1 of the first 3" in finding.seen


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
    found = probe(model, optimizer, cross_entropy, loader, base_batch_size=32, steps=60)
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


def test_the_optimizers_copy_moves_the_models_copy_with_its_own_momentum() -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    cross_entropy(model, blobs()).backward()
    optimizer.step()
    twin, twin_optimizer = copy_run(model, optimizer)
    assert all(a is b for a, b in zip(
        twin_optimizer.param_groups[0]["params"], twin.parameters(), strict=True
    ))  # fmt: skip
    assert all(p.grad is None for p in twin.parameters())
    mine, its = optimizer.state[model[0].weight], twin_optimizer.state[twin[0].weight]
    assert torch.equal(mine["momentum_buffer"], its["momentum_buffer"])
    assert mine["momentum_buffer"] is not its["momentum_buffer"]


def test_a_loaders_batches_are_cut_and_everything_in_them_goes_along() -> None:
    batch = {"x": torch.arange(5), "names": list("abcde"), "pair": (torch.ones(5, 2), 7)}
    pieces = list(CutBatches([batch], size=2))
    assert [piece["x"].tolist() for piece in pieces] == [[0, 1], [2, 3], [4]]
    assert [piece["names"] for piece in pieces] == [["a", "b"], ["c", "d"], ["e"]]
    assert pieces[2]["pair"][0].shape == (1, 2)
    assert pieces[2]["pair"][1] == 7
    assert repeated(batch)["names"] == list("abcdeabcde")


# What is shown


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
    found = probe(
        model, optimizer, cross_entropy, (words, words % 3), base_batch_size=32, steps=200
    )
    assert found.adam
    assert not found.preconditioned
    assert "rows of an embedding" in str(found)
    assert "lb.SqrtScaling()" in str(found)
    assert "adascale_adam" not in str(found)
    assert "forecast" not in str(found)
