"""One step of a Transformer's decoder in plain PyTorch, on weights as the kernel has them.

A linear layer y = x·Wᵀ + b is packed: outputs in panels of C columns, and in a panel all columns
for each word of inputs. A word is 1 float32, 2 bfloat16 or 4 int8: (panels, words, C[, 2 or 4]).
Biases are (panels·C,); scales, for int8, (2, panels·C): the worth of a column's unit and the sum of
its numbers. With int8, inputs are rounded row by row to int8 too (127 is the largest) and sums are
exact; all else is float32.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

PER_WORD = {torch.float32: 1, torch.bfloat16: 2, torch.int8: 4}


def pack(weight: Tensor, dtype: torch.dtype, columns: int) -> tuple[Tensor, Tensor | None]:
    """A weight (outputs, inputs) as the step takes it: its panels, and for int8 its scales."""
    outputs, inputs = weight.shape
    part = PER_WORD[dtype]
    padded = F.pad(weight.float(), (0, -inputs % part, 0, -outputs % columns))
    scales = None
    if dtype == torch.int8:
        unit = padded.abs().amax(1) / 127
        padded = torch.round(padded / unit.clamp(min=torch.finfo(torch.float32).tiny)[:, None])
        scales = torch.stack([unit, padded.sum(1)])
    panels = padded.unflatten(0, (-1, columns)).unflatten(2, (-1, part))  # (P, C, words, part)
    panels = panels.transpose(1, 2).to(dtype).contiguous()
    return panels.squeeze(3) if part == 1 else panels, scales


def product(x: Tensor, panels: Tensor, bias: Tensor, scales: Tensor | None) -> Tensor:
    """x (M, inputs) by a packed layer, in whole panels: (M, panels·C)."""
    if panels.dim() == 3:
        panels = panels[..., None]
    weight = panels.transpose(1, 2).flatten(2).flatten(0, 1).float()  # (outputs, inputs)
    x = F.pad(x, (0, weight.shape[1] - x.shape[1]))
    if scales is None:
        return x @ weight.T + bias
    most = x.abs().amax(1, keepdim=True)
    numbers = torch.round(x * (127 / most).nan_to_num(0, 0, 0))
    return (numbers.double() @ weight.double().T).float() * scales[0] * (most / 127) + bias


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Queries (R, t, H, D) to keys and values (R, n, H, D), of which ``seen`` (R, t, n) tells."""
    scores = torch.einsum("rihd,rjhd->rhij", q, k) / q.shape[-1] ** 0.5
    weights = torch.softmax(scores.masked_fill(~seen[:, None], -torch.inf), -1)
    return torch.einsum("rhij,rjhd->rihd", weights, v)


def rotate(x: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    """x (R, t, H, D) by angles (t, D/2), halves of a head paired."""
    a, b = x.chunk(2, -1)
    sine, cosine = sine[:, None], cosine[:, None]
    return torch.cat([a * cosine - b * sine, a * sine + b * cosine], -1)


def activate(kind: str, x: Tensor) -> Tensor:
    if kind == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    return getattr(F, kind)(x)


def decoder_step(
    tokens: Tensor,
    cache: Tensor,
    ancestors: Tensor,
    length: int,
    words: Tensor,
    word_scale: float,
    places: Tensor | None,
    angles: Tensor | None,
    embedding_norm: Tensor | None,
    matrices: list[Tensor],
    biases: list[Tensor],
    scales: list[Tensor],
    norms: list[Tensor],
    memory: list[Tensor],
    spans: Tensor | None,
    heads: int,
    ffn: int,
    activation: str,
    norm_first: bool,
    eps: float,
    best: int,
) -> tuple[Tensor, Tensor]:
    """``fastseq::decoder_step``; the operator's docstring says what each argument is."""
    (rows, steps), width = tokens.shape, words.shape[1]
    now = slice(length, length + steps)
    next_matrix = itertools.zip_longest(matrices, biases, scales)
    next_norm = iter(norms)

    def times(x: Tensor, outputs: int) -> Tensor:
        return product(x, *next(next_matrix))[:, :outputs]

    def normalised(x: Tensor, weights: Tensor) -> Tensor:
        return F.layer_norm(x, (width,), weights[0], weights[1], eps)

    def add(x: Tensor, part) -> Tensor:
        if norm_first:
            return x + part(normalised(x, next(next_norm)))
        return normalised(x + part(x), next(next_norm))

    def self_attention(layer: int, x: Tensor) -> Tensor:
        q, k, v = times(x, 3 * width).view(rows, steps, 3, heads, -1).unbind(2)
        if angles is not None:
            q, k = rotate(q, *angles[:, now]), rotate(k, *angles[:, now])
        for kept, new in zip(cache[layer], (k, v)):
            kept[now, :rows] = new.transpose(0, 1).flatten(2)
        time = torch.arange(length + steps, device=tokens.device)
        slots = ancestors[:, : length + steps].long()  # (R, n)
        k, v = (kept[time, slots].unflatten(2, (heads, -1)) for kept in cache[layer])
        seen = (time <= time[now, None]).expand(rows, -1, -1)
        return times(attend(q, k, v, seen).flatten(2).flatten(0, 1), width)

    def cross_attention(layer: int, x: Tensor) -> Tensor:
        assert spans is not None
        q = times(x, width).view(rows, steps, heads, -1)
        first, size = spans.long()[..., None].unbind(1)  # (R, 1) each
        place = torch.arange(int(size.max()), device=tokens.device)
        source = memory[layer][first + place.minimum(size - 1)]  # (R, S, 2·d)
        k, v = source.unflatten(2, (2, heads, -1)).unbind(2)
        seen = (place < size)[:, None].expand(-1, steps, -1)
        return times(attend(q, k, v, seen).flatten(2).flatten(0, 1), width)

    ancestors[:, now] = torch.arange(rows, dtype=torch.int32, device=tokens.device)[:, None]
    x = words[tokens] * word_scale
    if places is not None:
        x = x + places[now]
    if embedding_norm is not None:
        x = normalised(x, embedding_norm)
    x = x.flatten(0, 1)  # (rows · steps, width)
    for layer in range(len(cache)):
        x = add(x, lambda y, layer=layer: self_attention(layer, y))
        if spans is not None:
            x = add(x, lambda y, layer=layer: cross_attention(layer, y))
        x = add(x, lambda y: times(activate(activation, times(y, ffn)), width))
    last = x.view(rows, steps, width)[:, -1]
    if norm_first:
        last = normalised(last, next(next_norm))
    logits = times(last, len(words))
    if not best:
        return logits, tokens.new_empty(rows, 0)
    return torch.log_softmax(logits, -1).topk(best)
