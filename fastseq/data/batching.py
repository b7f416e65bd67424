"""Sequences of tokens in memory, batches of them by their number of tokens, and padding."""

from array import array
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

# Sentences are sorted by length within shuffled pools of this many.
POOL = 4096


class Sequences:
    """Many sequences of tokens, one after the other in one int32 tensor.

    ``sequences[i]`` is an int32 tensor, a view; ``lengths`` (n,) int64.
    """

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        flat, ends = array("i"), array("q", [0])
        for sequence in sequences:
            flat.extend(sequence)
            ends.append(len(flat))
        self.flat = torch.frombuffer(flat, dtype=torch.int32) if flat else torch.empty(0).int()
        self.ends = torch.frombuffer(ends, dtype=torch.int64)
        self.lengths = self.ends.diff()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> Tensor:
        return self.flat[self.ends[i] : self.ends[i + 1]]

    def rows(
        self, indices: Sequence[int], skip_first: int = 0, skip_last: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Some sequences one after the other, without so many tokens at their ends.

        Returns:
            The tokens (N,) int64, and the lengths (B,) int64.
        """
        chosen = torch.tensor(indices)
        lengths = self.lengths[chosen] - skip_first - skip_last
        shift = self.ends[chosen] + skip_first - (lengths.cumsum(0) - lengths)
        at = torch.arange(int(lengths.sum())) + shift.repeat_interleave(lengths)
        return self.flat[at].long(), lengths


def generator(*numbers: int) -> torch.Generator:
    """A generator whose numbers follow from ``numbers`` alone, so that nothing need be kept to go
    on where a run was broken off."""
    return torch.Generator().manual_seed(mix(*numbers))


def mix(*numbers: int) -> int:
    """One seed from several numbers (the finaliser of SplitMix64, once a number)."""
    state, mask = 0, 2**64 - 1
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1  # manual_seed takes what fits an int64


def token_batches(
    lengths: Tensor, max_tokens: int, shuffle: tuple[int, int] | None = None
) -> list[list[int]]:
    """All sequences in batches of at most ``max_tokens`` tokens, of like lengths together.

    Args:
        lengths: (n,) tokens of each; a longer one than ``max_tokens`` is a batch of its own.
        shuffle: (seed, epoch), from which the order follows; None keeps batches of rising length.

    Returns:
        The batches of an epoch, each the indices of its sequences.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens should be at least 1, got {max_tokens}")
    count = len(lengths)
    rng = None if shuffle is None else generator(*shuffle)
    order = torch.arange(count) if rng is None else torch.randperm(count, generator=rng)
    batches: list[list[int]] = []
    for pool in order.split(POOL if rng is not None else max(count, 1)):
        pool = pool[lengths[pool].argsort(stable=True)]
        batch: list[int] = []
        tokens = 0
        for index, length in zip(pool.tolist(), lengths[pool].tolist()):
            if batch and tokens + length > max_tokens:
                batches.append(batch)
                batch, tokens = [], 0
            batch.append(index)
            tokens += length
        if batch:
            batches.append(batch)
    if rng is None:
        return batches
    return [batches[i] for i in torch.randperm(len(batches), generator=rng).tolist()]


def pad(sequences: Sequence[Tensor], pad_id: int) -> tuple[Tensor, Tensor]:
    """Sequences side by side: tokens (B, T) int64, padded at the right, and lengths (B,) int64."""
    lengths = torch.tensor([len(s) for s in sequences])
    return pad_rows(torch.cat(list(sequences)).long(), lengths, pad_id), lengths


def pad_rows(rows: Tensor, lengths: Tensor, pad_id: int) -> Tensor:
    """Sequences one after the other (N,), with their lengths (B,), side by side: (B, T)."""
    steps = int(lengths.max())
    tokens = torch.full((len(lengths), steps), pad_id)
    tokens[torch.arange(steps) < lengths[:, None]] = rows
    return tokens
