"""Arguments that the attention functions share, and what is wrong with them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SERVED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NUMBERS = (int, float, torch.SymInt, torch.SymFloat)


def window(window_size: tuple[int, int], causal: bool) -> tuple[int, int]:
    """(left, right), as the operators take it.

    Raises:
        ValueError: it is not two ints.
    """
    if window_size == (-1, -1):
        return -1, 0 if causal else -1
    pair = isinstance(window_size, Sequence) and len(window_size) == 2
    if not pair or not all(isinstance(n, (int, torch.SymInt)) for n in window_size):
        raise ValueError(
            f"window_size should be two ints, (left, right), with -1 for all, got {window_size!r}"
        )
    left, right = window_size
    return left, 0 if causal else right


def number(
    name: str,
    value: float,
    low: float = -math.inf,
    high: float = math.inf,
    finite: bool = True,
) -> float:
    """``value``, a number.

    A tensor would lose its gradient without a word.

    Raises:
        TypeError: it is no number. ValueError: it is not within [low, high], or not finite.
    """
    if not isinstance(value, NUMBERS):
        raise TypeError(f"{name} should be a number, got {type(value).__name__}")
    if not low <= value <= high or (finite and value in (math.inf, -math.inf)):
        within = f" from {low:g} to {high:g}" if high < math.inf else " not below 0" * (low == 0)
        kind = "finite number" if finite else "number"
        raise ValueError(f"{name} should be a {kind}{within}, got {value}")
    return value


def check_slopes(alibi_slopes: Tensor | None, q: Tensor, batch: int, heads: int) -> None:
    """
    Raises:
        TypeError, ValueError: the slopes are not floating, (heads,) or (batch, heads), beside q.
    """
    if alibi_slopes is None:
        return
    tensor("alibi_slopes", alibi_slopes, q)
    if not alibi_slopes.is_floating_point():
        raise TypeError(f"alibi_slopes should be floating, got {alibi_slopes.dtype}")
    if alibi_slopes.shape not in ((heads,), (batch, heads)):
        raise ValueError(
            f"alibi_slopes should have shape {(heads,)} or {(batch, heads)}, got "
            f"{tuple(alibi_slopes.shape)}"
        )


def tensor(name: str, x: Any, q: Tensor) -> None:
    """
    Raises:
        TypeError: x is not a strided tensor. ValueError: it is not on q's device.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} should be a tensor, got {type(x).__name__}")
    if x.is_nested or x.layout != torch.strided:
        kind = "nested" if x.is_nested else x.layout
        raise TypeError(f"{name} should be a strided tensor, got a {kind} one")
    if x.device != q.device:
        raise ValueError(f"{name} should be on {q.device} as q is, got {x.device}")


def check_flash(q: Tensor, k: Tensor, v: Tensor, dims: int, names: str = "q k v") -> None:
    """q, k and v of flash-attn's functions, heads before the last dimension.

    Raises:
        TypeError, ValueError: a dtype or a shape does not fit.
    """
    name_q, name_k, name_v = names.split()
    for name, x in ((name_q, q), (name_k, k), (name_v, v)):
        tensor(name, x, q)
        if x.dim() != dims:
            raise ValueError(f"{name} should have {dims} dimensions, got shape {tuple(x.shape)}")
        if x.dtype != q.dtype or x.dtype not in SERVED:
            raise TypeError(f"{name} should be of q's dtype, one of {SERVED}, got {x.dtype}")
    *_, heads, width = q.shape
    *tokens, key_heads, key_width = k.shape
    if v.shape[:-1] != (*tokens, key_heads):
        raise ValueError(
            f"{name_k} and {name_v} should have the same tokens and heads, got {tuple(k.shape)} "
            f"and {tuple(v.shape)}"
        )
    if width != key_width or key_heads == 0 or heads % key_heads:
        raise ValueError(
            f"{name_k} should have q's head dimension and a number of heads that divides q's, got "
            f"{tuple(q.shape)} and {tuple(k.shape)}"
        )
