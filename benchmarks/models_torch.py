"""The suite's models built from ``torch.nn`` as its users build them: padded batches and masks."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


class TorchModel(nn.Module):
    """A copy of one of ours: ``Transformer``, ``GPT``, or BERT with a projection to words.

    It is called as ours, and returns padded logits (B, T, vocabulary).
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        inner = getattr(model, "bert", model)
        config = model.config
        layer: dict[str, Any] = {
            "d_model": config.hidden_size,
            "nhead": config.num_heads,
            "dim_feedforward": config.ffn_size,
            "dropout": 0.0,
            "activation": _ACTIVATIONS[config.activation],
            "layer_norm_eps": config.norm_eps,
            "batch_first": True,
            "norm_first": config.norm_first,
        }
        self.seq2seq = hasattr(model, "source_embedding")
        self.causal = hasattr(model, "decoder")
        embedding = model.target_embedding if self.seq2seq else inner.embedding
        self.scale = embedding.scale
        self.words = nn.Embedding.from_pretrained(embedding.words.weight.detach().clone(), False)
        table = embedding.table().detach().clone()
        self.register_buffer("places", table)
        if embedding.segments is not None:  # all tokens are of segment 0
            self.places += embedding.segments.weight[0].detach()
        self.embedding_norm = _norm(embedding.norm)
        self.output_bias = None
        if getattr(model.output, "bias", None) is not None:
            self.output_bias = nn.Parameter(model.output.bias.detach().clone())

        encoder = model.encoder if self.seq2seq else None if self.causal else inner.encoder
        self.encoder = self.decoder = None
        if encoder is not None:
            self.encoder = nn.ModuleList(
                _filled(nn.TransformerEncoderLayer(**layer), part) for part in encoder.layers
            )
        if self.causal:
            kind: Any = nn.TransformerDecoderLayer if self.seq2seq else nn.TransformerEncoderLayer
            self.decoder = nn.ModuleList(
                _filled(kind(**layer), part) for part in model.decoder.layers
            )
        stack = model.decoder if self.causal else inner.encoder
        self.norm = _norm(stack.norm)
        self.encoder_norm = _norm(encoder.norm) if self.seq2seq else None

    def embed(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) * self.scale + self.places[: tokens.shape[1]]
        return x if self.embedding_norm is None else self.embedding_norm(x)

    def forward(self, *given: Tensor) -> Tensor:
        *source, target, target_lengths = given
        x, memory, padding = self.embed(target), None, _padding(target, target_lengths)
        if self.encoder is not None:
            memory = self.embed(source[0]) if self.seq2seq else x
            hidden = _padding(*source) if self.seq2seq else padding
            for layer in self.encoder:
                memory = layer(memory, src_key_padding_mask=hidden)
            if not self.seq2seq:
                x = memory
            elif self.encoder_norm is not None:
                memory = self.encoder_norm(memory)
        if self.decoder is not None:
            size = target.shape[1]
            mask = torch.ones(size, size, dtype=torch.bool, device=target.device).triu(1)
            for layer in self.decoder:
                if self.seq2seq:
                    x = layer(
                        x, memory, tgt_mask=mask, tgt_is_causal=True,
                        memory_key_padding_mask=_padding(*source),
                    )  # fmt: skip
                else:  # what follows a token's own place it does not see: padding neither
                    x = layer(x, src_mask=mask, is_causal=True)
        if self.norm is not None:
            x = self.norm(x)
        return F.linear(x, self.words.weight, self.output_bias)


def _padding(tokens: Tensor, lengths: Tensor) -> Tensor:
    """(B, T), True is left out."""
    return torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]


def _norm(norm: nn.LayerNorm | None) -> nn.LayerNorm | None:
    if norm is None:
        return None
    copy = nn.LayerNorm(norm.normalized_shape, norm.eps)
    copy.load_state_dict(norm.state_dict())
    return copy


@torch.no_grad()
def _filled(layer: Any, ours: Any) -> Any:
    """torch's layer with our layer's weights."""

    def fill(to: nn.Module, part: nn.Module) -> None:
        to.load_state_dict(part.state_dict())

    def attention(to: nn.MultiheadAttention, projections: list[nn.Linear], out: nn.Linear) -> None:
        to.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        to.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        fill(to.out_proj, out)

    attention(layer.self_attn, [ours.attention.qkv], ours.attention.out)
    norms = [ours.attention_norm, ours.feed_forward_norm]
    if ours.cross_attention is not None:
        cross = ours.cross_attention
        attention(layer.multihead_attn, [cross.q, cross.kv], cross.out)
        norms.insert(1, ours.cross_attention_norm)
    fill(layer.linear1, ours.feed_forward.up)
    fill(layer.linear2, ours.feed_forward.down)
    for i, norm in enumerate(norms):
        fill(getattr(layer, f"norm{i + 1}"), norm)
    return layer
