"""autocast, checkpointing, second derivatives, vmap, forward mode."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint

import fastseq
from tests.nn.oracle import CELLS, HIDDEN, INPUT, LAYERS, packed, padded, pair, states, tensors


@pytest.mark.parametrize("name", LAYERS + CELLS)
@pytest.mark.parametrize("form", ["dense", "packed", "low-input", "float64"])
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_has_torchs_types(name: str, form: str, low: torch.dtype) -> None:
    """Where torch computes at all: its LSTM needs a CPU with bfloat16 for dense float32 input."""
    if name in CELLS and form == "packed":
        pytest.skip("cells take no packed input")
    dtype = torch.float64 if form == "float64" else torch.float32
    ours, theirs = pair(name, INPUT, HIDDEN, dtype=dtype)
    x: Any = torch.randn(3, INPUT) if name in CELLS else padded(ours)
    if form == "packed":
        x = packed(ours, ordered=True)
    x = x.to(low if form == "low-input" else dtype)
    with torch.autocast("cpu", low):
        found = tensors(ours(x))
        if name == "LSTM" and form == "dense":
            assert all(t.dtype == low for t in found)
            return
        expected = tensors(theirs(x))
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), atol=3e-2, rtol=0)


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_autocast_gradients_are_the_parameters_type(name: str) -> None:
    module = getattr(fastseq, name)(INPUT, HIDDEN, 2)
    x = padded(module).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(x)[0].float().pow(2).sum()
    loss.backward()
    assert all(t.grad.dtype == torch.float32 for t in (x, *module.parameters()))
    exact = torch.autograd.grad(module(x)[0].pow(2).sum(), list(module.parameters()))
    for parameter, grad in zip(module.parameters(), exact, strict=True):
        assert (parameter.grad - grad).abs().max() < 0.05 * grad.abs().max() + 1e-3


def test_autocast_of_another_device_changes_nothing() -> None:
    module = fastseq.GRU(INPUT, HIDDEN)
    x = padded(module)
    with torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available()):
        assert torch.equal(module(x)[0], module(x)[0]) and module(x)[0].dtype == torch.float32


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(name: str, use_reentrant: bool) -> None:
    """Random masks included: recomputation draws them again the same."""
    module = getattr(fastseq, name)(
        INPUT, HIDDEN, 2, dropout=0.3, zoneout=0.2, recurrent_dropout=0.3, dtype=torch.float64
    )
    grads = []
    for run in (module, lambda x: checkpoint(module, x, use_reentrant=use_reentrant)):
        torch.manual_seed(0)
        x = padded(module).double().requires_grad_()
        run(x)[0].pow(2).sum().backward()
        grads.append([x.grad, *(p.grad for p in module.parameters())])
        module.zero_grad()
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("form", ["dense", "packed"])
def test_first_and_second_derivatives(name: str, form: str) -> None:
    config = {"num_layers": 2, "bidirectional": True} | ({"proj_size": 2} if name == "LSTM" else {})
    module = getattr(fastseq, name)(2, 3, dtype=torch.float64, **config)
    hx = tuple(s.double().requires_grad_() for s in tensors(states(name, module, 2)))
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        start: Any = rest[: len(hx)]
        data: Any = x
        if form == "packed":
            data = torch.nn.utils.rnn.pack_padded_sequence(
                x, torch.tensor([2, 3]), enforce_sorted=False
            )
        return tuple(tensors(module(data, start if name == "LSTM" else start[0])))

    inputs = (x, *hx, *module.parameters())
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def test_gradient_penalty() -> None:
    """A loss on the input's gradient, as WGAN-GP has it, equals torch's."""
    penalties = []
    for module in pair("GRU", INPUT, HIDDEN, dtype=torch.float64):
        torch.manual_seed(0)
        x = padded(module).double().requires_grad_()
        (grad,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
        (grad.norm() - 1).pow(2).backward()
        penalties.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(*penalties)


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_vmap(name: str) -> None:
    module = getattr(fastseq, name)(INPUT, HIDDEN)
    shape = (4, 3, INPUT) if name in CELLS else (4, 6, 3, INPUT)
    x = torch.randn(shape)

    def output(x: Tensor) -> Tensor:
        return tensors(module(x))[0]

    torch.testing.assert_close(torch.vmap(output)(x), torch.stack([output(e) for e in x]))
    unbatched = x[:, :, 0] if name in LAYERS else x[:, 0]
    torch.testing.assert_close(
        torch.vmap(output)(unbatched), torch.stack([output(e) for e in unbatched])
    )


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_forward_mode_and_per_sample_gradients(name: str) -> None:
    module = getattr(fastseq, name)(INPUT, HIDDEN, dtype=torch.float64)
    shape = (4, 3, INPUT) if name in CELLS else (4, 6, 3, INPUT)
    x, tangent = torch.randn(shape, dtype=torch.float64), torch.randn(shape[1:]).double()
    parameters = dict(module.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return tensors(torch.func.functional_call(module, parameters, (x,)))[0].pow(2).sum()

    each = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    derivative: Callable[[Tensor], Tensor] = torch.func.grad(lambda e: loss(parameters, e))
    for i, example in enumerate(x):
        used = [n for n in parameters if name in LAYERS or n != "weight_hh"]  # cells start at 0
        grads = torch.autograd.grad(loss(parameters, example), [parameters[n] for n in used])
        for n, grad in zip(used, grads, strict=True):
            torch.testing.assert_close(each[n][i], grad)
    _, along = torch.func.jvp(lambda e: loss(parameters, e), (x[0],), (tangent,))
    torch.testing.assert_close(along, (derivative(x[0]) * tangent).sum())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("form", ["plain", "unbatched", "states", "packed"])
@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_tangents(name: str, form: str, frozen: bool) -> None:
    """Forward mode gives torch's tangents, of every input, whether or not parameters learn."""
    if form == "packed" and name in CELLS:
        pytest.skip("cells take no packed input")
    found = []
    for module in pair(name, INPUT, HIDDEN, dtype=torch.float64):
        module.requires_grad_(not frozen)
        torch.manual_seed(0)
        cell, lead = name in CELLS, () if form == "unbatched" else (3,)
        x = torch.randn(*(() if cell else (4,)), *lead, INPUT, dtype=torch.float64)
        h = torch.randn(*(() if cell else (1,)), *lead, HIDDEN, dtype=torch.float64)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.randn_like(x))
            hx: Any = None
            if form == "states":
                duals = [forward_ad.make_dual(h * n, torch.randn_like(h)) for n in (1, 2)]
                hx = tuple(duals) if "LSTM" in name else duals[0]
            given: Any = dual
            if form == "packed":
                given = PackedSequence(dual.flatten(0, 1)[:7], torch.tensor([3, 2, 1, 1]))
            outputs = tensors(module(given, hx))
            found.append([forward_ad.unpack_dual(y).tangent for y in outputs])
        assert all(tangent is not None for tangent in found[-1])
    torch.testing.assert_close(*found)


def test_tangents_never_go_lost_in_the_operator() -> None:
    """Called by itself it has none to give, and says so."""
    x, h = torch.randn(2, 3), torch.randn(2, 4)
    weights = [torch.randn(4, 3), torch.randn(4, 4), torch.randn(4), torch.randn(4)]
    with forward_ad.dual_level(), pytest.raises((RuntimeError, NotImplementedError), match="jvp"):
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        torch.ops.fastseq.rnn_cell(dual, h, None, *weights, "RNN_TANH", False)


@pytest.mark.parametrize("config", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_batched_gradients(name: str, config: dict[str, Any]) -> None:
    """is_grads_batched=True and jacobian(vectorize=True): many upstream gradients at once."""
    if config and name in CELLS:
        pytest.skip("cells have one layer")
    module = getattr(fastseq.nn, name)(3, 4, dtype=torch.float64, **config)
    x = torch.randn(*((2, 3) if name in CELLS else (3, 2, 3)), dtype=torch.float64)

    def call(x: Tensor) -> Tensor:
        return tensors(module(x))[0]

    jacobian = torch.autograd.functional.jacobian
    torch.testing.assert_close(jacobian(call, x, vectorize=True), jacobian(call, x))
    output = call(x.requires_grad_())
    upstream = torch.randn(5, *output.shape, dtype=torch.float64)
    wanted = [x, *(p for n, p in module.named_parameters() if name in LAYERS or "_hh" not in n)]
    together = torch.autograd.grad(output, wanted, upstream, True, is_grads_batched=True)
    for i, one in enumerate(upstream):
        each = torch.autograd.grad(output, wanted, one, retain_graph=True)
        torch.testing.assert_close([g[i] for g in together], list(each))


def test_batched_gradients_of_gradients() -> None:
    """A Hessian, vectorized: rows at once of the gradient's own gradient."""
    module = fastseq.GRU(2, 3, dtype=torch.float64)
    x = torch.randn(2, 1, 2, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return module(x)[0].pow(2).sum()

    hessian = torch.autograd.functional.hessian
    torch.testing.assert_close(hessian(loss, x, vectorize=True), hessian(loss, x))
