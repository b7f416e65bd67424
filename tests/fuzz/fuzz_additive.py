"""Additive attention against its formula in float64, outputs and every gradient."""

from dataclasses import dataclass

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastseq import additive_attention


@dataclass(frozen=True)
class Case:
    seed: int
    dtype: torch.dtype
    batch: int | None
    ones: tuple[bool, bool, bool]  # whether query, key, value have a batch of 1
    queries: int
    keys: int
    widths: tuple[int, int, int, int]  # of query, key, value and the tanh
    projected: tuple[bool, bool]  # whether query and key come so
    bias: bool
    padding: bool
    mask: int  # dimensions, 0 for none
    weights: bool  # whether they take part in the loss
    strided: bool


sizes = st.integers
cases = st.builds(
    Case,
    seed=sizes(0, 2**31),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    batch=st.one_of(st.none(), sizes(0, 4)),
    ones=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    queries=sizes(0, 12),
    keys=sizes(0, 40),
    widths=st.tuples(*[sizes(1, 35)] * 4),
    projected=st.tuples(st.booleans(), st.booleans()),
    bias=st.booleans(),
    padding=st.booleans(),
    mask=st.sampled_from([0, 2, 3]),
    weights=st.booleans(),
    strided=st.booleans(),
)


def formula(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    w_query: Tensor | None,
    w_key: Tensor | None,
    v: Tensor,
    bias: Tensor | None,
    left_out: Tensor,
) -> tuple[Tensor, Tensor]:
    """As in the paper, (…, Tq, Tk, D) and all; zeros where every key is left out."""
    q = query if w_query is None else query @ w_query.T
    k = key if w_key is None else key @ w_key.T
    q = q if bias is None else q + bias
    scores = (torch.tanh(q[..., :, None, :] + k[..., None, :, :]) * v).sum(-1)
    scores = scores.masked_fill(left_out, -torch.inf)
    blind = left_out.all(-1, keepdim=True)
    weights = scores.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
    return weights @ value, weights


@given(cases)
def test_additive(case: Case) -> None:
    generator = torch.Generator().manual_seed(case.seed)
    batch = () if case.batch is None else (case.batch,)
    width_q, width_k, width_v, hidden = case.widths

    def rand(*shape: int) -> Tensor:
        wide = torch.randn(*shape[:-1], 2 * shape[-1], generator=generator).to(case.dtype)
        x = wide[..., ::2] if case.strided else wide[..., : shape[-1]].contiguous()
        return x.detach().requires_grad_()

    def chance(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) < 0.4

    lead = [(1,) if one and batch else batch for one in case.ones]
    inputs: dict[str, Tensor | None] = {
        "query": rand(*lead[0], case.queries, hidden if case.projected[0] else width_q),
        "key": rand(*lead[1], case.keys, hidden if case.projected[1] else width_k),
        "value": rand(*lead[2], case.keys, width_v),
        "w_query": None if case.projected[0] else rand(hidden, width_q),
        "w_key": None if case.projected[1] else rand(hidden, width_k),
        "v": rand(hidden),
        "bias": rand(hidden) if case.bias else None,
    }
    together = torch.broadcast_shapes(*lead)
    padding = chance(*together, case.keys) if case.padding else None
    mask = None
    if case.mask:
        mask = chance(*(together if case.mask == 3 else ()), case.queries, case.keys)
    left_out = torch.zeros(*together, case.queries, case.keys, dtype=torch.bool)
    left_out = left_out if padding is None else left_out | padding[..., None, :]
    left_out = left_out if mask is None else left_out | mask
    upstream = [
        torch.randn(*together, case.queries, n, generator=generator) for n in (width_v, case.keys)
    ]

    def results(dtype: torch.dtype, ours: bool) -> list[Tensor]:
        given = {n: None if x is None else x.to(dtype) for n, x in inputs.items()}
        if ours:
            out, weights = additive_attention(
                **given, key_padding_mask=padding, attn_mask=mask, return_weights=True
            )
        else:
            out, weights = formula(**given, left_out=left_out)
        loss = (out.to(upstream[0].dtype) * upstream[0]).sum()
        if case.weights:
            loss = loss + (weights.to(upstream[1].dtype) * upstream[1]).sum()
        leaves = [x for x in inputs.values() if x is not None]
        return [out, weights, *torch.autograd.grad(loss, leaves, materialize_grads=True)]

    exact = results(torch.float64, ours=False)
    theirs = results(case.dtype, ours=False)
    for ours, torchs, wanted in zip(results(case.dtype, ours=True), theirs, exact, strict=True):
        assert ours.shape == wanted.shape
        if wanted.numel():
            errors = [(x.double() - wanted.double()).abs().max() for x in (ours, torchs)]
            ulp = torch.finfo(case.dtype).eps * (1 + wanted.abs().max())
            # Gradients of what goes with all sequences are sums of so many terms.
            assert errors[0] <= 2 * errors[1] + (8 + left_out.numel() ** 0.5) * ulp
