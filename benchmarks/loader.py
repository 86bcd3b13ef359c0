"""Compare the time of a micro-batch from `BatchLoader`, a hand-written loop and torch's DataLoader.

    python benchmarks/loader.py [--rounds 31] [--samples 20000] [--features 784]

Each timed run is one epoch. The data are either tensors in memory, or a data set that returns one
sample at a time.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from _timing import Run, interleave
from largebatch.act.loader import BatchLoader


class Items(Dataset[tuple[Tensor, Tensor]]):
    """Return the same samples one at a time."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


def hand_loop(x: Tensor, y: Tensor, micro: int) -> Run:
    """Return an epoch of a hand-written loop that indexes the tensors with a sliced permutation."""

    def epoch() -> None:
        order = torch.randperm(len(x))
        for start in range(0, len(x), micro):
            indices = order[start : start + micro]
            _ = x[indices], y[indices]

    return epoch


def selecting_loop(x: Tensor, y: Tensor, micro: int) -> Run:
    """Return an epoch of a hand-written loop with `index_select`, which `BatchLoader` also uses."""

    def epoch() -> None:
        order = torch.randperm(len(x))
        for start in range(0, len(x), micro):
            indices = order[start : start + micro]
            _ = x.index_select(0, indices), y.index_select(0, indices)

    return epoch


def data_loader(dataset: Dataset[tuple[Tensor, ...]], micro: int) -> Run:
    """Return an epoch of torch's DataLoader."""
    loader = DataLoader(dataset, batch_size=micro, shuffle=True)

    def epoch() -> None:
        for _ in loader:
            pass

    return epoch


def batch_loader(source: object, micro: int, *, accumulation: int, **options: bool) -> Run:
    """Return an epoch of `BatchLoader`, with `next_step` and `commit`."""
    loader = BatchLoader(
        source,  # type: ignore[arg-type]
        batch_size=micro * accumulation,
        max_micro_batch_size=micro,
        **options,  # type: ignore[arg-type]
    )
    loader.bind(rank=0, ranks=1, least_parts=1)

    def epoch() -> None:
        end = loader.position + (loader.dataset_size or 0)
        while loader.position < end:
            step = loader.next_step(limit=end - loader.position)
            assert step is not None
            for _ in step:
                pass
            loader.commit(step.batch_size)

    return epoch


def main() -> None:
    """Print a table for each micro-batch size, and one for a data set of single samples."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=784)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    samples, rounds = arguments.samples, arguments.rounds
    x, y = torch.randn(samples, arguments.features), torch.randint(0, 10, (samples,))
    for micro in (16, 64, 256):
        loaders = {
            "hand loop": hand_loop(x, y, micro),
            "null": hand_loop(x, y, micro),
            "hand loop, index_select": selecting_loop(x, y, micro),
            "BatchLoader, 1 per step": batch_loader((x, y), micro, accumulation=1),
            "BatchLoader, 4 per step": batch_loader((x, y), micro, accumulation=4),
        }
        if micro == 256:
            loaders["DataLoader, TensorDataset"] = data_loader(TensorDataset(x, y), micro)
        times = interleave(loaders, rounds=rounds, warmup=1)
        title, per = f"tensors, micro-batch {micro}", -(-samples // micro)
        print(times.table(title, to="hand loop", per=per, unit="micro-batch"))
    few = max(samples // 10, 64)
    items = Items(x[:few], y[:few])
    loaders = {
        "DataLoader": data_loader(items, 64),
        "null": data_loader(items, 64),
        "BatchLoader, not seeded": batch_loader(items, 64, accumulation=1, seed_samples=False),
        "BatchLoader": batch_loader(items, 64, accumulation=1),
    }
    times = interleave(loaders, rounds=rounds, warmup=1)
    title = "one sample at a time, micro-batch 64"
    print(times.table(title, to="DataLoader", per=-(-few // 64), unit="micro-batch"))


if __name__ == "__main__":
    main()
