"""Parity of the recurrent kernels with the reference in float64: the cases, and one case's outcome.

Used on a card and under Triton's interpreter by check.py. Sizes are odd, outputs hold NaN before.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .parity import error_ratios
from .rnn_dispatch import GATES, KERNELS

Arguments = dict[str, Any]
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "packed both ways": {"directions": 2, "packed": True},
    "zoneout, recurrent dropout": {"zoneout": (0.3, 0.2), "mask": True, "directions": 2},
    "zoneout in evaluation": {"zoneout": (0.3, 0.2), "training": False, "packed": True},
    "layer norm": {"norm": True, "packed": True, "directions": 2},
    "projection": {"width": 3, "directions": 2, "packed": True, "zoneout": (0.3, 0.2)},
    "projection, layer norm": {"width": 3, "norm": True, "mask": True, "no_gradients": True},
}


@dataclass(frozen=True)
class Case:
    kernel: str
    mode: str
    dtype: str
    feature: str
    steps: int
    batch: int
    hidden: int


def groups(interpreted: bool) -> list[tuple[str, str, str]]:
    """(kernel, mode, dtype); each is run in a process of its own."""
    if interpreted:
        # Slow, so each kernel once for each cell. float32: the interpreter rounds bfloat16 wrongly
        # where the mantissa overflows, and float64 is for the step kernel alone.
        found = [(k, m, "float32") for k in KERNELS[1:] for m in ("RNN_TANH", "GRU", "LSTM")]
        found.append(("step", "LSTM", "float32"))
    else:
        found = [
            (k, m, d) for k in KERNELS for m in GATES for d in ("float32", "bfloat16", "float16")
        ]
    return [("step", m, "float64") for m in GATES] + found


def cases(kernel: str, mode: str, dtype: str, interpreted: bool) -> Iterator[Case]:
    row_wide = kernel != "persistent"
    for feature, options in FEATURES.items():
        if "width" in options and (mode != "LSTM" or not row_wide):
            continue
        if options.get("norm") and not row_wide:
            continue
        if interpreted:
            sizes = {"step": (4, 5, 7), "sequence": (4, 19, 17), "persistent": (3, 17, 18)}
        elif dtype == "float64":
            sizes = {"step": (9, 19, 37)}
        else:
            sizes = {"step": (17, 37, 75), "sequence": (33, 37, 51), "persistent": (65, 37, 203)}
        yield Case(kernel, mode, dtype, feature, *sizes[kernel])
    if kernel == "step" and not interpreted:
        yield Case(kernel, mode, dtype, "plain", 7, 1, 131)
        yield Case(kernel, mode, dtype, "plain", 7, 3, 131)
    if kernel == "persistent" and not interpreted:
        # Many programs; and several batch tiles a program.
        largest = 500 if dtype == "float32" else 1000
        yield Case(kernel, mode, dtype, "plain", 129, 16, largest)
        yield Case(kernel, mode, dtype, "packed both ways", 65, 161, 451)


def arguments(case: Case) -> tuple[Arguments, Arguments]:
    """``rnn_scan``'s tensors (on the CPU) and its options."""
    options = FEATURES[case.feature]
    directions, width = options.get("directions", 1), options.get("width", case.hidden)
    gates, hidden, batch = GATES[case.mode], case.hidden, case.batch
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(1)
    lstm = case.mode == "LSTM"

    def new(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    def each(*shape: int, scale: float = 1.0) -> list[Tensor]:
        return [new(*shape, scale=scale) for _ in range(directions)]

    sizes = None
    rows = case.steps * batch
    if options.get("packed"):
        lengths = torch.randint(1, case.steps + 1, (batch,), generator=generator)
        lengths[0] = case.steps
        sizes = (lengths[:, None] > torch.arange(case.steps)).sum(0)
        rows = int(sizes.sum())
    mask = None
    if options.get("mask"):
        kept = torch.rand(directions, batch, width, generator=generator) < 0.75
        mask = (kept / 0.75).to(dtype)
    zone_h, zone_c = options.get("zoneout", (0.0, 0.0))
    tensors = {
        "gates": new(rows, directions, gates, hidden),
        "batch_sizes": sizes,
        "h0": new(directions, batch, width),
        "c0": new(directions, batch, hidden) if lstm else None,
        "w_hh": each(gates * hidden, width, scale=width**-0.5),
        "b_hh": each(gates * hidden) if case.mode == "GRU" else [],
        "w_hr": each(width, hidden, scale=hidden**-0.5) if width != hidden else [],
        "ln_gates": each(gates * hidden) if options.get("norm") else [],
        "ln_cell": each(2, hidden) if options.get("norm") and lstm else [],
        "h_mask": mask,
    }
    return tensors, {
        "cell": case.mode,
        "ln_eps": 1e-5,
        "zoneout": [zone_h, zone_c if lstm else 0.0],
        "seed": (1 << 40) + 7,
        "training": options.get("training", True),
    }


def _moved(tensors: Arguments, **to: Any) -> Arguments:
    def move(value: Any) -> Any:
        if isinstance(value, list):
            return [move(entry) for entry in value]
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(**to)
        return value

    return {name: move(value) for name, value in tensors.items()}


def _gradients(case: Case, tensors: Arguments, saved: tuple[Tensor, ...]) -> Arguments:
    """``rnn_scan_backward``'s tensors; saved: gates, output, h_n, c_n, cells, hn."""
    dtype = getattr(torch, case.dtype)
    gates, output, h_n, c_n, cells, hn = saved
    generator = torch.Generator().manual_seed(2)

    def like(x: Tensor) -> Tensor | None:
        return torch.randn(x.shape, generator=generator).to(dtype) if x.numel() else None

    without = FEATURES[case.feature].get("no_gradients", False)
    names = ("batch_sizes", "h0", "c0", "w_hh", "w_hr", "ln_gates", "ln_cell", "h_mask")
    return {
        "grad_output": like(output),
        "grad_h_n": None if without else like(h_n),
        "grad_c_n": None if without else like(c_n),
        "gates": gates.to(dtype),
        "cells": cells.to(torch.float64 if dtype == torch.float64 else torch.float32),
        "hn": hn.to(dtype),
        "output": output.to(dtype),
        "u_raw": like(gates) if tensors["ln_gates"] else None,
        **{name: tensors[name] for name in names},
    }


FORWARD = ("output", "h_n", "c_n", "cells", "hn", "gates")
BACKWARD = ("grad_gx", "grad_u", "grad_proj", "grad_ln_cell", "grad_h0", "grad_c0")


def run(case: Case, device: str) -> dict[str, float]:
    """Error of each result over the allowed error; all must be at most 1."""
    from ..reference import rnn as reference
    from . import rnn

    os.environ["FASTSEQ_RNN_KERNEL"] = case.kernel
    tensors, options = arguments(case)

    def forward(scan: Any, given: Arguments, save: bool = True) -> list[Tensor]:
        given = {**given, "gates": given["gates"].clone()}
        results = list(scan(**given, **options, save=save))
        return [*results, given["gates"]]

    exact = forward(reference.rnn_scan, _moved(tensors, dtype=torch.float64))
    plain = forward(reference.rnn_scan, tensors)
    there = _moved(tensors, device=device)
    ours = forward(rnn.rnn_scan, there)
    ratios = error_ratios(FORWARD, ours, plain, exact)
    if FEATURES[case.feature] == {}:
        unsaved = forward(rnn.rnn_scan, there, save=False)
        for name, x, y in zip(FORWARD[:3], unsaved, ours):
            if not torch.equal(x, y):
                ratios[f"{name} without saving"] = float("inf")
    given = _gradients(case, tensors, (exact[5], *exact[:5]))
    exact = list(reference.rnn_scan_backward(**_moved(given, dtype=torch.float64), **options))
    plain = list(reference.rnn_scan_backward(**given, **options))
    ours = list(rnn.rnn_scan_backward(**_moved(given, device=device), **options))
    return ratios | error_ratios(BACKWARD, ours, plain, exact)
