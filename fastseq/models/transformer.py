"""The encoder-decoder Transformer (Vaswani et al., "Attention Is All You Need", arXiv 1706.03762).

In ``forward`` the tokens of all sentences lie one after the other, and no padding is computed.
"""

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import at_least_float
from .bert import BERT
from .cache import AttentionState, CacheKind, EncoderMemory
from .config import AttentionConfig
from .layers import (
    AttentionModel,
    Embedding,
    Linear,
    Stack,
    attend_rows,
    init_normal,
    init_xavier,
)
from .rows import Rows, check_batch, token_rows


@dataclass(kw_only=True)
class TransformerConfig(AttentionConfig):
    """Configuration of ``Transformer``; beyond ``AttentionConfig``:

    Args:
        vocab_size: of the target; source_vocab_size: of the source, the same if None.
        encoder_layers, decoder_layers: how many.
        share_embeddings: source and target have one table; their vocabularies are the same.
        tie_embeddings: the output projection is the target's embedding.
        scale_embeddings: words' vectors are multiplied by √hidden_size.
        norm_embeddings: layer-norm on the sum of words and positions, as in BERT.
        output_bias: whether the output projection has one.
    """

    source_vocab_size: int | None = None
    encoder_layers: int = 4
    decoder_layers: int = 4
    share_embeddings: bool = True
    tie_embeddings: bool = True
    scale_embeddings: bool = True
    norm_embeddings: bool = False
    output_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share_embeddings and self.source_vocab_size not in (None, self.vocab_size):
            raise ValueError(
                f"share_embeddings needs source_vocab_size to be vocab_size {self.vocab_size}, "
                f"got {self.source_vocab_size}"
            )


class Transformer(AttentionModel):
    """Encoder-decoder for translation and summarization.

    Initial values: matrices from Xavier's uniform distribution, embeddings normal with standard
    deviation hidden_size^-½, biases zero.
    """

    config_class = TransformerConfig
    model_type = "fastseq-transformer"
    config: TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        scale = math.sqrt(config.hidden_size) if config.scale_embeddings else 1.0
        norm = config.norm_embeddings
        source_vocab = config.source_vocab_size or config.vocab_size
        self.source_embedding = Embedding(config, source_vocab, norm=norm, scale=scale)
        shared = self.source_embedding.words if config.share_embeddings else None
        self.target_embedding = Embedding(
            config, config.vocab_size, words=shared, norm=norm, scale=scale
        )
        self.encoder = Stack(config, config.encoder_layers)
        self.decoder = Stack(config, config.decoder_layers, cross=True)
        self.output = Linear(config.hidden_size, config.vocab_size, bias=config.output_bias)
        init_xavier(self)
        if config.tie_embeddings:
            self.output.weight = self.target_embedding.words.weight

    @classmethod
    def from_bert(
        cls,
        bert: BERT,
        *,
        decoder_layers: int | None = None,
        decoder_from_bert: bool = True,
        **changes: Any,
    ) -> "Transformer":
        """An encoder-decoder that starts from a BERT (Rothe et al., arXiv 1907.12461).

        The encoder is BERT's, whose first segment is added to learned positions, or else to words:
        where these are the output projection, all logits move alike. What BERT does not have is
        drawn as in BERT, normal with standard deviation 0.02.

        Args:
            decoder_layers: as many as the encoder's if None.
            decoder_from_bert: the decoder's layers, but for cross-attention, positions and, where
                the vocabularies are one, words start from BERT's, too.
            changes: fields of the configuration to set otherwise: another vocab_size, with its
                bos_id and eos_id (BERT's are those of [CLS] and [SEP]).
        """
        theirs = bert.config
        own = {field.name for field in dataclasses.fields(TransformerConfig)}
        fields = {name: x for name, x in dataclasses.asdict(theirs).items() if name in own}
        same_words = changes.get("vocab_size", theirs.vocab_size) == theirs.vocab_size
        fields |= {
            "source_vocab_size": theirs.vocab_size,
            "encoder_layers": theirs.num_layers,
            "decoder_layers": decoder_layers or theirs.num_layers,
            "share_embeddings": same_words,
            "scale_embeddings": False,
            "norm_embeddings": True,
        }
        model = cls(TransformerConfig(**{**fields, **changes}))
        init_normal(model)
        like = bert.embedding.words.weight
        model.to(like.device, like.dtype)
        model.encoder.load_state_dict(bert.encoder.state_dict())
        start = bert.embedding.state_dict()
        shifted = "positions.weight" if "positions.weight" in start else "words.weight"
        start[shifted] = start[shifted] + start.pop("segments.weight")[0]
        model.source_embedding.load_state_dict(start)
        if decoder_from_bert:
            if not same_words:
                start["words.weight"] = model.target_embedding.words.weight
            model.target_embedding.load_state_dict(start)
            for ours, layer in zip(model.decoder.layers, bert.encoder.layers):
                ours.load_state_dict(layer.state_dict(), strict=False)  # no cross-attention there
        return model

    @classmethod
    def from_marian(
        cls,
        directory: str | os.PathLike,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **changes: Any,
    ) -> "Transformer":
        """``from_pretrained``, which reads Hugging Face's directories of Marian models too."""
        return cls.from_pretrained(directory, device, dtype, **changes)

    def forward(
        self, source: Tensor, source_lengths: Tensor, target: Tensor, target_lengths: Tensor
    ) -> Tensor:
        """Logits of the word after each target word.

        Args:
            source: (B, S) token ids, right-padded; source_lengths: (B,).
            target: (B, T), the decoder's input: bos and the words; target_lengths: (B,).

        Returns:
            (N, vocab_size) rows, N the sum of target_lengths, sentence after sentence.

        Raises:
            TypeError, ValueError: types or shapes do not fit, or a sequence is too long.
        """
        config = self.config
        rows = token_rows(target, target_lengths, "target", config.vocab_size, config.max_length)
        check_batch(source, target)
        memory, keys = self.encode(source, source_lengths)
        x = self.target_embedding(rows.pack(target), rows.positions)  # (N, d)
        attend = self._placed(attend_rows(rows, rows, causal=True), rows.positions)
        return self.output(self.decoder(x, attend, memory, attend_rows(rows, keys)))

    def encode(self, source: Tensor, source_lengths: Tensor) -> tuple[Tensor, Rows]:
        """The encoder's output (N, d), rows of the source, and where they stand."""
        vocab_size = self.source_embedding.words.num_embeddings
        rows = token_rows(source, source_lengths, "source", vocab_size, self.config.max_length)
        x = self.source_embedding(rows.pack(source), rows.positions)  # (N, d)
        return self.encoder(x, self._placed(attend_rows(rows, rows), rows.positions)), rows

    @torch.no_grad()
    def begin(
        self,
        source: Tensor,
        source_lengths: Tensor,
        *,
        max_length: int,
        cache: CacheKind = "contiguous",
        need_attention: bool = False,
    ) -> AttentionState:
        """Encodes the source, for ``step``.

        Args:
            source: (B, S); source_lengths: (B,).
            max_length: how many target tokens the state may come to hold.
            cache: of keys and values: "contiguous" or "paged".
            need_attention: whether ``state.attention`` is to be had.
        """
        self._check_length(max_length)
        memory, rows = self.encode(source, source_lengths)
        projected = self.decoder.project(memory)
        encoded = EncoderMemory(projected, rows, need_attention)
        return AttentionState(len(projected), len(source), max_length, cache, encoded)

    @torch.no_grad()
    def step(self, tokens: Tensor, state: AttentionState) -> Tensor:
        """Logits (B, vocab_size) after the last of the tokens (B, t), which join the state."""
        memory = state.memory
        assert memory is not None

        def compute(positions: Tensor) -> Tensor:
            x = self.target_embedding(tokens, positions)  # (B, t, d)
            attend = self._placed(state.attend, positions)
            x = self.decoder(x, attend, memory.layers, memory.attend)
            return at_least_float(self.output(x[:, -1]))

        return state.advance(tokens, compute)
