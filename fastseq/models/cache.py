"""What a decoder keeps between steps: keys and values, contiguous or in pages, or RNN states."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ..functional import flash_attn_with_kvcache
from ..ops.attention import attention_and_weights
from .rows import Rows, check_tokens

PAGE = 32  # tokens
CacheKind = Literal["contiguous", "paged"]


class ContiguousCache:
    """Keys and values of each sequence in one piece, which grows by doubling."""

    def __init__(self, num_layers: int, batch: int, max_length: int) -> None:
        self.num_layers, self.batch, self.max_length = num_layers, batch, max_length
        self.length = 0
        self._store: Tensor | None = None  # (layers, 2, B, capacity, H, D)

    def reserve(self, tokens: int) -> None:
        """Makes room for so many more tokens a sequence."""
        if self._store is not None and self.length + tokens > self._store.shape[3]:
            self._store = self._grown(self._store, self.length + tokens, None)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of q (B, t, H, D) on what is cached and k, v (B, t, H, D), which join it."""
        if self._store is None:
            store = k.new_empty(self.num_layers, 2, self.batch, 0, *k.shape[2:])
            self._store = self._grown(store, self.length + k.shape[1], None)
        end = self.length + k.shape[1]
        keys, values = self._store[layer]
        keys[:, self.length : end] = k
        values[:, self.length : end] = v
        return _attend(q, keys, values, cache_seqlens=end, causal=True)

    def rewind(self) -> None:
        self.length = 0

    def select(self, rows: Tensor) -> None:
        self.batch = len(rows)
        if self._store is not None:
            self._store = self._grown(self._store, self._store.shape[3], rows)

    def _grown(self, store: Tensor, needed: int, rows: Tensor | None) -> Tensor:
        capacity = store.shape[3]
        while capacity < needed:
            capacity = min(self.max_length, max(2 * capacity, 64))
        new = store.new_empty(*store.shape[:2], self.batch, capacity, *store.shape[4:])
        held = store[:, :, :, : self.length]
        new[:, :, :, : self.length] = held if rows is None else held.index_select(2, rows)
        return new


class PagedCache:
    """Keys and values in pages that a table assigns to sequences, which share what they can.

    Sequences that were repeated or reordered share full pages; the last page, which grows on, is
    copied for each of them (Kwon et al., arXiv 2309.06180).
    """

    def __init__(self, num_layers: int, batch: int, max_length: int) -> None:
        del max_length  # pages are taken as tokens come
        self.num_layers, self.batch = num_layers, batch
        self.length = 0
        self._pool: Tensor | None = None  # (layers, 2, pages, PAGE, H, D)
        self._table: Tensor | None = None  # (B, pages) int32

    def reserve(self, tokens: int) -> None:
        """Makes room for so many more tokens a sequence."""
        if self._table is not None:
            missing = -(-(self.length + tokens) // PAGE) - self._table.shape[1]
            if missing > 0:
                fresh = self._take(self.batch * missing).view(self.batch, missing)
                self._table = torch.cat([self._table, fresh], 1)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of q (B, t, H, D) on what is cached and k, v (B, t, H, D), which join it."""
        if self._pool is None:
            self._pool = k.new_empty(self.num_layers, 2, 0, PAGE, *k.shape[2:])
            self._table = torch.zeros(self.batch, 0, dtype=torch.int32, device=k.device)
            self.reserve(k.shape[1])
        keys, values = self._pool[layer]
        return _attend(
            q, keys, values, k, v, cache_seqlens=self.length, block_table=self._table, causal=True
        )

    def rewind(self) -> None:
        self.length = 0
        if self._table is not None:
            self._table = self._table[:, :0]  # pages may be shared: none is written again

    def select(self, rows: Tensor) -> None:
        self.batch = len(rows)
        if self._pool is None or self._table is None:
            return
        # Pages behind the last token hold nothing; those before it are full and may be shared.
        whole, begun = divmod(self.length, PAGE)
        self._table = self._table.index_select(0, rows)[:, : whole + bool(begun)].contiguous()
        if begun:
            old = self._table[:, whole].long()
            fresh = self._take(self.batch)
            self._pool[:, :, fresh.long()] = self._pool[:, :, old]
            self._table[:, whole] = fresh

    def _take(self, count: int) -> Tensor:
        """Pages that no sequence uses, (count,) int32; the pool grows if there are too few."""
        assert self._pool is not None and self._table is not None
        unused = torch.ones(self._pool.shape[2], dtype=torch.bool, device=self._pool.device)
        unused[self._table.flatten().long()] = False
        free = unused.nonzero().squeeze(1)
        if len(free) < count:
            old = self._pool
            more = max(count - len(free), old.shape[2])
            self._pool = old.new_empty(*old.shape[:2], old.shape[2] + more, *old.shape[3:])
            self._pool[:, :, : old.shape[2]] = old
            added = torch.arange(more, device=old.device) + old.shape[2]
            free = torch.cat([free, added])
        return free[:count].to(torch.int32)


def _attend(*tensors: Any, **options: Any) -> Tensor:
    out = flash_attn_with_kvcache(*tensors, **options)
    assert isinstance(out, Tensor)
    return out


class EncoderMemory:
    """Keys and values of the source in every decoder layer, (B, S, H, D), projected once.

    Args:
        layers: (k, v) of each layer, rows.
        rows: where the source's tokens stand.
        need_attention: whether to keep the last layer's weights, the mean over heads.
    """

    def __init__(
        self, layers: list[tuple[Tensor, Tensor]], rows: Rows, need_attention: bool = False
    ) -> None:
        self.layers = [(rows.unpack(k), rows.unpack(v)) for k, v in layers]
        self.lengths = rows.bounds.diff()
        self.need_attention = need_attention
        self.attention: Tensor | None = None  # (B, S), of the last token
        self._sentence = torch.arange(len(self.lengths), device=self.lengths.device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
        """Attention of q (B, t, H, D) on the source."""
        if not self.need_attention or layer < len(self.layers) - 1:
            return _attend(q, k, v, cache_seqlens=self.lengths)
        present = torch.arange(k.shape[1], device=k.device) < self.lengths[:, None]
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out, weights = attention_and_weights(q, k, v, present[:, None, None], average=True)
        self.attention = weights[:, -1]
        return out.transpose(1, 2)

    def select(self, rows: Tensor) -> None:
        if self.attention is not None:
            self.attention = self.attention.index_select(0, rows)
        sentence = self._sentence.index_select(0, rows)
        if torch.equal(sentence, self._sentence):
            return  # hypotheses of one sentence changed places
        self._sentence = sentence
        self.lengths = self.lengths.index_select(0, rows)
        self.layers = [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.layers]


class AttentionState:
    """Decoding state of Transformer and GPT: cached keys and values, and the source's."""

    def __init__(
        self,
        num_layers: int,
        batch: int,
        max_length: int,
        cache: CacheKind,
        memory: EncoderMemory | None = None,
    ) -> None:
        kinds: dict[str, type[ContiguousCache] | type[PagedCache]] = {
            "contiguous": ContiguousCache,
            "paged": PagedCache,
        }
        if cache not in kinds:
            raise ValueError(f"cache should be one of {', '.join(kinds)}, got {cache!r}")
        if max_length < 1:
            raise ValueError(f"max_length should be greater than zero, got {max_length}")
        self.cache = kinds[cache](num_layers, batch, max_length)
        self.max_length, self.memory = max_length, memory

    @property
    def length(self) -> int:
        """Tokens of each sequence so far."""
        return self.cache.length

    @property
    def attention(self) -> Tensor | None:
        """Weights (B, S) of the last token on the source, the last layer's mean over heads."""
        return None if self.memory is None else self.memory.attention

    def rewind(self) -> None:
        """Forgets all tokens, but not the source."""
        self.cache.rewind()

    def select(self, rows: Tensor) -> None:
        """Keeps, reorders or repeats sequences: sequence i becomes what rows[i] was."""
        check_rows(rows, self.cache.batch)
        self.cache.select(rows)
        if self.memory is not None:
            self.memory.select(rows)

    def advance(self, tokens: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """``compute(positions)`` with room for tokens (B, t), which then count as cached.

        Raises:
            TypeError, ValueError: tokens do not fit the state.
        """
        steps = check_step(tokens, self.cache.batch, self.length, self.max_length)
        self.cache.reserve(steps)
        result = compute(torch.arange(self.length, self.length + steps, device=tokens.device))
        self.cache.length += steps
        return result

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
        return self.cache.attend(layer, q, k, v)


def check_step(tokens: Tensor, batch: int, length: int, max_length: int) -> int:
    """The number of new tokens (B, t) a sequence, behind ``length`` of ``max_length``."""
    check_tokens(tokens, "tokens")
    steps = tokens.shape[1]
    if tokens.shape[0] != batch or not steps:
        raise ValueError(
            f"tokens should have shape ({batch}, t) with t ≥ 1, got {tuple(tokens.shape)}"
        )
    if length + steps > max_length:
        raise ValueError(
            f"the state holds {max_length} tokens a sequence, got {length} and {steps} new ones"
        )
    return steps


def check_rows(rows: Tensor, batch: int) -> None:
    if rows.dtype != torch.int64 or rows.dim() != 1:
        raise TypeError(f"rows should be one-dimensional int64, got {rows.dtype} of {rows.dim()}-D")
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < batch:
        raise IndexError(f"rows should be from 0 to {batch - 1}, got {rows.tolist()}")
