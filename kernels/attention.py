"""Attention on Triton: the operators of fastseq/ops/attention.py.

Allocates, picks tiles (attention_dispatch.py) and launches. Serves float32, bfloat16 and float16 up
to heads of 256; what is beyond goes to plain PyTorch. Shapes: q (B, H, Sq, D), k (B, Hk, Sk, D), v
(B, Hk, Sk, Dv).
"""

import math
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import attention as reference
from . import flash_backward, flash_decode, flash_forward, precision
from .attention_dispatch import (
    Heads,
    Tile,
    decode_splits,
    decode_tile,
    parts_of_mask,
    tiles,
)
from .device import limits_of, on
from .flash_mask import attention_backward_mask
from .flash_weights import attention_weights as weights_kernel
from .launch import Launch, launch_fastest

# What a tile's speed depends on, besides the types.
_TUNED_BY = ("sizes", "D", "DV", "MASK", "SOFTCAP", "ALIBI", "DROPOUT", "VARLEN", "PRECISION")
_SERVED = (torch.float32, torch.bfloat16, torch.float16)
_MAX_DIM = 256


def _serves(q: Tensor, v: Tensor) -> bool:
    return q.dtype in _SERVED and max(q.shape[3], v.shape[3]) <= _MAX_DIM


def _dense_rows(x: Tensor) -> Tensor:
    """With the elements of a row side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _like(x: Tensor, width: int, varlen: bool) -> Tensor:
    """(B, H, S, width) in memory as ``x`` is: tokens before heads where x's are.

    Packed rows may end in tokens of no sequence, which kernels pass over: zeros there.
    """
    batch, heads, length, _ = x.shape
    new = x.new_zeros if varlen else x.new_empty
    if x.stride(1) < x.stride(2):
        return new(batch, length, heads, width).transpose(1, 2)
    return new(batch, heads, length, width)


def _strides(varlen: bool, **tensors: Tensor) -> dict[str, int]:
    """Of batch, head and token; sequences of a packed row have no stride of their own."""
    return {
        f"{name}_{letter}": 0 if varlen and letter == "b" else stride
        for name, x in tensors.items()
        for letter, stride in zip("bhs", x.stride())
    }


def _index_type(*tensors: Tensor) -> Any:
    """Of offsets within a tile, which has 256 rows at most."""
    return tl.int64 if max(x.stride(2) for x in tensors) >= 2**31 // 256 else tl.int32


def _size_class(sq: int, sk: int, left: int, right: int) -> int:
    """One number for lengths that share a choice of tile."""
    windowed = (left >= 0) + 2 * (right >= 0)
    return (sq.bit_length() * 64 + sk.bit_length()) * 4 + windowed


def _mask_values(mask: Tensor | None) -> dict[str, Any]:
    kind = None if mask is None else "bool" if mask.dtype == torch.bool else "added"
    steps = [0] * 4
    if mask is not None:
        steps = [s if n > 1 else 0 for s, n in zip(mask.stride(), mask.shape)]
    return {"mask": mask, "MASK": kind} | dict(zip(("mask_b", "mask_h", "mask_q", "mask_k"), steps))


def _window(left: int, right: int, sq: int, sk: int) -> dict[str, int]:
    """Open sides reach further than any key is."""
    far = sq + sk
    return {
        "left": left if 0 <= left < far else far,
        "right": right if 0 <= right < far else far,
    }


def _slopes_values(slopes: Tensor | None) -> dict[str, Any]:
    slopes = None if slopes is None else slopes.contiguous()
    per_sequence = slopes is not None and slopes.dim() == 2
    return {
        "slopes": slopes,
        "slopes_b": slopes.shape[1] if slopes is not None and per_sequence else 0,
        "ALIBI": slopes is not None,
    }


def _common(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    norm: Tensor,
    mask: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    alibi_slopes: Tensor | None,
    seed: Tensor | None,
    scale: float,
    window_left: int,
    window_right: int,
    bottom_right: bool,
    softcap: float,
    dropout_p: float,
    max_seqlen_q: int,
    max_seqlen_k: int,
) -> dict[str, Any]:
    """Arguments that forward and backward kernels share."""
    varlen = cu_seqlens_q is not None and cu_seqlens_k is not None
    bounds = [None if x is None else x.contiguous() for x in (cu_seqlens_q, cu_seqlens_k)]
    sq, sk = (max_seqlen_q, max_seqlen_k) if varlen else (q.shape[2], k.shape[2])
    return {
        "q": q, "k": k, "v": v, "lse": lse, "norm": norm,
        "cu_q": bounds[0], "cu_k": bounds[1],
        **_strides(varlen, q=q, k=k, v=v, lse=lse),
        **_mask_values(None if varlen else mask), **_slopes_values(alibi_slopes),
        "sq": sq, "sk": sk, "scale": scale, "softcap": softcap,
        **_window(window_left, window_right, sq, sk),
        "seed": 0 if seed is None else int(seed),
        "threshold": min(int(dropout_p * 2**32), 2**32 - 1),
        "keep_scale": 1 / (1 - dropout_p) if dropout_p < 1 else 0.0,
        "rows": max_seqlen_q, "quads": triton.cdiv(max_seqlen_k, 4),
        "sizes": _size_class(sq, sk, window_left, window_right),
        "B": cu_seqlens_q.numel() - 1 if cu_seqlens_q is not None and varlen else q.shape[0],
        "H": q.shape[1], "GROUP": q.shape[1] // max(k.shape[1], 1),
        "D": q.shape[3], "DV": v.shape[3], "BOTTOM_RIGHT": bottom_right, "VARLEN": varlen,
        "SOFTCAP": reference.is_cap(softcap), "DROPOUT": dropout_p > 0,
        "PRECISION": precision.of_attention(q), "INDEX": _index_type(q, k, v),
    }  # fmt: skip


def _heads(values: dict[str, Any]) -> Heads:
    walked = [values[name] for name in ("q", "k", "v", "grad_out") if name in values]
    return Heads(
        values["D"],
        values["DV"],
        values["q"].element_size(),
        values["DROPOUT"],
        all(_aligned(x) for x in walked),
    )


def _aligned(x: Tensor) -> bool:
    """Whether every row starts at a multiple of 16 bytes."""
    steps = (step * x.element_size() for step in x.stride()[:3])
    return (x.is_meta or x.data_ptr() % 16 == 0) and not any(step % 16 for step in steps)


def _launch(
    kernel: Any, name: str, values: dict[str, Any], programs: Callable[[dict[str, Any]], int]
) -> None:
    """Runs a kernel with the tiles of ``name``; ``programs`` are counted from the tile."""
    heads = _heads(values)
    widths = {"BD": heads.width, "BDV": heads.value_width, "BK": 32}
    choices: tuple[Tile, ...] = tiles(name, heads, limits_of(values["q"].device))
    context = copy_context()  # in which Triton keeps what allocates: the user's own stays
    if any(tile.TMA for tile in choices):
        context.run(triton.set_allocator, _room_for_descriptors)
    context.run(launch_fastest, kernel, {**values, **widths}, choices, programs, _TUNED_BY)


def _room_for_descriptors(size: int, alignment: int, stream: int | None) -> Tensor:
    return torch.empty(size, dtype=torch.int8, device="cuda")


def _norm(lse: Tensor, norm: Tensor | None, mask: Tensor | None) -> Tensor:
    """What weights are made from; from the log-sum-exp where it came alone."""
    if norm is not None:
        return norm.contiguous()
    unit = 1.0 if mask is not None and mask.dtype != torch.bool else math.log2(math.e)
    blind = lse == -torch.inf
    return torch.stack([(lse * unit).masked_fill(blind, torch.inf), (~blind).to(lse.dtype)], -1)


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *context: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """``fastseq::attention_forward``: out, the log-sum-exp of the scores (B, H, Sq), and norm."""
    if not _serves(q, v):
        out, lse, norm = reference.attention_forward(q, k, v, mask, *context)
        # Of wide values: the kernel of weights still serves, and has scores in other units.
        return out, lse, _norm(lse, None, mask) if _serves(q, k) else norm
    q, k, v = (_dense_rows(x) for x in (q, k, v))
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    norm = lse.new_empty(*lse.shape, 2)
    values = _common(q, k, v, lse, norm, mask, *context)
    out = _like(q, v.shape[3], values["VARLEN"])
    values |= {"out": out, **_strides(values["VARLEN"], out=out)}
    with on(q.device):
        _launch(
            flash_forward.attention_forward, "forward", values,
            lambda tile: triton.cdiv(values["sq"], tile["BM"]) * values["B"] * values["H"],
        )  # fmt: skip
    return out, lse, norm


def attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    norm: Tensor | None,
    mask: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``fastseq::attention_backward``: gradients of q, k, v, and of the mask where wanted."""
    if not _serves(q, v):
        own = None if _serves(q, k) else norm
        return reference.attention_backward(grad_out, grad_lse, q, k, v, out, lse, own, mask, *rest)
    *context, need_mask = rest
    q, k, v, out, grad_out = (_dense_rows(x) for x in (q, k, v, out, grad_out))
    lse = lse.contiguous()
    values = _common(q, k, v, lse, _norm(lse, norm, mask), mask, *context)
    varlen = values["VARLEN"]
    grads = [_like(x, x.shape[3], varlen) for x in (q, k, v)]
    values |= {
        "grad_out": grad_out, "delta": torch.empty_like(lse),
        "grad_q": grads[0], "grad_k": grads[1], "grad_v": grads[2],
        **_strides(varlen, grad_out=grad_out, grad_q=grads[0], grad_k=grads[1], grad_v=grads[2]),
        "INDEX": _index_type(q, k, v, out, grad_out),
    }  # fmt: skip
    grad_mask = q.new_empty(0)
    with on(q.device):
        of_rows = {
            **values, "sq": q.shape[2], "out": out,
            **_strides(False, out=out, grad_out=grad_out),
            "grad_lse": None if grad_lse is None else grad_lse.contiguous(),
        }  # fmt: skip
        rows = q.shape[0] * values["H"]
        _launch(
            flash_backward.attention_delta, "delta", of_rows,
            lambda tile: triton.cdiv(q.shape[2], tile["BM"]) * rows,
        )  # fmt: skip
        _launch(
            flash_backward.attention_backward_keys, "keys", values,
            lambda tile: triton.cdiv(values["sk"], tile["BN"]) * values["B"] * k.shape[1],
        )  # fmt: skip
        _launch(
            flash_backward.attention_backward_queries, "queries", values,
            lambda tile: triton.cdiv(values["sq"], tile["BM"]) * values["B"] * values["H"],
        )  # fmt: skip
        if need_mask and mask is not None:
            grad_mask = mask.new_zeros(mask.shape) if varlen else _of_mask(mask, values)
    return grads[0], grads[1], grads[2], grad_mask


def _of_mask(mask: Tensor, values: dict[str, Any]) -> Tensor:
    """Gradient of an added mask; where it has few tiles, in parts that are added up here."""
    sq, sk = values["sq"], values["sk"]
    full = (values["B"], values["H"], sq, sk)
    ones = {f"ONE_{x}": m == 1 != n for x, m, n in zip("BHQK", mask.shape, full)}
    tile = tiles("mask", _heads(values), limits_of(mask.device))[0]
    blocks = (*full[:2], triton.cdiv(sq, tile.BM), triton.cdiv(sk, tile.BN))
    own = math.prod(1 if one else n for one, n in zip(ones.values(), blocks))
    summed = math.prod(n if one else 1 for one, n in zip(ones.values(), blocks))
    parts = parts_of_mask(own, summed, limits_of(mask.device))
    grad_mask = mask.new_empty(
        (parts, *mask.shape), dtype=mask.dtype if parts == 1 else torch.float32
    )
    values = {**values, **ones, "grad_mask": grad_mask, "parts": parts}
    _launch(attention_backward_mask, "mask", values, lambda _: own * parts)
    return grad_mask[0] if parts == 1 else grad_mask.sum(0).to(mask.dtype)


def attention_weights(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    norm: Tensor | None,
    mask: Tensor | None,
    alibi_slopes: Tensor | None,
    seed: Tensor | None,
    *rest: Any,
) -> Tensor:
    """``fastseq::attention_weights``: (B, H, Sq, Sk), or their mean over heads (B, Sq, Sk)."""
    if not _serves(q, k):
        return reference.attention_weights(q, k, lse, norm, mask, alibi_slopes, seed, *rest)
    *options, average = rest
    q, k = _dense_rows(q), _dense_rows(k)
    lse, no = lse.contiguous(), None
    norm = _norm(lse, norm, mask)
    values = _common(
        q, k, k, lse, norm, mask, no, no, alibi_slopes, seed, *options
    )  # no values are read
    batch, heads, sq, _ = q.shape
    sk, matrices = k.shape[2], batch * (1 if average else heads)
    weights = q.new_empty((batch, sq, sk) if average else (batch, heads, sq, sk))
    with on(q.device):
        _launch(
            weights_kernel, "weights", {**values, "weights": weights, "AVERAGE": average},
            lambda tile: triton.cdiv(sq, tile["BM"]) * triton.cdiv(sk, tile["BN"]) * matrices,
        )  # fmt: skip
    return weights


def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    block_table: Tensor | None,
    alibi_slopes: Tensor | None,
    scale: float,
    window_left: int,
    window_right: int,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """``fastseq::attention_decode``: out, and the log-sum-exp of the scores (B, H, Sq)."""
    if not _serves(q, v_cache):
        return reference.attention_decode(
            q, k_cache, v_cache, cache_seqlens, block_table, alibi_slopes, scale, window_left,
            window_right, softcap,
        )  # fmt: skip
    q, k, v = (_dense_rows(x) for x in (q, k_cache, v_cache))
    batch, heads, sq, _ = q.shape
    key_heads, page = k.shape[1:3]
    capacity = page if block_table is None else block_table.shape[1] * page
    out = _like(q, v.shape[3], False)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    if lse.numel() == 0:
        return out, lse
    group = heads // key_heads
    widths = Heads(q.shape[3], v.shape[3], q.element_size())
    limits = limits_of(q.device)
    tile = decode_tile(group * sq, widths, limits)
    programs = triton.cdiv(group * sq, tile.BM) * key_heads * batch
    splits = decode_splits(programs, triton.cdiv(capacity, tile.BN), limits)
    parts, lse_parts = out, lse
    if splits > 1:
        parts = q.new_empty(splits, *out.shape, dtype=torch.float32)
        lse_parts = lse.new_empty(splits, *lse.shape)
    table = None if block_table is None else block_table.contiguous()
    values = {
        "q": q, "k": k, "v": v, "out": parts, "lse": lse_parts,
        "lengths": cache_seqlens.contiguous(), "block_table": table,
        **_strides(False, q=q, k=k, v=v, out=parts[0] if splits > 1 else out),
        "out_part": parts.stride(0), "lse_part": lse_parts.stride(0),
        "table_b": 0 if table is None else table.shape[1], **_slopes_values(alibi_slopes),
        "sq": sq, **_window(window_left, window_right, sq, capacity), "scale": scale,
        "softcap": softcap, "SOFTCAP": reference.is_cap(softcap), "splits": splits,
        "H": heads, "GROUP": group, "D": q.shape[3], "DV": v.shape[3],
        "PAGE": 0 if table is None else page, "PRECISION": precision.of_attention(q),
        "BD": widths.width, "BDV": widths.value_width,
    }  # fmt: skip
    with on(q.device):
        launch_fastest(
            flash_decode.attention_decode, values, (tile,), lambda _: programs * splits, ()
        )
        if splits > 1:
            values |= {
                "parts": parts, "lse_parts": lse_parts, "out": out, "lse": lse,
                **_strides(False, out=out), "rows": lse.numel(), "BM": 4,
            }  # fmt: skip
            merge = Launch(
                flash_decode.attention_merge, values, {"num_warps": 4, "num_stages": 2}, "BM=4"
            )
            merge((triton.cdiv(lse.numel(), 4),))
    return out, lse
