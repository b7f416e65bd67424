"""The recurrent scans that ahead-of-time builds compile: real launches, on meta tensors."""

import os
from collections.abc import Callable, Iterator

import torch

from . import rnn
from .device import Limits, assume
from .rnn_dispatch import GATES, Problem, obstacle

Build = tuple[str, bool, Callable[[], None]]  # label, part of the quick subset, what launches


def _scan(
    kernel: str, mode: str, dtype: torch.dtype, hidden: int, *, batch: int = 16, width: int = 0,
    norm: bool = False, extras: bool = False, directions: int = 1, tf32: bool = False,
    backward: bool = False,
) -> None:  # fmt: skip
    """One call of a launcher. ``extras``: packed rows, zoneout and recurrent dropout."""
    gates, steps, width = GATES[mode], 4, width or hidden
    lstm = mode == "LSTM"
    new = lambda *shape, dtype=dtype: torch.empty(shape, dtype=dtype, device="meta")  # noqa: E731
    rows = steps * batch
    gx, output = new(rows, directions, gates, hidden), new(rows, directions * width)
    state = new(directions, batch, width)
    cell = new(directions, batch, hidden) if lstm else None
    each = range(directions)
    shared = {
        "batch_sizes": torch.full((steps,), batch) if extras else None,
        "h0": state,
        "c0": cell,
        "w_hh": [new(gates * hidden, width) for _ in each],
        "w_hr": [new(width, hidden) for _ in each] if width != hidden else [],
        "ln_gates": [new(gates * hidden) for _ in each] if norm else [],
        "ln_cell": [new(2, hidden) for _ in each] if norm and lstm else [],
        "h_mask": state if extras else None,
        "cell": mode,
        "ln_eps": 1e-5,
        "zoneout": [0.1, 0.1 if lstm else 0.0] if extras else [0.0, 0.0],
        "seed": 1,
        "training": True,
    }
    os.environ["FASTSEQ_RNN_KERNEL"] = kernel
    if dtype == torch.float32:
        torch.backends.cudnn.allow_tf32 = tf32
    if not backward:
        b_hh = [new(gates * hidden) for _ in each] if mode == "GRU" else []
        rnn.rnn_scan(gx, b_hh=b_hh, save=True, **shared)
        return
    per_unit = new(rows, directions, hidden)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    rnn.rnn_scan_backward(
        output, state, cell, gx, new(rows, directions, hidden, dtype=acc), per_unit, output,
        gx if norm else None, **shared,
    )  # fmt: skip


def builds(limits: Limits) -> Iterator[Build]:
    assume(limits)
    half, single, double = torch.bfloat16, torch.float32, torch.float64
    cases: list[tuple[bool, str, str, torch.dtype, int, dict]] = [
        (True, "step", "LSTM", half, 512, {"extras": True, "directions": 2}),
        (False, "step", "LSTM", single, 512, {}),
        (False, "step", "LSTM", single, 512, {"tf32": True}),
        (False, "step", "LSTM", half, 512, {"batch": 64}),
        (False, "step", "LSTM", half, 512, {"batch": 1}),
        (False, "step", "GRU", half, 512, {"batch": 64}),
        (False, "step", "GRU", single, 512, {"extras": True}),
        (True, "step", "GRU", double, 64, {}),
        (False, "step", "RNN_TANH", half, 512, {}),
        (False, "step", "RNN_RELU", single, 512, {}),
        (True, "step", "LSTM", half, 512, {"norm": True, "width": 128, "extras": True}),
        (False, "step", "GRU", single, 512, {"norm": True}),
        (False, "step", "LSTM", double, 64, {"norm": True, "width": 32}),
        (False, "sequence", "LSTM", half, 64, {}),
        (True, "sequence", "LSTM", half, 128, {}),
        (False, "sequence", "LSTM", single, 64, {}),
        (True, "sequence", "LSTM", single, 64, {"tf32": True}),
        (False, "sequence", "GRU", single, 64, {"extras": True}),
        (False, "sequence", "LSTM", half, 32, {"norm": True, "width": 16, "extras": True}),
        (False, "sequence", "LSTM", half, 128, {"norm": True, "extras": True}),
        (False, "sequence", "GRU", half, 128, {"extras": True}),
        (True, "sequence", "GRU", single, 32, {"norm": True}),
        (False, "sequence", "RNN_TANH", half, 128, {}),
        (True, "persistent", "LSTM", half, 512, {}),
        (False, "persistent", "LSTM", half, 768, {}),
        (True, "persistent", "LSTM", half, 1024, {}),
        (False, "persistent", "LSTM", half, 512, {"extras": True, "directions": 2}),
        (False, "persistent", "LSTM", single, 512, {}),
        (False, "persistent", "LSTM", single, 1024, {"tf32": True}),
        (False, "persistent", "LSTM", single, 64, {"extras": True, "directions": 2}),
        (False, "persistent", "GRU", half, 512, {"directions": 2}),
        (True, "persistent", "GRU", half, 1024, {}),
        (False, "persistent", "RNN_TANH", half, 1024, {}),
    ]
    for quick, kernel, mode, dtype, hidden, options in cases:
        width, tf32 = options.get("width", hidden), options.get("tf32", False)
        if tf32 and limits.warp != 32:
            continue
        wide = width != hidden or options.get("norm", False)
        problem = Problem(
            mode, hidden, width, options.get("batch", 16), options.get("directions", 1),
            dtype.itemsize, wide, tf32,
        )  # fmt: skip
        for backward in (False, True):
            if obstacle(kernel, problem, limits, backward):
                continue
            names = [
                mode,
                f"H={hidden}",
                *(k if v is True else f"{k}={v}" for k, v in options.items()),
            ]
            yield (
                " ".join(names),
                quick,
                lambda a=(kernel, mode, dtype, hidden), o=options, b=backward: _scan(
                    *a, **o, backward=b
                ),
            )
