"""Compute the examples' gradients of embeddings; an example may contain a word several times."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from largebatch.measure.examples.layer import Piece, PlainLayer, SavedTensors, examples_at_once
from largebatch.measure.squares import squared_norm


class EmbeddingLayer(PlainLayer):
    """Add up the gradients of an `nn.Embedding`'s output over equal pairs (example, word)."""

    def sqnorm(
        self,
        module: nn.Embedding,
        names: Collection[str],
        kept: SavedTensors,
        delta: Tensor,
        rows: int,
    ) -> list[Tensor] | None:
        return [squared_norm(_by_pair(module, kept, delta, rows)[0])]

    def squares(
        self,
        module: nn.Embedding,
        names: Collection[str],
        kept: SavedTensors,
        delta: Tensor,
        rows: int,
    ) -> dict[str, Tensor] | None:
        sums, words = _by_pair(module, kept, delta, rows)
        found = torch.zeros_like(module.weight, dtype=sums.dtype)
        return {"weight": found.index_add_(0, words, sums.square_())}

    def pieces(
        self,
        module: nn.Embedding,
        names: Collection[str],
        kept: SavedTensors,
        delta: Tensor,
        rows: int,
    ) -> Iterator[Piece]:
        words, delta = _flat(module, kept, delta)
        words, delta = words.view(rows, -1), delta.view(rows, -1, delta.shape[-1])
        step = examples_at_once(rows, elements=module.weight.numel(), like=delta)
        for ids, d in zip(words.split(step), delta.split(step), strict=True):
            found = d.new_zeros(len(ids), *module.weight.shape)
            example = torch.arange(len(ids), device=ids.device).unsqueeze(1)
            yield "weight", found.index_put_((example, ids), d, accumulate=True)

    def along(
        self, module: nn.Embedding, values: dict[str, Tensor], kept: SavedTensors
    ) -> Tensor | None:
        return embedding(kept[0], values["weight"]) if values else None


def _flat(module: nn.Embedding, kept: SavedTensors, delta: Tensor) -> tuple[Tensor, Tensor]:
    words = kept[0].reshape(-1).long()
    delta = delta.reshape(len(words), -1)
    if module.padding_idx is not None:  # the padding word gets no gradient
        delta = delta * (words != module.padding_idx).unsqueeze(1)
    return words, delta


def _by_pair(
    module: nn.Embedding, kept: SavedTensors, delta: Tensor, rows: int
) -> tuple[Tensor, Tensor]:
    """Return sums of the output's gradient over equal pairs (example, word), and each sum's word.

    Some sums are empty, because the number of sums must be known without a host sync.
    """
    words, delta = _flat(module, kept, delta)
    example = torch.arange(rows, device=words.device).repeat_interleave(len(words) // rows)
    pairs, order = torch.sort(example * module.num_embeddings + words)
    begins = pairs[1:] != pairs[:-1]
    sorted_place = torch.nn.functional.pad(begins.cumsum(0), (1, 0))
    place = torch.empty_like(order).scatter_(0, order, sorted_place)
    sums = torch.zeros_like(delta).index_add_(0, place, delta)
    return sums, torch.zeros_like(words).scatter_(0, place, words)
