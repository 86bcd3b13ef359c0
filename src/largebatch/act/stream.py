"""Map positions of the sample stream to indices of the data set, the same on every rank.

    stream = perm_0, perm_1, perm_2, ...      perm_e a permutation of the N samples by (seed, e)

A position counts samples from the start of the run. One integer therefore describes the position of
a run in its data. A batch may cross the end of an epoch, and the order of the samples does not
depend on the batch sizes.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def seed_of(purpose: str, seed: int, number: int) -> int:
    """Return a 64-bit seed for one epoch or one position, unrelated to the seeds of its neighbors.

    >>> seed_of("epoch", 0, 1) == seed_of("epoch", 0, 1) != seed_of("epoch", 1, 0)
    True

    Args:
        purpose: Text that separates the seeds of different uses.
        seed: Seed of the run.
        number: Number of the epoch or of the position.
    """
    key = f"{purpose} {seed} {number}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


class SampleStream:
    """Return the indices of the endless stream at any position.

    >>> SampleStream(3, shuffle=False).indices(2, 5).tolist()
    [2, 0, 1, 2, 0]

    This class is mutable: it keeps the permutations of the two epochs that were read last.

    Args:
        size: Number of samples in one epoch, N, at least 1.
        seed: Seed of the permutations.
        shuffle: Whether each epoch has its own permutation; otherwise every epoch is 0, 1, ... N-1.
        members: `[N]` int64 tensor with the index of each sample in the data set (for a subset);
            None for 0 ... N-1.
        device: Device of the returned indices. Permutations are drawn on the CPU, so they do not
            depend on the device.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        members: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.size = size
        self._seed = seed
        self._shuffle = shuffle
        self._members = members
        self._device = device
        self._epochs: dict[int, Tensor] = {}

    def indices(self, position: int, count: int) -> Tensor:
        """Return the `[count]` int64 indices of the samples at position, position + 1, ... of the
        stream.
        """
        epoch, start = divmod(position, self.size)
        stop = start + count
        if stop <= self.size:
            return self._epoch(epoch)[start:stop]
        pieces = [self._epoch(epoch)[start:]]
        left = stop - self.size
        while left > 0:
            epoch += 1
            pieces.append(self._epoch(epoch)[:left])
            left -= self.size
        return torch.cat(pieces)

    def _epoch(self, epoch: int) -> Tensor:
        if not self._shuffle:
            epoch = 0  # without shuffling, all epochs are the same
        order = self._epochs.get(epoch)
        if order is None:
            order = self._drawn(epoch)
            while len(self._epochs) > 1:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = order
        return order

    def _drawn(self, epoch: int) -> Tensor:
        if self._shuffle:
            generator = torch.Generator().manual_seed(seed_of("epoch", self._seed, epoch))
            order = torch.randperm(self.size, generator=generator)
        else:
            order = torch.arange(self.size)
        if self._members is not None:
            order = self._members[order]
        return order.to(self._device) if self._device is not None else order
