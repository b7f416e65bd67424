"""What the recurrent operators ask of their tensors before a kernel indexes them.

The C++ kernels check the same (csrc/bindings.cpp); this is for the others. Names and shapes are
those of ``rnn_layer.py``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference.rnn import GATES, accumulate_dtype

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(f"fastseq: {message}")


class _Like:
    """Checks tensors against one whose type and device they share."""

    def __init__(self, x: Tensor, name: str) -> None:
        _require(x.dtype in _DTYPES, f"{name} must be one of {_DTYPES}, got {x.dtype}")
        self.dtype, self.device = x.dtype, x.device

    def tensor(
        self, x: Tensor | None, shape: tuple, name: str, dtype: torch.dtype | None = None
    ) -> None:
        if x is None:
            return
        dtype = dtype or self.dtype
        _require(x.dtype == dtype, f"{name} must be {dtype}, got {x.dtype}")
        _require(x.device == self.device, f"{name} must be on {self.device}, got {x.device}")
        _require(x.shape == shape, f"{name} must have shape {list(shape)}, got {list(x.shape)}")

    def each(
        self, tensors: Sequence[Tensor], count: int, shape: tuple, name: str, optional: bool = True
    ) -> None:
        _require(
            len(tensors) == count or (optional and not tensors),
            f"{name} must have {count} entries, one a direction"
            f"{', or none' if optional else ''}, got {len(tensors)}",
        )
        for x in tensors:
            self.tensor(x, shape, name)


def _rows(batch_sizes: Tensor | None, rows: int, batch: int, name: str) -> None:
    if batch_sizes is None:
        _require(
            rows % batch == 0 if batch else rows == 0,
            f"the rows of {name} must be a multiple of the batch {batch}, got {rows}",
        )
        return
    _require(
        batch_sizes.dim() == 1 and batch_sizes.dtype == torch.int64 and batch_sizes.is_cpu,
        "batch_sizes must be 1-D int64 on the CPU",
    )
    sizes = batch_sizes.tolist()
    _require(
        all(b >= a >= 0 for a, b in zip(sizes, [batch, *sizes])),
        "batch_sizes must not be negative, not increase, and start with the batch",
    )
    _require(sum(sizes) == rows, f"batch_sizes must sum to the rows of {name}, {rows}")


def _mode(mode: str, c0: Tensor | None, w_hr: Sequence[Tensor], zoneout: Sequence[float]) -> int:
    """The gates of a unit."""
    _require(mode in GATES, f"unknown mode {mode}")
    _require((mode == "LSTM") == (c0 is not None), "only an LSTM has c0")
    _require(mode == "LSTM" or not w_hr, "only an LSTM has projections")
    _require(
        len(zoneout) == 2 and all(0 <= z < 1 for z in zoneout),
        f"zoneout must be two probabilities in [0, 1), got {zoneout}",
    )
    return GATES[mode]


def _scan(
    gates, batch_sizes, h0, c0, w_hh, w_hr, ln_gates, ln_cell, h_mask, mode, zoneout
) -> tuple[_Like, tuple[int, ...]]:  # fmt: skip
    """What both scans have; the sizes N, D, G, H, B, P."""
    count = _mode(mode, c0, w_hr, zoneout)
    like = _Like(gates, "gates")
    _require(
        gates.dim() == 4 and gates.shape[1] in (1, 2) and gates.shape[2] == count,
        f"gates must have shape (rows, directions, {count}, hidden_size), got {list(gates.shape)}",
    )
    _require(gates.is_contiguous(), "gates must be contiguous")
    rows, directions, _, hidden = gates.shape
    _require(h0.dim() == 3, "h0 must be (directions, batch, width)")
    batch, width = h0.shape[1:]
    _require(bool(w_hr) or width == hidden, "h0 must be as wide as hidden_size")
    _require(mode == "LSTM" or not ln_cell, "only an LSTM has a cell to normalise")
    _require(not ln_cell or bool(ln_gates), "ln_cell comes with ln_gates")
    like.tensor(h0, (directions, batch, width), "h0")
    like.tensor(c0, (directions, batch, hidden), "c0")
    like.each(w_hh, directions, (count * hidden, width), "w_hh", optional=False)
    like.each(w_hr, directions, (width, hidden), "w_hr")
    like.each(ln_gates, directions, (count * hidden,), "ln_gates")
    like.each(ln_cell, directions, (2, hidden), "ln_cell")
    like.tensor(h_mask, (directions, batch, width), "h_mask")
    _rows(batch_sizes, rows, batch, "gates")
    return like, (rows, directions, count, hidden, batch, width)


def check_scan(
    gates, batch_sizes, h0, c0, w_hh, b_hh, w_hr, ln_gates, ln_cell, h_mask,
    *, cell, ln_eps, zoneout, seed, training, save,
) -> None:  # fmt: skip
    like, (_, directions, count, hidden, _, _) = _scan(
        gates, batch_sizes, h0, c0, w_hh, w_hr, ln_gates, ln_cell, h_mask, cell, zoneout
    )
    like.each(b_hh, directions, (count * hidden,), "b_hh")


def check_scan_backward(
    grad_output, grad_h_n, grad_c_n, gates, cells, hn, output, u_raw, batch_sizes, h0, c0,
    w_hh, w_hr, ln_gates, ln_cell, h_mask, *, cell, ln_eps, zoneout, seed, training,
) -> None:  # fmt: skip
    like, (rows, directions, _, hidden, batch, width) = _scan(
        gates, batch_sizes, h0, c0, w_hh, w_hr, ln_gates, ln_cell, h_mask, cell, zoneout
    )
    unit = (rows, directions, hidden)
    like.tensor(grad_output, (rows, directions * width), "grad_output")
    like.tensor(output, (rows, directions * width), "output")
    _require(output.is_contiguous(), "output must be contiguous")
    like.tensor(grad_h_n, (directions, batch, width), "grad_h_n")
    _require((u_raw is not None) == bool(ln_gates), "u_raw comes with ln_gates")
    like.tensor(u_raw, gates.shape, "u_raw")
    if cell == "LSTM":
        like.tensor(grad_c_n, (directions, batch, hidden), "grad_c_n")
        like.tensor(cells, unit, "cells", accumulate_dtype(gates.dtype))
        _require(cells.is_contiguous(), "cells must be contiguous")
    if cell == "GRU":
        like.tensor(hn, unit, "hn")
        _require(hn.is_contiguous(), "hn must be contiguous")


def check_layer(
    input, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, ln, seed,
    mode, zoneout, recurrent_dropout, *_rest,
) -> None:  # fmt: skip
    count = _mode(mode, c0, w_hr, zoneout)
    _require(
        0 <= recurrent_dropout < 1,
        f"recurrent_dropout must be a probability in [0, 1), got {recurrent_dropout}",
    )
    like = _Like(input, "input")
    _require(input.dim() == 2, f"input must be (rows, input_size), got {list(input.shape)}")
    _require(h0.dim() == 3, "h0 must be (directions, batch, width)")
    directions, batch, width = h0.shape
    _require(directions in (1, 2), f"h0 must have 1 or 2 directions, got {directions}")
    _require(bool(w_ih) and w_ih[0].dim() == 2, "w_ih must have one entry a direction")
    rows = w_ih[0].shape[0]
    _require(rows % count == 0, f"w_ih must have {count} rows a unit, got {rows}")
    hidden = rows // count
    _require(bool(w_hr) or width == hidden, "h0 must be as wide as hidden_size")
    like.tensor(h0, (directions, batch, width), "h0")
    like.tensor(c0, (directions, batch, hidden), "c0")
    like.each(w_ih, directions, (rows, input.shape[1]), "w_ih", optional=False)
    like.each(w_hh, directions, (rows, width), "w_hh", optional=False)
    _require(len(b_ih) == len(b_hh), "b_ih and b_hh must be given both or not at all")
    like.each(b_ih, directions, (rows,), "b_ih")
    like.each(b_hh, directions, (rows,), "b_hh")
    like.each(w_hr, directions, (width, hidden), "w_hr")
    norms = 4 if mode == "LSTM" else 2
    _require(len(ln) in (0, norms * directions), f"ln must have {norms} entries a direction")
    for i, x in enumerate(ln):
        like.tensor(x, (rows if i % norms < 2 else hidden,), "ln")
    _rows(batch_sizes, input.shape[0], batch, "input")


def check_layer_backward(
    grad_output, grad_h_n, grad_c_n, output, gates, cells, hn, input, batch_sizes, h0, c0, w_ih,
    w_hh, b_ih, b_hh, w_hr, ln, seed, *options,
) -> None:  # fmt: skip
    check_layer(
        input, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, ln, seed, *options
    )  # fmt: skip
    mode, like = options[0], _Like(input, "input")
    rows, (directions, batch, width) = input.shape[0], h0.shape
    hidden = w_ih[0].shape[0] // GATES[mode]
    for x, name in ((grad_output, "grad_output"), (output, "output")):
        like.tensor(x, (rows, directions * width), name)
    like.tensor(grad_h_n, (directions, batch, width), "grad_h_n")
    if mode == "LSTM":
        like.tensor(grad_c_n, (directions, batch, hidden), "grad_c_n")
    # What was not saved is empty.
    unit, acc = (rows, directions, hidden), accumulate_dtype(input.dtype)
    like.tensor(gates if gates.numel() else None, (*unit[:2], GATES[mode], hidden), "gates")
    like.tensor(cells if cells.numel() else None, unit, "cells", acc)
    like.tensor(hn if hn.numel() else None, unit, "hn")
