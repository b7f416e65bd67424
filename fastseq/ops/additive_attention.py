"""Additive attention as differentiable operators; no kernel holds a (B, Tq, Tk, D) tensor.

``fastseq::additive_attention_forward`` and ``additive_attention_backward`` run in C++ on the CPU,
in Triton on CUDA, and in plain PyTorch (``fastseq.reference.additive_attention``, which also states
the maths) elsewhere. Shapes: q (B, Tq, D), k (B, Tk, D), value (B, Tk, Dv), v (D,), mask bool
(B|1, Tq|1, Tk). The weights (B, Tq, Tk) are a result, in the accumulation type: they are what a
plot of the alignment shows, and they spare the backward the scores.
"""

import torch
from torch import Tensor

from .. import _extension
from ..reference import additive_attention as reference
from ..reference.rnn import accumulate_dtype
from .registration import autocast, eager, register, second_gradients
from .traced import plain_autograd_only
from .vmap import loop_over

_library = torch.library.Library("fastseq", "FRAGMENT")
_library.define(
    "additive_attention_forward(Tensor q, Tensor k, Tensor value, Tensor v, Tensor? mask) "
    "-> (Tensor out, Tensor weights)"
)
_library.define(
    "additive_attention_backward(Tensor grad_out, Tensor? grad_weights, Tensor q, Tensor k, "
    "Tensor value, Tensor v, Tensor weights, Tensor? mask) "
    "-> (Tensor grad_q, Tensor grad_k, Tensor grad_value, Tensor grad_v)"
)


def _fake_forward(
    q: Tensor, k: Tensor, value: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, queries, keys = *q.shape[:2], k.shape[1]
    return (
        q.new_empty(batch, queries, value.shape[2]),
        q.new_empty(batch, queries, keys, dtype=accumulate_dtype(q.dtype)),
    )


def _fake_backward(
    grad_out: Tensor,
    grad_weights: Tensor | None,
    q: Tensor,
    k: Tensor,
    value: Tensor,
    v: Tensor,
    weights: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (q, k, value, v))


register(
    _library, "additive_attention_forward", reference.additive_attention_forward, _fake_forward
)
register(
    _library, "additive_attention_backward", reference.additive_attention_backward, _fake_backward
)
_extension.load()

_forward = torch.ops.fastseq.additive_attention_forward.default
_backward = torch.ops.fastseq.additive_attention_backward.default


def _setup_forward(ctx, inputs, output) -> None:
    out, weights = output
    q, k, value, v, mask = inputs
    ctx.set_materialize_grads(False)
    ctx.out_like = out.shape, out.dtype
    ctx.save_for_backward(q, k, value, v, weights, mask)


def _gradients(ctx, grad_out: Tensor | None, grad_weights: Tensor | None) -> tuple:
    q = ctx.saved_tensors[0]
    if grad_out is None:
        shape, dtype = ctx.out_like
        grad_out = q.new_zeros(shape, dtype=dtype)
    return (*_call_backward(grad_out, grad_weights, *ctx.saved_tensors), None)


def _setup_backward(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _second_gradients(ctx, *grad_gradients: Tensor | None) -> tuple:
    grad_out, grad_weights, *inputs, _weights, mask = ctx.saved_tensors

    def plain(q: Tensor, k: Tensor, value: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return reference.additive_attention_forward(q, k, value, v, mask)

    of_upstream, of_inputs = second_gradients(
        plain, inputs, (grad_out, grad_weights), grad_gradients
    )
    return (*of_upstream, *of_inputs, None, None)


torch.library.register_autograd(
    "fastseq::additive_attention_forward", _gradients, setup_context=_setup_forward, lib=_library
)
torch.library.register_autograd(
    "fastseq::additive_attention_backward",
    _second_gradients,
    setup_context=_setup_backward,
    lib=_library,
)
for _op in (_forward, _backward):
    torch.library.register_vmap(_op.name(), loop_over(_op), lib=_library)
_call_forward = eager(_forward, _setup_forward, _gradients)
_call_backward = eager(_backward, _setup_backward, _second_gradients)


def additive_attention(
    q: Tensor, k: Tensor, value: Tensor, v: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax_j(sum_d v_d·tanh(q_id + k_jd))·value without the sum's (B, Tq, Tk, D) terms.

    Args:
        q: (B, Tq, D) and k: (B, Tk, D), projected; value: (B, Tk, Dv); v: (D,). One dtype.
        mask: bool, (B|1, Tq|1, Tk), True takes part.

    Returns:
        out (B, Tq, Dv) and the weights (B, Tq, Tk), float32 or float64. A query whose keys are all
        masked gets zeros in both.
    """
    q, k, value, v = autocast(q, k, value, v)
    if plain_autograd_only():
        return reference.additive_attention_forward(q, k, value, v, mask)
    return _call_forward(q, k, value, v, mask)
