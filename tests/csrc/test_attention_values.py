"""NaN, infinities, huge and extreme numbers, sizes of 0: what torch's attention makes of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastseq
from fastseq import _extension
from fastseq.ops.additive_attention import additive_attention
from fastseq.ops.attention import attention, attention_and_weights, attention_decode

pytestmark = pytest.mark.skipif(not _extension.load(), reason=str(_extension.reason()))

SIZES = [(3, 7), (20, 900), (1, 900), (200, 300)]  # few queries, of few and many keys; many
LARGEST = 2**63 - 1


def tensors(sq: int, sk: int, width: int = 16, by: float = 1) -> list[Tensor]:
    """q and k of numbers up to ``by``, and v."""
    q, k = ((torch.rand(1, 2, n, width) * 2 - 1) * by for n in (sq, sk))
    return [q, k, torch.randn(1, 2, sk, width)]


def with_gradients(attend: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = attend(*leaves)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def by_torch(*inputs: Tensor, **options: Any) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(*inputs, **options)


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_nan_comes_out(sizes: tuple[int, int], which: int) -> None:
    inputs = tensors(*sizes)
    inputs[which].fill_(torch.nan)
    window = (sizes[1], sizes[1])
    results = with_gradients(lambda *x: attention(*x, window=window)[0], *inputs)
    for ours, theirs in zip(results, with_gradients(by_torch, *inputs)):
        assert torch.equal(ours.isnan(), theirs.isnan())
    out, weights = attention_and_weights(*inputs)
    assert out.isnan().all() and weights.isnan().all() == (which < 2)
    lengths = torch.tensor([sizes[1]], dtype=torch.int32)
    out, lse = attention_decode(*inputs, lengths, window=(-1, -1))
    assert out.isnan().all() and lse.isnan().all() == (which < 2)
    pages = [x.view(-1, 2, sizes[1], 16) for x in inputs[1:]]
    table = torch.zeros(1, 1, dtype=torch.int32)
    assert attention_decode(inputs[0], *pages, lengths, table, window=(-1, -1))[0].isnan().all()
    q, k, value = (x[0] for x in inputs)
    assert additive_attention(q, k, value, torch.randn(16))[0].isnan().all()


@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_special_number_changes_what_sees_it(
    sizes: tuple[int, int], which: int, special: float
) -> None:
    inputs = [*tensors(*sizes), torch.zeros(1, 1, *sizes)]
    inputs[which][0, 0, -1, 3] = special
    out, theirs = attention(*inputs)[0], by_torch(*inputs[:3], attn_mask=inputs[3])
    torch.testing.assert_close(out, theirs, equal_nan=True)


@pytest.mark.parametrize("scale", [1.0, 0.3, -0.3])
@pytest.mark.parametrize("queries", [3, 40])
@pytest.mark.parametrize("size", [1e4, 1e5, 1e10, 1e15])
def test_large_scores(size: float, queries: int, scale: float) -> None:
    """As small ones: nothing is lost between the largest and the others."""
    inputs = tensors(queries, 300, 4, size)
    exact, theirs = (
        with_gradients(lambda *x: by_torch(*x, scale=scale), *(x.to(dtype) for x in inputs))
        for dtype in (torch.float64, torch.float32)
    )
    ours = with_gradients(lambda *x: attention(*x, scale=scale)[0], *inputs)
    for name, a, b, c in zip(("out", "q", "k", "v"), ours, exact, theirs):
        # What is left of a gradient where one key has all the weight is rounding, times the inputs.
        few = 1e-5 * (size * abs(scale) if name in "qk" else 1)
        assert (a - b).abs().max() <= 2 * (c - b).abs().max() + few, name
    out = attention_decode(*inputs, torch.tensor([300], dtype=torch.int32), scale=scale)[0]
    causal = torch.ones(queries, 300).tril(300 - queries).bool()
    inputs = [x.double() for x in inputs]
    torch.testing.assert_close(
        out.double(), by_torch(*inputs, attn_mask=causal, scale=scale), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("by", [1, 3, 9])
@pytest.mark.parametrize("length", [3, 17, 64, 512])
def test_gradients_are_as_exact_as_torchs(length: int, by: int) -> None:
    for width in (8, 64):
        inputs = tensors(length, length, width, by)
        exact = with_gradients(by_torch, *(x.double() for x in inputs))
        theirs = with_gradients(F.scaled_dot_product_attention, *inputs)
        ours = with_gradients(lambda *x: attention(*x)[0], *inputs)
        for name, a, b, c in zip(("out", "q", "k", "v"), ours, exact, theirs):
            few = 4 * torch.finfo(torch.float32).eps * b.abs().max()
            assert (a - b).abs().max() <= 2 * (c - b).abs().max() + few, (name, width)


@pytest.mark.parametrize("queries", [3, 40])
def test_bounds_that_bound_nothing(queries: int) -> None:
    inputs = tensors(queries, 50)
    expected = attention(*inputs)[0]
    for options in ({"window": (LARGEST, LARGEST)}, {"window": (-1, 90)}, {"softcap": torch.inf}):
        assert torch.equal(attention(*inputs, **options)[0], expected), options
    assert torch.equal(
        attention(*inputs, bottom_right=True, window=(LARGEST, LARGEST))[0], expected
    )
    lengths = torch.tensor([50], dtype=torch.int32)
    assert torch.equal(
        attention_decode(*inputs, lengths, window=(LARGEST, LARGEST), softcap=torch.inf)[0],
        attention_decode(*inputs, lengths, window=(-1, -1))[0],
    )


@pytest.mark.parametrize("widths", [(0, 4), (4, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("queries", [3, 40])
def test_widths_of_zero(queries: int, widths: tuple[int, int]) -> None:
    q, k, v = (
        torch.randn(2, 3, n, d) for n, d in zip((queries, 50, 50), (*widths[:1] * 2, widths[1]))
    )
    results = with_gradients(lambda *x: attention(*x)[0], q, k, v)
    for ours, theirs in zip(results, with_gradients(by_torch, q, k, v)):
        torch.testing.assert_close(ours, theirs)
    lengths = torch.tensor([50, 20], dtype=torch.int32)
    out = attention_decode(q, k, v, lengths, window=(-1, -1))[0]
    torch.testing.assert_close(out[:1], by_torch(q[:1], k[:1], v[:1]))


def test_inputs_that_share_memory_are_not_copied() -> None:
    """Copies that torch makes on the first write (``torch._lazy_clone``) stay what they are."""
    q, k, v = (torch.randn(2, 3, n, 16) for n in (40, 50, 50))
    lengths = torch.tensor([50, 20], dtype=torch.int32)
    x, lstm, cell = torch.randn(6, 2, 16), fastseq.LSTM(16, 32), fastseq.GRUCell(16, 32)
    calls = [
        (lambda q, k, v: attention(q, k, v), (q, k, v)),
        (lambda q, k, v: attention(q[:, :, :1], k, v), (q, k, v)),
        (lambda q, k, v: attention_and_weights(q, k, v), (q, k, v)),
        (lambda q, k, v: attention_decode(q, k, v, lengths), (q, k, v)),
        (lambda q, k, v: additive_attention(q, k, v, torch.randn(16)), (q[:, 0], k[:, 0], v[:, 0])),
        (lambda x: lstm(x), (x,)),
        (lambda x: cell(x), (x[0],)),
    ]  # fmt: skip
    for i, (call, inputs) in enumerate(calls):
        for grad in (False, True):
            shared = [torch._lazy_clone(y) for y in inputs]
            assert all(map(torch._C._is_cow_tensor, shared))
            leaves = [y.requires_grad_(grad and i != 3) for y in shared]
            results = call(*leaves)
            out = results[0] if isinstance(results, tuple) else results
            if out.requires_grad:
                out.sum().backward()
            assert all(map(torch._C._is_cow_tensor, shared)), (i, grad)
