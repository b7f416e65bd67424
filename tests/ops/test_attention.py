"""The attention operators: derivatives, registration, transforms, values."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from fastseq.ops.attention import attention, attention_and_weights, attention_decode
from fastseq.reference import attention as reference

SEED = torch.tensor(987654321987)


def tensors(
    batch: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    sq: int = 5,
    sk: int = 7,
    d: int = 3,
    dv: int = 4,
) -> list[Tensor]:
    shapes = [(batch, heads, sq, d), (batch, kv_heads, sk, d), (batch, kv_heads, sk, dv)]
    return [torch.randn(s, dtype=torch.float64).requires_grad_() for s in shapes]


def bias(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"window": (-1, 0)},
    "causal-bottom-right": {"window": (-1, 0), "bottom_right": True},
    "window": {"window": (2, 1), "bottom_right": True},
    "softcap-scale": {"softcap": 1.5, "scale": 0.7},
    "alibi": {"alibi_slopes": torch.rand(2, 4, dtype=torch.float64)},
    "dropout": {"dropout_p": 0.3, "seed": SEED},
    "bool-mask": {"mask": torch.rand(2, 1, 5, 7) > 0.4},
    "bias-full": {"mask": (2, 4, 5, 7)},
    "bias-shared": {"mask": (1, 4, 1, 7), "window": (-1, 0)},
}


@pytest.mark.parametrize("name", FEATURES)
def test_gradients(name: str) -> None:
    options = dict(FEATURES[name])
    inputs = tensors()
    if isinstance(options.get("mask"), tuple):
        inputs.append(bias(*options.pop("mask")))

    def call(*flat: Tensor) -> tuple[Tensor, Tensor]:
        mask = flat[3] if len(flat) == 4 else options.get("mask")
        rest = {key: value for key, value in options.items() if key != "mask"}
        out, lse = attention(*flat[:3], mask, **rest)
        return out, lse.masked_fill(lse == -torch.inf, 0)

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("name", FEATURES)
def test_gradients_of_weights(name: str, average: bool) -> None:
    options = {"alibi_slopes": None, "seed": None, **FEATURES[name]}
    inputs = tensors()[:2]
    if isinstance(options.get("mask"), tuple):
        inputs.append(bias(*options["mask"]))
    numbers = (
        options.get("scale", 0.5), *options.get("window", (-1, -1)),
        options.get("bottom_right", False), options.get("softcap", 0.0),
        options.get("dropout_p", 0.0), 5, 7, average,
    )  # fmt: skip

    def call(*flat: Tensor) -> Tensor:
        q, k, *mask = flat
        given = mask[0] if mask else options.get("mask")
        rest = {x: y for x, y in options.items() if x != "mask"}
        lse = attention(q, k, k, given, **{"scale": 0.5, **rest})[1]
        return torch.ops.fastseq.attention_weights(
            q, k, lse, None, given, options["alibi_slopes"], options["seed"], *numbers
        )

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)
    if not average and not options.get("dropout_p"):
        sums = call(*inputs).sum(-1)
        blind = sums == 0  # a query that sees no key
        assert blind.sum() < 4
        torch.testing.assert_close(sums[~blind], torch.ones_like(sums[~blind]))


def test_weights_are_those_of_attention() -> None:
    q, k, v = tensors(heads=2)
    mask = bias(2, 1, 5, 7)
    for average in (False, True):
        torch.manual_seed(3)
        out, weights = attention_and_weights(q, k, v, mask, average=average, dropout_p=0.4)
        if not average:
            torch.testing.assert_close(weights @ v, out)
            assert 0 < (weights == 0).double().mean() < 0.8
            each = weights
    torch.testing.assert_close(weights, each.mean(1))


def test_gradients_of_packed_sequences() -> None:
    bounds_q = torch.tensor([0, 2, 2, 5], dtype=torch.int32)
    bounds_k = torch.tensor([0, 3, 4, 4], dtype=torch.int32)

    def call(*flat: Tensor) -> Tensor:
        return attention(
            *flat, cu_seqlens_q=bounds_q, cu_seqlens_k=bounds_k, max_seqlen_q=3, max_seqlen_k=3
        )[0]

    inputs = tensors(batch=1, sq=5, sk=4)
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)
    assert (call(*inputs)[:, :, 2:] == 0).all()  # queries of a sequence without keys


def test_agrees_with_torch() -> None:
    q, k, v = tensors(sq=6, sk=6, dv=3)
    torch.testing.assert_close(
        attention(q, k, v, window=(-1, 0))[0],
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
    )
    mask = bias(2, 1, 6, 6)
    torch.testing.assert_close(
        attention(q, k, v, mask)[0],
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True),
    )


def test_query_without_keys_gets_zeros() -> None:
    q, k, v = tensors()
    mask = torch.ones(1, 1, 5, 7, dtype=torch.bool)
    mask[..., 2, :] = False
    out, lse = attention(q, k, v, mask)
    assert (out[:, :, 2] == 0).all() and (lse[:, :, 2] == -torch.inf).all()
    for grad in torch.autograd.grad(out.sum(), (q, k, v)):
        assert grad.isfinite().all()


def test_dropout_follows_the_seed_and_keeps_the_mean() -> None:
    q, k, v = tensors(batch=3, sq=31, sk=203, dv=1)
    ones = torch.ones_like(v)
    first = attention(q, k, ones, dropout_p=0.4, seed=SEED)[0]
    assert torch.equal(first, attention(q, k, ones, dropout_p=0.4, seed=SEED)[0])
    assert not torch.equal(first, attention(q, k, ones, dropout_p=0.4, seed=SEED + 1)[0])
    assert abs(first.mean() - 1) < 0.05


@pytest.mark.parametrize("paged", [False, True])
def test_decode_is_attention_to_the_end_of_the_cache(paged: bool) -> None:
    q, k, v = (x.detach() for x in tensors(batch=3, sq=2, sk=12))
    lengths = torch.tensor([12, 5, 2], dtype=torch.int32)
    table = None
    caches = (k, v)
    if paged:
        table = torch.randperm(9, dtype=torch.int32).view(3, 3)
        caches = tuple(torch.full((9, 2, 4, x.shape[3]), torch.nan).double() for x in (k, v))
        for b in range(3):
            for page in range(3):
                for cache, x in zip(caches, (k, v)):
                    cache[table[b, page]] = x[b, :, 4 * page : 4 * page + 4]
    out, lse = attention_decode(q, *caches, lengths, table)
    for b, n in enumerate(lengths.tolist()):
        expected = attention(
            q[b : b + 1],
            k[b : b + 1, :, :n],
            v[b : b + 1, :, :n],
            window=(-1, 0),
            bottom_right=True,
        )
        torch.testing.assert_close((out[b : b + 1], lse[b : b + 1]), expected)


def test_opcheck() -> None:
    q, k, v = tensors()
    mask = bias(2, 1, 5, 7)
    options = (0.5, -1, 0, False, 0.0, 0.2, 5, 7)
    context = (mask, None, None, None, SEED)
    opcheck(torch.ops.fastseq.attention_forward.default, (q, k, v, *context, *options))
    flat = [x.detach() for x in (q, k, v, mask)]
    context = (flat[3], None, None, None, SEED)
    out, lse, norm = torch.ops.fastseq.attention_forward(*flat[:3], *context, *options)
    for need_mask in (False, True):
        opcheck(
            torch.ops.fastseq.attention_backward.default,
            (
                torch.randn_like(out),
                torch.randn_like(lse),
                *flat[:3],
                out,
                lse,
                norm,
                *context,
                *options,
                need_mask,
            ),
        )
    for average in (False, True):
        opcheck(
            torch.ops.fastseq.attention_weights.default,
            (q, k, lse, norm, mask, None, SEED, *options, average),
        )
        opcheck(
            torch.ops.fastseq.attention_with_weights.default,
            (*flat, None, SEED, *options, average),
        )
    lengths = torch.tensor([7, 6], dtype=torch.int32)
    opcheck(
        torch.ops.fastseq.attention_decode.default,
        (*flat[:3], lengths, None, None, 0.5, -1, 0, 0.0),
    )


def test_transforms() -> None:
    q, k, v = (x.detach() for x in tensors(batch=3))
    together = torch.func.vmap(lambda *x: attention(*(y[None] for y in x))[0][0])(q, k, v)
    torch.testing.assert_close(together, attention(q, k, v)[0])

    def weights(*x: Tensor) -> Tensor:
        q, k, v = (y[None].repeat_interleave(4 // len(y), 1) for y in x)
        return attention_and_weights(q, k, v, average=True)[1][0]

    each = torch.stack([weights(*x) for x in zip(q, k, v)])
    torch.testing.assert_close(torch.func.vmap(weights)(q, k, v), each)
    grads = torch.func.vmap(torch.func.grad(lambda *x: weights(*x).pow(2).sum()))(q, k, v)
    leaf = q.clone().requires_grad_()
    total = sum(weights(*x).pow(2).sum() for x in zip(leaf, k, v))
    torch.testing.assert_close(grads, torch.autograd.grad(total, leaf)[0])

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q[None], k[None], v[None], window=(-1, 0))[0].pow(2).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss))(q, k, v)
    leaf = q.clone().requires_grad_()
    loss_all = attention(leaf, k, v, window=(-1, 0))[0].pow(2).sum()
    torch.testing.assert_close(per_sample, torch.autograd.grad(loss_all, leaf)[0])


def test_compile_without_graph_breaks() -> None:
    def call(*x: Tensor) -> Tensor:
        return attention(*x, window=(-1, 0), dropout_p=0.1, seed=SEED)[0].pow(2).sum()

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for sq in (5, 9, 11):
        inputs = tensors(sq=sq)
        for a, b in zip(
            torch.autograd.grad(compiled(*inputs), inputs),
            torch.autograd.grad(call(*inputs), inputs),
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("queries", [1, 9])
@pytest.mark.parametrize("lowest", [-torch.inf, torch.finfo(torch.float32).min])
def test_row_of_lowest_mask_gives_zeros_and_no_gradient(queries: int, lowest: float) -> None:
    """As masks of finfo.min make them: a softmax of such scores would forget the scores."""
    q, k, v = (torch.randn(1, 2, n, 8, requires_grad=True) for n in (queries, 6, 6))
    mask = torch.zeros(1, 1, queries, 6)
    mask[..., 0, :] = lowest
    mask[..., 0, 4:] = -torch.inf
    mask[..., -1:, 5] = lowest
    arguments = (mask, None, None, None, None, 0.3, -1, -1, False, 0.0, 0.0, queries, 6)
    for out, lse, _ in (
        torch.ops.fastseq.attention_forward(q, k, v, *arguments),
        reference.attention_forward(q, k, v, *arguments),
    ):
        assert torch.equal(out[:, :, 0], torch.zeros(1, 2, 8))
        assert (lse[:, :, 0] == -torch.inf).all()
        grads = torch.autograd.grad(out.sum(), (q, k, v))
        assert grads[0][:, :, 0].count_nonzero() == 0
        assert all(g.isfinite().all() for g in grads)
        assert grads[2][:, :, 5].count_nonzero() == (0 if queries == 1 else 2 * 8)
