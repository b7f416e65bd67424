"""What else computes a case's attention: SDPA's backends by name, FlexAttention, flash-attn."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .attention_steps import Function
from .cases_attention import Case

BACKENDS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA math": SDPBackend.MATH,
}


def of(case: Case, sdpa: Function, features: dict[str, Any]) -> dict[str, Function]:
    """Those that the case names. ``features``: flash-attn's arguments beyond q, k, v and causal."""
    every = {name: _with_backend(backend, sdpa) for name, backend in BACKENDS.items()}
    every |= {"FlexAttention": _flex(case), "flash-attn": _flash_attn(case, features)}
    return {name: every[name] for name in case.peers}


def _with_backend(backend: SDPBackend, sdpa: Function) -> Function:
    def function(**given: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return sdpa(**given)

    return function


def _flex(case: Case) -> Function:
    @functools.cache
    def prepared(device: torch.device) -> Function:
        """Compiled, with its block mask: at the first call, which is not timed."""
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        sizes, seen = (case.length, case.num_keys), _seen(case)
        mask = None if seen is None else create_block_mask(seen, None, None, *sizes, device)
        return functools.partial(
            torch.compile(flex_attention, dynamic=False),
            score_mod=_score(case, device),
            block_mask=mask,
            enable_gqa=case.num_kv_heads != case.heads,
        )

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return prepared(q.device)(q, k, v)

    return function


def _seen(case: Case) -> Callable | None:
    if case.window:
        return lambda b, h, i, j: (i >= j) & (i - j <= case.window)
    return (lambda b, h, i, j: i >= j) if case.causal else None


def _score(case: Case, device: torch.device) -> Callable | None:
    if case.alibi:
        slopes = case.slopes(device)
        return lambda score, b, h, i, j: score + slopes[h] * (j - i)
    if case.softcap:
        return lambda score, b, h, i, j: case.softcap * torch.tanh(score / case.softcap)
    return None


def _flash_attn(case: Case, features: dict[str, Any]) -> Function:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from flash_attn import flash_attn_func

        heads_last = (x.transpose(1, 2) for x in (q, k, v))
        return flash_attn_func(
            *heads_last, dropout_p=case.dropout, causal=case.causal, **features
        ).transpose(1, 2)

    return function


def of_packed(case: Case, bounds: Tensor, longest: int) -> dict[str, Function]:
    """Of sequences one after the other."""

    def varlen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(q, k, v, bounds, bounds, longest, longest)

    return dict.fromkeys(case.peers, varlen)
