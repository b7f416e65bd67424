"""Attention as functions with the signatures that users already call: torch's and flash-attn's."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops.attention import attention, attention_decode, torch_is_quicker
from .ops.registration import has_kernels

_torch_attention = F.scaled_dot_product_attention  # patch_torch may put ours there
_SERVED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``torch.nn.functional.scaled_dot_product_attention`` without the matrix of scores.

    Args:
        query: (…, Hq, Sq, D); key: (…, Hk, Sk, D); value: (…, Hk, Sk, Dv). Leading dimensions
            broadcast; fewer than four dimensions are taken as torch takes them.
        attn_mask: bool (True takes part) or floating (added), broadcastable to (…, Hq, Sq, Sk); it
            may require a gradient.
        is_causal: query i sees keys 0 … i (aligned top-left, as torch does).
        scale: of the products; 1/√D by default.
        enable_gqa: Hk may divide Hq.
        window_size: keys to the left and to the right of its own that a query sees; -1 for all.
        softcap: scores become softcap·tanh(score/softcap); 0 for none.
        alibi_slopes: (Hq,) or (B, Hq); scores lose slope·distance.
        return_lse: also return the log-sum-exp of the scores, (…, Hq, Sq).

    Raises:
        What torch raises, in its words, before any kernel runs.
    """
    extras = window_size != (-1, -1) or softcap or alibi_slopes is not None or return_lse
    plain = not extras and attn_mask is None and dropout_p == 0 and key.dim() > 1
    torchs = plain and torch_is_quicker(query, key, value)
    torchs = torchs or not (extras or has_kernels(query.device.type))
    if torchs or not _fits(query, key, value, attn_mask, dropout_p, enable_gqa):
        result = _torch_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        if extras:
            raise TypeError(
                "window_size, softcap, alibi_slopes and return_lse need strided tensors of one "
                f"dtype out of {_SERVED}"
            )
        return result
    leading, q, k, v = query.shape[:-3], query, key, value
    if query.dim() != 4 or not leading[0] == key.shape[0] == value.shape[0]:
        leading = torch.broadcast_shapes(leading, key.shape[:-3], value.shape[:-3])
        q, k, v = (_four_dimensional(x, leading) for x in (query, key, value))
    if q.shape[1] > k.shape[1] == 1 and not enable_gqa:
        k, v = (x.expand(-1, q.shape[1], -1, -1) for x in (k, v))
    mask = attn_mask
    if mask is not None:
        full = (*leading, q.shape[1], q.shape[2], k.shape[2])
        mask = mask.view((1,) * (max(len(full), 4) - mask.dim()) + mask.shape)
        if len(leading) > 1:
            mask = mask.expand(*leading, *mask.shape[-3:]).flatten(0, -4)
    out, lse = attention(
        q, k, v, mask, scale=scale, window=_window(window_size, is_causal), softcap=softcap,
        dropout_p=dropout_p, alibi_slopes=alibi_slopes,
    )  # fmt: skip
    if query.dim() != 4:
        shape = (*leading, *query.shape[-3:-1]) if query.dim() > 2 else query.shape[:-1]
        out, lse = out.reshape(*shape, out.shape[-1]), lse.reshape(shape)
    return (out, lse) if return_lse else out


def _fits(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    enable_gqa: bool,
) -> bool:
    """Whether torch would take the call and our operator serves it."""
    dims = query.dim()
    if (
        not query.dtype == key.dtype == value.dtype
        or not query.device == key.device == value.device
        or not query.layout == key.layout == value.layout == torch.strided
        or not dims == key.dim() == value.dim() >= 2
        or query.dtype not in _SERVED
        or not 0 <= dropout_p <= 1
    ):
        return False
    q, k, v = query.shape, key.shape, value.shape
    if q[-1] != k[-1] or k[-2] != v[-2]:
        return False
    if dims > 2 and not q == k == v:
        grouped = enable_gqa and k[-3] > 0 and q[-3] % k[-3] == 0
        if v[-3] != k[-3] or not (q[-3] == k[-3] or k[-3] == 1 or grouped):
            return False
        if any(len({*sizes} - {1}) > 1 for sizes in zip(q[:-3], k[:-3], v[:-3])):
            return False
    if mask is None:
        return True
    full = (*(q[:-2] if enable_gqa else torch.broadcast_shapes(q[:-2], k[:-2])), q[-2], k[-2])
    return (
        mask.dtype in (torch.bool, torch.float32, query.dtype)
        and mask.device == query.device
        and mask.dim() <= len(full)
        and all(m in (1, f) for m, f in zip(reversed(mask.shape), reversed(full)))
    )


def _four_dimensional(x: Tensor, leading: Sequence[int]) -> Tensor:
    if x.dim() == 4 and x.shape[0] == leading[0]:
        return x
    if x.dim() < 4:
        return x.view((1,) * (4 - x.dim()) + x.shape)
    return x.expand(*leading, *x.shape[-3:]).flatten(0, -4)


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """flash-attn's function of that name, on CPU too and in every floating dtype.

    Args:
        q: (B, Sq, Hq, D); k: (B, Sk, Hk, D); v: (B, Sk, Hk, Dv). Hk divides Hq.
        causal: aligned bottom-right: the last query sees the last key.
        window_size: (left, right) of the position so aligned; -1 for all.
        deterministic: accepted; the backward always is.
        return_attn_probs: also return the log-sum-exp (B, Hq, Sq), and None, as there is no matrix
            of probabilities to return.
    """
    del deterministic
    _check_flash(q, k, v, dims=4)
    out, lse = attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
        scale=softmax_scale, window=_window(window_size, causal), bottom_right=True,
        softcap=softcap, dropout_p=dropout_p, alibi_slopes=alibi_slopes,
    )  # fmt: skip
    out = out.transpose(1, 2)
    return (out, lse, None) if return_attn_probs else out


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """flash-attn's function of that name: sequences packed one after the other, no padding.

    Args:
        q: (total_q, Hq, D); k: (total_k, Hk, D); v: (total_k, Hk, Dv).
        cu_seqlens_q, cu_seqlens_k: (B+1,) int32, where each sequence starts, and the total.
        max_seqlen_q, max_seqlen_k: the longest.
        The rest as in ``flash_attn_func``; the log-sum-exp is (Hq, total_q).
    """
    del deterministic
    _check_flash(q, k, v, dims=3)
    for name, bounds in (
        ("cu_seqlens_q", cu_seqlens_q),
        ("cu_seqlens_k", cu_seqlens_k),
    ):
        if bounds.dtype != torch.int32 or bounds.dim() != 1:
            raise ValueError(
                f"{name} should be one-dimensional int32, got {bounds.dtype} of {bounds.dim()}-D"
            )
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"cu_seqlens_q and cu_seqlens_k should have one length, got "
            f"{cu_seqlens_q.shape[0]} and {cu_seqlens_k.shape[0]}"
        )
    out, lse = attention(
        *(x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)),
        scale=softmax_scale, window=_window(window_size, causal), bottom_right=True,
        softcap=softcap, dropout_p=dropout_p, alibi_slopes=alibi_slopes,
        cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k,
    )  # fmt: skip
    out = out.squeeze(0).transpose(0, 1)
    return (out, lse.squeeze(0), None) if return_attn_probs else out


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

    Args:
        q: (B, Sq, Hq, D); k_cache, v_cache: (B, capacity, Hk, D), or, with ``block_table``, pages
            (blocks, block_size, Hk, D).
        k, v: (B, Snew, Hk, D), written in place into the cache behind ``cache_seqlens``.
        rotary_cos, rotary_sin: (positions, rotary_dim/2), applied to q and k at their positions.
        cache_seqlens: tokens already in each cache, (B,) int32 or one number; all by default.
        cache_batch_idx: (B,) which cache row each sequence uses.
        block_table: (B, max_blocks) int32.
        num_splits: accepted; the kernel chooses.

    Raises:
        NotImplementedError: for ``cache_leftpad``.
    """
    del num_splits
    for names, a, b in (("k and v", k, v), ("rotary_cos and rotary_sin", rotary_cos, rotary_sin)):
        if (a is None) != (b is None):
            raise ValueError(f"{names} should be given together")
    if cache_leftpad is not None:
        raise NotImplementedError("cache_leftpad is not supported")
    batch, new_tokens = q.shape[0], 0 if k is None else k.shape[1]
    capacity = k_cache.shape[1] if block_table is None else block_table.shape[1] * k_cache.shape[1]
    if not isinstance(cache_seqlens, Tensor):
        held = capacity - new_tokens if cache_seqlens is None else cache_seqlens
        cache_seqlens = torch.full((batch,), held, dtype=torch.int32, device=q.device)
    if int(cache_seqlens.max()) + new_tokens > capacity:
        raise ValueError(
            f"the cache holds {capacity} tokens a sequence, got {int(cache_seqlens.max())} in "
            f"cache_seqlens and {new_tokens} new ones"
        )
    if rotary_cos is not None and rotary_sin is not None:
        first = cache_seqlens.long()[:, None]
        steps = torch.arange(q.shape[1], device=q.device)
        # Without a causal or local window every query stands at the first new position.
        moving = causal or window_size != (-1, -1)
        q = _rotate(q, rotary_cos, rotary_sin, first + steps * moving, rotary_interleaved)
        if k is not None:
            at = first + torch.arange(new_tokens, device=q.device)
            k = _rotate(k, rotary_cos, rotary_sin, at, rotary_interleaved)
    if k is not None and v is not None:
        _append(k_cache, k, cache_seqlens, cache_batch_idx, block_table)
        _append(v_cache, v, cache_seqlens, cache_batch_idx, block_table)
        cache_seqlens = cache_seqlens + new_tokens
    if cache_batch_idx is not None:
        k_cache, v_cache = k_cache[cache_batch_idx.long()], v_cache[cache_batch_idx.long()]
    out, lse = attention_decode(
        q.transpose(1, 2), k_cache.transpose(1, 2), v_cache.transpose(1, 2),
        cache_seqlens.to(torch.int32), block_table,
        scale=softmax_scale, window=_window(window_size, causal), softcap=softcap,
        alibi_slopes=alibi_slopes,
    )  # fmt: skip
    out = out.transpose(1, 2)
    return (out, lse) if return_softmax_lse else out


def _window(window_size: tuple[int, int], causal: bool) -> tuple[int, int]:
    pair = isinstance(window_size, Sequence) and len(window_size) == 2
    if not pair or not all(isinstance(n, int) for n in window_size):
        raise ValueError(
            f"window_size should be two ints, (left, right), with -1 for all, got {window_size!r}"
        )
    left, right = window_size
    return left, 0 if causal else right


def _check_flash(q: Tensor, k: Tensor, v: Tensor, dims: int) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != dims:
            raise ValueError(f"{name} should have {dims} dimensions, got shape {tuple(x.shape)}")
        if x.dtype != q.dtype or x.dtype not in _SERVED:
            raise TypeError(f"{name} should be of q's dtype, one of {_SERVED}, got {x.dtype}")
    if k.shape[:-1] != v.shape[:-1]:
        raise ValueError(
            f"k and v should have the same tokens and heads, got {tuple(k.shape)} and "
            f"{tuple(v.shape)}"
        )
    if q.shape[-1] != k.shape[-1] or k.shape[-2] == 0 or q.shape[-2] % k.shape[-2]:
        raise ValueError(
            "k should have q's head dimension and a number of heads that divides q's, got "
            f"{tuple(q.shape)} and {tuple(k.shape)}"
        )
    if dims == 4 and q.shape[0] != k.shape[0]:
        raise ValueError(f"k should have q's batch {q.shape[0]}, got {k.shape[0]}")


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


def _append(
    cache: Tensor,
    new: Tensor,
    cache_seqlens: Tensor,
    cache_batch_idx: Tensor | None,
    block_table: Tensor | None,
) -> None:
    """Writes new (B, S, H, D) behind the tokens of each sequence."""
    at = cache_seqlens.long()[:, None] + torch.arange(new.shape[1], device=new.device)
    if block_table is None:
        rows = torch.arange(new.shape[0], device=new.device)
        rows = rows if cache_batch_idx is None else cache_batch_idx.long()
        cache[rows[:, None], at] = new
    else:
        size = cache.shape[1]
        cache[block_table.long().gather(1, at // size), at % size] = new
