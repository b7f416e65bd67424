"""A decoder's weights as ``decoder_step`` takes them."""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models import GPT, Transformer
from ..models.layers import Layer, Stack, angles
from ..ops.decoder import pack, pad

WEIGHTS = (torch.float32, torch.bfloat16, torch.int8)


@dataclass(frozen=True)
class PackedWeights:
    """Arguments of ``decoder_step`` that stay the same, under their names there."""

    words: Tensor
    word_scale: float
    places: Tensor | None
    angles: Tensor | None
    embedding_norm: Tensor | None
    matrices: list[Tensor]
    biases: list[Tensor]
    scales: list[Tensor]
    norms: list[Tensor]

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any, weights: torch.dtype) -> "PackedWeights":
        """A copy of the decoder's weights; in the words' bias the start has -inf."""
        config, stack = model.config, model.decoder
        embedding = model.target_embedding if isinstance(model, Transformer) else model.embedding
        linears = [part for layer in stack.layers for part in _linears(layer)] + [model.output]
        packed = [pack(linear.weight, weights) for linear in linears]
        biases = [pad(linear.bias, linear.weight) for linear in linears]
        if config.bos_id != config.eos_id:
            biases[-1][config.bos_id] = -torch.inf  # never generated
        table, rotary = embedding.table(), None
        if config.positions == "rotary":
            width = config.hidden_size // config.num_heads
            rotary = angles(config.max_length, width, torch.device("cpu"), torch.float32)
        return cls(
            embedding.words.weight.clone(),
            float(embedding.scale),
            None if table is None else table.detach().clone(),
            rotary,
            None if embedding.norm is None else _norm(embedding.norm),
            [panels for panels, _ in packed],
            biases,
            [scales for _, scales in packed if scales is not None],
            [_norm(norm) for norm in _norms(stack)],
        )


_known: weakref.WeakKeyDictionary[Any, dict[torch.dtype, tuple[tuple, PackedWeights]]] = (
    weakref.WeakKeyDictionary()
)


def packed_weights(model: Any, weights: torch.dtype) -> PackedWeights:
    """The model's packed weights, packed again only where parameters have changed since."""
    version = _state(model)
    of_model = _known.setdefault(model, {})
    if weights not in of_model or of_model[weights][0] != version:
        of_model[weights] = version, PackedWeights.of(model, weights)
    return of_model[weights][1]


@torch.no_grad()
def _state(model: Any) -> tuple:
    """What changes when parameters do. Some optimizers, and ``.data``, pass by their versions."""
    parameters = list(model.parameters())
    samples = [
        p.as_strided((min(p.numel(), 8),), (max(1, p.numel() // 8),))
        for p in parameters
        if p.is_contiguous()
    ]
    versions = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
    return (*versions, *torch.cat(samples).tolist())


def unsupported(model: Any) -> str | None:
    """Why the fast decoder does not serve this model, or None."""
    if not isinstance(model, (Transformer, GPT)):
        return f"model must be a Transformer or GPT, got {type(model).__name__}"
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            return f"model must be float32 on the CPU, but {name} is {parameter.dtype} on " + (
                str(parameter.device)
            )
    return None


def _linears(layer: Layer) -> list[torch.nn.Linear]:
    """The layer's matrices in the order of their use, but those that only see the source."""
    cross = layer.cross_attention
    between = [] if cross is None else [cross.q, cross.out]
    part, feed = layer.attention, layer.feed_forward
    return [part.qkv, part.out, *between, feed.up, feed.down]


def _norms(stack: Stack) -> list[torch.nn.LayerNorm]:
    layers: Any = stack.layers
    found: list[torch.nn.LayerNorm | None] = []
    for layer in layers:
        found += [layer.attention_norm, layer.cross_attention_norm, layer.feed_forward_norm]
    return [norm for norm in [*found, stack.norm] if norm is not None]


def _norm(norm: torch.nn.LayerNorm) -> Tensor:
    return torch.stack([norm.weight, norm.bias])
