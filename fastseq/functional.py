"""Attention as functions with the signatures that users already call: torch's and flash-attn's."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import (
    handle_torch_function,
    has_torch_function_variadic,
)

from .functional_cache import flash_attn_with_kvcache as flash_attn_with_kvcache
from .functional_options import NUMBERS, SERVED, check_flash, check_slopes, number, tensor, window
from .ops.attention import attention, torch_is_quicker
from .ops.registration import has_kernels
from .ops.subclasses import causal_bias, is_distributed, overridden

_torch_attention = F.scaled_dot_product_attention  # patch_torch may put ours there


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
            may require a gradient. Or one of ``torch.nn.attention.bias``.
        is_causal: query i sees keys 0 … i (aligned top-left, as torch does).
        scale: of the products; 1/√D by default.
        enable_gqa: Hk may divide Hq.
        window_size: keys to the left and to the right of its own that a query sees; -1 for all.
        softcap: scores become softcap·tanh(score/softcap); 0 and infinity for none.
        alibi_slopes: (Hq,) or (B, Hq); scores lose slope·distance. Slopes that require a gradient
            get it through plain PyTorch, with a matrix of scores.
        return_lse: also return the log-sum-exp of the scores, (…, Hq, Sq).

    Tensor subclasses and modes with a ``__torch_function__`` are asked about torch's function, or,
    if an argument is one that torch does not have, about this one.

    Raises:
        What torch raises, in its words, before any kernel runs.
    """
    extras = window_size != (-1, -1) or softcap or alibi_slopes is not None or return_lse
    bottom_right = False
    if not type(query) is type(key) is type(value) is Tensor or has_torch_function_variadic(
        query, attn_mask, alibi_slopes
    ):
        if _is_for_others(query, key, value, attn_mask, alibi_slopes):
            torchs = (query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
            if not extras:
                return _torch_attention(*torchs[:6], scale=scale, enable_gqa=enable_gqa)
            return handle_torch_function(
                scaled_dot_product_attention, (query, key, value, attn_mask, alibi_slopes), *torchs,
                window_size=window_size, softcap=softcap, alibi_slopes=alibi_slopes,
                return_lse=return_lse,
            )  # fmt: skip
        attn_mask, is_causal, bottom_right = _without_bias(
            query, key, value, attn_mask, is_causal, whole=window_size == (-1, -1)
        )
    plain = not extras and attn_mask is None and dropout_p == 0 and not bottom_right
    by_torch = plain and not key.is_nested and key.dim() > 1 and torch_is_quicker(query, key, value)
    by_torch = by_torch or not (extras or has_kernels(query.device.type))
    if by_torch or not _fits(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa):
        if bottom_right:
            sq, sk = query.shape[-2], key.shape[-2]
            corner = torch.ones(sq, sk, dtype=torch.bool, device=query.device)
            attn_mask, is_causal = corner.tril(sk - sq), False
        result = _torch_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        if extras:
            raise TypeError(
                "window_size, softcap, alibi_slopes and return_lse need strided tensors of one "
                f"dtype out of {SERVED}, numbers for dropout_p and scale, bools for the rest"
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
    if extras:
        number("softcap", softcap, 0, finite=False)
        check_slopes(alibi_slopes, q, q.shape[0], q.shape[1])
    out, lse = attention(
        q, k, v, mask, scale=scale, window=window(window_size, is_causal),
        bottom_right=bottom_right, softcap=softcap, dropout_p=dropout_p, alibi_slopes=alibi_slopes,
    )  # fmt: skip
    if query.dim() != 4:
        shape = (*leading, *query.shape[-3:-1]) if query.dim() > 2 else query.shape[:-1]
        out, lse = out.reshape(*shape, out.shape[-1]), lse.reshape(shape)
    return (out, lse) if return_lse else out


def _is_for_others(
    query: Any, key: Any, value: Any, attn_mask: Tensor | None, alibi_slopes: Tensor | None
) -> bool:
    """Whether a call is not for us: an argument computes itself, or is no tensor."""
    if not all(isinstance(x, Tensor) for x in (query, key, value)):
        return True
    mask = attn_mask if causal_bias(attn_mask) is None else None
    return overridden((query, key, value, mask, alibi_slopes)) or is_distributed(query)


def _without_bias(
    query: Tensor, key: Tensor, value: Tensor, mask: Any, is_causal: bool, *, whole: bool
) -> tuple[Tensor | None, bool, bool]:
    """The mask, whether causal, and whether aligned bottom-right, with torch's causal bias read.

    Args:
        whole: whether there is no window, which would be aligned by the bias.
    """
    bias = causal_bias(mask)
    if bias is None:
        return mask, is_causal, False
    if is_causal:
        raise ValueError("CausalBias should not be used with causal=True")
    # torch reads these so, whatever the lengths of the call.
    if bias.seq_len_q == bias.seq_len_kv or bias.variant == type(bias.variant).UPPER_LEFT:
        return None, True, False
    if whole and (bias.seq_len_q, bias.seq_len_kv) == (query.shape[-2], key.shape[-2]):
        return None, True, True
    return bias._materialize(query.device), False, False


def _fits(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> bool:
    """Whether torch would take the call and our operator serves it."""
    if query.is_nested or key.is_nested or value.is_nested:
        return False
    dims = query.dim()
    if (
        not query.dtype == key.dtype == value.dtype
        or not query.device == key.device == value.device
        or not query.layout == key.layout == value.layout == torch.strided
        or not dims == key.dim() == value.dim() >= 2
        or query.dtype not in SERVED
        or not (isinstance(dropout_p, NUMBERS) and 0 <= dropout_p <= 1)
        or not (scale is None or isinstance(scale, NUMBERS))
        or not type(is_causal) is type(enable_gqa) is bool
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
        isinstance(mask, Tensor)
        and mask.layout == torch.strided
        and mask.dtype in (torch.bool, torch.float32, query.dtype)
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
        alibi_slopes: (Hq,) or (B, Hq). Where they require a gradient, they get it through plain
            PyTorch, with a matrix of scores.
        deterministic: accepted; the backward always is.
        return_attn_probs: also return the log-sum-exp (B, Hq, Sq), and None, as there is no matrix
            of probabilities to return.
    """
    tensors = (q, k, v, alibi_slopes)
    if overridden(tensors):
        return handle_torch_function(
            flash_attn_func, tensors, q, k, v, dropout_p, softmax_scale, causal, window_size,
            softcap, alibi_slopes, deterministic, return_attn_probs,
        )  # fmt: skip
    check_flash(q, k, v, dims=4)
    if q.shape[0] != k.shape[0]:
        raise ValueError(f"k should have q's batch {q.shape[0]}, got {k.shape[0]}")
    check_slopes(alibi_slopes, q, q.shape[0], q.shape[2])
    out, lse = attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bottom_right=True,
        **_options(dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes),
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
        cu_seqlens_q, cu_seqlens_k: (B+1,) int32, where each sequence starts, and the total. What
            they hold is checked on the CPU; on a GPU that would wait for it.
        max_seqlen_q, max_seqlen_k: the longest.
        The rest as in ``flash_attn_func``; the log-sum-exp is (Hq, total_q).
    """
    tensors = (q, k, v, cu_seqlens_q, cu_seqlens_k, alibi_slopes)
    if overridden(tensors):
        return handle_torch_function(
            flash_attn_varlen_func, tensors, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
            max_seqlen_k, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
            deterministic, return_attn_probs,
        )  # fmt: skip
    check_flash(q, k, v, dims=3)
    for name, bounds, longest in (
        ("q", cu_seqlens_q, max_seqlen_q),
        ("k", cu_seqlens_k, max_seqlen_k),
    ):
        tensor(f"cu_seqlens_{name}", bounds, q)
        if bounds.dtype != torch.int32 or bounds.dim() != 1:
            raise ValueError(
                f"cu_seqlens_{name} should be one-dimensional int32, got {bounds.dtype} of "
                f"{bounds.dim()}-D"
            )
        if not isinstance(longest, (int, torch.SymInt)):
            raise TypeError(f"max_seqlen_{name} should be an int, got {type(longest).__name__}")
    if cu_seqlens_q.shape != cu_seqlens_k.shape or cu_seqlens_q.shape[0] == 0:
        raise ValueError(
            f"cu_seqlens_q and cu_seqlens_k should have one length, at least 1, got "
            f"{cu_seqlens_q.shape[0]} and {cu_seqlens_k.shape[0]}"
        )
    check_slopes(alibi_slopes, q, cu_seqlens_q.shape[0] - 1, q.shape[1])
    out, lse = attention(
        *(x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)), bottom_right=True,
        cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k,
        **_options(dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes),
    )  # fmt: skip
    out = out.squeeze(0).transpose(0, 1)
    return (out, lse.squeeze(0), None) if return_attn_probs else out


def _options(
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
    alibi_slopes: Tensor | None,
) -> dict[str, Any]:
    """Options of flash-attn's functions as the operator's."""
    return {
        "dropout_p": number("dropout_p", dropout_p, 0, 1),
        "scale": None if softmax_scale is None else number("softmax_scale", softmax_scale),
        "window": window(window_size, causal),
        "softcap": number("softcap", softcap, 0, finite=False),
        "alibi_slopes": alibi_slopes,
    }
