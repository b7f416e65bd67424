"""Projection and scan in one call: its registration, and the same as the two."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from fastseq.ops.rnn_sequence import project_and_scan, rnn_sequence
from fastseq.reference.rnn import GATES
from tests.csrc.scan_cases import assert_close

MODES = list(GATES)


def arguments(
    mode: str,
    *,
    directions: int = 1,
    batch: int = 3,
    steps: int = 4,
    packed: bool = False,
    bias: bool = True,
    masked: bool = False,
    dtype: torch.dtype = torch.float64,
) -> tuple:
    """Random positional arguments up to ``h_mask``; an LSTM has projections."""
    hidden, inputs, rows = 5, 7, 9 if packed else steps * batch
    width, gates = 2 if mode == "LSTM" else hidden, GATES[mode] * hidden

    def each(*shape: int) -> list[Tensor]:
        return [0.3 * torch.randn(*shape, dtype=dtype) for _ in range(directions)]

    return (
        torch.randn(rows, inputs, dtype=dtype),
        torch.tensor([3, 3, 2, 1]) if packed else None,
        torch.randn(directions, batch, width, dtype=dtype),
        torch.randn(directions, batch, hidden, dtype=dtype) if mode == "LSTM" else None,
        each(gates, inputs),
        each(gates, width),
        each(gates) if bias else [],
        each(gates) if bias else [],
        each(width, hidden) if mode == "LSTM" else [],
        torch.rand(directions, batch, width, dtype=dtype) if masked else None,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("directions", [1, 2])
def test_opcheck(mode: str, directions: int) -> None:
    args = arguments(mode, directions=directions, packed=directions == 2, masked=directions == 2)
    for save in (False, True):
        opcheck(rnn_sequence, (*args, mode, [0.3, 0.0], 2**40 + 3, True, save))


CASES: list[dict[str, Any]] = [
    {},
    {"batch": 5, "steps": 30},  # rows enough for both biases to join the scan
    {"bias": False, "directions": 2, "batch": 9, "steps": 17},
    {"directions": 2, "batch": 9, "steps": 17},
    {"directions": 2, "packed": True, "masked": True},
    {"batch": 1, "steps": 1},
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_parity(mode: str, case: dict[str, Any], dtype: torch.dtype) -> None:
    args = arguments(mode, dtype=dtype, **case)
    names = ("output", "h_n", "c_n", "gates", "cells", "hn")

    def run(function, dtype: torch.dtype) -> dict[str, Tensor]:
        def moved(x):
            if isinstance(x, list):
                return [moved(y) for y in x]
            return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

        results = function(*map(moved, args), mode, [0.0, 0.0], 0, False, True)
        return {name: y for name, y in zip(names, results) if y.numel()}

    ours, plain = run(rnn_sequence, dtype), run(project_and_scan, dtype)
    assert_close(ours, plain, run(project_and_scan, torch.float64), dtype)


def test_nothing_is_saved_unasked() -> None:
    for mode in MODES:
        *_, gates, cells, hn = rnn_sequence(*arguments(mode), mode, [0.0, 0.0], 0, True, False)
        assert gates.numel() == cells.numel() == hn.numel() == 0


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.randn(12), "input must be"),
        (4, [], "w_ih must have one entry a direction"),
        (4, [torch.randn(19, 7)], "w_ih must have 4 rows a unit"),
        (6, [], "b_ih and b_hh must have one entry a direction each"),
        (5, [torch.randn(20, 3)], "w_hh must have shape"),
    ],
)
def test_bad_input(position: int, value: Any, message: str) -> None:
    args = list(arguments("LSTM", dtype=torch.float32))
    args[position] = value
    with pytest.raises(RuntimeError, match=message):
        rnn_sequence(*args, "LSTM", [0.0, 0.0], 0, False, True)
