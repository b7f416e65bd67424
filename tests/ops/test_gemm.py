"""Products through torch's libraries: numbers and gradients are the same by either."""

import pytest
import torch
import torch.nn.functional as F

from fastseq.ops import gemm

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


@pytest.fixture(autouse=True)
def by_onednn(monkeypatch):
    monkeypatch.setattr(gemm, "_ENOUGH", 0)


@pytest.mark.parametrize("shape", [(7, 13), (3, 5, 13), (2, 3, 4, 13), (0, 13), (1, 13)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_torchs(shape, bias, monkeypatch):
    calls = []
    product = gemm._onednn_linear
    monkeypatch.setattr(
        gemm, "_onednn_linear", lambda *arguments: calls.append(1) or product(*arguments)
    )
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(11, 13, requires_grad=True)
    shift = torch.randn(11, requires_grad=True) if bias else None
    inputs = [t for t in (x, weight, shift) if t is not None]
    out = gemm.linear(x, weight, shift)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, inputs, grad)
    assert len(calls) == 2  # the product, and the gradient of x

    wide = [t.detach().double().requires_grad_() for t in inputs]
    exact = F.linear(*wide)
    wanted = torch.autograd.grad(exact, wide, grad.double())
    for ours, oracle in zip((out, *found), (exact, *wanted)):
        torch.testing.assert_close(ours.double(), oracle, rtol=1e-5, atol=2e-5)
        assert ours.shape == oracle.shape


def test_second_gradients_are_torchs():
    x = torch.randn(5, 7, requires_grad=True)
    weight, bias = torch.randn(3, 7, requires_grad=True), torch.randn(3, requires_grad=True)

    def second(linear, *inputs):
        out = linear(*inputs).tanh()
        first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), inputs)

    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    for ours, oracle in zip(second(gemm.linear, x, weight, bias), second(F.linear, *wide)):
        torch.testing.assert_close(ours.double(), oracle, rtol=1e-4, atol=1e-4)


def test_only_what_is_asked_for():
    x, weight = torch.randn(5, 7), torch.randn(3, 7, requires_grad=True)
    out = gemm.linear(x, weight, None)
    out.sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(3, 7))
    assert not gemm.linear(x, weight.detach(), None).requires_grad


@pytest.mark.parametrize("transposed", [True, False])
def test_mm_is_torchs(transposed):
    a, b = torch.randn(6, 9), torch.randn(9, 4)
    if transposed:
        a = torch.randn(9, 6).t()
    torch.testing.assert_close(gemm.mm(a, b), torch.mm(a, b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "weight, bias",
    [
        (torch.randn(3, 6), None),
        (torch.randn(3, 7, dtype=torch.float64), None),
        (torch.randn(3, 7), torch.randn(4)),
    ],
)
def test_errors_are_torchs(weight, bias):
    x = torch.randn(5, 7)
    with pytest.raises(RuntimeError) as wanted:
        F.linear(x, weight, bias)
    with pytest.raises(RuntimeError) as found:
        gemm.linear(x, weight, bias)
    assert str(found.value) == str(wanted.value)


def test_traced_calls_and_transforms_take_torchs_operator():
    x, weight, bias = torch.randn(5, 7), torch.randn(3, 7), torch.randn(3)
    per_row = torch.func.vmap(lambda row: gemm.linear(row, weight, bias))(x[:, None])[:, 0]
    torch.testing.assert_close(per_row, F.linear(x, weight, bias))
    _, tangent = torch.func.jvp(lambda t: gemm.linear(t, weight, bias), (x,), (x,))
    torch.testing.assert_close(tangent, F.linear(x, weight))
    compiled = torch.compile(gemm.linear, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, weight, bias), F.linear(x, weight, bias))
