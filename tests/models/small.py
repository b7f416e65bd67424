"""Small models of every kind, and inputs for them."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastseq.models import (
    GPT,
    GPTConfig,
    Model,
    Seq2Seq,
    Seq2SeqConfig,
    Transformer,
    TransformerConfig,
)

VOCABULARY, BATCH, MAX_LENGTH = 37, 3, 96
SOURCE_LENGTHS = torch.tensor([7, 2, 5])
ATTENTION = {
    "vocab_size": VOCABULARY,
    "hidden_size": 12,
    "num_heads": 3,
    "ffn_size": 20,
    "max_length": MAX_LENGTH,
}


def transformer(**options) -> Model:
    layers = {"encoder_layers": 2, "decoder_layers": 3}
    return Transformer(TransformerConfig(**{**ATTENTION, **layers, **options}))


def gpt(**options) -> Model:
    return GPT(GPTConfig(**ATTENTION, num_layers=2, **options))


def seq2seq(**options) -> Model:
    sizes = {"vocab_size": VOCABULARY, "embedding_size": 10, "hidden_size": 14}
    return Seq2Seq(Seq2SeqConfig(**{**sizes, **options}))


MODELS: dict[str, Callable[[], Model]] = {
    "transformer": transformer,
    "transformer-learned-post-bias": lambda: transformer(
        positions="learned", norm_first=False, norm_embeddings=True, output_bias=True
    ),
    "transformer-rotary-untied": lambda: transformer(
        positions="rotary", share_embeddings=False, tie_embeddings=False, source_vocab_size=46
    ),
    "gpt": gpt,
    "gpt-rotary-untied": lambda: gpt(positions="rotary", tie_embeddings=False),
    "gpt-sinusoidal-post": lambda: gpt(positions="sinusoidal", norm_first=False),
    "rnn": lambda: seq2seq(cell="rnn", attention=None),
    "lstm-oneway": lambda: seq2seq(attention=None, bidirectional=False, source_vocab_size=46),
    "lstm-additive": lambda: seq2seq(share_embeddings=True),
    "lstm-general-fed": lambda: seq2seq(attention="general", input_feeding=True),
    "gru-additive-fed": lambda: seq2seq(cell="gru", input_feeding=True),
    "gru-dot-tied": lambda: seq2seq(
        cell="gru", attention="dot", embedding_size=14, tie_embeddings=True, num_layers=1
    ),
}


def sources() -> Tensor:
    """(B, S), of which padding holds words too: nothing may depend on it."""
    return torch.randint(4, VOCABULARY, (BATCH, int(SOURCE_LENGTHS.max())))


def targets(steps: int) -> Tensor:
    return torch.randint(4, VOCABULARY, (BATCH, steps))


def begin(model: Model, source: Tensor, max_length: int, cache: str = "contiguous", **options):
    if isinstance(model, GPT):
        return model.begin(batch_size=BATCH, max_length=max_length, cache=cache)
    return model.begin(source, SOURCE_LENGTHS, max_length=max_length, cache=cache, **options)


def forward(model: Model, source: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Logits, rows."""
    if lengths is None:
        lengths = torch.full((BATCH,), target.shape[1])
    if isinstance(model, GPT):
        return model(target, lengths)
    return model(source, SOURCE_LENGTHS, target, lengths)
