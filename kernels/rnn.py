"""Recurrent scans on Triton: ``rnn_scan`` and ``rnn_scan_backward`` of fastseq/ops/rnn_scan.py.

Allocates, picks a kernel (rnn_dispatch.py) and launches it. Shapes: N rows (packed, time-major),
T steps, B sequences, D directions, G gates, H hidden_size, P width of h.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import OutOfResources

from . import precision, rnn_persistent, rnn_rows, rnn_sequence, rnn_step
from .device import Limits, limits_of, on
from .launch import Launch, described
from .rnn_dispatch import (
    Problem,
    choose,
    persistent_config,
    refuse,
    rows_config,
    sequence_config,
    step_config,
)

# How CUDA and HIP call a cooperative grid of which not all programs can be there at once.
_TOO_LARGE = "too many blocks in cooperative launch"


@dataclass
class _Steps:
    """Where the rows of each time stand, for the host and for the device."""

    sizes: list[int] | None  # of packed sequences
    T: int
    B: int
    offsets: Tensor | None
    lengths: Tensor | None

    @classmethod
    def of(
        cls, batch_sizes: Tensor | None, rows: int, batch: int, device: torch.device
    ) -> "_Steps":
        if batch_sizes is None:
            return cls(None, rows // batch if batch else 0, batch, None, None)
        sizes = [size for size in batch_sizes.tolist() if size]  # without steps that nobody has
        steps = len(sizes)
        batch_sizes = batch_sizes[:steps]
        # Kernels ask for times -2 … T + 1, which have no rows, and for the length of each sequence.
        ends = batch_sizes.cumsum(0)
        last = ends[-1:] if steps else ends.new_zeros(1)
        table = torch.cat([ends.new_zeros(3), ends, last, last])
        table = torch.cat([table, table.new_zeros(table.numel() % 2)])  # 16-byte alignment
        lengths = steps - torch.searchsorted(
            batch_sizes.flip(0).contiguous(), torch.arange(batch), right=True
        )
        both = torch.cat([table, lengths]).to(device, non_blocking=True)
        offsets, lengths = both.split([table.numel(), batch])
        return cls(sizes, steps, batch, offsets, lengths)

    def longest(self, s: int) -> int:
        """Sequences that have an s-th step, each counting its own."""
        return self.B if self.sizes is None else self.sizes[s]

    def present(self, s: int, directions: int, backward: bool) -> int:
        """Sequences that the s-th of all T (+ 1) steps concerns, in any direction."""
        if self.sizes is None:
            return self.B
        at = [max(self.T - 1 - s, 0) if backward else s]
        if directions == 2:
            at.append(max(s - 1, 0) if backward else self.T - 1 - s)
        return max(self.sizes[t] for t in at)


def _stack(tensors: list[Tensor]) -> Tensor | None:
    """One entry per direction as (D, …), contiguous; no copy for one direction."""
    if not tensors:
        return None
    return tensors[0].contiguous()[None] if len(tensors) == 1 else torch.stack(tensors)


def _accumulate(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _zoneout(zoneout: list[float], training: bool) -> dict[str, Any]:
    """The probabilities as integers: a threshold of 2^32, or (mean) z in units of 2^-53."""
    if not any(zoneout):
        return {"ZONEOUT": None, "zone_h": 0, "zone_c": 0}
    if training:
        zone_h, zone_c = (min(int(z * 2**32), 2**32 - 1) for z in zoneout)
        return {"ZONEOUT": "random", "zone_h": zone_h, "zone_c": zone_c}
    zone_h, zone_c = (round(z * 2**53) for z in zoneout)
    return {"ZONEOUT": "mean", "zone_h": zone_h, "zone_c": zone_c}


def _common(
    gates: Tensor, h0: Tensor, steps: _Steps, mode: str, seed: int, zoneout: list[float],
    training: bool,
) -> tuple[Problem, dict[str, Any]]:  # fmt: skip
    _, directions, count, hidden = gates.shape
    batch, width = h0.shape[1:]
    rounding = precision.of_rnn(gates)
    problem = Problem(
        mode, hidden, width, batch, directions, gates.element_size(), False, rounding == "tf32"
    )
    values: dict[str, Any] = {
        "offsets": steps.offsets, "lengths": steps.lengths, "PACKED": steps.sizes is not None,
        "T": steps.T, "B": batch, "D": directions, "H": hidden, "P": width, "G": count,
        "MODE": mode, "seed": seed, "PRECISION": rounding,
        **_zoneout(zoneout, training),
    }  # fmt: skip
    return problem, values


def _launch(
    kernel: Any, values: dict[str, Any], config: Any, stages: int, **options: Any
) -> Launch:
    tiles = asdict(config)
    warps = tiles.pop("num_warps")
    return Launch(
        kernel, {**values, **tiles}, {"num_warps": warps, "num_stages": stages, **options},
        described(config),
    )  # fmt: skip


def rnn_scan(
    gates: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    w_hh: list[Tensor],
    b_hh: list[Tensor],
    w_hr: list[Tensor],
    ln_gates: list[Tensor],
    ln_cell: list[Tensor],
    h_mask: Tensor | None,
    *,
    cell: str,
    ln_eps: float,
    zoneout: list[float],
    seed: int,
    training: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(output, h_n, c_n, cells, hn); if ``save``, ``gates`` becomes the activated gates."""
    num_rows, directions, _, hidden = gates.shape
    batch, width = h0.shape[1:]
    acc = _accumulate(gates.dtype)
    output = gates.new_empty(num_rows, directions * width)
    h_n = h0.clone(memory_format=torch.contiguous_format)
    lstm = cell == "LSTM"
    cells = gates.new_empty((num_rows, directions, hidden) if lstm and save else 0, dtype=acc)
    hn = gates.new_empty((num_rows, directions, hidden) if cell == "GRU" and save else 0)
    if num_rows == 0:
        return output, h_n, gates.new_empty(0) if c0 is None else c0.clone(), cells, hn

    with on(gates.device):
        steps = _Steps.of(batch_sizes, num_rows, batch, gates.device)
        problem, values = _common(gates, h0, steps, cell, seed, zoneout, training)
        values.update(
            gates=gates, w_hh=_stack(w_hh), b_hh=_stack(b_hh), w_hr=_stack(w_hr),
            ln_gates=_stack(ln_gates), ln_cell=_stack(ln_cell), output=output,
            h_mask=None if h_mask is None else h_mask.contiguous(),
            cells=cells if cells.numel() else None, hn=hn if hn.numel() else None,
            LN=bool(ln_gates), LN_CELL=bool(ln_cell), EPS=ln_eps, SAVE=save,
            PROJECTED=bool(w_hr),
        )  # fmt: skip
        problem = _with_features(problem, values)
        limits = limits_of(gates.device)
        kernel = choose(problem, limits, backward=False)
        if kernel == "sequence":
            c_n = gates.new_empty(0) if c0 is None else torch.empty_like(c0)
            values.update(
                h0=h0.contiguous(), c0=None if c0 is None else c0.contiguous(), h_n=h_n, c_n=c_n,
                ACC=tl.float32,
            )  # fmt: skip
            _sequence(rnn_sequence.rnn_forward_sequence, problem, values, limits)
            return output, h_n, c_n, cells, hn
        c = gates.new_empty(1, dtype=acc) if c0 is None else _copy(c0, acc)
        fed = h0 if h_mask is None else h0 * h_mask
        values.update(h=h_n, c=c, fed=torch.stack([fed, fed]))
        if kernel != "persistent" or not _persistent_forward(problem, values, steps, limits):
            _steps_forward(problem, values, steps)
        return output, h_n, gates.new_empty(0) if c0 is None else c.to(gates.dtype), cells, hn


def _copy(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _with_features(problem: Problem, values: dict[str, Any]) -> Problem:
    row_wide = values["LN"] or values["LN_CELL"] or values["PROJECTED"]
    return Problem(**{**asdict(problem), "row_wide": row_wide})


def _sequence(kernel: Any, problem: Problem, values: dict[str, Any], limits: Limits) -> None:
    config = sequence_config(problem, limits)
    assert config is not None
    grid = (triton.cdiv(problem.batch, config.BM), problem.directions)
    _launch(kernel, values, config, 1)(grid)


def _persistent(
    kernel: Any, problem: Problem, values: dict[str, Any], limits: Limits, steps: _Steps,
    backward: bool,
) -> bool:  # fmt: skip
    """Whether the device took the launch; if not, nothing was written."""
    config = persistent_config(problem, limits, backward)
    assert config is not None
    columns, tiles = (
        triton.cdiv(problem.hidden, config.BN),
        triton.cdiv(problem.batch, config.BM),
    )
    programs = min(tiles, limits.multiprocessors // (columns * problem.directions))
    counters = values["grad_gx" if backward else "gates"].new_zeros(
        (steps.T + 1, problem.directions, tiles), dtype=torch.int32
    )
    launch = _launch(
        kernel, {**values, "counters": counters}, config, 1, launch_cooperative_grid=True
    )
    try:
        launch((columns, programs, problem.directions))
    except (RuntimeError, OutOfResources) as failure:
        # Under MPS, say, programs may have less of the device than its properties tell.
        if not isinstance(failure, OutOfResources) and _TOO_LARGE not in str(failure):
            raise
        refuse(problem, limits, backward, str(failure))
        return False
    return True


def _persistent_forward(
    problem: Problem, values: dict[str, Any], steps: _Steps, limits: Limits
) -> bool:
    directions, hidden, padded = problem.directions, problem.hidden, problem.padded_gates
    bias = values["c"].new_zeros(directions, hidden, padded)
    if values["b_hh"] is not None:
        bias[:, :, :3] = values["b_hh"].view(directions, 3, hidden).transpose(1, 2)
    return _persistent(
        rnn_persistent.rnn_forward_persistent, problem, {**values, "bias": bias, "GP": padded},
        limits, steps, False,
    )  # fmt: skip


def _persistent_backward(
    problem: Problem, values: dict[str, Any], steps: _Steps, limits: Limits
) -> bool:
    zeros = values["dh"].new_zeros(16)
    return _persistent(
        rnn_persistent.rnn_backward_persistent, problem, {**values, "zeros": zeros}, limits, steps,
        True,
    )  # fmt: skip


def _product(
    problem: Problem, values: dict[str, Any], a: Tensor, w: Tensor, out: Tensor, where: str
) -> Launch:
    """out (D, B, N) = a w^T, or a w where the product runs back (``where`` "done" or "now")."""
    transposed = where != "state"
    inner, columns = w.shape[1:] if transposed else w.shape[:0:-1]
    named = {
        **values, "a": a, "w": w, "out": out, "K": inner, "N": columns,
        "WHERE": where, "TRANSPOSED": transposed,
    }  # fmt: skip
    return _launch(rnn_rows.rnn_product, named, step_config(problem), 3)


def _rows_launch(kernel: Any, values: dict[str, Any], hidden: int) -> tuple[Launch, int]:
    rows, columns, warps = rows_config(hidden)
    named = {**values, "BM": rows, "BN": columns}
    options = {"num_warps": warps, "num_stages": 1}
    return Launch(kernel, named, options, f"BM={rows} BN={columns}"), rows


def _tile_launch(kernel: Any, values: dict[str, Any], problem: Problem) -> tuple[Launch, Any]:
    """Kernels over tiles of the projected width, without a product."""
    named = {**values, "BM": 4, "BN": 128}
    launch = Launch(kernel, named, {"num_warps": 4, "num_stages": 1}, "BM=4 BN=128")
    return launch, lambda rows: (
        triton.cdiv(problem.width, 128), triton.cdiv(rows, 4), problem.directions,
    )  # fmt: skip


def _steps_forward(problem: Problem, values: dict[str, Any], steps: _Steps) -> None:
    """A launch for each step; where a step needs whole rows, a few."""
    if problem.row_wide:
        _rows_forward(problem, values, steps)
        return
    rows = [steps.longest(s) for s in range(steps.T)]
    _each_step(rnn_step.rnn_forward_step, problem, values, rows)


def _each_step(kernel: Any, problem: Problem, values: dict[str, Any], rows: list[int]) -> None:
    """A launch for each step, of so many rows."""
    config = step_config(problem)
    launch = _launch(kernel, values, config, 3)
    columns = triton.cdiv(problem.hidden, config.BN)
    for s, count in enumerate(rows):
        launch((columns, triton.cdiv(count, config.BM), problem.directions), s)


def _rows_forward(problem: Problem, values: dict[str, Any], steps: _Steps) -> None:
    batch, directions, hidden, width = (
        problem.batch, problem.directions, problem.hidden, problem.width,
    )  # fmt: skip
    config = step_config(problem)
    projected, c, fed = values["PROJECTED"], values["c"], values["fed"]
    buffer = lambda n: c.new_empty(directions, batch, n)  # noqa: E731
    u_product = buffer(problem.gates * hidden)
    m = fed.new_empty(directions, batch, hidden) if projected else None
    products = [
        _product(problem, values, fed[i], values["w_hh"], u_product, "state") for i in (0, 1)
    ]
    rows, rows_height = _rows_launch(
        rnn_rows.rnn_forward_rows, {**values, "u_product": u_product, "m": m}, hidden
    )
    if projected:
        out = buffer(width)
        project = _product(problem, values, m, values["w_hr"], out, "state")
        finish, finish_grid = _tile_launch(
            rnn_rows.rnn_forward_projected, {**values, "projected": out}, problem
        )
    for s in range(steps.T):
        present = steps.present(s, directions, backward=False)
        tiles = triton.cdiv(present, config.BM)
        products[s % 2]((triton.cdiv(problem.gates * hidden, config.BN), tiles, directions), s)
        rows((triton.cdiv(present, rows_height), directions), s)
        if projected:
            project((triton.cdiv(width, config.BN), tiles, directions), s)
            finish(finish_grid(present), s)


def rnn_scan_backward(
    grad_output: Tensor,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    gates: Tensor,
    cells: Tensor,
    hn: Tensor,
    output: Tensor,
    u_raw: Tensor | None,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    w_hh: list[Tensor],
    w_hr: list[Tensor],
    ln_gates: list[Tensor],
    ln_cell: list[Tensor],
    h_mask: Tensor | None,
    *,
    cell: str,
    ln_eps: float,
    zoneout: list[float],
    seed: int,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(grad_gx, grad_u, grad_proj, grad_ln_cell, grad_h0, grad_c0) from what ``rnn_scan`` saved.

    grad_u is returned with layer-norm only; of a GRU it is what programs pass to each other.
    """
    num_rows, directions, _, hidden = gates.shape
    batch, width = h0.shape[1:]
    acc, dtype = _accumulate(gates.dtype), gates.dtype
    grad_gx = torch.empty_like(gates)
    grad_u = torch.empty_like(gates) if ln_gates else gates.new_empty(0)
    grad_proj = gates.new_empty((num_rows, directions * width) if w_hr else 0)
    grad_ln_cell = gates.new_empty((num_rows, directions, hidden) if ln_cell else 0)
    absent = gates.new_empty(0)
    if num_rows == 0:
        passed = [
            torch.zeros_like(h0) if grad_h_n is None else grad_h_n.clone(),
            absent
            if c0 is None
            else torch.zeros_like(c0)
            if grad_c_n is None
            else grad_c_n.clone(),
        ]
        return grad_gx, grad_u, grad_proj, grad_ln_cell, passed[0], passed[1]

    with on(gates.device):
        steps = _Steps.of(batch_sizes, num_rows, batch, gates.device)
        problem, values = _common(gates, h0, steps, cell, seed, zoneout, training)
        passed_back = torch.empty_like(gates) if cell == "GRU" else grad_gx
        values.update(
            grad_output=grad_output.contiguous(), gates=gates, output=output,
            cells=cells if c0 is not None else None, hn=hn if cell == "GRU" else None,
            u_raw=None if u_raw is None else u_raw.contiguous(),
            h0=h0.contiguous(), c0=None if c0 is None else c0.contiguous(),
            w_hh=_stack(w_hh), w_hr=_stack(w_hr),
            ln_gates=_stack(ln_gates), ln_cell=_stack(ln_cell),
            h_mask=None if h_mask is None else h_mask.contiguous(),
            grad_gx=grad_gx, grad_u=grad_u if ln_gates else passed_back,
            grad_proj=grad_proj if w_hr else None, grad_ln_cell=grad_ln_cell if ln_cell else None,
            LN=bool(ln_gates), LN_CELL=bool(ln_cell), EPS=ln_eps, PROJECTED=bool(w_hr),
        )  # fmt: skip
        problem = _with_features(problem, values)
        limits = limits_of(gates.device)
        kernel = choose(problem, limits, backward=True)
        if kernel == "sequence":
            grad_h0 = torch.empty_like(h0, memory_format=torch.contiguous_format)
            grad_c0 = (
                absent
                if c0 is None
                else torch.empty_like(c0, memory_format=torch.contiguous_format)
            )
            values.update(
                grad_h_n=None if grad_h_n is None else grad_h_n.contiguous(),
                grad_c_n=None if grad_c_n is None else grad_c_n.contiguous(),
                grad_h0=grad_h0, grad_c0=grad_c0, ACC=tl.float32,
            )  # fmt: skip
            _sequence(rnn_sequence.rnn_backward_sequence, problem, values, limits)
            return grad_gx, grad_u, grad_proj, grad_ln_cell, grad_h0, grad_c0
        dh = torch.zeros_like(h0, dtype=acc) if grad_h_n is None else _copy(grad_h_n, acc)
        dc = gates.new_empty(1, dtype=acc)
        if c0 is not None:
            dc = torch.zeros_like(c0, dtype=acc) if grad_c_n is None else _copy(grad_c_n, acc)
        values.update(dh=dh.contiguous(), dc=dc.contiguous())
        if kernel != "persistent" or not _persistent_backward(problem, values, steps, limits):
            _steps_backward(problem, values, steps)
        grad_c0 = absent if c0 is None else values["dc"].to(dtype)
        return grad_gx, grad_u, grad_proj, grad_ln_cell, values["dh"].to(dtype), grad_c0


def _steps_backward(problem: Problem, values: dict[str, Any], steps: _Steps) -> None:
    if problem.row_wide:
        _rows_backward(problem, values, steps)
        return
    rows = [steps.longest(max(s - 1, 0)) for s in range(steps.T + 1)]
    _each_step(rnn_step.rnn_backward_step, problem, values, rows)


def _rows_backward(problem: Problem, values: dict[str, Any], steps: _Steps) -> None:
    batch, directions, hidden, width = (
        problem.batch, problem.directions, problem.hidden, problem.width,
    )  # fmt: skip
    config = step_config(problem)
    projected = values["PROJECTED"]
    buffer = lambda n: values["dh"].new_empty(directions, batch, n)  # noqa: E731
    fed_back = buffer(width)
    back = _product(problem, values, values["grad_u"], values["w_hh"], fed_back, "done")
    into_rows = fed_back
    if projected:
        into_rows = buffer(hidden)
        head, head_grid = _tile_launch(
            rnn_rows.rnn_backward_head, {**values, "fed_back": fed_back}, problem
        )
        unproject = _product(problem, values, values["grad_proj"], values["w_hr"], into_rows, "now")
    rows, rows_height = _rows_launch(
        rnn_rows.rnn_backward_rows, {**values, "product": into_rows}, hidden
    )
    for s in range(steps.T + 1):
        present = steps.present(s, directions, backward=True)
        tiles = triton.cdiv(present, config.BM)
        back((triton.cdiv(width, config.BN), tiles, directions), s)
        if projected:
            head(head_grid(present), s)
            unproject((triton.cdiv(hidden, config.BN), tiles, directions), s)
        rows((triton.cdiv(present, rows_height), directions), s)
