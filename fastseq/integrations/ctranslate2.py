"""``Transformer`` and ``GPT`` as models of CTranslate2 (pip install ctranslate2).

>>> from fastseq.integrations.ctranslate2 import convert
>>> convert("out/best", "ct2", quantization="int8")
>>> ctranslate2.Translator("ct2").translate_batch([tokenizer.encode_source(text).tokens])
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models import GPT, Model, Transformer, load
from ..models.layers import Embedding, Layer, Stack

_ACTIVATIONS = {"relu": "RELU", "gelu": "GELU", "gelu_tanh": "GELUTanh", "silu": "SWISH"}
TOKENIZER_FILE = "tokenizer.json"


def convert(
    model: Model | str | os.PathLike,
    directory: str | os.PathLike,
    *,
    tokens: Sequence[str] | None = None,
    source_tokens: Sequence[str] | None = None,
    quantization: str | None = None,
    force: bool = False,
) -> None:
    """Writes a directory that ``ctranslate2.Translator`` or ``ctranslate2.Generator`` reads.

    As in ``fastseq.generation`` the start of sentence is never generated.

    Args:
        model: a ``Transformer`` or ``GPT``, or the directory of one.
        directory: where to write.
        tokens: the vocabulary's strings by id; by default those of the model directory's
            tokenizer.json, else the ids as strings.
        source_tokens: of a source vocabulary of its own.
        quantization: CTranslate2's name of a type: "int8", "bfloat16" …; float32 by default.
        force: whether to replace what ``directory`` holds.

    Raises:
        ImportError: CTranslate2 is not installed.
        TypeError, ValueError: the model or the vocabulary does not fit.
        FileExistsError: ``directory`` exists, and not ``force``.
    """
    specs, converters = _library()
    if isinstance(model, (str, os.PathLike)):
        file = Path(model) / TOKENIZER_FILE
        if tokens is None and file.is_file():
            tokens = _vocabulary(file)
        model = load(model)
    if not isinstance(model, (Transformer, GPT)):
        raise TypeError(f"model must be a Transformer or GPT, got {type(model).__name__}")
    if Path(directory).exists() and not force:
        raise FileExistsError(f"{directory} exists; force=True replaces it")
    config: Any = model.config
    names = _names("tokens", tokens, config.vocab_size)
    if isinstance(model, Transformer):
        spec = specs.TransformerSpec(_encoder(specs, model), _decoder(specs, model))
        same = config.source_vocab_size in (None, config.vocab_size) and source_tokens is None
        size = config.source_vocab_size or config.vocab_size
        spec.register_source_vocabulary(
            names if same else _names("source_tokens", source_tokens, size)
        )
        spec.register_target_vocabulary(names)
        spec.config.decoder_start_token = names[config.bos_id]
    else:
        spec = specs.TransformerDecoderModelSpec(_decoder(specs, model))
        spec.register_vocabulary(names)
    spec.config.unk_token, spec.config.bos_token = names[config.unk_id], names[config.bos_id]
    spec.config.eos_token = names[config.eos_id]
    spec.config.layer_norm_epsilon = config.norm_eps

    # Its converters differ in how they load.
    kind: Any = type("Converter", (converters.Converter,), {"_load": lambda self: spec})
    kind().convert(str(directory), quantization=quantization, force=force)


def _encoder(specs: Any, model: Transformer) -> Any:
    config = model.config
    spec = specs.TransformerEncoderSpec(
        config.encoder_layers, config.num_heads, **_options(specs, config)
    )
    _embed(spec, spec.embeddings[0], model.source_embedding)
    _stack(spec, model.encoder)
    return spec


def _decoder(specs: Any, model: Any) -> Any:
    config, cross = model.config, isinstance(model, Transformer)
    spec = specs.TransformerDecoderSpec(
        len(model.decoder.layers),
        config.num_heads,
        with_encoder_attention=cross,
        **_options(specs, config),
    )
    _embed(spec, spec.embeddings, model.target_embedding if cross else model.embedding)
    _stack(spec, model.decoder)
    _linear(spec.projection, model.output)
    if config.bos_id != config.eos_id:
        bias = model.output.bias
        bias = torch.zeros(config.vocab_size) if bias is None else _plain(bias)
        bias[config.bos_id] = -torch.inf
        spec.projection.bias = bias
    return spec


def _options(specs: Any, config: Any) -> dict[str, Any]:
    options = {
        "pre_norm": config.norm_first,
        "activation": specs.Activation[_ACTIVATIONS[config.activation]],
        "layernorm_embedding": getattr(config, "norm_embeddings", False),
    }
    if config.positions == "rotary":
        width = config.hidden_size // config.num_heads
        options |= {"rotary_dim": width, "rotary_interleave": False}
    return options


def _embed(spec: Any, words: Any, embedding: Embedding) -> None:
    words.weight = _plain(embedding.words.weight)
    spec.scale_embeddings = float(embedding.scale)
    if (table := embedding.table()) is not None:
        spec.position_encodings.encodings = _plain(table)
    if embedding.norm is not None:
        _norm(spec.layernorm_embedding, embedding.norm)


def _stack(spec: Any, stack: Stack) -> None:
    layers: Any = stack.layers
    for to, layer in zip(spec.layer, layers):
        _layer(to, layer)
    if stack.norm is not None:
        _norm(spec.layer_norm, stack.norm)


def _layer(to: Any, layer: Layer) -> None:
    _linear(to.self_attention.linear[0], layer.attention.qkv)
    _linear(to.self_attention.linear[1], layer.attention.out)
    _norm(to.self_attention.layer_norm, layer.attention_norm)
    if layer.cross_attention is not None:
        cross = layer.cross_attention
        for linear, part in zip(to.attention.linear, (cross.q, cross.kv, cross.out)):
            _linear(linear, part)
        _norm(to.attention.layer_norm, layer.cross_attention_norm)
    _linear(to.ffn.linear_0, layer.feed_forward.up)
    _linear(to.ffn.linear_1, layer.feed_forward.down)
    _norm(to.ffn.layer_norm, layer.feed_forward_norm)


def _linear(to: Any, part: torch.nn.Linear) -> None:
    to.weight = _plain(part.weight)
    if part.bias is not None:
        to.bias = _plain(part.bias)


def _norm(to: Any, norm: Any) -> None:
    to.gamma, to.beta = _plain(norm.weight), _plain(norm.bias)


def _plain(x: Tensor) -> Tensor:
    # A copy, for CTranslate2 quantises in place.
    return x.detach().to("cpu", torch.float32, copy=True).contiguous()


def _names(argument: str, tokens: Sequence[str] | None, size: int) -> list[str]:
    if tokens is None:
        return [str(i) for i in range(size)]
    if len(tokens) > size or len(set(tokens)) < len(tokens):
        raise ValueError(
            f"{argument} must be at most {size} different strings, got {len(tokens)}, "
            f"{len(set(tokens))} different"
        )
    # A vocabulary padded to a round size has rows that no token uses.
    return [*tokens, *(f"<unused {i}>" for i in range(len(tokens), size))]


def _vocabulary(path: Path) -> list[str]:
    try:
        import tokenizers
    except ImportError:
        raise ImportError(f"reading {path} needs it: pip install tokenizers") from None
    inner = tokenizers.Tokenizer.from_file(str(path))
    return [token for token, _ in sorted(inner.get_vocab().items(), key=lambda item: item[1])]


def _library() -> tuple[Any, Any]:
    try:
        import ctranslate2.converters
        import ctranslate2.specs
    except ImportError:
        raise ImportError("converting needs CTranslate2: pip install ctranslate2") from None
    return ctranslate2.specs, ctranslate2.converters
