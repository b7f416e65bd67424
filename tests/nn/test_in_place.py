"""What a user may change in place between forward and backward: with torch's modules, with ours."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.rnn import PackedSequence

import fastseq
from tests.nn.oracle import CELLS, HIDDEN, INPUT, LAYERS, packed, padded, pair, tensors

CASES: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 2, "bidirectional": True}),
    ("LSTM", {"proj_size": 3}),
    ("GRU", {"num_layers": 2}),
    ("GRU", {"batch_first": True}),
    ("RNN", {"nonlinearity": "relu"}),
    ("RNN", {}),
    ("LSTMCell", {}),
    ("GRUCell", {}),
    ("RNNCell", {}),
]
CHANGES: dict[str, Callable[[Module, Tensor, Tensor], Any]] = {
    "relu": lambda module, output, h: torch.nn.ReLU(inplace=True)(output),
    "dropout": lambda module, output, h: torch.nn.functional.dropout(output, 0.5, inplace=True),
    "masked": lambda module, output, h: output.masked_fill_(output > 0.1, 0),
    "residual": lambda module, output, h: output.add_(torch.ones_like(output)),
    "state": lambda module, output, h: h.mul_(0.5),
    "part of the state": lambda module, output, h: h[..., 1].zero_(),
    "detached": lambda module, output, h: output.detach_(),
    "biases": lambda module, output, h: double_biases(module),
}


@torch.no_grad()
def double_biases(module: Module) -> None:
    """As an optimizer's step does, of a module whose weights it has not got."""
    for name, parameter in module.named_parameters():
        if name.startswith("bias"):
            parameter.mul_(2)


def gradients(
    module: Module, x: Any, change: Callable[[Module, Tensor, Tensor], Any]
) -> list[Tensor | None] | RuntimeError:
    leaf = (x.data if isinstance(x, PackedSequence) else x).detach().clone().requires_grad_()
    found = module(PackedSequence(leaf, *x[1:]) if isinstance(x, PackedSequence) else leaf)
    outputs = tensors(found)
    try:
        torch.manual_seed(3)
        change(module, outputs[0], outputs[1 if len(outputs) > 1 else 0])
        weights = [torch.linspace(-1, 1, y.numel()).view_as(y).to(y) for y in outputs]
        return list(
            torch.autograd.grad(
                sum((y * w).sum() for y, w in zip(outputs, weights)),
                [leaf, *module.parameters()],
                allow_unused=True,
            )
        )
    except RuntimeError as error:
        return error


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize(("name", "config"), CASES, ids=str)
def test_gradients_are_torchs(name: str, config: dict[str, Any], form: str, change: str) -> None:
    ours, theirs = pair(name, INPUT, HIDDEN, dtype=torch.float64, **config)
    if name in CELLS:
        if form == "packed":
            pytest.skip("cells take no packed input")
        x: Any = torch.randn(3, INPUT, dtype=torch.float64)
    else:
        x = padded(ours).double() if form == "padded" else packed(ours, ordered=False).double()
    expected = gradients(theirs, x, CHANGES[change])
    found = gradients(ours, x, CHANGES[change])
    if isinstance(expected, RuntimeError):
        words = "modified by an inplace", "does not require grad"  # of all that is left
        assert any(w in str(expected) for w in words)
        pytest.skip("torch refuses")
    assert not isinstance(found, RuntimeError), found
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", CELLS)
def test_rollout_with_states_reset_in_place(name: str) -> None:
    """As reinforcement learning resets the states of episodes that ended."""
    x = torch.randn(6, 4, INPUT, dtype=torch.float64)
    alive = (torch.rand(6, 4, 1) > 0.3).double()
    done = alive[..., 0] == 0
    grads = []
    for module, in_place in zip(pair(name, INPUT, HIDDEN, dtype=torch.float64), (True, False)):
        state: Any = None
        total = torch.zeros((), dtype=torch.float64)
        for t, row in enumerate(x):
            states = tensors(module(row, state))
            total = total + sum((t + 1) * s.sum() for s in states)
            if not in_place:
                states = [s * alive[t] for s in states]
            elif t % 2:
                for s in states:
                    s *= alive[t]
            else:
                for s in states:
                    s[done[t]] = 0
            state = tuple(states) if name == "LSTMCell" else states[0]
        grads.append(torch.autograd.grad(total, list(module.parameters())))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_second_derivatives_of_changed_biases_are_refused(name: str) -> None:
    module = getattr(fastseq.nn, name)(INPUT, HIDDEN)
    x = (torch.randn(3, INPUT) if name in CELLS else padded(module)).requires_grad_()
    output = tensors(module(x))[0]
    double_biases(module)
    torch.autograd.grad(output.sum(), x, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(output.sum(), x, create_graph=True)


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_second_derivatives_after_the_output_changed(name: str) -> None:
    """A gradient penalty on an output that a ReLU in place took."""
    penalties = []
    for module, in_place in zip(pair(name, INPUT, HIDDEN, dtype=torch.float64), (True, False)):
        torch.manual_seed(0)
        shape = (3, INPUT) if name in CELLS else (4, 3, INPUT)
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        output = torch.nn.functional.relu(tensors(module(x))[0], inplace=in_place)
        (grad,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        penalties.append(torch.autograd.grad(grad.pow(2).sum(), list(module.parameters())))
    torch.testing.assert_close(*penalties)


@pytest.mark.parametrize("name", LAYERS)
def test_options_too(name: str) -> None:
    """Every option reads something else of what was saved."""
    for options in (
        {"layer_norm": True},
        {"recompute": True},
        {"zoneout": 0.3},
        {"recurrent_dropout": 0.3},
    ):
        grads = []
        for change in (lambda y: y.relu_(), lambda y: y.relu()):
            torch.manual_seed(0)
            module = getattr(fastseq.nn, name)(INPUT, HIDDEN, 2, dtype=torch.float64, **options)
            output = change(module(padded(module).double())[0])
            grads.append(torch.autograd.grad(output.pow(2).sum(), list(module.parameters())))
        torch.testing.assert_close(*grads)


def test_detached_without_gradients() -> None:
    """torch's output is no view, of which detach_() would be refused."""
    for nn in (torch.nn, fastseq.nn):
        with torch.no_grad():
            nn.GRU(INPUT, HIDDEN)(torch.randn(2, 3, INPUT))[0].detach_()
