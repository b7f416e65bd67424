"""Attention against a cache of keys and values: flash-attn's function, checked before it writes."""

from collections import Counter
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from .functional_options import check_flash, check_slopes, number, tensor, window
from .ops.attention import attention_decode
from .ops.subclasses import has_values, overridden
from .ops.traced import is_traced


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """flash-attn's function of that name: new tokens against a cache, which they join first.

    Everything is checked before the first byte is written. On a GPU what ``cache_seqlens``,
    ``cache_batch_idx`` and ``block_table`` hold is read once a call, which waits for it (not at all
    if ``cache_seqlens`` is an int and the others None); under torch.compile, and while a CUDA graph
    is captured, it is not read and has to be right.

    Args:
        q: (B, Sq, Hq, D); k_cache, v_cache: (B, capacity, Hk, D), or, with ``block_table``, pages
            (blocks, block_size, Hk, D). B ≥ 1.
        k, v: (B, Snew, Hk, D), written in place into the cache behind ``cache_seqlens``.
        rotary_cos, rotary_sin: (positions, rotary_dim/2), applied to q and k at their positions.
        cache_seqlens: tokens already in each cache, (B,) int32 or int64, or one number; by default
            as many as the cache holds beside the new ones.
        cache_batch_idx: (B,) int32 or int64, which cache row each sequence uses; none twice where k
            and v are written.
        block_table: (B, max_blocks) int32. Sequences may share pages, but none that is written.
        num_splits: accepted; the kernel chooses.

    Raises:
        TypeError, ValueError: an argument is of another kind, shape, dtype or device, or holds what
            is outside the cache.
        NotImplementedError: for ``cache_leftpad``.
        RuntimeError: an input requires a gradient, which there is none of.
    """
    floating = (q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, alibi_slopes)
    tensors: tuple[Any, ...] = (*floating, cache_seqlens, cache_batch_idx, block_table)
    if overridden(tensors):
        return handle_torch_function(
            flash_attn_with_kvcache, tensors, q, k_cache, v_cache, k, v, rotary_cos, rotary_sin,
            cache_seqlens, cache_batch_idx, cache_leftpad, block_table, softmax_scale, causal,
            window_size, softcap, rotary_interleaved, alibi_slopes, num_splits, return_softmax_lse,
        )  # fmt: skip
    del num_splits
    if cache_leftpad is not None:
        raise NotImplementedError("cache_leftpad is not supported")
    check_flash(q, k_cache, v_cache, 4, "q k_cache v_cache")
    check_slopes(alibi_slopes, q, q.shape[0], q.shape[2])
    sides = window(window_size, causal)
    scale = None if softmax_scale is None else number("softmax_scale", softmax_scale)
    number("softcap", softcap, 0, finite=False)
    new_tokens = _check_new(q, k_cache, v_cache, k, v)
    _check_rotary(q, rotary_cos, rotary_sin)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in floating):
        raise RuntimeError(
            "flash_attn_with_kvcache has no gradient, but an input requires one: call it under "
            "torch.no_grad()"
        )
    lengths, known = _check_places(
        q, k_cache, cache_seqlens, cache_batch_idx, block_table, new_tokens
    )
    if rotary_cos is not None and rotary_sin is not None:
        # Without a causal or local window every query stands at the first new position.
        moving = sides != (-1, -1)
        last = max(known, default=0) + max(new_tokens, q.shape[1] if moving else 1)
        if known and last > rotary_cos.shape[0]:
            raise ValueError(
                f"rotary_cos and rotary_sin should have {last} positions, got {rotary_cos.shape[0]}"
            )
        first = lengths.long()[:, None]
        steps = torch.arange(q.shape[1], device=q.device)
        q = _rotate(q, rotary_cos, rotary_sin, first + steps * moving, rotary_interleaved)
        if k is not None:
            at = first + torch.arange(new_tokens, device=q.device)
            k = _rotate(k, rotary_cos, rotary_sin, at, rotary_interleaved)
    if k is not None and v is not None:
        if block_table is cache_batch_idx is None and known and min(known) == max(known):
            k_cache[:, known[0] : known[0] + new_tokens] = k
            v_cache[:, known[0] : known[0] + new_tokens] = v
        else:
            places = _places(k_cache, lengths, new_tokens, cache_batch_idx, block_table)
            k_cache[places], v_cache[places] = k, v
        lengths = lengths + new_tokens
    if cache_batch_idx is not None:
        k_cache, v_cache = k_cache[cache_batch_idx.long()], v_cache[cache_batch_idx.long()]
    out, lse = attention_decode(
        q.transpose(1, 2), k_cache.transpose(1, 2), v_cache.transpose(1, 2),
        lengths.to(torch.int32), block_table,
        scale=scale, window=sides, softcap=softcap, alibi_slopes=alibi_slopes,
    )  # fmt: skip
    out = out.transpose(1, 2)
    return (out, lse) if return_softmax_lse else out


def _check_new(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None, v: Tensor | None
) -> int:
    """The number of new tokens a sequence, 0 without k and v."""
    if (k is None) != (v is None):
        raise ValueError("k and v should be given together")
    if k is None or v is None:
        return 0
    new_tokens = -1
    for name, x, cache in (("k", k, k_cache), ("v", v, v_cache)):
        tensor(name, x, q)
        if x.dtype != cache.dtype:
            raise TypeError(f"{name} should be {cache.dtype} as the cache is, got {x.dtype}")
        if new_tokens < 0 and x.dim() == 4:
            new_tokens = x.shape[1]
        shape = (q.shape[0], new_tokens, *cache.shape[2:])
        if x.shape != shape:
            raise ValueError(
                f"{name} should have shape (batch, tokens, heads, width) with q's batch and the "
                f"cache's heads and width, {shape}, got {tuple(x.shape)}"
            )
    if not is_traced() and has_values(q) and k_cache.numel():
        _check_memory(k_cache, v_cache, k, v)
    return new_tokens


def _check_memory(k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor) -> None:
    """That what is written is nothing else's."""
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if torch._debug_has_internal_overlap(cache) == 1:
            raise ValueError(
                f"{name}, which is written, should have memory for each element, got shape "
                f"{tuple(cache.shape)} with strides {cache.stride()}"
            )
    if k_cache.data_ptr() == v_cache.data_ptr():
        raise ValueError("k_cache and v_cache, which are written, should not be the same memory")
    written = {x.untyped_storage().data_ptr() for x in (k_cache, v_cache)}
    for name, x in (("k", k), ("v", v)):
        if x.numel() and x.untyped_storage().data_ptr() in written:
            raise ValueError(f"{name} should not be a view of the cache that is written")


def _check_rotary(q: Tensor, cos: Tensor | None, sin: Tensor | None) -> None:
    if (cos is None) != (sin is None):
        raise ValueError("rotary_cos and rotary_sin should be given together")
    if cos is None or sin is None:
        return
    for name, x in (("rotary_cos", cos), ("rotary_sin", sin)):
        tensor(name, x, q)
        if not x.is_floating_point():
            raise TypeError(f"{name} should be floating, got {x.dtype}")
        if x.dim() != 2 or x.shape != cos.shape or 2 * x.shape[1] > q.shape[3]:
            raise ValueError(
                f"{name} should have shape (positions, rotary_dim / 2), rotary_dim at most q's "
                f"{q.shape[3]}, the same as rotary_cos, got {tuple(x.shape)}"
            )


def _check_places(
    q: Tensor,
    k_cache: Tensor,
    cache_seqlens: int | Tensor | None,
    cache_batch_idx: Tensor | None,
    block_table: Tensor | None,
    new_tokens: int,
) -> tuple[Tensor, list[int]]:
    """The tokens in each cache (B,), once all that is read and written is known to lie within it.

    And the same as numbers, or one for all of them, if they could be read.
    """
    batch, (blocks, size) = q.shape[0], k_cache.shape[:2]
    if batch == 0:
        raise ValueError(f"q should have a batch of at least 1, got shape {tuple(q.shape)}")
    capacity = size
    if block_table is not None:
        if cache_batch_idx is not None:
            raise ValueError("cache_batch_idx should not be given with a block_table")
        _check_ints("block_table", block_table, q, 2, torch.int32)
        capacity *= block_table.shape[1]
    elif cache_batch_idx is not None:
        _check_ints("cache_batch_idx", cache_batch_idx, q, 1, torch.int32, torch.int64)
    elif blocks != batch:
        raise ValueError(f"k_cache should have q's batch {batch}, got {blocks}")
    held = max(capacity - new_tokens, 0) if cache_seqlens is None else cache_seqlens
    if isinstance(held, Tensor):
        _check_ints("cache_seqlens", held, q, 1, torch.int32, torch.int64)
    elif not isinstance(held, (int, torch.SymInt)) or isinstance(held, bool):
        raise TypeError(
            f"cache_seqlens should be an int or a tensor of them, got {type(held).__name__}"
        )
    read = _values(held, cache_batch_idx, block_table)
    known: list[int] = []
    if not isinstance(held, Tensor):
        known = [held]
        held = torch.full((batch,), held, dtype=torch.int32, device=q.device)
    elif read:
        known = read[0]
    if known:
        if min(known) < 0:
            raise ValueError(f"cache_seqlens should not be negative, got {min(known)}")
        if max(known) + new_tokens > capacity:
            raise ValueError(
                f"the cache holds {capacity} tokens a sequence, got {max(known)} in cache_seqlens "
                f"and {new_tokens} new ones"
            )
    if read and cache_batch_idx is not None:
        _check_rows(read[-1], blocks, new_tokens > 0)
    elif read and block_table is not None:
        _check_pages(read[-1], known * (batch // len(known)), new_tokens, blocks, max(size, 1))
    return held, known


def _check_ints(name: str, x: Tensor, q: Tensor, dims: int, *dtypes: torch.dtype) -> None:
    tensor(name, x, q)
    if x.dtype not in dtypes:
        raise TypeError(f"{name} should be {' or '.join(map(str, dtypes))}, got {x.dtype}")
    if x.dim() != dims or x.shape[0] != q.shape[0]:
        shape = "(batch,)" if dims == 1 else "(batch, blocks)"
        raise ValueError(
            f"{name} should have shape {shape} with q's batch {q.shape[0]}, got {tuple(x.shape)}"
        )


def _values(*given: int | Tensor | None) -> list[list[int]]:
    """What the tensors hold, in order, flat, read at once; nothing where it cannot be read."""
    tensors = [x for x in given if isinstance(x, Tensor)]
    if not tensors or is_traced() or not has_values(tensors[0]):
        return []
    if tensors[0].is_cpu:
        return [x.flatten().tolist() for x in tensors]
    if tensors[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return []
    joined = iter(torch.cat([x.flatten().long() for x in tensors]).tolist())
    return [list(islice(joined, x.numel())) for x in tensors]


def _check_rows(rows: list[int], count: int, written: bool) -> None:
    if not 0 <= min(rows) <= max(rows) < count:
        raise ValueError(f"cache_batch_idx should be from 0 to {count - 1}, got {rows}")
    if written and len({*rows}) < len(rows):
        raise ValueError(f"cache_batch_idx should name each row that is written once, got {rows}")


def _check_pages(
    table: list[int], lengths: list[int], new_tokens: int, blocks: int, size: int
) -> None:
    """Those that sequences use: that there are such, and that one that is written is used once."""
    width = len(table) // len(lengths)
    used = [
        table[b * width : b * width - (-(length + new_tokens) // size)]
        for b, length in enumerate(lengths)
    ]
    for b, pages in enumerate(used):
        if pages and not 0 <= min(pages) <= max(pages) < blocks:
            raise ValueError(
                f"block_table should be from 0 to {blocks - 1}, the pages of the cache, got "
                f"{pages} for the {lengths[b] + new_tokens} tokens of sequence {b}"
            )
    if not new_tokens or len({*chain(*used)}) == sum(map(len, used)):
        return
    uses = Counter(chain(*used))
    for b, pages in enumerate(used):
        for page in pages[lengths[b] // size :]:
            if uses[page] > 1:
                raise ValueError(
                    f"block_table should name a page that is written once, got page {page} of "
                    f"sequence {b} {uses[page]} times"
                )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    """Rotary embedding of x (B, S, H, D) at positions (B, S), over the first 2·cos.shape[1]."""
    width = 2 * cos.shape[1]
    turned, rest = x[..., :width], x[..., width:]
    cos, sin = cos[positions][:, :, None], sin[positions][:, :, None]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        turned = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    return torch.cat([turned.to(x.dtype), rest], -1)


def _places(
    cache: Tensor,
    lengths: Tensor,
    new_tokens: int,
    cache_batch_idx: Tensor | None,
    block_table: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Rows or pages, and the places in them, of new tokens (B, new_tokens) behind those held."""
    at = lengths.long()[:, None] + torch.arange(new_tokens, device=cache.device)
    if block_table is not None:
        size = cache.shape[1]
        return block_table.long().gather(1, at // size), at % size
    if cache_batch_idx is not None:
        return cache_batch_idx.long()[:, None], at
    return torch.arange(len(lengths), device=cache.device)[:, None], at
