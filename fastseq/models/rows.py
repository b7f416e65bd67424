"""Sequences of a padded batch, one after the other: rows, without the padding."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Where the tokens of right-padded sequences (B, T) stand among the rows (N, …).

    at: (N,) int64, of the flattened batch. positions: (N,) int64, of each token in its sequence.
    bounds: (B+1,) int32, where each sequence starts, and the total. longest: its tokens.
    """

    at: Tensor
    positions: Tensor
    bounds: Tensor
    longest: int
    shape: tuple[int, int]

    @classmethod
    def of(cls, lengths: Tensor, steps: int, name: str = "lengths") -> "Rows":
        """From the lengths (B,) of sequences padded to ``steps``.

        Raises:
            TypeError, ValueError: ``name`` is not one-dimensional of integers from 1 to ``steps``.
        """
        if lengths.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name} should be of integers, got {lengths.dtype}")
        if lengths.dim() != 1 or not len(lengths):
            raise ValueError(f"{name} should have shape (B,), got {tuple(lengths.shape)}")
        shortest, longest = (int(x) for x in torch.aminmax(lengths))
        if shortest < 1 or longest > steps:
            raise ValueError(f"{name} should be from 1 to {steps}, got {shortest} to {longest}")
        time = torch.arange(steps, device=lengths.device)
        at = (time < lengths[:, None]).flatten().nonzero().squeeze(1)
        bounds = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        return cls(at, at % steps, bounds, longest, (len(lengths), steps))

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, …) to (N, …)."""
        return x.flatten(0, 1).index_select(0, self.at)

    def unpack(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """(N, …) to (B, T, …), with ``fill`` at padding."""
        batch, steps = self.shape
        padded = rows.new_full((batch * steps, *rows.shape[1:]), fill)
        return padded.index_copy(0, self.at, rows).unflatten(0, (batch, steps))


def pack(x: Tensor, lengths: Tensor) -> Tensor:
    """Right-padded sequences (B, T, …) as rows (N, …), sentence after sentence.

    Args:
        lengths: (B,) integers from 1 to T.
    """
    if x.dim() < 2 or x.shape[0] != lengths.shape[0]:
        raise ValueError(
            f"x should be ({lengths.shape[0]}, T, …) as lengths has it, got {tuple(x.shape)}"
        )
    return Rows.of(lengths, x.shape[1]).pack(x)


def unpack(rows: Tensor, lengths: Tensor) -> Tensor:
    """What ``pack`` undoes: rows (N, …) to (B, T, …), T the longest, with zeros at padding."""
    if int(lengths.sum()) != rows.shape[0]:
        raise ValueError(
            f"rows should be {int(lengths.sum())}, the sum of lengths, got {rows.shape[0]}"
        )
    return Rows.of(lengths, int(lengths.max())).unpack(rows)


def token_rows(
    tokens: Tensor, lengths: Tensor, name: str, vocab_size: int, max_length: int | None = None
) -> Rows:
    """``Rows.of`` for token ids (B, T), which it checks.

    Raises:
        TypeError, ValueError: a type or shape does not fit, an id is none of the vocabulary, or a
            sequence is over ``max_length``.
    """
    check_tokens(tokens, name)
    of_lengths = "lengths" if name == "tokens" else f"{name}_lengths"
    if lengths.shape != tokens.shape[:1]:
        raise ValueError(
            f"{of_lengths} should have shape ({len(tokens)},) as {name} is "
            f"{tuple(tokens.shape)}, got {tuple(lengths.shape)}"
        )
    rows = Rows.of(lengths, tokens.shape[1], of_lengths)
    least, most = (int(x) for x in torch.aminmax(tokens))
    if least < 0 or most >= vocab_size:
        raise ValueError(
            f"{name} should have ids from 0 to {vocab_size - 1}, as the vocabulary has "
            f"{vocab_size}, got {least} to {most}"
        )
    if max_length is not None and rows.longest > max_length:
        raise ValueError(
            f"{name} has a sequence of {rows.longest} tokens, the model's max_length is "
            f"{max_length}"
        )
    return rows


def check_tokens(tokens: Tensor, name: str) -> None:
    if tokens.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} should be of integers, got {tokens.dtype}")
    if tokens.dim() != 2:
        raise ValueError(f"{name} should have shape (B, T), got {tuple(tokens.shape)}")


def check_batch(source: Tensor, target: Tensor) -> None:
    if len(source) != len(target):
        raise ValueError(f"target should have source's batch {len(source)}, got {len(target)}")
