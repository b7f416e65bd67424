"""RNNCell, LSTMCell, GRUCell against torch's."""

from typing import Any

import pytest
import torch
from torch import Tensor

import fastseq
from tests.nn.oracle import CELLS, DTYPES, HIDDEN, INPUT, assert_as_exact, pair

CASES = [
    pytest.param(name, config, id=f"{name}-{'-'.join(map(str, config.values()))}")
    for name in CELLS
    for config in [{}, {"bias": False}] + ([{"nonlinearity": "relu"}] if name == "RNNCell" else [])
]


def arguments(name: str, form: str) -> tuple:
    batch = {"unbatched": None, "empty": 0, "one": 1}.get(form, 5)
    lead = () if batch is None else (batch,)
    x = torch.randn(*lead, INPUT)

    def state() -> Tensor:
        h = torch.randn(*lead, HIDDEN)
        return h.t().contiguous().t() if form == "strided" else h

    if form == "strided":
        x = torch.randn(INPUT, 5).t()
    if form == "no-state":
        return (x,)
    return (x, (state(), state()) if name == "LSTMCell" else state())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["batch", "no-state", "unbatched", "strided", "empty", "one"])
@pytest.mark.parametrize(("name", "config"), CASES)
def test_values_and_gradients(
    name: str, config: dict[str, Any], form: str, dtype: torch.dtype
) -> None:
    ours, theirs = pair(name, INPUT, HIDDEN, **config)
    assert_as_exact(ours, theirs, arguments(name, form), dtype)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("input_size", "hidden"), [(0, 6), (4, 0), (33, 130)])
def test_sizes(name: str, input_size: int, hidden: int) -> None:
    ours, theirs = pair(name, input_size, hidden)
    h = torch.randn(3, hidden)
    hx = (h, h + 1) if name == "LSTMCell" else h
    assert_as_exact(ours, theirs, (torch.randn(3, input_size), hx), torch.float32)


@pytest.mark.parametrize("name", CELLS)
def test_loop_through_time(name: str) -> None:
    """Gradients through many steps, with and without autograd recording on."""
    modules = pair(name, INPUT, HIDDEN, dtype=torch.float64)
    x = torch.randn(6, 3, INPUT, dtype=torch.float64)
    finals, grads = [], []
    for module in modules:
        state = None
        for row in x:
            state = module(row, state)
        with torch.no_grad():
            silent = None
            for row in x:
                silent = module(row, silent)
        torch.testing.assert_close(state, silent)
        finals.append(state)
        total = sum(s.pow(2).sum() for s in (state if name == "LSTMCell" else (state,)))
        grads.append(torch.autograd.grad(total, list(module.parameters())))
    torch.testing.assert_close(finals[0], finals[1])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("name", CELLS)
def test_is_torchs_module(name: str) -> None:
    for args in [(INPUT, HIDDEN), (INPUT, HIDDEN, False)]:
        ours, theirs = pair(name, *args)
        assert isinstance(ours, getattr(torch.nn, name))
        assert repr(ours) == repr(theirs)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    assert getattr(fastseq, name) is getattr(fastseq.nn, name)


def test_states_of_mixed_types_go_to_torch() -> None:
    """An LSTMCell's c may be float64 to a float32 cell, in torch as here."""
    ours, theirs = pair("LSTMCell", INPUT, HIDDEN)
    x, h, c = torch.randn(3, INPUT), torch.randn(3, HIDDEN), torch.randn(3, HIDDEN).double()
    torch.testing.assert_close(ours(x, (h, c)), theirs(x, (h, c)))


@pytest.mark.parametrize("name", CELLS)
def test_derivatives(name: str) -> None:
    cell = getattr(fastseq, name)(2, 3, layer_norm=True, dtype=torch.float64)
    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    h = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def call(x: Tensor, h: Tensor, c: Tensor, *_: Tensor) -> Any:
        return cell(x, (h, c)) if name == "LSTMCell" else cell(x, h) + 0 * c

    inputs = (x, *h, *cell.parameters())
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)
