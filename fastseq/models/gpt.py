"""A decoder-only language model: the stack of GPT-2 (Radford et al. 2019, "Language Models are
Unsupervised Multitask Learners"), with learned, sinusoidal or rotary positions.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .base import at_least_float
from .cache import AttentionState, CacheKind
from .config import AttentionConfig
from .layers import AttentionModel, Embedding, Linear, Stack, attend_rows, init_normal
from .rows import token_rows


@dataclass(kw_only=True)
class GPTConfig(AttentionConfig):
    """Configuration of ``GPT``; beyond ``AttentionConfig``:

    Args:
        num_layers: how many.
        tie_embeddings: the output projection is the embedding.
    """

    num_layers: int = 4
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "gelu_tanh"
    attention_dropout: float = 0.1
    positions: Literal["sinusoidal", "learned", "rotary"] = "learned"
    tie_embeddings: bool = True


class GPT(AttentionModel):
    """Language model: logits of the next token.

    Initial values, GPT-2's: matrices and embeddings normal with standard deviation 0.02, the
    projections that add to the residual 0.02/√(2·num_layers), biases zero.
    """

    config_class = GPTConfig
    model_type = "fastseq-gpt"
    config: GPTConfig

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.embedding = Embedding(config, config.vocab_size)
        self.decoder = Stack(config, config.num_layers)
        self.output = Linear(config.hidden_size, config.vocab_size, bias=False)
        init_normal(self, residual_layers=config.num_layers)
        if config.tie_embeddings:
            self.output.weight = self.embedding.words.weight

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits of the token after each token.

        Args:
            tokens: (B, T) token ids, right-padded; lengths: (B,).

        Returns:
            (N, vocab_size) rows, N the sum of lengths, sequence after sequence.

        Raises:
            TypeError, ValueError: types or shapes do not fit, or a sequence is too long.
        """
        config = self.config
        rows = token_rows(tokens, lengths, "tokens", config.vocab_size, config.max_length)
        x = self.embedding(rows.pack(tokens), rows.positions)  # (N, d)
        attend = self._placed(attend_rows(rows, rows, causal=True), rows.positions)
        return self.output(self.decoder(x, attend))

    def begin(
        self, *, batch_size: int, max_length: int, cache: CacheKind = "contiguous"
    ) -> AttentionState:
        """An empty state, for ``step``.

        Args:
            batch_size: how many sequences.
            max_length: how many tokens of each the state may come to hold.
            cache: of keys and values: "contiguous" or "paged".
        """
        self._check_length(max_length)
        return AttentionState(self.config.num_layers, batch_size, max_length, cache)

    @torch.no_grad()
    def step(self, tokens: Tensor, state: AttentionState) -> Tensor:
        """Logits (B, vocab_size) after the last of the tokens (B, t), which join the state."""

        def compute(positions: Tensor) -> Tensor:
            x = self.embedding(tokens, positions)  # (B, t, d)
            x = self.decoder(x, self._placed(state.attend, positions))
            return at_least_float(self.output(x[:, -1]))

        return state.advance(tokens, compute)
