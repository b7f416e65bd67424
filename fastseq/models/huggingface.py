"""Checkpoints of Hugging Face's BERT, GPT-2 and Marian as ours, with equal logits.

Read are config.json, model.safetensors, and for BERT's special tokens tokenizer.json or vocab.txt.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import Checkpoint, CheckpointError

_ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
# Of Google's vocabularies, for a directory without its own.
_BERT_TOKENS = {"[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}


def convert(found: Checkpoint) -> Checkpoint:
    """A directory of theirs, read as it is, with our names.

    Raises:
        CheckpointError: it lacks weights, has others than the model that it names, or options that
            ours does not have.
    """
    theirs = _Theirs(found)
    model_type, fields = CONVERTERS[found.model_type](theirs)
    theirs.check_all_taken()
    return Checkpoint(found.directory, model_type, fields, theirs.ours)


class _Theirs:
    """Their fields and weights, taken one by one to ours."""

    def __init__(self, found: Checkpoint) -> None:
        self.found, self.ours = found, dict[str, Tensor]()
        self.left = {
            re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name)): weight
            for name, weight in found.weights.items()
        }

    def field(self, name: str, default: Any) -> Any:
        """A value of the default's type, which stands for one that is missing."""
        value = self.found.fields.get(name)
        if value is None:
            return default
        kind = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value, kind):
            raise self.error(f"{name} should be of type {type(default).__name__}, got {value!r}")
        return value

    def activation(self, name: str, default: str) -> str:
        value = self.field(name, default)
        if value not in _ACTIVATIONS:
            raise self.error(f"{name} should be one of {', '.join(_ACTIVATIONS)}, got {value!r}")
        return _ACTIVATIONS[value]

    def require(self, **wanted: Any) -> None:
        """That options which ours does not have are off."""
        for name, value in wanted.items():
            found = self.field(name, value)
            if found != value:
                raise self.error(f"{name} should be {value!r}, got {found!r}")

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.found.config_path}: {message}")

    def drop_prefix(self, prefix: str) -> None:
        self.left = {name.removeprefix(prefix): weight for name, weight in self.left.items()}

    def drop(self, pattern: str) -> None:
        self.left = {n: weight for n, weight in self.left.items() if not re.fullmatch(pattern, n)}

    def take(self, name: str) -> Tensor:
        if name not in self.left:
            raise CheckpointError(f"{self.found.weights_path} lacks weights: {name}")
        return self.left.pop(name)

    def move(self, ours: str, *theirs: str, transposed: bool = False) -> None:
        """Weight and bias of a layer, or of several that ours has as one."""
        for kind in ("weight", "bias"):
            parts = [self.take(f"{name}.{kind}") for name in theirs]
            whole = parts[0] if len(parts) == 1 else torch.cat(parts)
            if transposed and kind == "weight":
                whole = whole.t().contiguous()
            self.ours[f"{ours}.{kind}"] = whole

    def move_table(self, ours: str, theirs: str) -> None:
        self.ours[f"{ours}.weight"] = self.take(f"{theirs}.weight")

    def check_all_taken(self) -> None:
        if self.left:
            raise CheckpointError(
                f"{self.found.weights_path} has unexpected weights: {', '.join(sorted(self.left))}"
            )


def _bert(theirs: _Theirs) -> tuple[str, dict[str, Any]]:
    theirs.require(is_decoder=False, position_embedding_type="absolute", tie_word_embeddings=True)
    theirs.drop_prefix("bert.")
    theirs.drop(r"embeddings\.position_ids|cls\.predictions\.decoder\.(weight|bias)")
    left = theirs.left
    model_type = "fastseq-bert"
    if "cls.predictions.bias" in left:
        model_type += "-pretraining"
        if "cls.seq_relationship.weight" not in left:
            theirs.drop(r"pooler\..*")
    elif "qa_outputs.weight" in left:
        model_type += "-question-answering"
        theirs.drop(r"pooler\..*")
    elif "classifier.weight" in left:
        kind = "sequence" if "pooler.dense.weight" in left else "token"
        model_type += f"-{kind}-classification"
    tokens = {**_BERT_TOKENS, **_special_tokens(theirs.found.directory)}
    fields = {
        "vocab_size": theirs.field("vocab_size", 30522),
        "pad_id": theirs.field("pad_token_id", 0),
        "unk_id": tokens["[UNK]"],
        "bos_id": tokens["[CLS]"],
        "eos_id": tokens["[SEP]"],
        "mask_id": tokens["[MASK]"],
        "hidden_size": theirs.field("hidden_size", 768),
        "num_layers": theirs.field("num_hidden_layers", 12),
        "num_heads": theirs.field("num_attention_heads", 12),
        "ffn_size": theirs.field("intermediate_size", 3072),
        "activation": theirs.activation("hidden_act", "gelu"),
        "dropout": theirs.field("hidden_dropout_prob", 0.1),
        "attention_dropout": theirs.field("attention_probs_dropout_prob", 0.1),
        "max_length": theirs.field("max_position_embeddings", 512),
        "num_segments": theirs.field("type_vocab_size", 2),
        "norm_eps": theirs.field("layer_norm_eps", 1e-12),
        "pooler": "pooler.dense.weight" in theirs.left,
        "num_labels": len(left["classifier.weight"]) if "classifier.weight" in left else 2,
    }
    body = "" if model_type == "fastseq-bert" else "bert."
    theirs.move_table(f"{body}embedding.words", "embeddings.word_embeddings")
    theirs.move_table(f"{body}embedding.positions", "embeddings.position_embeddings")
    theirs.move_table(f"{body}embedding.segments", "embeddings.token_type_embeddings")
    theirs.move(f"{body}embedding.norm", "embeddings.LayerNorm")
    for i in range(fields["num_layers"]):
        ours, layer = f"{body}encoder.layers.{i}", f"encoder.layer.{i}"
        attention = f"{layer}.attention.self"
        parts = (f"{attention}.{part}" for part in ("query", "key", "value"))
        theirs.move(f"{ours}.attention.qkv", *parts)
        theirs.move(f"{ours}.attention.out", f"{layer}.attention.output.dense")
        theirs.move(f"{ours}.attention_norm", f"{layer}.attention.output.LayerNorm")
        theirs.move(f"{ours}.feed_forward.up", f"{layer}.intermediate.dense")
        theirs.move(f"{ours}.feed_forward.down", f"{layer}.output.dense")
        theirs.move(f"{ours}.feed_forward_norm", f"{layer}.output.LayerNorm")
    if fields["pooler"]:
        theirs.move(f"{body}pooler", "pooler.dense")
    if model_type.endswith("pretraining"):
        theirs.move("transform", "cls.predictions.transform.dense")
        theirs.move("norm", "cls.predictions.transform.LayerNorm")
        theirs.ours["words_bias"] = theirs.take("cls.predictions.bias")
        if fields["pooler"]:
            theirs.move("next_sentence", "cls.seq_relationship")
    elif model_type.endswith("question-answering"):
        theirs.move("span", "qa_outputs")
    elif model_type.endswith("classification"):
        theirs.move("classifier", "classifier")
    return model_type, fields


def _gpt2(theirs: _Theirs) -> tuple[str, dict[str, Any]]:
    theirs.require(
        scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False
    )
    theirs.drop_prefix("transformer.")
    theirs.drop(r"h\.\d+\.attn\.(bias|masked_bias)")  # the causal mask
    tied, width = theirs.field("tie_word_embeddings", True), theirs.field("n_embd", 768)
    end = theirs.field("eos_token_id", 50256)
    fields = {
        "vocab_size": theirs.field("vocab_size", 50257),
        "pad_id": theirs.field("pad_token_id", end),
        "unk_id": end,
        "bos_id": theirs.field("bos_token_id", end),
        "eos_id": end,
        "hidden_size": width,
        "num_layers": theirs.field("n_layer", 12),
        "num_heads": theirs.field("n_head", 12),
        "ffn_size": theirs.field("n_inner", 4 * width),
        "activation": theirs.activation("activation_function", "gelu_new"),
        "dropout": theirs.field("resid_pdrop", 0.1),
        "attention_dropout": theirs.field("attn_pdrop", 0.1),
        "max_length": theirs.field("n_positions", 1024),
        "norm_eps": theirs.field("layer_norm_epsilon", 1e-5),
        "tie_embeddings": tied,
    }
    theirs.move_table("embedding.words", "wte")
    theirs.move_table("embedding.positions", "wpe")
    for i in range(fields["num_layers"]):
        ours, layer = f"decoder.layers.{i}", f"h.{i}"
        theirs.move(f"{ours}.attention.qkv", f"{layer}.attn.c_attn", transposed=True)
        theirs.move(f"{ours}.attention.out", f"{layer}.attn.c_proj", transposed=True)
        theirs.move(f"{ours}.attention_norm", f"{layer}.ln_1")
        theirs.move(f"{ours}.feed_forward.up", f"{layer}.mlp.c_fc", transposed=True)
        theirs.move(f"{ours}.feed_forward.down", f"{layer}.mlp.c_proj", transposed=True)
        theirs.move(f"{ours}.feed_forward_norm", f"{layer}.ln_2")
    theirs.move("decoder.norm", "ln_f")
    if tied:
        theirs.drop(r"lm_head\.weight")
    else:
        theirs.move_table("output", "lm_head")
    return "fastseq-gpt", fields


def _marian(theirs: _Theirs) -> tuple[str, dict[str, Any]]:
    theirs.require(
        tie_word_embeddings=True,
        normalize_before=False,
        normalize_embedding=False,
        static_position_embeddings=True,
        decoder_attention_heads=theirs.field("encoder_attention_heads", 16),
        decoder_ffn_dim=theirs.field("encoder_ffn_dim", 4096),
    )
    theirs.drop_prefix("model.")
    theirs.drop(r"lm_head\.weight|(en|de)coder\.embed_positions\.weight")
    shared = theirs.field("share_encoder_decoder_embeddings", True)
    vocabulary = theirs.field("vocab_size", 58101)
    fields = {
        "vocab_size": theirs.field("decoder_vocab_size", vocabulary),
        "source_vocab_size": vocabulary,
        "pad_id": theirs.field("pad_token_id", 58100),
        "bos_id": theirs.field("decoder_start_token_id", 58100),
        "eos_id": theirs.field("eos_token_id", 0),
        "hidden_size": theirs.field("d_model", 1024),
        "encoder_layers": theirs.field("encoder_layers", 12),
        "decoder_layers": theirs.field("decoder_layers", 12),
        "num_heads": theirs.field("encoder_attention_heads", 16),
        "ffn_size": theirs.field("encoder_ffn_dim", 4096),
        "activation": theirs.activation("activation_function", "gelu"),
        "dropout": theirs.field("dropout", 0.1),
        "attention_dropout": theirs.field("attention_dropout", 0.0),
        "activation_dropout": theirs.field("activation_dropout", 0.0),
        "norm_first": False,
        "max_length": theirs.field("max_position_embeddings", 1024),
        "share_embeddings": shared,
        "scale_embeddings": theirs.field("scale_embedding", False),
        "output_bias": True,
    }
    copies = r"(en|de)coder\.embed_tokens\.weight"
    if shared:
        theirs.move_table("source_embedding.words", "shared")
        theirs.drop(copies)
    else:
        theirs.drop(r"shared\.weight")
        theirs.move_table("source_embedding.words", "encoder.embed_tokens")
        theirs.move_table("target_embedding.words", "decoder.embed_tokens")
    for stack in ("encoder", "decoder"):
        for i in range(fields[f"{stack}_layers"]):
            layer = f"{stack}.layers.{i}"
            qkv = (f"{layer}.self_attn.{part}_proj" for part in "qkv")
            theirs.move(f"{layer}.attention.qkv", *qkv)
            theirs.move(f"{layer}.attention.out", f"{layer}.self_attn.out_proj")
            theirs.move(f"{layer}.attention_norm", f"{layer}.self_attn_layer_norm")
            if stack == "decoder":
                cross = f"{layer}.encoder_attn"
                theirs.move(f"{layer}.cross_attention.q", f"{cross}.q_proj")
                theirs.move(f"{layer}.cross_attention.kv", f"{cross}.k_proj", f"{cross}.v_proj")
                theirs.move(f"{layer}.cross_attention.out", f"{cross}.out_proj")
                theirs.move(f"{layer}.cross_attention_norm", f"{cross}_layer_norm")
            theirs.move(f"{layer}.feed_forward.up", f"{layer}.fc1")
            theirs.move(f"{layer}.feed_forward.down", f"{layer}.fc2")
            theirs.move(f"{layer}.feed_forward_norm", f"{layer}.final_layer_norm")
    theirs.ours["output.bias"] = theirs.take("final_logits_bias").squeeze(0)
    return "fastseq-transformer", fields


def _special_tokens(directory: Path) -> dict[str, int]:
    """The ids of the tokens in brackets, from the tokenizer beside a model."""
    tokenizer, vocabulary = directory / "tokenizer.json", directory / "vocab.txt"
    if tokenizer.is_file():
        try:
            added = json.loads(tokenizer.read_text(encoding="utf-8"))["added_tokens"]
            return {token["content"]: token["id"] for token in added}
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{tokenizer}: no tokenizer: {error!r}") from None
    if vocabulary.is_file():
        words = vocabulary.read_text(encoding="utf-8").split("\n")
        return {word: i for i, word in enumerate(words) if word.startswith("[")}
    return {}


CONVERTERS: dict[str, Callable[[_Theirs], tuple[str, dict[str, Any]]]] = {
    "bert": _bert,
    "gpt2": _gpt2,
    "marian": _marian,
}
