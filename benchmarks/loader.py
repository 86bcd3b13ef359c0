"""What `BatchLoader` costs a micro-batch, against a hand-written index loop and a DataLoader.

    python benchmarks/loader.py [--rounds 31] [--samples 20000] [--features 784]

Each round times one epoch of every loader in turn, in a new random order, so that a slow spell of
the machine falls on all of them. Printed are the median and the quartiles over rounds of the ratio
to the hand loop of the same round, and of the microseconds added a micro-batch; "hand loop again"
is the null.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from largebatch.act.loader import BatchLoader

Epoch = Callable[[], None]


class Items(Dataset[tuple[Tensor, Tensor]]):
    """The same samples read one at a time."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


def hand_loop(x: Tensor, y: Tensor, micro: int) -> Epoch:
    """A permutation an epoch, sliced and indexed."""

    def epoch() -> None:
        order = torch.randperm(len(x))
        for start in range(0, len(x), micro):
            indices = order[start : start + micro]
            _ = x[indices], y[indices]

    return epoch


def selecting_loop(x: Tensor, y: Tensor, micro: int) -> Epoch:
    """The hand loop with `index_select`, which `BatchLoader` uses too."""

    def epoch() -> None:
        order = torch.randperm(len(x))
        for start in range(0, len(x), micro):
            indices = order[start : start + micro]
            _ = x.index_select(0, indices), y.index_select(0, indices)

    return epoch


def data_loader(dataset: Dataset[tuple[Tensor, ...]], micro: int) -> Epoch:
    loader = DataLoader(dataset, batch_size=micro, shuffle=True)

    def epoch() -> None:
        for _ in loader:
            pass

    return epoch


def batch_loader(source: object, micro: int, *, accumulation: int, **options: bool) -> Epoch:
    """One epoch of whole steps, with `next_step` and `commit`."""
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


def paired(loaders: dict[str, Epoch], *, rounds: int) -> Iterator[dict[str, float]]:
    """Seconds of an epoch of each loader, round by round, after one warm-up."""
    for number in range(rounds + 1):
        seconds = {}
        for name in random.sample(list(loaders), len(loaders)):
            start = time.perf_counter()
            loaders[name]()
            seconds[name] = time.perf_counter() - start
        if number:
            yield seconds


def report(title: str, loaders: dict[str, Epoch], *, rounds: int, micro_batches: int) -> None:
    timed = list(paired(loaders, rounds=rounds))
    base = next(iter(loaders))
    print(
        f"\n{title}: {base} {statistics.median(s[base] for s in timed) / micro_batches * 1e6:.1f}"
    )
    print(f"  {'':38}{'ratio':>7} {'quartiles':>15} {'us added':>10} {'quartiles':>15}")
    for name in list(loaders)[1:]:
        ratios = [s[name] / s[base] for s in timed]
        added = [(s[name] - s[base]) / micro_batches * 1e6 for s in timed]
        low, middle, high = statistics.quantiles(ratios, n=4)
        low_us, middle_us, high_us = statistics.quantiles(added, n=4)
        spread, spread_us = f"{low:.3f}-{high:.3f}", f"{low_us:.1f}..{high_us:.1f}"
        print(f"  {name:38}{middle:7.3f} {spread:>15} {middle_us:10.2f} {spread_us:>15}")


def main() -> None:
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
            "hand loop, us a micro-batch": hand_loop(x, y, micro),
            "hand loop again": hand_loop(x, y, micro),
            "hand loop with index_select": selecting_loop(x, y, micro),
            "BatchLoader, 1 micro-batch a step": batch_loader((x, y), micro, accumulation=1),
            "BatchLoader, 4 micro-batches a step": batch_loader((x, y), micro, accumulation=4),
        }
        if micro == 256:
            loaders["DataLoader over TensorDataset"] = data_loader(TensorDataset(x, y), micro)
        title = f"tensors, micro-batch {micro}"
        report(title, loaders, rounds=rounds, micro_batches=-(-samples // micro))
    few = max(samples // 10, 64)
    items = Items(x[:few], y[:few])
    report(
        "item by item, micro-batch 64",
        {
            "DataLoader, us a micro-batch": data_loader(items, 64),
            "DataLoader again": data_loader(items, 64),
            "BatchLoader, samples not seeded": batch_loader(
                items, 64, accumulation=1, seed_samples=False
            ),
            "BatchLoader": batch_loader(items, 64, accumulation=1),
        },
        rounds=rounds,
        micro_batches=-(-few // 64),
    )


if __name__ == "__main__":
    main()
