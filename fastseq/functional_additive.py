"""Additive attention as a function, and how it reads masks."""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from .functional_options import SERVED, tensor
from .ops.additive_attention import additive_attention as _attend
from .ops.gemm import linear
from .ops.registration import autocasting
from .ops.subclasses import overridden


def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    w_query: Tensor | None,
    w_key: Tensor | None,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention by v·tanh(W_q·query + W_k·key + bias), without the tensor of all the tanh.

    Bahdanau et al. 2015, "Neural Machine Translation by Jointly Learning to Align and Translate"
    (arXiv 1409.0473), appendix A.1.2.

    Args:
        query: (B, Tq, Eq); key: (B, Tk, Ek); value: (B, Tk, Dv). B may be 1 in some of them, which
            then go with every sequence of the others; all three may lack it.
        w_query: (D, Eq) and w_key: (D, Ek); None where query or key is projected already, as a
            decoder projects its keys once a sentence. Then Eq or Ek is D.
        v: (D,); bias: (D,).
        key_padding_mask: bool (B, Tk), or (Tk,); True is left out, as in nn.MultiheadAttention.
        attn_mask: bool (Tq, Tk) or (B, Tq, Tk); True is left out, likewise.
        return_weights: also return the weights (B, Tq, Tk), in float32 or float64. They are
            computed in any case: this takes O(Tq·Tk) memory.

    Returns:
        The context (B, Tq, Dv). A query whose keys are all left out gets zeros, in the weights too.

    Raises:
        ValueError: a shape does not fit.
        TypeError: dtypes differ, or a mask is not bool.
    """
    tensors = (query, key, value, w_query, w_key, v, bias, key_padding_mask, attn_mask)
    if overridden(tensors):
        return handle_torch_function(
            additive_attention, tensors, query, key, value, w_query, w_key, v, bias,
            key_padding_mask=key_padding_mask, attn_mask=attn_mask, return_weights=return_weights,
        )  # fmt: skip
    batch = check_inputs(query, key, value)
    for name, x in (("w_query", w_query), ("w_key", w_key), ("v", v), ("bias", bias)):
        if x is not None or name == "v":
            tensor(name, x, query)
    hidden = v.shape[-1] if v.dim() else 0
    _expect("v", v, (hidden,))
    for name, x, weight in (("query", query, w_query), ("key", key, w_key)):
        width, owner = hidden, "v"  # what is projected already
        if weight is not None:
            width, owner = weight.shape[-1], f"w_{name}"
            _expect(owner, weight, (hidden, width))
        if x.shape[-1] != width:
            raise ValueError(f"{name} should be {width} wide to go with {owner}, got {x.shape[-1]}")
    if bias is not None:
        _expect("bias", bias, (hidden,))
    if not autocasting(query.device.type):
        for name, weight in (("w_query", w_query), ("w_key", w_key), ("v", v), ("bias", bias)):
            if weight is not None and weight.dtype != query.dtype:
                raise TypeError(f"{name} should be {query.dtype} as query is, got {weight.dtype}")
    mask = taking_part(key_padding_mask, attn_mask, query, key, batch)
    if w_query is not None:
        query = linear(query, w_query, bias)
    elif bias is not None:
        query = query + bias
    if w_key is not None:
        key = linear(key, w_key, None)
    query, key, value = with_batch(batch, query, key, value)
    context, weights = _attend(query, key, value, v, mask)
    if not batch:
        context, weights = context[0], weights[0]
    return (context, weights) if return_weights else context


def check_inputs(query: Tensor, key: Tensor, value: Tensor) -> torch.Size:
    """(B|1, Tq, Eq), (B|1, Tk, Ek) and (B|1, Tk, Dv), or all without B, of one dtype and device.

    Returns:
        (B,), or () without it.
    """
    tensor("query", query, query)
    if query.dim() not in (2, 3):
        raise ValueError(f"query should be 2-D or 3-D, got {query.dim()}-D")
    if query.dtype not in SERVED:
        raise TypeError(f"query should be one of {SERVED}, got {query.dtype}")
    batch = query.shape[:-2]
    for name, x in (("key", key), ("value", value)):
        tensor(name, x, query)
        if x.dim() != query.dim():
            raise ValueError(f"{name} should be {query.dim()}-D as query is, got {x.dim()}-D")
        if batch != x.shape[:-2]:
            if 1 not in (batch[0], x.shape[0]):
                raise ValueError(
                    f"{name} should have a batch of {batch[0]}, or 1, got shape {tuple(x.shape)}"
                )
            batch = x.shape[:-2] if batch[0] == 1 else batch
        if x.dtype != query.dtype and not autocasting(query.device.type):
            raise TypeError(f"{name} should be {query.dtype} as query is, got {x.dtype}")
    if value.shape[-2] != key.shape[-2]:
        raise ValueError(f"value should have key's {key.shape[-2]} tokens, got {value.shape[-2]}")
    return batch


def with_batch(batch: torch.Size, *tensors: Tensor) -> tuple[Tensor, ...]:
    """As views (B, T, width); B is 1 without a batch."""
    return tuple(
        x if x.shape[:-2] == batch != () else x.expand(*(batch or (1,)), -1, -1) for x in tensors
    )


def taking_part(
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    query: Tensor,
    key: Tensor,
    batch: torch.Size,
) -> Tensor | None:
    """Which keys a query may see, (B|1, Tq|1, Tk), from two masks of what is left out."""
    queries, keys = query.shape[-2], key.shape[-2]
    left_out = None
    if key_padding_mask is not None:
        tensor("key_padding_mask", key_padding_mask, query)
        _expect("key_padding_mask", key_padding_mask, (*batch, keys), boolean=True)
        left_out = key_padding_mask.view(*(batch or (1,)), 1, keys)
    if attn_mask is not None:
        tensor("attn_mask", attn_mask, query)
        full = (*batch, queries, keys)
        _expect("attn_mask", attn_mask, full[-max(attn_mask.dim(), 2) :], boolean=True)
        others = attn_mask if attn_mask.dim() == 3 else attn_mask[None]
        left_out = others if left_out is None else left_out | others
    return None if left_out is None else ~left_out


def _expect(name: str, x: Tensor, shape: tuple[int, ...], boolean: bool = False) -> None:
    if x.shape != shape:
        raise ValueError(f"{name} should have shape {shape}, got {tuple(x.shape)}")
    if boolean and x.dtype != torch.bool:
        raise TypeError(f"{name} should be bool, True where a key is left out, got {x.dtype}")
