"""What the attention models are made of. Layers run on rows in training, on a cache in decoding."""

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import LayerNorm, Module, ModuleList, init

from ..functional import flash_attn_varlen_func
from ..ops.gemm import linear
from .base import Model
from .config import AttentionConfig
from .dropout import Dropout
from .rows import Rows

# How tokens see one another: layer, q, k, v (…, heads, head_dim), dropout -> (…, heads, head_dim).
Attend = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
# What cross-attention looks at: rows (N, d), or, projected once for decoding, (k, v) a layer.
Memory = Tensor | Sequence[tuple[Tensor, Tensor]]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


def attend_rows(queries: Rows, keys: Rows, causal: bool = False) -> Attend:
    """Attention among the tokens of each sequence, without padding."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
        out = flash_attn_varlen_func(
            q, k, v, queries.bounds, keys.bounds, queries.longest, keys.longest,
            dropout_p, causal=causal,
        )  # fmt: skip
        assert isinstance(out, Tensor)
        return out

    return attend


def rotated(attend: Attend, positions: Tensor, max_length: int) -> Attend:
    """Attention with rotary positions (Su et al., arXiv 2104.09864), halves of a head paired.

    Args:
        positions: of the rows (N,), or of the steps (t,) of every sequence.
    """

    def attend_rotated(layer: int, q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
        table = angles(max_length, q.shape[-1], q.device, q.dtype)[:, positions].unsqueeze(-2)
        return attend(layer, _rotate(q, *table), _rotate(k, *table), v, dropout_p)

    return attend_rotated


def _rotate(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def angles(length: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """sin and cos of position / 10000^(2i/width), (2, length, width/2); made once."""
    make = _angles if torch.compiler.is_compiling() else _kept_angles
    return make(length, width, device, dtype)


def _angles(length: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
    angles = torch.arange(length, dtype=torch.float64)[:, None] / 10000**exponents
    return torch.stack([angles.sin(), angles.cos()]).to(device, dtype)


_kept_angles = functools.lru_cache(maxsize=32)(torch.inference_mode(False)(_angles))


class Linear(torch.nn.Linear):
    """``torch.nn.Linear`` in the type that is fast on the device."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class Embedding(Module):
    """Vectors of tokens and their places: words (scaled), positions, segments, norm, dropout.

    Sinusoidal positions are those of arXiv 1706.03762, section 3.5, sines in the first half of the
    columns and cosines in the second, as its authors' code and Marian have them.

    Args:
        words: shared with another module, if given.
        segments: how many kinds of segments there are; 0 for none.
        norm: whether the sum is normalised.
        scale: of the words' vectors.
    """

    def __init__(
        self,
        config: AttentionConfig,
        vocab_size: int,
        *,
        words: torch.nn.Embedding | None = None,
        segments: int = 0,
        norm: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        width = config.hidden_size
        self.kind, self.max_length, self.scale = config.positions, config.max_length, scale
        self.words = torch.nn.Embedding(vocab_size, width) if words is None else words
        self.positions = (
            torch.nn.Embedding(self.max_length, width) if self.kind == "learned" else None
        )
        self.segments = torch.nn.Embedding(segments, width) if segments else None
        self.norm = LayerNorm(width, config.norm_eps) if norm else None
        self.dropout = Dropout(config.dropout)

    def forward(self, tokens: Tensor, positions: Tensor, segments: Tensor | None = None) -> Tensor:
        """(…, d) of tokens (…) at positions, of which leading dimensions may lack."""
        x = self.words(tokens)
        if self.scale != 1:
            x = x * self.scale
        if self.positions is not None:
            x = x + self.positions(positions)
        elif self.kind == "sinusoidal":
            table = angles(self.max_length, x.shape[-1], x.device, x.dtype)[:, positions]
            x = x + torch.cat(table.unbind(), -1)
        if self.segments is not None:
            x = x + self.segments(torch.zeros_like(tokens) if segments is None else segments)
        if self.norm is not None:
            x = self.norm(x)
        return self.dropout(x)

    def table(self) -> Tensor | None:
        """What is added to words by position, (max_length, d); None if positions are rotary."""
        if self.positions is not None:
            return self.positions.weight
        if self.kind != "sinusoidal":
            return None
        weight = self.words.weight
        table = angles(self.max_length, weight.shape[1], weight.device, weight.dtype)
        return torch.cat(table.unbind(), -1)


class SelfAttention(Module):
    """Multi-head attention of tokens among themselves; q, k and v are one projection."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.attention_dropout
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, layer: int, attend: Attend) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)  # (…, H, D)
        out = attend(layer, q, k, v, self.dropout if self.training else 0.0)
        return self.out(out.flatten(-2))


class CrossAttention(Module):
    """Multi-head attention of a decoder's tokens on an encoder's; k and v are one projection."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.attention_dropout
        self.q = Linear(config.hidden_size, config.hidden_size)
        self.kv = Linear(config.hidden_size, 2 * config.hidden_size)
        self.out = Linear(config.hidden_size, config.hidden_size)

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (…, heads, head_dim) of the memory (…, d)."""
        k, v = self.kv(memory).unflatten(-1, (2, self.num_heads, -1)).unbind(-3)
        return k, v

    def forward(
        self, x: Tensor, layer: int, attend: Attend, memory: Tensor | tuple[Tensor, Tensor]
    ) -> Tensor:
        k, v = self.project(memory) if isinstance(memory, Tensor) else memory
        q = self.q(x).unflatten(-1, (self.num_heads, -1))
        out = attend(layer, q, k, v, self.dropout if self.training else 0.0)
        return self.out(out.flatten(-2))


class FeedForward(Module):
    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.up = Linear(config.hidden_size, config.ffn_size)
        self.dropout = Dropout(config.activation_dropout)
        self.down = Linear(config.ffn_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.dropout(self.activation(self.up(x))))


class Layer(Module):
    """Self-attention, cross-attention if asked for, and feed-forward, each added and normalised."""

    def __init__(self, config: AttentionConfig, cross: bool = False) -> None:
        super().__init__()

        def norm() -> LayerNorm:
            return LayerNorm(config.hidden_size, config.norm_eps)

        self.norm_first = config.norm_first
        self.attention, self.attention_norm = SelfAttention(config), norm()
        self.cross_attention = CrossAttention(config) if cross else None
        self.cross_attention_norm = norm() if cross else None
        self.feed_forward, self.feed_forward_norm = FeedForward(config), norm()
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        layer: int,
        attend: Attend,
        memory: Tensor | tuple[Tensor, Tensor] | None = None,
        attend_memory: Attend | None = None,
    ) -> Tensor:
        x = self._add(x, self.attention_norm, lambda y: self.attention(y, layer, attend))
        if self.cross_attention is not None:
            cross = self.cross_attention
            x = self._add(
                x, self.cross_attention_norm, lambda y: cross(y, layer, attend_memory, memory)
            )
        return self._add(x, self.feed_forward_norm, self.feed_forward)

    def _add(self, x: Tensor, norm: LayerNorm | None, part: Callable[[Tensor], Tensor]) -> Tensor:
        assert norm is not None
        if self.norm_first:
            return x + self.dropout(part(norm(x)))
        return norm(x + self.dropout(part(x)))


class Stack(Module):
    """Layers one after the other, and the norm that pre-norm layers need at the end."""

    def __init__(self, config: AttentionConfig, num_layers: int, cross: bool = False) -> None:
        super().__init__()
        self.layers = ModuleList(Layer(config, cross) for _ in range(num_layers))
        self.norm = LayerNorm(config.hidden_size, config.norm_eps) if config.norm_first else None

    def forward(
        self,
        x: Tensor,
        attend: Attend,
        memory: Memory | None = None,
        attend_memory: Attend | None = None,
    ) -> Tensor:
        """(…, d) of x (…, d); memory and attend_memory for cross-attention."""
        for i, layer in enumerate(self.layers):
            own = memory if memory is None or isinstance(memory, Tensor) else memory[i]
            x = layer(x, i, attend, own, attend_memory)
        return x if self.norm is None else self.norm(x)

    def project(self, memory: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (…, heads, head_dim) of the memory (…, d) in every cross-attention."""
        crosses = [part for part in self.modules() if isinstance(part, CrossAttention)]
        return [cross.project(memory) for cross in crosses]


class AttentionModel(Model):
    """What the models made of attention layers share."""

    config: AttentionConfig

    def _placed(self, attend: Attend, positions: Tensor) -> Attend:
        """Attention that knows the tokens' positions, where the embedding does not."""
        if self.config.positions != "rotary":
            return attend
        return rotated(attend, positions, self.config.max_length)

    def _check_length(self, max_length: int) -> None:
        if max_length > self.config.max_length:
            raise ValueError(
                f"max_length should be at most the model's {self.config.max_length}, got "
                f"{max_length}"
            )


@torch.no_grad()
def init_xavier(module: Module) -> None:
    """Matrices from Xavier's uniform distribution, words and positions normal with d^-½, no biases.

    The three projections of an attention share one bound, that of one matrix (3d, d), as in
    ``nn.MultiheadAttention`` and fairseq.
    """
    for part in module.modules():
        if isinstance(part, torch.nn.Embedding):
            init.normal_(part.weight, std=part.embedding_dim**-0.5)
        elif isinstance(part, torch.nn.Linear):
            init.xavier_uniform_(part.weight)
            _zero_bias(part)
    for part in module.modules():
        if isinstance(part, CrossAttention):
            for projection in (part.q, part.kv):
                bound = math.sqrt(6 / (4 * projection.in_features))
                init.uniform_(projection.weight, -bound, bound)


@torch.no_grad()
def init_normal(module: Module, std: float = 0.02, residual_layers: int | None = None) -> None:
    """Matrices and embeddings normal with ``std``, no biases.

    Args:
        residual_layers: if given, the projections that add to the residual are divided by
            √(2·layers), as in GPT-2.
    """
    for part in module.modules():
        if isinstance(part, (torch.nn.Embedding, torch.nn.Linear)):
            init.normal_(part.weight, std=std)
        if isinstance(part, torch.nn.Linear):
            _zero_bias(part)
    if residual_layers is not None:
        for part in module.modules():
            if isinstance(part, Layer):
                for projection in (part.attention.out, part.feed_forward.down):
                    init.normal_(projection.weight, std=std / math.sqrt(2 * residual_layers))


def _zero_bias(part: torch.nn.Linear) -> None:
    if part.bias is not None:
        init.zeros_(part.bias)
