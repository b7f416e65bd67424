"""Additive attention as a function: values, masks, projections, errors."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastseq
from fastseq import additive_attention

B, TQ, TK, EQ, EK, D, DV = 2, 5, 7, 3, 4, 6, 8


def inputs(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    shapes = {
        "query": (B, TQ, EQ), "key": (B, TK, EK), "value": (B, TK, DV),
        "w_query": (D, EQ), "w_key": (D, EK), "v": (D,), "bias": (D,),
    }  # fmt: skip
    return {name: torch.randn(s, dtype=dtype).requires_grad_() for name, s in shapes.items()}


def unfused(x: dict[str, Tensor], left_out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    q, k = F.linear(x["query"], x["w_query"], x["bias"]), F.linear(x["key"], x["w_key"])
    scores = torch.tanh(q[..., :, None, :] + k[..., None, :, :]) @ x["v"]
    if left_out is not None:
        scores = scores.masked_fill(left_out, -torch.inf)
    weights = scores.softmax(-1)
    return weights @ x["value"], weights


def test_agrees_with_torch() -> None:
    x = inputs()
    ours, theirs = additive_attention(**x, return_weights=True), unfused(x)
    torch.testing.assert_close(ours, theirs)
    upstream = [torch.randn_like(y) for y in theirs]
    leaves = tuple(x.values())
    torch.testing.assert_close(
        torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(theirs, leaves, upstream)
    )
    assert torch.equal(additive_attention(**x), ours[0])


@pytest.mark.parametrize("attn_shape", [None, (TQ, TK), (B, TQ, TK)])
@pytest.mark.parametrize("padding", [False, True])
def test_masks(attn_shape: tuple[int, ...] | None, padding: bool) -> None:
    x = inputs()
    left_out, masks = torch.zeros(B, TQ, TK, dtype=torch.bool), {}
    if padding:
        masks["key_padding_mask"] = torch.arange(TK) >= torch.tensor([[TK], [3]])
        left_out = left_out | masks["key_padding_mask"][:, None]
    if attn_shape:
        masks["attn_mask"] = torch.rand(attn_shape) > 0.6
        masks["attn_mask"][..., 0] = False
        left_out = left_out | masks["attn_mask"]
    torch.testing.assert_close(
        additive_attention(**x, **masks, return_weights=True), unfused(x, left_out)
    )


def test_query_without_keys_gets_zeros() -> None:
    x = inputs()
    padding = torch.tensor([[False] * TK, [True] * TK])
    out, weights = additive_attention(**x, key_padding_mask=padding, return_weights=True)
    assert (out[1] == 0).all() and (weights[1] == 0).all() and (out[0] != 0).all()
    for grad in torch.autograd.grad(out.sum(), tuple(x.values())):
        assert grad.isfinite().all()


def test_unbatched() -> None:
    x = inputs()
    alone = {n: t[1] if t.dim() == 3 else t for n, t in x.items()}
    padding, mask = torch.arange(TK) > 4, torch.rand(TQ, TK) > 0.7
    ours = additive_attention(
        **alone, key_padding_mask=padding, attn_mask=mask, return_weights=True
    )
    together = additive_attention(
        **x, key_padding_mask=padding.expand(B, TK), attn_mask=mask, return_weights=True
    )
    torch.testing.assert_close(ours, tuple(y[1] for y in together))


def test_projected_already() -> None:
    x = inputs()
    expected = additive_attention(**x)
    q, k = F.linear(x["query"], x["w_query"]), F.linear(x["key"], x["w_key"])
    value, v, bias = x["value"], x["v"], x["bias"]
    for arguments in (
        (q, k, value, None, None, v, bias),
        (x["query"], k, value, x["w_query"], None, v, bias),
        (q + bias, x["key"], value, None, x["w_key"], v),
    ):
        torch.testing.assert_close(additive_attention(*arguments), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_and_autocast(dtype: torch.dtype) -> None:
    x = {n: t.detach() for n, t in inputs(torch.float32).items()}
    exact = additive_attention(**{n: t.to(dtype).double() for n, t in x.items()})
    tolerance = 30 * torch.finfo(dtype).eps
    out, weights = additive_attention(**{n: t.to(dtype) for n, t in x.items()}, return_weights=True)
    assert out.dtype == dtype and weights.dtype == torch.float32
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)
    if dtype != torch.float32:
        with torch.autocast("cpu", dtype=dtype):
            out = additive_attention(**x)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)


def cut(name: str) -> dict[str, Any]:
    return {name: inputs()[name][..., :-1]}


PADDING = torch.zeros(B, TK, dtype=torch.bool)


@pytest.mark.parametrize(
    ("error", "message", "changed"),
    [
        (ValueError, "query should be 2-D or 3-D, got 1-D", {"query": torch.zeros(3).double()}),
        (ValueError, "key should be 3-D as query is", {"key": inputs()["key"][0]}),
        (ValueError, "value should be 3-D as query is", {"value": inputs()["value"][0]}),
        (ValueError, "key should have a batch of 2, or 1", {"key": torch.ones(4, 7, 4).double()}),
        (
            ValueError,
            "value should have key's 7 tokens, got 6",
            {"value": inputs()["value"][:, 1:]},
        ),
        (ValueError, "query should be 3 wide to go with w_query, got 2", cut("query")),
        (ValueError, "key should be 4 wide to go with w_key, got 3", cut("key")),
        (ValueError, "key should be 6 wide to go with v, got 4", {"w_key": None}),
        (ValueError, r"w_query should have shape \(5, 3\)", cut("v")),
        (ValueError, r"bias should have shape \(6,\), got \(5,\)", cut("bias")),
        (TypeError, "value should be torch.float64 as", {"value": inputs()["value"].float()}),
        (TypeError, "w_key should be torch.float64 as", {"w_key": inputs()["w_key"].float()}),
        (
            ValueError,
            r"key_padding_mask should have shape \(2, 7\), got \(7, 2\)",
            {"key_padding_mask": PADDING.T},
        ),
        (TypeError, "key_padding_mask should be bool", {"key_padding_mask": PADDING.float()}),
        (ValueError, r"attn_mask should have shape \(5, 7\)", {"attn_mask": PADDING}),
    ],
)
def test_errors(error: type[Exception], message: str, changed: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        additive_attention(**{**inputs(), **changed})


def test_exported() -> None:
    assert {"additive_attention", "AdditiveAttention", "DotAttention"} <= set(fastseq.__all__)
    from fastseq.config import OPERATORS

    assert "additive_attention_forward" in OPERATORS


@pytest.mark.parametrize("queries, keys", [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("batch", [(), (2,), (0,)])
@pytest.mark.parametrize("module", ["additive", "dot"])
def test_masks_of_no_queries_or_keys(
    module: str, batch: tuple[int, ...], queries: int, keys: int
) -> None:
    query = torch.randn(*batch, queries, 4, requires_grad=True)
    key = torch.randn(*batch, keys, 4, requires_grad=True)
    attention = (
        fastseq.AdditiveAttention(4, 4, 5) if module == "additive" else fastseq.DotAttention()
    )
    padding = torch.zeros(*batch, keys, dtype=torch.bool)
    for mask in (None, *{torch.zeros(*b, queries, keys, dtype=torch.bool) for b in ((), batch)}):
        for need_weights in (True, False):
            out, weights = attention(query, key, None, padding, need_weights, attn_mask=mask)
            assert out.shape == (*batch, queries, 4) and not out.any()
            assert weights is None or weights.shape == (*batch, queries, keys)
            grads = torch.autograd.grad(out.sum(), (query, key), allow_unused=True)
            assert not any(g.any() for g in grads if g is not None)


@pytest.mark.parametrize("single", [("query",), ("key", "value"), ("key",), ("value",)])
def test_a_batch_of_one_goes_with_every_sequence(single: tuple[str, ...]) -> None:
    """Values and gradients are those of the repeated tensor, also behind another function."""
    given = {**inputs(), "key_padding_mask": PADDING}
    given |= {n: given[n][:1].detach().requires_grad_() for n in single}
    repeated = given | {n: given[n].expand(2, -1, -1) for n in single}
    leaves = [given[n] for n in ("query", "key", "value")]
    out, expected = additive_attention(**given), additive_attention(**repeated)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, leaves, upstream), torch.autograd.grad(expected, leaves, upstream)
    )
    plain = [torch.randn(1 if n in single else 2, 3, 4) for n in ("query", "key", "value")]
    dot = fastseq.DotAttention()
    whole = dot(*(x.expand(2, -1, -1) for x in plain))
    torch.testing.assert_close(dot(*plain), whole)
