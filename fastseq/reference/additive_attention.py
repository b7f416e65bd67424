"""Additive attention (Bahdanau et al. 2015, arXiv 1409.0473) in plain PyTorch.

    s_ij = sum_d v_d·tanh(q_id + k_jd)      p_i = softmax_j(s_i)      out_i = sum_j p_ij·value_j

Shapes: q (B, Tq, D) and k (B, Tk, D), already projected; value (B, Tk, Dv); v (D,); mask bool, True
takes part, (B|1, Tq|1, Tk). All is computed in the accumulation type.
"""

import torch
from torch import Tensor

from .rnn import accumulate_dtype


def additive_attention_forward(
    q: Tensor, k: Tensor, value: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``fastseq::additive_attention_forward``; differentiable."""
    wide_q, wide_k, wide_value, wide_v = (x.to(accumulate_dtype(q.dtype)) for x in (q, k, value, v))
    s = torch.tanh(wide_q[:, :, None] + wide_k[:, None]) @ wide_v
    if mask is not None:
        s = s.masked_fill(~mask, -torch.inf)
    blind = (s == -torch.inf).all(-1, keepdim=True)
    weights = torch.softmax(s.masked_fill(blind, 0), -1).masked_fill(blind, 0)
    return (weights @ wide_value).to(q.dtype), weights


def additive_attention_backward(
    grad_out: Tensor,
    grad_weights: Tensor | None,
    q: Tensor,
    k: Tensor,
    value: Tensor,
    v: Tensor,
    weights: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``fastseq::additive_attention_backward``. What is masked has no weight, hence no gradient."""
    wide_q, wide_k, wide_value, wide_v, wide_grad = (
        x.to(weights.dtype) for x in (q, k, value, v, grad_out)
    )
    dp = wide_grad @ wide_value.mT
    if grad_weights is not None:
        dp = dp + grad_weights
    ds = weights * (dp - (weights * dp).sum(-1, keepdim=True))
    t = torch.tanh(wide_q[:, :, None] + wide_k[:, None])
    slope = ds[..., None] * (1 - t * t)
    return (
        (slope.sum(2) * wide_v).to(q.dtype),
        (slope.sum(1) * wide_v).to(k.dtype),
        (weights.mT @ wide_grad).to(value.dtype),
        torch.einsum("bqk,bqkd->d", ds, t).to(v.dtype),
    )
