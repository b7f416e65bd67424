"""Recurrent encoder-decoders: from the fixed context vector to attention.

Sutskever et al. 2014 (arXiv 1409.3215): the decoder starts from the encoder's last state and sees
nothing else of the source. Bahdanau et al. 2015 (arXiv 1409.0473) and Luong et al. 2015 (arXiv
1508.04025): it also looks at all of the encoder's outputs, h~ = tanh(W·[context; h]).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import ModuleList

from .. import nn
from ..ops.rnn_cell import is_plain, rnn_cell
from .base import Model, at_least_float
from .config import Config
from .dropout import Dropout, dropout
from .layers import Linear
from .recurrent import RecurrentMemory, RecurrentState, States
from .rows import check_batch, token_rows

_CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


@dataclass(kw_only=True)
class Seq2SeqConfig(Config):
    """Configuration of ``Seq2Seq``.

    Args:
        vocab_size: of the target; source_vocab_size: of the source, the same if None.
        cell: of encoder and decoder.
        embedding_size: width of a word's vector.
        hidden_size: width of the decoder's state and of an encoder's output; the two directions
            have half of it each.
        num_layers: of the encoder, and of the decoder.
        bidirectional: whether the encoder reads both ways.
        attention: None for a fixed context vector; "additive" (Bahdanau), "dot" or "general"
            (Luong).
        input_feeding: the decoder also reads its last h~ (Luong, section 3.3). Steps then wait for
            one another in training too.
        dropout: of embeddings, between layers, and of what the output projection reads.
        share_embeddings: source and target have one table.
        tie_embeddings: the output projection is the target's embedding.
    """

    cell: Literal["rnn", "lstm", "gru"] = "lstm"
    source_vocab_size: int | None = None
    embedding_size: int = 256
    hidden_size: int = 256
    num_layers: int = 2
    bidirectional: bool = True
    attention: Literal["additive", "dot", "general"] | None = "additive"
    input_feeding: bool = False
    dropout: float = 0.2
    share_embeddings: bool = False
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bidirectional and self.hidden_size % 2:
            raise ValueError(
                f"hidden_size should be even with bidirectional, got {self.hidden_size}"
            )
        if self.input_feeding and self.attention is None:
            raise ValueError("input_feeding needs attention, got attention=None")
        if self.tie_embeddings and self.embedding_size != self.hidden_size:
            raise ValueError(
                f"tie_embeddings needs embedding_size to be hidden_size {self.hidden_size}, got "
                f"{self.embedding_size}"
            )
        if self.share_embeddings and self.source_vocab_size not in (None, self.vocab_size):
            raise ValueError(
                f"share_embeddings needs source_vocab_size to be vocab_size {self.vocab_size}, "
                f"got {self.source_vocab_size}"
            )


class Seq2Seq(Model):
    """Recurrent encoder-decoder for translation, with or without attention.

    A bidirectional encoder's last states reach the decoder's layers of the same height through a
    linear bridge, with tanh but for an LSTM's cell; a unidirectional encoder's as they are.

    Initial values are torch's for recurrent and linear layers, those of
    ``fastseq.AdditiveAttention`` and ``GeneralAttention`` for attention, and embeddings uniform
    within ±0.1.
    """

    config_class = Seq2SeqConfig
    model_type = "fastseq-seq2seq"
    config: Seq2SeqConfig

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config)
        width, directions = config.hidden_size, 2 if config.bidirectional else 1
        source_vocab = config.source_vocab_size or config.vocab_size
        self.source_embedding = torch.nn.Embedding(source_vocab, config.embedding_size)
        self.target_embedding = (
            self.source_embedding
            if config.share_embeddings
            else torch.nn.Embedding(config.vocab_size, config.embedding_size)
        )
        between = config.dropout if config.num_layers > 1 else 0.0
        layer = _CELLS[config.cell]
        self.encoder = layer(
            config.embedding_size, width // directions, config.num_layers,
            batch_first=True, dropout=between, bidirectional=config.bidirectional,
        )  # fmt: skip
        states = 2 if config.cell == "lstm" else 1
        bridges = config.num_layers * states if config.bidirectional else 0
        self.bridge = ModuleList(Linear(width, width) for _ in range(bridges))
        fed = width if config.input_feeding else 0
        self.decoder = layer(
            config.embedding_size + fed, width, config.num_layers,
            batch_first=True, dropout=between,
        )  # fmt: skip
        self.attention: torch.nn.Module | None = None
        if config.attention == "additive":
            self.attention = nn.AdditiveAttention(width, width, width)
        elif config.attention == "dot":
            self.attention = nn.DotAttention()
        elif config.attention == "general":
            self.attention = nn.GeneralAttention(width, width)
        self.combine = Linear(2 * width, width, bias=False) if config.attention else None
        self.output = Linear(width, config.vocab_size)
        self.dropout = Dropout(config.dropout)
        for embedding in (self.source_embedding, self.target_embedding):
            torch.nn.init.uniform_(embedding.weight, -0.1, 0.1)
        if config.tie_embeddings:
            self.output.weight = self.target_embedding.weight

    def forward(
        self,
        source: Tensor,
        source_lengths: Tensor,
        target: Tensor,
        target_lengths: Tensor,
        teacher_forcing: float = 1.0,
    ) -> Tensor:
        """Logits of the word after each target word.

        Args:
            source: (B, S) token ids, right-padded; source_lengths: (B,).
            target: (B, T), the decoder's input: bos and the words; target_lengths: (B,).
            teacher_forcing: how often, word by word, the decoder reads the target's word and not
                the one that it finds likeliest itself (Bengio et al., arXiv 1506.03099).

        Returns:
            (N, vocab_size) rows, N the sum of target_lengths, sentence after sentence.

        Raises:
            TypeError, ValueError: types or shapes do not fit.
        """
        if not 0 <= teacher_forcing <= 1:
            raise ValueError(f"teacher_forcing should be from 0 to 1, got {teacher_forcing}")
        rows = token_rows(target, target_lengths, "target", self.config.vocab_size)
        check_batch(source, target)
        memory, states = self.encode(source, source_lengths)
        if self.config.input_feeding or teacher_forcing < 1:
            state = RecurrentState(states, memory, target.shape[1])
            return self.output(
                self.dropout(rows.pack(self._unroll(target, state, teacher_forcing)))
            )
        x = self.dropout(self.target_embedding(target))  # (B, T, E)
        hidden, _ = self.decoder(x, _stacked(states), lengths=target_lengths)  # (B, T, H)
        read = rows.pack(hidden)  # (N, H)
        if memory is not None:
            context, _ = memory.attend(hidden)
            read = self._combine(rows.pack(context), read)
        return self.output(self.dropout(read))

    def encode(
        self, source: Tensor, source_lengths: Tensor
    ) -> tuple[RecurrentMemory | None, States]:
        """What attention looks at, and the decoder's first states, layer by layer."""
        token_rows(source, source_lengths, "source", self.source_embedding.num_embeddings)
        x = self.dropout(self.source_embedding(source))  # (B, S, E)
        outputs, last = self.encoder(x, lengths=source_lengths)
        kinds = last if isinstance(last, tuple) else (last,)  # h, and c
        directions = 2 if self.config.bidirectional else 1
        joined = [  # (layers, B, H) of each kind
            state.unflatten(0, (-1, directions)).transpose(1, 2).flatten(2) for state in kinds
        ]
        states = [tuple(layer) for layer in zip(*joined)]
        if self.config.bidirectional:
            bridges = iter(self.bridge)
            states = [
                (next(bridges)(h).tanh(), *(next(bridges)(c) for c in cells))
                for h, *cells in states
            ]
        if self.attention is None:
            return None, states
        return RecurrentMemory(outputs, source_lengths, self.attention), states

    @torch.no_grad()
    def begin(
        self,
        source: Tensor,
        source_lengths: Tensor,
        *,
        max_length: int,
        cache: str = "contiguous",
        need_attention: bool = False,
    ) -> RecurrentState:
        """Encodes the source, for ``step``: arguments as ``Transformer.begin``.

        A recurrent state is of one kind, whatever ``cache``, and has its attention in any case.
        """
        memory, states = self.encode(source, source_lengths)
        return RecurrentState(states, memory, max_length)

    @torch.no_grad()
    def step(self, tokens: Tensor, state: RecurrentState) -> Tensor:
        """Logits (B, vocab_size) after the last of the tokens (B, t), which join the state."""
        state.check(tokens)
        for word in tokens.unbind(1):
            read = self._step(word, state)
        return at_least_float(self.output(self.dropout(read)))

    def _step(self, word: Tensor, state: RecurrentState) -> Tensor:
        """One step from words (B,): what the output projection reads, (B, H)."""
        x = self.dropout(self.target_embedding(word))  # (B, E)
        if self.config.input_feeding:
            fed = x.new_zeros(len(x), self.config.hidden_size) if state.read is None else state.read
            x = torch.cat([x, fed], 1)
        read, state.states = self._cells(x, state.states)
        if state.memory is not None:
            context, weights = state.memory.attend(read.unsqueeze(1), need_weights=True)
            read = self._combine(context.squeeze(1), read)
            assert weights is not None
            state.attention = weights.squeeze(1)
        state.read = read
        state.length += 1
        return read

    def _cells(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        """One step of the decoder's layers."""
        if not (x.is_cpu and is_plain(x)):
            output, last = self.decoder(x.unsqueeze(1), _stacked(states))
            kinds = last if isinstance(last, tuple) else (last,)
            return output.squeeze(1), list(zip(*(kind.unbind() for kind in kinds)))
        new: States = []
        for i, (h, *cells) in enumerate(states):
            w_ih, w_hh, b_ih, b_hh = (
                getattr(self.decoder, f"{name}_l{i}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            if i and self.decoder.dropout:
                x = dropout(x, self.decoder.dropout, self.training)
            c = cells[0] if cells else None
            after = rnn_cell(x, h, c, w_ih, w_hh, b_ih, b_hh, self.decoder.mode)
            new.append(after if isinstance(after, tuple) else (after,))
            x = new[-1][0]
        return x, new

    def _unroll(self, target: Tensor, state: RecurrentState, teacher_forcing: float) -> Tensor:
        """What the output projection reads, (B, T, H), where each step needs the one before it."""
        reads: list[Tensor] = []
        for word in target.unbind(1):
            if reads and teacher_forcing < 1:
                with torch.no_grad():
                    likeliest = self.output(reads[-1]).argmax(-1)
                taught = torch.rand(len(word), device=word.device) < teacher_forcing
                word = torch.where(taught, word, likeliest)
            reads.append(self._step(word, state))
        return torch.stack(reads, 1)

    def _combine(self, context: Tensor, hidden: Tensor) -> Tensor:
        """h~ = tanh(W·[context; hidden]), (…, H)."""
        assert self.combine is not None
        return self.combine(torch.cat([context, hidden], -1)).tanh()


def _stacked(states: States) -> Tensor | tuple[Tensor, ...]:
    """The states of all layers as the recurrent modules take them."""
    kinds = tuple(torch.stack(kind) for kind in zip(*states))
    return kinds if len(kinds) > 1 else kinds[0]
