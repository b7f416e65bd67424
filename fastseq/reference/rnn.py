"""Recurrent layers step by step: the maths that the C++ and Triton scans implement.

Shapes: N rows in all (packed, time-major, as ``PackedSequence.data``), T steps, B sequences,
D directions (direction 1 runs backwards in time), G gates a unit, H hidden_size, P the width of h
(``proj_size`` or H). Gate order is torch's: LSTM i, f, g, o; GRU r, z, n.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .philox import philox, threshold

GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "GRU": 3, "LSTM": 4}


class Rows(NamedTuple):
    """Where the rows of each step stand: step t holds rows offsets[t] … offsets[t] + sizes[t]."""

    sizes: list[int]
    offsets: list[int]

    def at(self, t: int) -> slice:
        return slice(self.offsets[t], self.offsets[t] + self.sizes[t])

    def steps(self, direction: int) -> range:
        last = len(self.sizes) - 1
        return range(last, -1, -1) if direction else range(last + 1)


def rows_of(batch_sizes: Tensor | None, num_rows: int, batch: int) -> Rows:
    if batch_sizes is None:
        sizes = [batch] * (num_rows // batch if batch else 0)
    else:
        sizes = [size for size in batch_sizes.tolist() if size]  # no steps that nobody has
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + size)
    return Rows(sizes, offsets)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def normalize(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x - mean) / std over the last dimension, and 1 / std."""
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    rstd = torch.rsqrt(variance + eps)
    return (x - mean) * rstd, rstd


def normalize_backward(grad: Tensor, normalized: Tensor, rstd: Tensor) -> Tensor:
    """Gradient of ``normalize``'s input, given that of its output."""
    along = (grad * normalized).mean(-1, keepdim=True)
    return (grad - grad.mean(-1, keepdim=True) - normalized * along) * rstd


def recurrent_gates(u: Tensor, ln_gates: Tensor | None, b_hh: Tensor | None, eps: float) -> Tensor:
    """The recurrent side of the gates from the raw product u = W_hh h, (…, G, H)."""
    if ln_gates is not None:
        u = (normalize(u.flatten(-2), eps)[0] * ln_gates).view_as(u)
    return u if b_hh is None else u + b_hh.view(u.shape[-2:])


def activate(mode: str, gx: Tensor, u: Tensor) -> Tensor:
    """Activated gates (…, G, H) from both sides' pre-activations."""
    if mode == "LSTM":
        i, f, g, o = (gx + u).unbind(-2)
        return torch.stack([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], -2)
    if mode == "GRU":
        r, z = (gx[..., :2, :] + u[..., :2, :]).sigmoid().unbind(-2)
        return torch.stack([r, z, torch.tanh(gx[..., 2, :] + r * u[..., 2, :])], -2)
    return torch.relu(gx + u) if mode == "RNN_RELU" else torch.tanh(gx + u)


def cell_norm(cell: Tensor, ln_cell: Tensor | None, eps: float) -> Tensor:
    return cell if ln_cell is None else normalize(cell, eps)[0] * ln_cell[0] + ln_cell[1]


def keep_weights(
    shape: tuple[int, int],
    zoneout: float,
    word: int,
    *,
    counter: tuple[int, int, int, int, int],
    seed: int,
    training: bool,
    like: Tensor,
) -> Tensor | float | None:
    """Weight of the new state against the old (Krueger et al., 2016); 1 - z out of training.

    None without zoneout: the old state, which may be infinite, is then no part of the new.
    """
    if zoneout == 0:
        return None
    if not training:
        return 1.0 - zoneout
    t, batch, directions, direction, stride = counter
    rows = torch.arange(shape[0], device=like.device)[:, None]
    units = torch.arange(shape[1], device=like.device)
    index = ((t * batch + rows) * directions + direction) * stride + units
    return (philox(seed, index)[word] >= threshold(zoneout)).to(like.dtype)


def blend(keep: Tensor | float | None, new: Tensor, old: Tensor) -> Tensor:
    return new if keep is None else keep * new + (1 - keep) * old


def blend_backward(keep: Tensor | float | None, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the new and of the old state."""
    if keep is None:
        return grad, torch.zeros_like(grad)
    return grad * keep, grad * (1 - keep)


def scan(
    gx: Tensor,
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
    mode: str,
    ln_eps: float,
    zoneout: list[float],
    seed: int,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """All steps, differentiable: (output, h_n, c_n, activated gates, cells, hn)."""
    num_rows, directions, _, hidden = gx.shape
    batch, width = h0.shape[1:]
    dtype, acc = gx.dtype, accumulate_dtype(gx.dtype)
    rows = rows_of(batch_sizes, num_rows, batch)
    results = []
    for d in range(directions):
        h, c = h0[d].to(acc), None if c0 is None else c0[d].to(acc)
        weight = w_hh[d].to(acc)
        gamma = ln_gates[d].to(acc) if ln_gates else None
        bias = b_hh[d].to(acc) if b_hh else None
        norm = ln_cell[d].to(acc) if ln_cell else None
        outputs, gates, cells, hns = ({} for _ in range(4))
        for t in rows.steps(d):
            size = rows.sizes[t]
            h_prev = h[:size]
            fed = h_prev if h_mask is None else h_prev * h_mask[d, :size].to(acc)
            u = F.linear(fed, weight).view(size, -1, hidden)
            u = recurrent_gates(u, gamma, bias, ln_eps)
            gates[t] = activate(mode, gx[rows.at(t), d].to(acc), u)
            counter = (t, batch, directions, d, max(hidden, width))
            if mode == "LSTM":
                i, f, g, o = gates[t].unbind(-2)
                c_prev = c[:size]
                c_new = f * c_prev + i * g
                h_new = o * torch.tanh(cell_norm(c_new, norm, ln_eps))
                if w_hr:
                    h_new = F.linear(h_new.to(dtype).to(acc), w_hr[d].to(acc))
                keep = keep_weights(
                    (size, hidden),
                    zoneout[1],
                    1,
                    counter=counter,
                    seed=seed,
                    training=training,
                    like=h,
                )
                cells[t] = blend(keep, c_new, c_prev)
                c = torch.cat([cells[t], c[size:]])
            elif mode == "GRU":
                _, z, n = gates[t].unbind(-2)
                h_new = n + z * (h_prev - n)
                hns[t] = u[:, 2]
            else:
                h_new = gates[t][:, 0]
            keep = keep_weights(
                (size, width), zoneout[0], 0, counter=counter, seed=seed, training=training, like=h
            )
            outputs[t] = blend(keep, h_new, h_prev).to(dtype)
            h = torch.cat([outputs[t].to(acc), h[size:]])
        results.append((_in_time(outputs), h, c, *map(_in_time, (gates, cells, hns))))
    if not rows.sizes:
        return _empty_scan(gx, h0, c0, mode)
    output, h_n, c_n, activated, all_cells, hn = (
        None if parts[0] is None else torch.stack(parts, axis)
        for parts, axis in zip(zip(*results, strict=True), (1, 0, 0, 1, 1, 1), strict=True)
    )
    return (
        output.flatten(1),
        h_n.to(dtype),
        None if c_n is None else c_n.to(dtype),
        activated.to(dtype),
        all_cells,
        None if hn is None else hn.to(dtype),
    )


def _in_time(steps: dict[int, Tensor]) -> Tensor | None:
    return torch.cat([steps[t] for t in range(len(steps))]) if steps else None


def _empty_scan(gx: Tensor, h0: Tensor, c0: Tensor | None, mode: str) -> tuple:
    """No steps (an empty batch): the states pass through."""
    directions, hidden, width = gx.shape[1], gx.shape[3], h0.shape[2]
    per_unit = gx.new_empty(0, directions, hidden)
    return (
        gx.new_empty(0, directions * width),
        h0.clone(),
        None if c0 is None else c0.clone(),
        gx,
        per_unit.to(accumulate_dtype(gx.dtype)) if mode == "LSTM" else None,
        per_unit if mode == "GRU" else None,
    )


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
    """``fastseq::rnn_scan``; absent results are empty tensors."""
    output, h_n, c_n, activated, cells, hn = scan(
        gates, batch_sizes, h0, c0, w_hh, b_hh, w_hr, ln_gates, ln_cell, h_mask,
        mode=cell, ln_eps=ln_eps, zoneout=zoneout, seed=seed, training=training,
    )  # fmt: skip
    if save:
        gates.copy_(activated)
    absent = gates.new_empty(0)
    acc_absent = gates.new_empty(0, dtype=accumulate_dtype(gates.dtype))
    return (
        output,
        h_n,
        absent.clone() if c_n is None else c_n,
        cells if save and cells is not None else acc_absent,
        hn if save and hn is not None else absent,
    )


def previous_states(output: Tensor, h0: Tensor, batch_sizes: Tensor | None) -> Tensor:
    """The state each row's step started from, given those it ended with; both (N, D, width)."""
    batch = h0.shape[1]
    num_rows = output.shape[0]
    if num_rows == 0:
        return output
    if batch_sizes is None:
        forward = torch.cat([h0[0], output[:-batch, 0]])
        if h0.shape[0] == 1:
            return forward[:, None]
        return torch.stack([forward, torch.cat([output[batch:, 1], h0[1]])], 1)
    sizes = batch_sizes
    offsets = sizes.cumsum(0) - sizes
    step = torch.repeat_interleave(torch.arange(sizes.numel()), sizes)
    row = torch.arange(num_rows) - offsets[step]
    before = torch.where(step > 0, batch + offsets[step - 1] + row, row)
    states = [torch.cat([h0[0], output[:, 0]])[before.to(output.device)]]
    if h0.shape[0] == 2:
        following = torch.cat([sizes[1:], sizes.new_zeros(1)])
        after = torch.where(row < following[step], batch + offsets[step] + sizes[step] + row, row)
        states.append(torch.cat([h0[1], output[:, 1]])[after.to(output.device)])
    return torch.stack(states, 1)


def recurrent_side(mode: str, grad_gx: Tensor, gates: Tensor) -> Tensor:
    """Gradient of the recurrent side of the gates (after layer-norm and bias), (N, G, H)."""
    if mode != "GRU":
        return grad_gx
    return torch.cat([grad_gx[:, :2], grad_gx[:, 2:] * gates[:, :1]], 1)


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
    """``fastseq::rnn_scan_backward``; absent results are empty tensors."""
    num_rows, directions, _, hidden = gates.shape
    batch, width = h0.shape[1:]
    dtype, acc = gates.dtype, accumulate_dtype(gates.dtype)
    rows = rows_of(batch_sizes, num_rows, batch)
    h_before = previous_states(output.view(num_rows, directions, width), h0, batch_sizes)
    c_before = None if c0 is None else previous_states(cells, c0.to(acc), batch_sizes)

    def absent_unless(needed: bool, *shape: int) -> Tensor:
        return gates.new_empty(shape if needed else 0)

    grad_gx = torch.empty_like(gates)
    grad_u = absent_unless(bool(ln_gates), *gates.shape)
    grad_proj = absent_unless(bool(w_hr), num_rows, directions, width)
    grad_ln_cell = absent_unless(bool(ln_cell), num_rows, directions, hidden)
    grad_h0 = torch.empty_like(h0)
    grad_c0 = gates.new_empty(0) if c0 is None else torch.empty_like(c0)

    for d in range(directions):
        dh = (
            torch.zeros_like(h0[d], dtype=acc)
            if grad_h_n is None
            else grad_h_n[d].to(acc, copy=True)
        )
        if c0 is not None:
            dc = (
                torch.zeros_like(c0[d], dtype=acc)
                if grad_c_n is None
                else grad_c_n[d].to(acc, copy=True)
            )
        weight = w_hh[d].to(acc)
        for t in reversed(rows.steps(d)):
            size, at = rows.sizes[t], rows.at(t)
            counter = (t, batch, directions, d, max(hidden, width))
            h_prev = h_before[at, d].to(acc)
            gate = gates[at, d].to(acc).unbind(-2)
            dh_t = dh[:size] + grad_output[at].view(size, directions, width)[:, d].to(acc)
            keep = keep_weights(
                (size, width), zoneout[0], 0, counter=counter, seed=seed, training=training, like=dh
            )
            dh_new, dh_prev = blend_backward(keep, dh_t)
            if w_hr:
                grad_proj[at, d] = dh_new.to(dtype)
                dh_new = dh_new.to(dtype).to(acc) @ w_hr[d].to(acc)
            if cell == "LSTM":
                i, f, g, o = gate
                c_prev = c_before[at, d]
                c_new = f * c_prev + i * g
                tanh_c = torch.tanh(
                    cell_norm(c_new, ln_cell[d].to(acc) if ln_cell else None, ln_eps)
                )
                dc_new = dh_new * o * (1 - tanh_c * tanh_c)
                if ln_cell:
                    grad_ln_cell[at, d] = dc_new.to(dtype)
                    dc_new = normalize_backward(
                        dc_new * ln_cell[d][0].to(acc), *normalize(c_new, ln_eps)
                    )
                keep = keep_weights(
                    (size, hidden),
                    zoneout[1],
                    1,
                    counter=counter,
                    seed=seed,
                    training=training,
                    like=dh,
                )
                dc_kept, dc_past = blend_backward(keep, dc[:size])
                dc_new = dc_new + dc_kept
                dc[:size] = dc_past + dc_new * f
                pre = [
                    dc_new * g * i * (1 - i),
                    dc_new * c_prev * f * (1 - f),
                    dc_new * i * (1 - g * g),
                    dh_new * tanh_c * o * (1 - o),
                ]
            elif cell == "GRU":
                r, z, n = gate
                dn = (dh_new - dh_new * z) * (1 - n * n)
                dh_prev = dh_prev + dh_new * z
                pre = [
                    dn * hn[at, d].to(acc) * r * (1 - r),
                    dh_new * (h_prev - n) * z * (1 - z),
                    dn,
                ]
            elif cell == "RNN_TANH":
                pre = [dh_new * (1 - gate[0] * gate[0])]
            else:
                pre = [dh_new.masked_fill(gate[0] <= 0, 0)]  # of a NaN the gradient passes
            grad_gx[at, d] = torch.stack(pre, -2).to(dtype)
            if cell == "GRU":
                pre[2] = pre[2] * r
            du = torch.stack(pre, -2).flatten(1)
            if ln_gates:
                du = normalize_backward(
                    du * ln_gates[d].to(acc), *normalize(u_raw[at, d].to(acc).flatten(1), ln_eps)
                )
            du = du.to(dtype)
            if grad_u.numel():
                grad_u[at, d] = du.view(size, -1, hidden)
            fed = du.to(acc) @ weight
            if h_mask is not None:
                fed = fed * h_mask[d, :size].to(acc)
            dh[:size] = dh_prev + fed
        grad_h0[d] = dh.to(dtype)
        if c0 is not None:
            grad_c0[d] = dc.to(dtype)
    return (
        grad_gx,
        grad_u,
        grad_proj.flatten(1) if w_hr else grad_proj,
        grad_ln_cell,
        grad_h0,
        grad_c0,
    )
