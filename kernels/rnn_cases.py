"""Parity of the recurrent kernels with the reference in float64: the cases, and one case's outcome.

Used on a card and under Triton's interpreter by check.py. Sizes are odd, outputs hold NaN before;
all is computed where the kernels run, the reference too.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .parity import TF32_EPS, error_ratios, recurrent_tf32
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
    "not finite": {"special": True, "directions": 2, "packed": True},
}


DTYPES = ("bfloat16", "float16", "float32")
MODES = ("LSTM", "GRU", "RNN_TANH")
# Steps, batch and units of each kernel's cases; the interpreter is slow.
_CARD = {"step": (17, 37, 75), "sequence": (33, 37, 51), "persistent": (65, 37, 203)}
_INTERPRETED = {"step": (4, 5, 7), "sequence": (4, 19, 17), "persistent": (3, 17, 18)}


@dataclass(frozen=True)
class Case:
    kernel: str
    mode: str
    dtype: str
    feature: str
    steps: int
    batch: int
    hidden: int
    smoke: bool = False  # one of the few that are run first

    @property
    def group(self) -> str:
        return f"{self.kernel} {self.mode} {self.dtype}"

    @property
    def name(self) -> str:
        return f"{self.group} {self.feature} T{self.steps} B{self.batch} H{self.hidden}"


def _serves(kernel: str, mode: str, feature: str) -> bool:
    options = FEATURES[feature]
    if "width" in options and mode != "LSTM":
        return False
    return kernel != "persistent" or not ("width" in options or options.get("norm"))


def cases(interpreted: bool) -> Iterator[Case]:
    """Every kernel with every feature it serves; under the interpreter with few cells and types."""
    return _interpreted_cases() if interpreted else _card_cases()


def _interpreted_cases() -> Iterator[Case]:
    # Each kernel once for each cell. float32: the interpreter rounds bfloat16 wrongly where the
    # mantissa overflows, and float64 is for the step kernel alone.
    chosen = [("step", mode, "float64") for mode in GATES]
    chosen += [(k, m, "float32") for k in KERNELS[1:] for m in MODES]
    chosen.append(("step", "LSTM", "float32"))
    for kernel, mode, dtype in chosen:
        for feature in FEATURES:
            if _serves(kernel, mode, feature):
                yield Case(kernel, mode, dtype, feature, *_INTERPRETED[kernel])


def _card_cases() -> Iterator[Case]:
    """Plain scans in every type; each feature in one type, in turn: it is the same code in all."""
    for kernel in KERNELS:
        sizes = _CARD[kernel]
        for m, mode in enumerate(MODES):
            for f, feature in enumerate(FEATURES):
                if not _serves(kernel, mode, feature):
                    continue
                # Where 16 bits round a gate to 0 or 1, infinities differ from plain PyTorch's.
                turn = "float32" if feature == "not finite" else DTYPES[(f + m) % 3]
                for dtype in DTYPES if feature == "plain" else (turn,):
                    smoke = (feature, dtype) == ("plain", "bfloat16") or (
                        mode == "LSTM" and kernel == "step" and feature.startswith("projection,")
                    )
                    yield Case(kernel, mode, dtype, feature, *sizes, smoke=smoke)
        yield Case(kernel, "RNN_RELU", "bfloat16", "packed both ways", *sizes)
        for mode in MODES[: 1 + (kernel == "step")]:
            yield Case(kernel, mode, "float32", "tf32", *sizes)
    # Few rows, which multiply and reduce; float64.
    for mode, dtype, batch in (("LSTM", "bfloat16", 1), ("GRU", "float16", 3)):
        yield Case("step", mode, dtype, "plain", 7, batch, 131, smoke=batch == 1)
    for mode, feature in zip(GATES, ("zoneout in evaluation", "plain", "packed both ways",
                                     "projection, layer norm")):  # fmt: skip
        yield Case("step", mode, "float64", feature, 9, 19, 37)
    # Many programs; and several batch tiles a program.
    for mode, dtype, hidden in (("LSTM", "bfloat16", 1000), ("GRU", "float16", 1000),
                                ("LSTM", "float32", 500)):  # fmt: skip
        yield Case("persistent", mode, dtype, "plain", 129, 16, hidden, smoke=dtype == "bfloat16")
    for mode, dtype in (("LSTM", "float16"), ("GRU", "bfloat16")):
        yield Case("persistent", mode, dtype, "packed both ways", 65, 161, 451)


def arguments(case: Case, device: str) -> tuple[Arguments, Arguments]:
    """``rnn_scan``'s tensors, batch_sizes on the CPU, and its options."""
    options = FEATURES.get(case.feature, {})
    directions, width = options.get("directions", 1), options.get("width", case.hidden)
    gates, hidden, batch = GATES[case.mode], case.hidden, case.batch
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(1)
    lstm = case.mode == "LSTM"

    def new(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(device, dtype)

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
        mask = (kept / 0.75).to(device, dtype)
    zone_h, zone_c = options.get("zoneout", (0.0, 0.0))
    tensors: Arguments = {
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
    if options.get("special"):
        _spoil(tensors["gates"], tensors["h0"], tensors["c0"])
    return tensors, {
        "cell": case.mode,
        "ln_eps": 1e-5,
        "zoneout": [zone_h, zone_c if lstm else 0.0],
        "seed": (1 << 40) + 7,
        "training": options.get("training", True),
    }


def _spoil(*tensors: Tensor | None) -> None:
    """Puts NaN and both infinities in, far apart."""
    for x in tensors:
        if x is not None:
            for i, value in enumerate((float("nan"), float("inf"), -float("inf"))):
                x.view(-1)[(i + 1) * (x.numel() // 4)] = value


def _without_special(
    names: tuple[str, ...], results: list[list[Tensor]]
) -> tuple[dict[str, float], list[list[Tensor]]]:
    """Where ours and plain PyTorch's infinities and NaN differ, and results with zeros for them."""
    ours, plain, _ = results
    ratios = {
        f"{name}'s special values": float("inf")
        for name, x, y in zip(names, ours, plain)
        if not torch.equal(
            x.masked_fill(x.isfinite(), 0).nan_to_num(7, 8, 9),
            y.masked_fill(y.isfinite(), 0).nan_to_num(7, 8, 9),
        )
    }
    finite = [y.isfinite() for y in plain]
    return ratios, [[x.where(ok, 0) for x, ok in zip(r, finite)] for r in results]


def _exact(tensors: Arguments) -> Arguments:
    def widen(value: Any) -> Any:
        if isinstance(value, list):
            return [widen(entry) for entry in value]
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.double()
        return value

    return {name: widen(value) for name, value in tensors.items()}


def _gradients(case: Case, tensors: Arguments, saved: tuple[Tensor, ...]) -> Arguments:
    """``rnn_scan_backward``'s tensors; saved: gates, output, h_n, c_n, cells, hn."""
    dtype = getattr(torch, case.dtype)
    gates, output, h_n, c_n, cells, hn = saved
    generator = torch.Generator().manual_seed(2)

    def like(x: Tensor) -> Tensor | None:
        return torch.randn(x.shape, generator=generator).to(x.device, dtype) if x.numel() else None

    without = FEATURES.get(case.feature, {}).get("no_gradients", False)
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
    tensors, options = arguments(case, device)
    rounded = TF32_EPS if case.feature == "tf32" else None

    def forward(scan: Any, given: Arguments, save: bool = True) -> list[Tensor]:
        given = {**given, "gates": given["gates"].clone()}
        results = list(scan(**given, **options, save=save))
        return [*results, given["gates"]]

    special = "special" in FEATURES.get(case.feature, {})

    def compare(names: tuple[str, ...], *results: list[Tensor]) -> dict[str, float]:
        differ: dict[str, float] = {}
        compared = list(results)
        if special:
            differ, compared = _without_special(names, compared)
        return differ | error_ratios(names, *compared, eps=rounded)

    exact = forward(reference.rnn_scan, _exact(tensors))
    plain = forward(reference.rnn_scan, tensors)
    with recurrent_tf32(case.feature == "tf32"):
        ours = forward(rnn.rnn_scan, tensors)
        ratios = compare(FORWARD, ours, plain, exact)
        if case.feature == "plain":
            unsaved = forward(rnn.rnn_scan, tensors, save=False)
            for name, x, y in zip(FORWARD[:3], unsaved, ours):
                if not torch.equal(x, y):
                    ratios[f"{name} without saving"] = float("inf")
        given = _gradients(case, tensors, (exact[5], *exact[:5]))
        if special:
            _spoil(given["grad_output"], given["grad_h_n"], given["grad_c_n"])
        ours = list(rnn.rnn_scan_backward(**given, **options))
    exact = list(reference.rnn_scan_backward(**_exact(given), **options))
    plain = list(reference.rnn_scan_backward(**given, **options))
    return ratios | compare(BACKWARD, ours, plain, exact)
