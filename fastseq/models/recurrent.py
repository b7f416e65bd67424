"""What a recurrent decoder keeps between steps."""

import torch
from torch import Tensor

from ..nn import AdditiveAttention
from .cache import check_rows, check_step

States = list[tuple[Tensor, ...]]  # (h,) or, of an LSTM, (h, c) of each layer, (B, H)


class RecurrentMemory:
    """The encoder's outputs, and their projection where the attention has one.

    Args:
        outputs: (B, S, H); lengths: (B,).
    """

    def __init__(self, outputs: Tensor, lengths: Tensor, attention: torch.nn.Module) -> None:
        self._attention = attention
        self.outputs = outputs
        self.padding = torch.arange(outputs.shape[1], device=lengths.device) >= lengths[:, None]
        self.projected: Tensor | None = None
        if isinstance(attention, AdditiveAttention):
            self.projected = attention.project_keys(outputs)
        self._sentence = torch.arange(len(lengths), device=lengths.device)

    def attend(self, query: Tensor, need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """Context (B, T, H) of each query (B, T, H), and the weights (B, T, S) if asked for."""
        given = {} if self.projected is None else {"projected_keys": self.projected}
        return self._attention(
            query, self.outputs, None, self.padding, need_weights=need_weights, **given
        )

    def select(self, rows: Tensor) -> None:
        sentence = self._sentence.index_select(0, rows)
        if torch.equal(sentence, self._sentence):
            return  # hypotheses of one sentence changed places
        self._sentence = sentence
        self.outputs = self.outputs.index_select(0, rows)
        self.padding = self.padding.index_select(0, rows)
        if self.projected is not None:
            self.projected = self.projected.index_select(0, rows)


class RecurrentState:
    """Decoding state of Seq2Seq.

    Args:
        states: what the decoder starts from.
        memory: None without attention.
        max_length: how many tokens of each sequence it may come to hold.
    """

    def __init__(self, states: States, memory: RecurrentMemory | None, max_length: int) -> None:
        if max_length < 1:
            raise ValueError(f"max_length should be greater than zero, got {max_length}")
        self.memory, self.max_length = memory, max_length
        self._first = states
        self.rewind()

    def rewind(self) -> None:
        """Forgets all tokens, but not the source."""
        self.length = 0
        self.states = self._first
        self.read: Tensor | None = None  # (B, H), what the output projection read last
        self.attention: Tensor | None = None  # (B, S), weights of the last token on the source

    def select(self, rows: Tensor) -> None:
        """Keeps, reorders or repeats sequences: sequence i becomes what rows[i] was."""
        check_rows(rows, self.batch)

        def chosen(states: States) -> States:
            return [tuple(x.index_select(0, rows) for x in layer) for layer in states]

        started = self.states is not self._first
        self._first = chosen(self._first)
        self.states = chosen(self.states) if started else self._first
        if self.read is not None:
            self.read = self.read.index_select(0, rows)
        if self.attention is not None:
            self.attention = self.attention.index_select(0, rows)
        if self.memory is not None:
            self.memory.select(rows)

    @property
    def batch(self) -> int:
        return len(self._first[0][0])

    def check(self, tokens: Tensor) -> None:
        """That tokens (B, t) fit."""
        check_step(tokens, self.batch, self.length, self.max_length)
