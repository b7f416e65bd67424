"""The operators of additive attention: derivatives, registration, transforms."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from fastseq.ops.additive_attention import additive_attention


def tensors(batch: int = 2, queries: int = 3, keys: int = 5) -> list[Tensor]:
    shapes = [(batch, queries, 4), (batch, keys, 4), (batch, keys, 3), (4,)]
    return [torch.randn(s, dtype=torch.float64).requires_grad_() for s in shapes]


MASKS = {"none": None, "full": (2, 3, 5), "padding": (2, 1, 5), "shared": (1, 3, 5)}


def mask_of(name: str) -> Tensor | None:
    shape = MASKS[name]
    if shape is None:
        return None
    mask = torch.rand(shape) > 0.4
    mask[0, 0] = False
    return mask


@pytest.mark.parametrize("name", MASKS)
def test_gradients(name: str) -> None:
    inputs = (*tensors(), mask_of(name))
    assert torch.autograd.gradcheck(additive_attention, inputs)
    assert torch.autograd.gradgradcheck(additive_attention, inputs)


@pytest.mark.parametrize("result", [0, 1])
def test_gradients_of_one_result(result: int) -> None:
    """The other's gradient is None, not zeros."""
    call = lambda *x: additive_attention(*x)[result]  # noqa: E731
    assert torch.autograd.gradcheck(call, tensors())
    assert torch.autograd.gradgradcheck(call, tensors(), fast_mode=True)


@pytest.mark.parametrize("name", ["none", "padding"])
def test_opcheck(name: str) -> None:
    inputs, mask = tensors(), mask_of(name)
    opcheck(torch.ops.fastseq.additive_attention_forward.default, (*inputs, mask))
    flat = [x.detach() for x in inputs]
    out, weights = torch.ops.fastseq.additive_attention_forward(*flat, mask)
    for upstream in (None, torch.randn_like(weights)):
        opcheck(
            torch.ops.fastseq.additive_attention_backward.default,
            (torch.randn_like(out), upstream, *inputs, weights, mask),
        )


def test_transforms() -> None:
    q, k, value, v = (x.detach() for x in tensors(batch=3))
    together = torch.func.vmap(
        lambda *x: additive_attention(*(y[None] for y in x), v)[0][0], in_dims=0
    )(q, k, value)
    torch.testing.assert_close(together, additive_attention(q, k, value, v)[0])

    def loss(q: Tensor, k: Tensor, value: Tensor) -> Tensor:
        return additive_attention(q[None], k[None], value[None], v)[0].pow(2).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss))(q, k, value)
    leaf = q.clone().requires_grad_()
    whole = additive_attention(leaf, k, value, v)[0].pow(2).sum()
    torch.testing.assert_close(per_sample, torch.autograd.grad(whole, leaf)[0])


def test_autocast() -> None:
    single = [x.detach().float() for x in tensors()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, weights = additive_attention(*single)
        double = additive_attention(*(x.double() for x in single))[0]
    assert (out.dtype, weights.dtype, double.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float64,
    )
    torch.testing.assert_close(out.double(), double, rtol=0.02, atol=0.02)


def test_compile_without_graph_breaks() -> None:
    def call(*x: Tensor) -> Tensor:
        return additive_attention(*x)[0].pow(2).sum()

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for keys in (5, 9, 11):
        inputs = tensors(keys=keys)
        for a, b in zip(
            torch.autograd.grad(compiled(*inputs), inputs),
            torch.autograd.grad(call(*inputs), inputs),
        ):
            torch.testing.assert_close(a, b)
