"""What users do to modules: save, copy, tie, reparametrize, hook, swap weights."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import Module, Parameter
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import PackedSequence

import fastseq
from tests.nn.oracle import CELLS, HIDDEN, INPUT, LAYERS, packed, padded, pair

ALL = LAYERS + CELLS


def build(name: str, **kwargs: Any) -> tuple[Module, Module, torch.Tensor]:
    ours, theirs = pair(name, INPUT, HIDDEN, **kwargs)
    x = torch.randn(3, INPUT) if name in CELLS else padded(ours)
    return ours, theirs, x


def first(result: Any) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result


def suffix(name: str) -> str:
    return "" if name in CELLS else "_l0"


@pytest.mark.parametrize("name", ALL)
def test_state_dict_both_ways(name: str) -> None:
    _, theirs, x = build(name)
    fresh = getattr(fastseq, name)(INPUT, HIDDEN)
    fresh.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(first(fresh(x)), first(theirs(x)))
    back = getattr(torch.nn, name)(INPUT, HIDDEN)
    back.load_state_dict(fresh.state_dict())
    for a, b in zip(back.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1])


@pytest.mark.parametrize("name", ALL)
def test_copies(name: str) -> None:
    ours = getattr(fastseq, name)(INPUT, HIDDEN, layer_norm=True, zoneout=0.1).eval()
    x = build(name)[2]
    expected = first(ours(x))
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(ours),
        copy.copy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(buffer, weights_only=False),
    ]
    for other in copies:
        assert type(other) is type(ours) and repr(other) == repr(ours)
        assert torch.equal(first(other(x)), expected)
    with torch.no_grad():
        for parameter in copies[0].parameters():
            parameter.zero_()
    assert torch.equal(first(ours(x)), expected)
    assert not torch.equal(first(copies[0](x)), expected)


@pytest.mark.parametrize("name", ALL)
def test_conversions(name: str) -> None:
    ours, theirs, x = build(name)
    for change in (
        lambda m: m.double(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.half(),
        lambda m: m.float(),
    ):
        ours, theirs = change(ours), change(theirs)
        dtype = next(ours.parameters()).dtype
        output, expected = first(ours(x.to(dtype))), first(theirs(x.to(dtype)))
        assert output.dtype == dtype
        atol = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(dtype, 1e-6)
        torch.testing.assert_close(output, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_replaced_and_tied_parameters(name: str) -> None:
    ours, theirs, x = build(name)
    weight = Parameter(0.2 * torch.randn_like(getattr(ours, "weight_hh" + suffix(name))))
    for module in (ours, theirs):
        setattr(module, "weight_hh" + suffix(name), weight)  # one for both: tied
        setattr(module, "bias_ih" + suffix(name), getattr(module, "bias_hh" + suffix(name)))
    torch.testing.assert_close(first(ours(x)), first(theirs(x)))
    for module in (ours, theirs):
        weight.grad = None
        first(module(x)).sum().backward()
    torch.testing.assert_close(
        getattr(ours, "bias_ih" + suffix(name)).grad, getattr(theirs, "bias_ih" + suffix(name)).grad
    )
    with torch.no_grad():
        weight.mul_(0.5)  # in place, by an optimizer, say
    torch.testing.assert_close(first(ours(x)), first(theirs(x)))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("which", ["weight_hh", "weight_ih"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_weight_norm(name: str, which: str) -> None:
    """The old one with hooks and the new one with parametrizations, on and off."""
    for apply in (parametrizations.weight_norm, torch.nn.utils.weight_norm):
        ours, theirs, x = build(name)
        grads = []
        for module in (ours, theirs):
            apply(module, which + suffix(name))
            output = first(module(x))
            output.pow(2).sum().backward()
            grads.append([output, *(p.grad for p in module.parameters())])
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)
        with torch.no_grad():  # the next forward must see the change
            for module in (ours, theirs):
                for parameter in module.parameters():
                    parameter.mul_(0.9)
        torch.testing.assert_close(first(ours(x)), first(theirs(x)))
        if apply is parametrizations.weight_norm:
            for module in (ours, theirs):
                parametrize.remove_parametrizations(module, which + suffix(name))
            assert type(ours) is getattr(fastseq, name)
        else:
            for module in (ours, theirs):
                torch.nn.utils.remove_weight_norm(module, which + suffix(name))
        torch.testing.assert_close(first(ours(x)), first(theirs(x)))


@pytest.mark.parametrize("name", ALL)
def test_deleted_and_set_as_plain_tensor(name: str) -> None:
    """As AWD-LSTM's weight drop does."""
    ours, theirs, x = build(name)
    raw = torch.randn_like(getattr(ours, "weight_hh" + suffix(name)))
    for module in (ours, theirs):
        delattr(module, "weight_hh" + suffix(name))
        setattr(module, "weight_hh" + suffix(name), raw * 0.5)
    torch.testing.assert_close(first(ours(x)), first(theirs(x)))


@pytest.mark.parametrize("name", ALL)
def test_functional_call(name: str) -> None:
    ours, theirs, x = build(name)
    others = {k: torch.randn_like(v).requires_grad_() for k, v in ours.named_parameters()}
    output = first(functional_call(ours, others, (x,)))
    torch.testing.assert_close(output, first(functional_call(theirs, others, (x,))))
    used = [v for k, v in others.items() if name in LAYERS or k != "weight_hh"]  # cells start at 0
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(output.sum(), used))
    torch.testing.assert_close(first(ours(x)), first(theirs(x)))  # back to its own


@pytest.mark.parametrize("name", LAYERS)
def test_model_ensembles(name: str) -> None:
    """vmap over stacked modules, as torch.func's ensembling does it."""
    modules = [getattr(fastseq, name)(INPUT, HIDDEN) for _ in range(3)]
    parameters, buffers = stack_module_state(modules)
    skeleton = copy.deepcopy(modules[0]).to("meta")
    x = padded(modules[0])

    def call(parameters: dict, buffers: dict, x: torch.Tensor) -> torch.Tensor:
        return functional_call(skeleton, (parameters, buffers), (x,))[0]

    together = vmap(call, in_dims=(0, 0, None))(parameters, buffers, x)
    torch.testing.assert_close(together, torch.stack([m(x)[0] for m in modules]))


@pytest.mark.parametrize("name", ALL)
def test_hooks(name: str) -> None:
    ours, _, x = build(name)
    plain = first(ours(x)).clone()
    seen: list[str] = []
    handles = [
        ours.register_forward_pre_hook(lambda m, args: (args[0] * 2,)),
        ours.register_forward_hook(lambda m, args, out: seen.append("forward")),
        ours.register_full_backward_hook(lambda m, gi, go: seen.append("backward")),
    ]
    leaf = x.clone().requires_grad_()
    hooked = first(ours(leaf))
    hooked.sum().backward()
    assert seen == ["forward", "backward"] and leaf.grad is not None
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(first(ours(x * 2)), hooked)
    assert torch.equal(first(ours(x)), plain)


@pytest.mark.parametrize("name", LAYERS)
def test_forward_with_keywords_and_flatten(name: str) -> None:
    ours, theirs, x = build(name, num_layers=2)
    ours.flatten_parameters()
    for module in (ours, theirs):
        module.train(False)
    torch.testing.assert_close(ours(input=x, hx=None)[0], theirs(input=x, hx=None)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_packed_stays_packed(name: str) -> None:
    ours, theirs, _ = build(name, bidirectional=True)
    sequence = packed(ours, ordered=False)
    output, _ = ours(sequence)
    expected, _ = theirs(sequence)
    assert isinstance(output, PackedSequence)
    for a, b in zip(output[1:], expected[1:], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", LAYERS)
def test_hx_as_a_list(name: str) -> None:
    """torch's LSTM takes a list for its pair."""
    if name == "LSTM":
        ours, theirs, x = build(name)
        hx = [torch.randn(1, x.shape[1], HIDDEN) for _ in range(2)]
        torch.testing.assert_close(ours(x, hx), theirs(x, hx))
        assert isinstance(ours(x, hx)[1], tuple)


def test_subclass_of_a_user() -> None:
    class Doubled(fastseq.GRU):
        def forward(self, input: torch.Tensor, hx: Any = None, **kwargs: Any) -> Any:
            output, h = super().forward(input, hx, **kwargs)
            return 2 * output, h

    module = Doubled(INPUT, HIDDEN, layer_norm=True)
    x = padded(module)
    assert torch.equal(module(x)[0], 2 * fastseq.GRU.forward(module, x)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_trains_as_torchs(name: str) -> None:
    """Twenty steps of Adam from the same start end at the same loss."""
    losses = []
    for module in pair(name, INPUT, HIDDEN, 2, dtype=torch.float64):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(8, 4, INPUT, generator=generator, dtype=torch.float64)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            loss = (module(x)[0].sum(-1) - x.cumsum(0).sum(-1)).pow(2).mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)
