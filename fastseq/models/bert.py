"""Bidirectional encoders (Devlin et al., "BERT", arXiv 1810.04805) and the heads on top of them.

Heads return logits; the loss is the caller's.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import LayerNorm

from ..ops.gemm import linear
from .base import Checkpoint
from .config import AttentionConfig
from .dropout import Dropout
from .layers import ACTIVATIONS, AttentionModel, Embedding, Linear, Stack, attend_rows, init_normal
from .rows import Rows, token_rows

Self = TypeVar("Self", bound="_BERTModel")


@dataclass(kw_only=True)
class BERTConfig(AttentionConfig):
    """Configuration of ``BERT``; beyond ``AttentionConfig``, with BERT's defaults:

    Args:
        cls_id, sep_id, mask_id: BERT's names of bos_id and eos_id, and the mask.
        num_layers: how many.
        num_segments: kinds of segments.
        pooler: whether there is one: a dense layer with tanh over the first token.
        num_labels: classes of the head for sequences or tokens.
    """

    mask_id: int = 4
    num_layers: int = 4
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "gelu"
    attention_dropout: float = 0.1
    norm_first: bool = False
    norm_eps: float = 1e-12
    positions: Literal["sinusoidal", "learned", "rotary"] = "learned"
    num_segments: int = 2
    pooler: bool = True
    num_labels: int = 2

    @property
    def cls_id(self) -> int:
        return self.bos_id

    @property
    def sep_id(self) -> int:
        return self.eos_id


class _BERTModel(AttentionModel):
    """BERT, alone or under a head: ``from_pretrained`` of each reads what another of them saved.

    A head, and a pooler that is not there, then start from initial values.
    """

    config_class = BERTConfig
    config: BERTConfig

    @property
    def _encoder(self) -> "BERT":
        raise NotImplementedError

    @classmethod
    def _build(
        cls: type[Self], found: Checkpoint, dtype: torch.dtype | None, **changes: Any
    ) -> Self:
        if found.model_type == cls.model_type or found.model_type not in _family():
            return super()._build(found, dtype, **changes)
        whole = found.model_type == BERT.model_type
        body = {
            name.removeprefix("bert."): weight
            for name, weight in found.weights.items()
            if whole or name.startswith("bert.")
        }
        model = cls(cls._configure(found, changes))
        encoder = model._encoder
        if encoder.pooler is None:
            body = {name: x for name, x in body.items() if not name.startswith("pooler.")}
        else:
            for name, parameter in encoder.pooler.named_parameters():
                body.setdefault(f"pooler.{name}", parameter.detach())
        device = next(iter(body.values())).device
        encoder._take(body, found.weights_path)
        return model.to(device, dtype).eval()


class BERT(_BERTModel):
    """Encoder stack: a vector for each token, of all tokens around it.

    ``from_pretrained`` of BERT and of its heads reads what any of them saved, and Hugging Face's
    directories of BERT: a head that is not there starts from initial values.

    Initial values of BERT and of its heads: matrices and embeddings normal with standard deviation
    0.02, biases zero.
    """

    model_type = "fastseq-bert"

    def __init__(self, config: BERTConfig) -> None:
        super().__init__(config)
        self.embedding = Embedding(
            config, config.vocab_size, segments=config.num_segments, norm=True
        )
        self.encoder = Stack(config, config.num_layers)
        self.pooler = Linear(config.hidden_size, config.hidden_size) if config.pooler else None
        init_normal(self)

    @property
    def _encoder(self) -> "BERT":
        return self

    def forward(self, tokens: Tensor, lengths: Tensor, segments: Tensor | None = None) -> Tensor:
        """Vectors of all tokens.

        Args:
            tokens: (B, T) token ids, right-padded; lengths: (B,).
            segments: (B, T) from 0 to num_segments - 1; 0 if None.

        Returns:
            (N, hidden_size) rows, N the sum of lengths, sequence after sequence.

        Raises:
            TypeError, ValueError: types or shapes do not fit, or a sequence is too long.
        """
        return self.encode(tokens, lengths, segments)[0]

    def encode(
        self, tokens: Tensor, lengths: Tensor, segments: Tensor | None = None
    ) -> tuple[Tensor, Rows]:
        """``forward``, and where the rows stand."""
        config = self.config
        rows = token_rows(tokens, lengths, "tokens", config.vocab_size, config.max_length)
        if segments is not None:
            check_like("segments", segments, tokens)
            segments = rows.pack(segments)
        x = self.embedding(rows.pack(tokens), rows.positions, segments)  # (N, d)
        return self.encoder(x, self._placed(attend_rows(rows, rows), rows.positions)), rows

    def pool(self, hidden: Tensor, rows: Rows) -> Tensor:
        """A vector of each sequence (B, d), from that of its first token."""
        if self.pooler is None:
            raise ValueError("this model has no pooler: config.pooler is False")
        return self.pooler(hidden[rows.bounds[:-1].long()]).tanh()


class _Head(_BERTModel):
    """BERT with something on top."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__(config)
        self.bert = BERT(config)
        self.dropout = Dropout(config.dropout)

    @property
    def _encoder(self) -> BERT:
        return self.bert


class BERTForPretraining(_Head):
    """The two tasks that BERT learns from: masked words, and whether a sentence follows another.

    The words' projection is the embedding. Without ``config.pooler`` there are only masked words.
    """

    model_type = "fastseq-bert-pretraining"

    def __init__(self, config: BERTConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.activation = ACTIVATIONS[config.activation]
        self.transform, self.norm = Linear(width, width), LayerNorm(width, config.norm_eps)
        self.words_bias = torch.nn.Parameter(torch.zeros(config.vocab_size))
        self.next_sentence = Linear(width, 2) if config.pooler else None
        init_normal(self)

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor,
        segments: Tensor | None = None,
        masked_positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of the masked words, and of whether the second segment follows the first.

        Args:
            tokens, lengths, segments: as ``BERT``.
            masked_positions: bool (B, T), True where a word is to be guessed; all if None.

        Returns:
            (M, vocab_size), in the order of ``tokens[masked_positions]``, and (B, 2), class 0 for
            "it follows", or None without pooler.

        Raises:
            ValueError: masked_positions marks padding, or as ``BERT``.
        """
        hidden, rows = self.bert.encode(tokens, lengths, segments)
        masked = hidden
        if masked_positions is not None:
            check_like("masked_positions", masked_positions, tokens)
            chosen = rows.pack(masked_positions).nonzero().squeeze(1)
            if len(chosen) != int(masked_positions.sum()):
                raise ValueError("masked_positions should be False at padding")
            masked = hidden.index_select(0, chosen)  # (M, d)
        masked = self.norm(self.activation(self.transform(masked)))
        words = linear(masked, self.bert.embedding.words.weight, self.words_bias)
        if self.next_sentence is None:
            return words, None
        return words, self.next_sentence(self.bert.pool(hidden, rows))


class BERTForSequenceClassification(_Head):
    """A class for each sequence, or pair of sequences."""

    model_type = "fastseq-bert-sequence-classification"

    def __init__(self, config: BERTConfig) -> None:
        super().__init__(config.replace(pooler=True))
        self.classifier = Linear(config.hidden_size, config.num_labels)
        init_normal(self.classifier)

    def forward(self, tokens: Tensor, lengths: Tensor, segments: Tensor | None = None) -> Tensor:
        """Logits (B, num_labels); arguments and errors as ``BERT``."""
        hidden, rows = self.bert.encode(tokens, lengths, segments)
        return self.classifier(self.dropout(self.bert.pool(hidden, rows)))


class BERTForTokenClassification(_Head):
    """A class for each token."""

    model_type = "fastseq-bert-token-classification"

    def __init__(self, config: BERTConfig) -> None:
        super().__init__(config.replace(pooler=False))
        self.classifier = Linear(config.hidden_size, config.num_labels)
        init_normal(self.classifier)

    def forward(self, tokens: Tensor, lengths: Tensor, segments: Tensor | None = None) -> Tensor:
        """Logits (N, num_labels), rows; arguments and errors as ``BERT``."""
        return self.classifier(self.dropout(self.bert(tokens, lengths, segments)))


class BERTForQuestionAnswering(_Head):
    """Where the answer to a question (segment 0) starts and ends in a text (segment 1)."""

    model_type = "fastseq-bert-question-answering"

    def __init__(self, config: BERTConfig) -> None:
        super().__init__(config.replace(pooler=False))
        self.span = Linear(config.hidden_size, 2)
        init_normal(self.span)

    def forward(
        self, tokens: Tensor, lengths: Tensor, segments: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits of each token to be the first, and the last: (B, T) both, -inf at padding.

        Arguments and errors as ``BERT``.
        """
        hidden, rows = self.bert.encode(tokens, lengths, segments)
        start, end = rows.unpack(self.span(hidden), -torch.inf).unbind(-1)
        return start, end


def _family() -> set[str]:
    return {BERT.model_type, *(kind.model_type for kind in _Head.__subclasses__())}


def check_like(name: str, x: Tensor, tokens: Tensor) -> None:
    if x.shape != tokens.shape:
        raise ValueError(
            f"{name} should have tokens' shape {tuple(tokens.shape)}, got {tuple(x.shape)}"
        )
