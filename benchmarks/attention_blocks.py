"""Attention unfused, by blocks of heads and queries: an oracle that holds no whole matrix of
weights, neither forward nor backward.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastseq.reference.attention import Options, dropout_factors
from fastseq.reference.rnn import accumulate_dtype

BLOCK = 1 << 25  # elements of a block's weights, keys and values: float64 holds a few of 256 MiB
ALL = slice(None)


@dataclass(frozen=True)
class Scores:
    """What weights are made of besides q·k. ``seed``: of dropout, as our kernels draw it."""

    causal: bool = False
    softcap: float = 0.0
    dropout: float = 0.0
    seed: int = 0


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scores: Scores | None = None
) -> Tensor:
    """(B, Hq, Sq, D), (B, Hk, Sk, D), (B, Hk, Sk, Dv) -> (B, Hq, Sq, Dv), with gradients.

    ``mask``: 4 dimensions that broadcast, boolean (True is seen) or added, which may learn. Numbers
    of 16 bits are taken in float32, float64 as it is.
    """
    kv_heads = k.shape[1]
    # (B, Hk, Hq/Hk, …), where what is shared between heads has sizes of 1.
    split = [
        x if x is None else x.unflatten(1, (min(x.shape[1], kv_heads), -1)) for x in (q, k, v, mask)
    ]
    return _ByBlocks.apply(scores or Scores(), *split).flatten(1, 2)


class _ByBlocks(torch.autograd.Function):
    """Backward computes each block again and adds up what its gradients share."""

    @staticmethod
    def forward(ctx: Any, scores: Scores, *tensors: Tensor | None) -> Tensor:
        ctx.scores = scores
        ctx.save_for_backward(*tensors)
        q, _, v, _ = tensors
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        for block in _blocks(tensors, scores):
            _part(out, block.of_queries).copy_(_attend(*block.parts(tensors), block, scores))
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
        grads = [
            torch.zeros_like(x, dtype=accumulate_dtype(x.dtype)) if wanted else None
            for x, wanted in zip(tensors, needed)
        ]
        for block in _blocks(tensors, ctx.scores):
            parts = block.parts(tensors)
            leaves = [x.requires_grad_() for x, wanted in zip(parts, needed) if wanted]
            with torch.enable_grad():
                out = _attend(*parts, block, ctx.scores)
            found = torch.autograd.grad(out, leaves, _part(upstream, block.of_queries).to(out))
            wholes = [pair for pair in zip(grads, block.places()) if pair[0] is not None]
            for (whole, place), grad in zip(wholes, found):
                _part(whole, place).add_(grad)
        return None, *grads


Place = tuple[slice, ...]


@dataclass(frozen=True)
class _Block:
    """A stretch of each: batch, key heads, queries, and the keys that these may see."""

    batch: slice
    heads: slice
    queries: slice
    keys: slice
    sizes: torch.Size  # of the whole: B, Hk, Hq/Hk, Sq, Sk

    @property
    def of_queries(self) -> Place:
        return self.batch, self.heads, ALL, self.queries, ALL

    def places(self) -> tuple[Place, ...]:
        """Of q, k, v and the mask."""
        of_keys = self.batch, self.heads, ALL, self.keys, ALL
        return self.of_queries, of_keys, of_keys, (*self.of_queries[:-1], self.keys)

    def parts(self, tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """Parts of them, numbers in the type that they are computed in."""
        found: list[Tensor | None] = []
        for x, place in zip(tensors, self.places()):
            part = None if x is None else _part(x, place).detach()
            numbers = part is not None and part.dtype != torch.bool
            found.append(part.to(accumulate_dtype(part.dtype)) if numbers else part)
        return found


def _part(x: Tensor, place: Place) -> Tensor:
    """What ``x`` has there; a size of 1 is shared."""
    return x[tuple(at if size > 1 else ALL for at, size in zip(place, x.shape))]


def _blocks(tensors: tuple[Tensor | None, ...], scores: Scores) -> Iterator[_Block]:
    q, k, v, _ = tensors
    batch, heads, group, queries, width = q.shape
    keys = k.shape[3]
    rows = _at_most(queries, BLOCK // (group * keys))
    head = group * keys * (rows + width + v.shape[-1])
    several = _at_most(heads, BLOCK // head) if rows == queries else 1
    sentences = _at_most(batch, BLOCK // (several * head)) if several == heads else 1
    for b in range(0, batch, sentences):
        for h in range(0, heads, several):
            for i in range(0, queries, rows):
                seen = min(i + rows, keys) if scores.causal else keys
                yield _Block(
                    slice(b, min(b + sentences, batch)), slice(h, min(h + several, heads)),
                    slice(i, min(i + rows, queries)), slice(0, seen),
                    torch.Size((batch, heads, group, queries, keys)),
                )  # fmt: skip


def _at_most(size: int, fit: int) -> int:
    return max(1, min(size, fit))


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, block: _Block, scores: Scores
) -> Tensor:
    s = q @ k.mT * q.shape[-1] ** -0.5
    if scores.softcap:
        s = scores.softcap * torch.tanh(s / scores.softcap)
    if mask is not None:
        s = s.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else s + mask
    if scores.causal:
        after = torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device)
        s = s.masked_fill(after.triu(1 + block.queries.start), -torch.inf)
    p = s.softmax(-1)
    if scores.dropout:
        p = p * _kept(p, block, scores)
    return p @ v


def _kept(p: Tensor, block: _Block, scores: Scores) -> Tensor:
    """0 or 1/(1-dropout) for every weight."""
    *rows, keys = block.sizes
    row = torch.arange(rows[0] * rows[1] * rows[2] * rows[3], device=p.device).view(rows)
    row = _part(row[..., None], block.of_queries)
    # A row alone is drawn as a batch of its own would be.
    options = Options(1.0, dropout_p=scores.dropout, max_seqlen_q=1, max_seqlen_k=keys,
                      seed=scores.seed)  # fmt: skip
    factors = dropout_factors(row.flatten().tolist(), 1, (1, p.shape[-1]), options, p.device)
    return factors.view(p.shape).to(p.dtype)
