"""The operator of one plain step: both products and the gates, against its plain PyTorch."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import fastseq  # noqa: F401 (registers the operators)
from fastseq.ops.rnn_cell import rnn_cell
from fastseq.reference import rnn_cell as reference
from fastseq.reference.rnn import GATES
from tests.csrc.scan_cases import assert_close

SIZES = [(1, 5, 3), (2, 1, 9), (6, 40, 33), (7, 17, 8), (19, 3, 70)]  # batch, inputs, hidden_size


def step(cell: str, batch: int, inputs: int, hidden: int, bias: bool, dtype: torch.dtype) -> list:
    """Random arguments of ``rnn_cell``."""
    gates = GATES[cell]
    shapes = [
        (batch, inputs),
        (batch, hidden),
        (batch, hidden) if cell == "LSTM" else None,
        (gates * hidden, inputs),
        (gates * hidden, hidden),
        (gates * hidden,) if bias else None,
        (gates * hidden,) if bias else None,
    ]
    return [None if s is None else torch.randn(s, dtype=dtype) for s in shapes]


def moved(tensors, dtype: torch.dtype) -> list[Tensor | None]:
    return [None if x is None else x.to(dtype).requires_grad_() for x in tensors]


@pytest.mark.parametrize("cell", list(GATES))
@pytest.mark.parametrize("batch", [3, 8])
@pytest.mark.parametrize("bias", [False, True])
def test_opcheck(cell: str, batch: int, bias: bool) -> None:
    args = step(cell, batch, 4, 5, bias, torch.float64)
    ops = torch.ops.fastseq
    for save in (False, True):
        opcheck(ops.rnn_cell.default, (*args, cell, save))
    h_n, _c_n, *saved = ops.rnn_cell(*args, cell, True)
    grads = torch.randn_like(h_n), torch.randn_like(h_n) if cell == "LSTM" else None
    for needed in ((True, True, True), (False, False, True), (True, False, False)):
        opcheck(ops.rnn_cell_backward.default, (*grads, *saved, *args[:5], bias, cell, *needed))


@pytest.mark.parametrize("cell", list(GATES))
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_parity(cell: str, size: tuple[int, int, int], bias: bool, dtype: torch.dtype) -> None:
    given = step(cell, *size, bias, dtype)

    def run(function, dtype: torch.dtype) -> dict[str, Tensor]:
        tensors = moved(given, dtype)
        results = function(*tensors, cell)
        results = list(results) if isinstance(results, tuple) else [results]
        leaves = [x for x in tensors if x is not None]
        weights = [torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y) for y in results]
        results += torch.autograd.grad(results, leaves, weights)
        return {str(i): y for i, y in enumerate(results)}

    def plain(*arguments):
        *tensors, cell = arguments
        h_n, c_n, *_ = reference.rnn_cell(*tensors, cell, False)
        return (h_n, c_n) if cell == "LSTM" else h_n

    assert_close(run(rnn_cell, dtype), run(plain, dtype), run(plain, torch.float64), dtype)


@pytest.mark.parametrize("cell", list(GATES))
@pytest.mark.parametrize("batch", [2, 7])
def test_first_and_second_gradients(cell: str, batch: int) -> None:
    tensors = [
        None if x is None else (x / 2).requires_grad_()
        for x in step(cell, batch, 3, 2, True, torch.float64)
    ]
    leaves = [x for x in tensors if x is not None]

    def function(*values: Tensor):
        given = iter(values)
        return rnn_cell(*(None if x is None else next(given) for x in tensors), cell)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_only_asked_for_gradients() -> None:
    input, h, c, *weights = step("LSTM", 3, 4, 5, True, torch.float32)
    h.requires_grad_()
    h_n, _ = rnn_cell(input, h, c, *weights, "LSTM")
    h_n.sum().backward()
    assert h.grad is not None and all(x.grad is None for x in (input, c, *weights))


def test_same_bits_on_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        for batch in (1, 5):
            args = step("LSTM", batch, 130, 300, True, torch.float32)
            results = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(torch.ops.fastseq.rnn_cell(*args, "LSTM", True))
            for other in results[1:]:
                assert all(map(torch.equal, other, results[0]))
    finally:
        torch.set_num_threads(before)
