"""Blocks of running text for language models."""

import torch
from torch import Tensor

from .batching import Sequences, generator
from .pretraining import IGNORED


class Blocks:
    """Documents one after the other, each begun by ``bos`` and ended by ``eos``, cut into blocks.

    A block's labels are its tokens shifted by one; of a document's beginning, which is no
    prediction, the label is IGNORED.

    Args:
        documents: token lists. length: tokens that a block reads.

    Raises:
        ValueError: there is less text than one token to predict.
    """

    def __init__(self, documents: list[list[int]], length: int, bos_id: int, eos_id: int) -> None:
        self.text = Sequences([bos_id, *d, eos_id] for d in documents).flat
        if len(self.text) < 2:
            raise ValueError("there is no text")
        self.length, self.bos_id = length, bos_id

    def starts(self, shuffle: tuple[int, int] | None = None) -> Tensor:
        """Where the blocks of an epoch start: a shift that follows from (seed, epoch), then at
        every ``length``. None: from the first token on, so that all text is read once."""
        shift = 0
        if shuffle is not None and len(self.text) > 2 * self.length:
            shift = int(torch.randint(self.length, (), generator=generator(*shuffle)))
        return torch.arange(shift, len(self.text) - 1, self.length)

    def lengths(self, starts: Tensor) -> Tensor:
        """Tokens that each block reads: ``length``, fewer in the last."""
        return (len(self.text) - 1 - starts).clamp(max=self.length)

    def block(self, start: int) -> tuple[Tensor, Tensor]:
        """Tokens and labels (length,) int64 of the block that starts there."""
        piece = self.text[start : start + self.length + 1].long()
        labels = piece[1:].clone()
        labels[labels == self.bos_id] = IGNORED
        return piece[:-1], labels
