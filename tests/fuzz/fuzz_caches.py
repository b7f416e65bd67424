"""flash_attn_with_kvcache against a loop in float64, and what may not change in the cache."""

import itertools
import math
from dataclasses import dataclass

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from fastseq import flash_attn_with_kvcache

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    seed: int
    dtype: torch.dtype
    batch: int
    queries: int
    group: int
    key_heads: int
    dim: int
    value_dim: int
    page: int | None  # tokens of a page; None for a contiguous cache
    capacity: int  # tokens, or pages of a sequence
    spare: int  # rows or pages of nobody
    append: bool
    lengths: str  # how they are given
    rows: bool  # whether by cache_batch_idx
    rotary: int  # pairs that are turned
    interleaved: bool
    causal: bool
    window: tuple[int, int]
    softcap: float
    slopes: int  # dimensions, 0 for none
    scale: float | None


sizes = st.integers
cases = st.builds(
    Case,
    seed=sizes(0, 2**31),
    dtype=st.sampled_from(DTYPES),
    batch=sizes(1, 4),
    queries=sizes(1, 6),
    group=sizes(1, 4),
    key_heads=sizes(1, 3),
    dim=sizes(1, 20),
    value_dim=sizes(1, 20),
    page=st.sampled_from([None, 1, 3, 4, 16]),
    capacity=sizes(1, 12),
    spare=sizes(0, 3),
    append=st.booleans(),
    lengths=st.sampled_from(["int32", "int64", "int", "none"]),
    rows=st.booleans(),
    rotary=sizes(0, 10),
    interleaved=st.booleans(),
    causal=st.booleans(),
    window=st.tuples(sizes(-1, 5), sizes(-1, 5)),
    softcap=st.sampled_from([0.0, 3.0]),
    slopes=sizes(0, 2),
    scale=st.sampled_from([None, 0.3]),
)


def turned(x: Tensor, cos: Tensor, sin: Tensor, position: int, interleaved: bool) -> Tensor:
    """Rotary embedding of one head's vector, element by element."""
    out, pairs = x.clone(), cos.shape[1]
    for i in range(pairs):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, pairs + i)
        c, s = cos[position, i], sin[position, i]
        out[a], out[b] = x[a] * c - x[b] * s, x[a] * s + x[b] * c
    return out


def attended(
    q: Tensor, k: Tensor, v: Tensor, case: Case, at: int, slope: float
) -> tuple[Tensor, float]:
    """One query (D,), ``at`` among the keys (S, D), and its log-sum-exp."""
    scale = case.dim**-0.5 if case.scale is None else case.scale
    left, right = case.window[0], 0 if case.causal else case.window[1]
    scores, seen = [], []
    for j in range(len(k)):
        if (right >= 0 and j > at + right) or (left >= 0 and j < at - left):
            continue
        s = scale * float(q @ k[j])
        s = case.softcap * math.tanh(s / case.softcap) if case.softcap else s
        scores.append(s - slope * abs(at - j))
        seen.append(j)
    if not seen:
        return v.new_zeros(v.shape[1]), -math.inf
    top = max(scores)
    weights = [math.exp(s - top) for s in scores]
    total = sum(weights)
    out = sum((w / total * v[j] for w, j in zip(weights, seen)), v.new_zeros(v.shape[1]))
    return out, top + math.log(total)


class Store:
    """Caches with the places (row or page, token in it) of every sequence's tokens."""

    def __init__(self, case: Case, generator: torch.Generator) -> None:
        batch, self.table, self.rows = case.batch, None, None
        self.room = size = case.capacity * (case.page or 1)
        if case.page is not None:
            size, count = case.page, batch * case.capacity + case.spare
            order = torch.randperm(count, generator=generator)
            self.table = order[: batch * case.capacity].view(batch, -1).int()
            pages = self.table.tolist()
            self.places = [[(p, t) for p in pages[i] for t in range(size)] for i in range(batch)]
        else:
            count = batch + case.spare if case.rows else batch
            order = torch.randperm(count, generator=generator)[:batch]
            self.rows = order if case.rows else None
            own = order.tolist() if case.rows else range(batch)
            self.places = [[(row, t) for t in range(size)] for row in own]
        self.caches = [
            torch.randn(count, size, case.key_heads, d, generator=generator).to(case.dtype)
            for d in (case.dim, case.value_dim)
        ]

    def tokens(self, sequence: int, count: int) -> list[Tensor]:
        """The first keys (count, heads, D) and values of a sequence."""
        at = torch.tensor(self.places[sequence][:count], dtype=torch.long).view(-1, 2)
        return [cache[at[:, 0], at[:, 1]].double() for cache in self.caches]


@given(cases)
def test_cache(case: Case) -> None:
    generator = torch.Generator().manual_seed(case.seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(case.dtype)

    b, new, heads = case.batch, case.queries if case.append else 0, case.group * case.key_heads
    store = Store(case, generator)
    assume(new <= store.room)
    lengths = torch.randint(0, store.room - new + 1, (b,), generator=generator)
    given_lengths: int | Tensor | None = lengths.int() if case.lengths == "int32" else lengths
    if case.lengths == "int":
        lengths[:] = lengths[0]
        given_lengths = int(lengths[0])
    elif case.lengths == "none":
        lengths[:] = store.room - new
        given_lengths = None
    q = rand(b, case.queries, heads, case.dim)
    fresh = [rand(b, new, case.key_heads, d) for d in (case.dim, case.value_dim)]
    pairs = min(case.rotary, case.dim // 2)
    angles = torch.rand(store.room + case.queries, pairs, generator=generator)
    cos, sin = angles.cos().to(case.dtype), angles.sin().to(case.dtype)
    shape = ((), (heads,), (b, heads))[case.slopes]
    slopes = torch.rand(shape, generator=generator) if case.slopes else None

    before = [x.clone() for x in store.caches]
    out, lse = flash_attn_with_kvcache(
        q, *store.caches, *(fresh if case.append else (None, None)),
        *((cos, sin) if pairs else (None, None)), given_lengths, store.rows, None, store.table,
        case.scale, case.causal, case.window, case.softcap, case.interleaved, slopes,
        return_softmax_lse=True,
    )  # fmt: skip
    assert out.shape == (b, case.queries, heads, case.value_dim) and out.dtype == case.dtype
    assert lse.shape == (b, heads, case.queries)

    def turn(x: Tensor, position: int) -> Tensor:
        return turned(x.double(), cos.double(), sin.double(), position, case.interleaved)

    eps, eps_of_lse = torch.finfo(case.dtype).eps, torch.finfo(lse.dtype).eps
    written = set()
    for i, held in enumerate(lengths.tolist()):
        total = held + new
        written |= set(store.places[i][held:total])
        keys, values = store.tokens(i, total)
        for t, h in itertools.product(range(new), range(case.key_heads)):
            assert torch.equal(values[held + t, h], fresh[1][i, t, h].double())
            key = turn(fresh[0][i, t, h], held + t)
            assert (keys[held + t, h] - key).abs().max() <= 4 * eps * (1 + key.abs().max())
        for t, h in itertools.product(range(case.queries), range(heads)):
            moving = case.causal or case.window != (-1, -1)
            x = turn(q[i, t, h], held + t * moving)
            k, v = keys[:, h // case.group], values[:, h // case.group]
            slope = 0.0 if slopes is None else float(slopes.expand(b, heads)[i, h])
            expected, sum_of = attended(x, k, v, case, total - case.queries + t, slope)
            # A rounding of the turned query counts as much as the terms of its products.
            steep = 1 + (float((k.abs() @ x.abs()).max()) if total else 0.0)
            bound = 8 * eps * steep
            size = 1 + (float(v.abs().max()) if v.numel() else 0.0)
            assert (out[i, t, h].double() - expected).abs().max() <= bound * size
            if sum_of == -math.inf:
                assert float(lse[i, h, t]) == -math.inf
            else:
                rounding = 8 * eps_of_lse * (abs(sum_of) + steep + total)
                assert abs(float(lse[i, h, t]) - sum_of) <= bound * bool(pairs) + rounding
    for cache, old in zip(store.caches, before, strict=True):
        changed = (cache != old).flatten(2).any(2).nonzero().tolist()
        assert {tuple(place) for place in changed} <= written
