"""Attention as differentiable operators; no kernel holds a (queries, keys) matrix.

``fastseq::attention_forward``, ``attention_backward``, ``attention_weights`` and
``attention_decode`` run in C++ on the CPU, in Triton on CUDA, and in plain PyTorch
(``fastseq.reference.attention``, which also states the maths) elsewhere. ``attention_with_weights``
is the first and the third in one, on the CPU, for inference. Shapes: q (B, Hq, Sq, D), k (B, Hk,
Sk, D), v (B, Hk, Sk, Dv).

Weights are made again from ``norm`` (B, Hq, Sq, 2), which only the backend that made it reads: they
are e^(score - first)·second, where first is about the largest score. From ``lse``, which serves
where there is no ``norm``, those of large scores would be off by its rounding.
"""

from typing import Any

import torch
from torch import Tensor

from .. import _extension
from ..reference import attention as reference
from ..reference.rnn import accumulate_dtype
from .registration import autocast, eager, register, second_gradients
from .traced import eager_inference, inference, is_traced, plain_autograd_only
from .vmap import loop_over

_library = torch.library.Library("fastseq", "FRAGMENT")
_CONTEXT = (
    "Tensor? mask, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? alibi_slopes, Tensor? seed"
)
_OPTIONS = (
    "float scale, int window_left, int window_right, bool bottom_right, float softcap, "
    "float dropout_p, SymInt max_seqlen_q, SymInt max_seqlen_k"
)
_library.define(
    f"attention_forward(Tensor q, Tensor k, Tensor v, {_CONTEXT}, {_OPTIONS}) "
    "-> (Tensor out, Tensor lse, Tensor norm)"
)
_library.define(
    "attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, "
    f"Tensor out, Tensor lse, Tensor? norm, {_CONTEXT}, {_OPTIONS}, bool need_mask) "
    "-> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_mask)"
)
_library.define(
    "attention_weights(Tensor q, Tensor k, Tensor lse, Tensor? norm, Tensor? mask, "
    f"Tensor? alibi_slopes, Tensor? seed, {_OPTIONS}, bool average) -> Tensor"
)
_library.define(
    "attention_with_weights(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? alibi_slopes, "
    f"Tensor? seed, {_OPTIONS}, bool average) -> (Tensor out, Tensor weights)"
)
_library.define(
    "attention_decode(Tensor q, Tensor k_cache, Tensor v_cache, Tensor cache_seqlens, "
    "Tensor? block_table, Tensor? alibi_slopes, float scale, int window_left, int window_right, "
    "float softcap) -> (Tensor out, Tensor lse)"
)
_NUM_OPTIONS = 8
# So many multiplications of q·kᵀ take no longer than the way to our kernel, which leads through
# Python: shorter calls are best left to torch's own functions. On a GPU that way is estimated to
# take the host 60 to 100 µs and torch's 10, each to one kernel; and 2^27, half a GFLOP with those
# of the values, take 80 µs at a tenth of what an H100 does without tensor cores.
_SHORT = {"cpu": 2**19, "cuda": 2**27}
# Keys whose scores with a block of queries fit the second level of cache.
_FEW_KEYS = 1024


def default_scale(q: Tensor) -> float:
    """1/√D; the products of no elements are 0 whatever multiplies them."""
    return max(q.shape[-1], 1) ** -0.5


def is_short(device_type: str, multiplications: int) -> bool:
    """Whether so many multiplications of q·kᵀ take less time than the way to our kernel."""
    return multiplications <= _SHORT.get(device_type, -1)


def torch_is_quicker(q: Tensor, k: Tensor, *others: Tensor | None, keys: int = -2) -> bool:
    """Whether torch's own attention, without a mask or other extras, takes less time.

    Args:
        q: of all heads, in any shape.
        others: what else may require a gradient.
        keys: the dimension of k that counts them.
    """
    # A length that is traced must not be compared.
    return inference(q, k, parameters=others) and is_short(q.device.type, q.numel() * k.size(keys))


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *context: Any) -> tuple[Tensor, Tensor, Tensor]:
    out = q.new_empty(*q.shape[:3], v.shape[3])
    lse = q.new_empty(q.shape[:3], dtype=accumulate_dtype(q.dtype))
    return reference.like_layout(out, q), lse, lse.new_empty(*lse.shape, 2)


def _fake_backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    mask, need_mask = rest[3], rest[-1]
    laid = [reference.like_layout(torch.empty_like(x), x) for x in (q, k, v)]
    return (*laid, mask.new_empty(mask.shape) if need_mask else q.new_empty(0))


def _fake_weights(q: Tensor, k: Tensor, *rest: Any) -> Tensor:
    batch, heads, sq, _ = q.shape
    return q.new_empty(batch, *([] if rest[-1] else [heads]), sq, k.shape[2])


def _fake_both(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _fake_forward(q, k, v)[0], _fake_weights(q, k, *rest)


def _one_after_the_other(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    alibi_slopes: Tensor | None,
    seed: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    """``attention_with_weights`` as two operators."""
    out, *sums = _forward(q, k, v, mask, None, None, alibi_slopes, seed, *options[:-1])
    ops = torch.ops.fastseq
    return out, ops.attention_weights(q, k, *sums, mask, alibi_slopes, seed, *options)


def _fake_decode(q: Tensor, k_cache: Tensor, v_cache: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _fake_forward(q, k_cache, v_cache)[:2]


for _name, _implementation, _fake in (
    ("attention_forward", reference.attention_forward, _fake_forward),
    ("attention_backward", reference.attention_backward, _fake_backward),
    ("attention_weights", reference.attention_weights, _fake_weights),
    ("attention_with_weights", _one_after_the_other, _fake_both),
    ("attention_decode", reference.attention_decode, _fake_decode),
):
    register(_library, _name, _implementation, _fake)
_native = _extension.load()

_forward = torch.ops.fastseq.attention_forward.default
_backward = torch.ops.fastseq.attention_backward.default


def _backward_below_autograd(*arguments: Any) -> tuple[Tensor, ...]:
    with torch._C._AutoDispatchBelowAutograd():
        return _backward(*arguments)


def _save(ctx, arguments, results) -> None:
    ctx.set_materialize_grads(False)
    q, k, v, mask, *ctx.context = arguments
    ctx.save_for_backward(q, k, v, mask, *results)


def _gradients(ctx, grad_out: Tensor | None, grad_lse: Tensor | None, *_: Tensor | None) -> tuple:
    """Gradients of q, k, v and mask; ``norm`` has none to give."""
    q, k, v, mask, out, *sums = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    need_mask = mask is not None and mask.requires_grad
    # The operator can be traced and is differentiable again; without its wrapper it is quicker.
    registered = torch.is_grad_enabled() or is_traced()
    *grads, grad_mask = (_backward if registered else _backward_below_autograd)(
        grad_out, grad_lse, q, k, v, out, *sums, mask, *ctx.context, need_mask
    )
    return (*grads, grad_mask if need_mask else None)


def _setup_forward(ctx, inputs, output) -> None:
    _save(ctx, inputs, output)
    ctx.mark_non_differentiable(output[2])


def _gradients_of_operator(ctx, *grads: Tensor | None) -> tuple:
    return (*_gradients(ctx, *grads), *[None] * (4 + _NUM_OPTIONS))


def _setup_backward(ctx, inputs, output) -> None:
    *tensors, ctx.need_mask = inputs
    ctx.set_materialize_grads(False)
    ctx.options = tensors[-_NUM_OPTIONS:]
    ctx.save_for_backward(*tensors[:-_NUM_OPTIONS])


def _second_gradients(ctx, *grad_gradients: Tensor | None) -> tuple:
    grad_out, grad_lse, q, k, v, _out, _lse, _norm, mask, *context = ctx.saved_tensors
    inputs = (q, k, v, mask) if ctx.need_mask else (q, k, v)

    def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor = mask) -> tuple[Tensor, Tensor]:
        return _plain(q, k, v, mask, *context, *ctx.options)[:2]

    of_upstream, (of_q, of_k, of_v, *of_mask) = second_gradients(
        plain, inputs, (grad_out, grad_lse), grad_gradients
    )
    rest = [None] * (5 + _NUM_OPTIONS)
    return (*of_upstream, of_q, of_k, of_v, None, None, None, *(of_mask or [None]), *rest)


def _plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    alibi_slopes: Tensor | None,
    seed: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention in plain differentiable PyTorch."""
    full = reference.options_of(options, seed)
    return reference.attend(q, k, v, mask, cu_seqlens_q, cu_seqlens_k, alibi_slopes, full)


def _setup_weights(ctx, inputs, output) -> None:
    *tensors, ctx.average = inputs
    ctx.options = tensors[-_NUM_OPTIONS:]
    ctx.save_for_backward(*tensors[:-_NUM_OPTIONS])


def _gradients_of_weights(ctx, grad: Tensor) -> tuple:
    q, k, lse, norm, mask, *context = ctx.saved_tensors
    each = torch.ops.fastseq.attention_weights(q, k, lse, norm, mask, *context, *ctx.options, False)
    upstream = grad.unsqueeze(1) / q.shape[1] if ctx.average else grad
    grad_scores = each.to(lse.dtype) * upstream
    options = reference.options_of(ctx.options, None)
    of_q, of_k = reference.scores_backward(grad_scores, q, k, options)
    of_mask = None
    if mask is not None and mask.requires_grad:
        of_mask = grad_scores.sum_to_size(mask.shape).to(mask.dtype)
    return (of_q, of_k, -grad_scores.sum(-1), None, of_mask, *[None] * (3 + _NUM_OPTIONS))


torch.library.register_autograd(
    "fastseq::attention_forward", _gradients_of_operator, setup_context=_setup_forward, lib=_library
)
torch.library.register_autograd(
    "fastseq::attention_backward", _second_gradients, setup_context=_setup_backward, lib=_library
)
torch.library.register_autograd(
    "fastseq::attention_weights", _gradients_of_weights, setup_context=_setup_weights, lib=_library
)
_weights = eager(torch.ops.fastseq.attention_weights.default, _setup_weights, _gradients_of_weights)
_attention = eager(_forward, _setup_forward, _gradients_of_operator, native=_native)
for _name in ("attention_forward", "attention_backward", "attention_weights", "attention_decode"):
    torch.library.register_vmap(
        f"fastseq::{_name}", loop_over(getattr(torch.ops.fastseq, _name)), lib=_library
    )


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    window: tuple[int, int] = (-1, -1),
    bottom_right: bool = False,
    softcap: float = 0.0,
    dropout_p: float = 0.0,
    alibi_slopes: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(scale·q·kᵀ + …)·v without the matrix of scores.

    Args:
        q: (B, Hq, Sq, D); k: (B, Hk, Sk, D); v: (B, Hk, Sk, Dv). Any strides whose last is 1. Hk
            divides Hq: query head h reads key head h // (Hq / Hk).
        mask: bool (True takes part) or floating (added), four dimensions, each full or 1.
        scale: of q·k; 1/√D by default.
        window: how many keys to the left and right of its own a query sees; -1 for all. Causal is
            (-1, 0). A query's own key is the one of its index, or, ``bottom_right``, the one as far
            from the last key as the query from the last query.
        softcap: s becomes softcap·tanh(s/softcap); 0 and infinity for none.
        alibi_slopes: (Hq,) or (B, Hq); the score loses slope·|distance|, bottom-right. No kernel
            has their gradient: where they require one, all is computed in plain PyTorch.
        cu_seqlens_q, cu_seqlens_k: (B+1,) int32 bounds of the sequences in one packed row of tokens
            (then q is (1, Hq, total, D)), with max_seqlen_q and max_seqlen_k.
        dropout_p: of the weights, by counters from ``seed`` (int64 CPU scalar, drawn if None).

    Returns:
        out (B, Hq, Sq, Dv) and the log-sum-exp of the scores (B, Hq, Sq). A query that sees no key
        gets zeros, and -inf. NaN and infinities come out as from torch; of keys that a mask or a
        window hides they may (0 times NaN), of another sequence's tokens they never do.
    """
    q, k, v = autocast(q, k, v)
    if dropout_p > 0 and seed is None:
        seed = torch.randint(2**62, (), dtype=torch.int64)
    options = (
        default_scale(q) if scale is None else scale,
        *window,
        bottom_right,
        softcap,
        dropout_p,
        q.shape[2] if max_seqlen_q is None else max_seqlen_q,
        k.shape[2] if max_seqlen_k is None else max_seqlen_k,
    )
    context = (cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, *options)
    learns = alibi_slopes is not None and alibi_slopes.requires_grad and torch.is_grad_enabled()
    attend = _plain if learns or plain_autograd_only() else _attention
    return attend(q, k, v, mask, *context)[:2]


def attention_and_weights(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    average: bool = False,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attention and the weights it used, after dropout, made again from the log-sum-exp.

    Args:
        q: (B, H, Sq, D); k: (B, H, Sk, D); v: (B, H, Sk, Dv); the rest as in ``attention``.

    Returns:
        out (B, H, Sq, Dv), and the weights (B, H, Sq, Sk), or with ``average`` their mean over
        heads (B, Sq, Sk).
    """
    q, k, v = autocast(q, k, v)
    seed = torch.randint(2**62, (), dtype=torch.int64) if dropout_p > 0 else None
    alpha = default_scale(q) if scale is None else scale
    options = (alpha, -1, -1, False, 0.0, dropout_p, q.shape[2], k.shape[2])
    if _native and eager_inference(q, k, v, parameters=(mask,)) and k.shape[2] <= _FEW_KEYS:
        both = torch.ops.fastseq.attention_with_weights
        return both(q, k, v, mask, None, seed, *options, average)
    plain = plain_autograd_only()
    attend, weigh = (_plain, reference.attention_weights) if plain else (_attention, _weights)
    out, *sums = attend(q, k, v, mask, None, None, None, seed, *options)
    return out, weigh(q, k, *sums, mask, None, seed, *options, average)


def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    block_table: Tensor | None = None,
    *,
    scale: float | None = None,
    window: tuple[int, int] = (-1, 0),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of the last few tokens of each sequence against its cache; not differentiable.

    Args:
        q: (B, Hq, Sq, D), the last Sq tokens of each sequence, already in the cache.
        k_cache, v_cache: (B, Hk, capacity, D), or, with ``block_table``, pages (blocks, Hk,
            block_size, D).
        cache_seqlens: (B,) int32, tokens in each cache.
        block_table: (B, max_blocks) int32, the pages of each sequence in order.

    Returns:
        out (B, Hq, Sq, Dv) and the log-sum-exp (B, Hq, Sq).
    """
    decode = torch.ops.fastseq.attention_decode
    return (reference.attention_decode if plain_autograd_only() else decode)(
        q, k_cache, v_cache, cache_seqlens, block_table, alibi_slopes,
        default_scale(q) if scale is None else scale, *window, softcap,
    )  # fmt: skip
