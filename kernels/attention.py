"""Attention on Triton: the operators of fastseq/ops/attention.py for float32, bfloat16, float16.

Allocates, picks tiles (attention_dispatch.py) and launches. Shapes: q (B, H, Sq, D), k (B, Hk, Sk,
D), v (B, Hk, Sk, Dv).
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_dispatch import Heads, Tile, tiles
from .attention_forward import attention_forward as forward_kernel
from .device import limits_of, on
from .launch import launch_fastest

# What a tile's speed depends on, besides the types.
_TUNED_BY = ("sizes", "D", "DV", "MASK", "SOFTCAP", "ALIBI", "DROPOUT", "VARLEN", "PRECISION")


def _dense_rows(x: Tensor) -> Tensor:
    """With the elements of a row side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _empty_like(x: Tensor, width: int) -> Tensor:
    """(B, H, S, width) in memory as ``x`` is: tokens before heads where x's are."""
    batch, heads, length, _ = x.shape
    if x.stride(1) < x.stride(2):
        return x.new_empty(batch, length, heads, width).transpose(1, 2)
    return x.new_empty(batch, heads, length, width)


def _strides(**tensors: Tensor) -> dict[str, int]:
    """Of batch, head and token."""
    return {
        f"{name}_{letter}": stride
        for name, x in tensors.items()
        for letter, stride in zip("bhs", x.stride())
    }


def _precision(x: Tensor) -> str:
    """Of float32 products: three products in TF32 lose next to nothing, and tensor cores do them."""
    if x.dtype != torch.float32:
        return "ieee"
    if torch.backends.cuda.matmul.allow_tf32:
        return "tf32"
    return "tf32x3" if limits_of(x.device).warp == 32 else "ieee"


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
    return {"mask": mask, "MASK": kind} | dict(
        zip(("mask_b", "mask_h", "mask_q", "mask_k"), steps)
    )


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
    sq, sk = (max_seqlen_q, max_seqlen_k) if varlen else (q.shape[2], k.shape[2])
    values = {
        "q": q, "k": k, "v": v, "lse": lse, "cu_q": cu_seqlens_q, "cu_k": cu_seqlens_k,
        **_strides(q=q, k=k, v=v), "lse_b": lse.stride(0), "lse_h": lse.stride(1),
        **_mask_values(None if varlen else mask), **_slopes_values(alibi_slopes),
        "sq": sq, "sk": sk, "scale": scale, "softcap": softcap,
        # Further than any key is.
        "left": window_left if 0 <= window_left < sq + sk else sq + sk,
        "right": window_right if 0 <= window_right < sq + sk else sq + sk,
        "seed": 0 if seed is None else int(seed),
        "threshold": min(int(dropout_p * 2**32), 2**32 - 1),
        "keep_scale": 1 / (1 - dropout_p) if dropout_p < 1 else 0.0,
        "rows": max_seqlen_q, "quads": triton.cdiv(max_seqlen_k, 4),
        "sizes": _size_class(sq, sk, window_left, window_right),
        "B": cu_seqlens_q.numel() - 1 if cu_seqlens_q is not None and varlen else q.shape[0],
        "H": q.shape[1], "GROUP": q.shape[1] // max(k.shape[1], 1),
        "D": q.shape[3], "DV": v.shape[3], "BOTTOM_RIGHT": bottom_right, "VARLEN": varlen,
        "SOFTCAP": softcap > 0, "DROPOUT": dropout_p > 0, "PRECISION": _precision(q),
        "INDEX": _index_type(q, k, v),
    }  # fmt: skip
    if varlen:
        values |= dict.fromkeys(("q_b", "k_b", "v_b", "lse_b"), 0)
    return values


def _launch(
    kernel: Any, name: str, values: dict[str, Any], programs: Callable[[dict[str, Any]], int]
) -> None:
    """Runs a kernel with the tiles of ``name``; ``programs`` are counted from the tile."""
    q, v = values["q"], values["v"]
    heads = Heads(values["D"], values["DV"], q.element_size())
    widths = {"BD": heads.width, "BDV": heads.value_width}
    choices: tuple[Tile, ...] = tiles(name, heads, limits_of(v.device))
    launch_fastest(kernel, {**values, **widths}, choices, programs, _TUNED_BY)


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *context: Any
) -> tuple[Tensor, Tensor]:
    """``fastseq::attention_forward``: out, and the log-sum-exp of the scores (B, H, Sq)."""
    q, k, v = (_dense_rows(x) for x in (q, k, v))
    out = _empty_like(q, v.shape[3])
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    values = _common(q, k, v, lse, mask, *context)
    values |= {"out": out, **_strides(out=out)}
    if values["VARLEN"]:
        values["out_b"] = 0
    with on(q.device):
        _launch(
            forward_kernel, "forward", values,
            lambda tile: triton.cdiv(values["sq"], tile["BM"]) * values["B"] * values["H"],
        )  # fmt: skip
    return out, lse
