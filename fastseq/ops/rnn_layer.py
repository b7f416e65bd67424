"""One recurrent layer, forward and backward: a library's whole-sequence products around a scan.

Rows are packed time-major as in ``PackedSequence.data`` (N rows); D is the number of directions,
G the gates a unit, H hidden_size, P the width of h, I the input size. Per-direction parameters are
lists of D tensors, or empty.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference import rnn as reference
from .dropout import dropout_mask
from .gemm import add_mm, linear, linear_into, mm, widens
from .rnn_scan import scan_backward
from .rnn_sequence import LN_EPS, project, project_and_scan, rnn_sequence, split_biases


def split_ln(
    ln: list[Tensor], mode: str, directions: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Per direction: γ of W_ih x, γ of W_hh h, and (γ, β) of the cell."""
    if not ln:
        return [], [], []
    each = len(ln) // directions
    of = [ln[d * each : (d + 1) * each] for d in range(directions)]
    cell = [torch.stack(p[2:]) for p in of] if mode == "LSTM" else []
    return [p[0] for p in of], [p[1] for p in of], cell


def gates_are_states(mode: str, zoneout: list[float]) -> bool:
    """Whether the layer's output holds what its gates were after activation."""
    return mode.startswith("RNN") and zoneout[0] == 0


def recurrent_mask(h0: Tensor, seed: int, probability: float, training: bool) -> Tensor | None:
    return dropout_mask(seed, h0, probability) if training and probability > 0 else None


def forward(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: list[Tensor],
    w_hh: list[Tensor],
    b_ih: list[Tensor],
    b_hh: list[Tensor],
    w_hr: list[Tensor],
    ln: list[Tensor],
    seed: Tensor | None,
    mode: str,
    zoneout: list[float],
    recurrent_dropout: float,
    training: bool,
    recompute: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    number = 0 if seed is None else int(seed)
    save_gates = save and not gates_are_states(mode, zoneout)
    arguments = (
        input, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr,
        recurrent_mask(h0, number, recurrent_dropout, training),
        mode, zoneout, number, training, save_gates,
    )  # fmt: skip
    if ln or input.device.type != "cpu" or widens(input):
        results = project_and_scan(*arguments, *split_ln(ln, mode, len(w_ih)))
    else:
        results = rnn_sequence(*arguments)
    output, h_n, c_n, gates, cells, hn = results
    if save_gates and recompute:
        gates, hn = gates.new_empty(0), hn.new_empty(0)
    return output, h_n, c_n, gates, cells, hn


def _recompute_gates(
    mode: str,
    gates: Tensor,
    fed: Tensor,
    u_raw: Tensor | None,
    w_hh: list[Tensor],
    ln_gates: list[Tensor],
    b_hh: Sequence[Tensor],
) -> Tensor:
    """Activates ``gates`` in place from their input side, without a scan; returns hn.

    Gates depend on known states only. A block of rows at a time keeps what is between in cache.
    """
    acc = reference.accumulate_dtype(gates.dtype)
    num_rows, directions, _, hidden = gates.shape
    hn = gates.new_empty((num_rows, directions, hidden) if mode == "GRU" else 0)
    block = max(1, 2**18 // (reference.GATES[mode] * hidden))
    for d in range(directions):
        gamma = ln_gates[d].to(acc) if ln_gates else None
        bias = b_hh[d].to(acc) if b_hh else None
        for start in range(0, num_rows, block):
            at = slice(start, start + block)
            gx = gates[at, d]
            raw = (
                linear(fed[at, d], w_hh[d], None).view(gx.shape) if u_raw is None else u_raw[at, d]
            )
            u = reference.recurrent_gates(raw.to(acc), gamma, bias, LN_EPS)
            gates[at, d] = reference.activate(mode, gx.to(acc), u)
            if mode == "GRU":
                hn[at, d] = u[:, 2]
    return hn


def backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    hn: Tensor,
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: list[Tensor],
    w_hh: list[Tensor],
    b_ih: list[Tensor],
    b_hh: list[Tensor],
    w_hr: list[Tensor],
    ln: list[Tensor],
    seed: Tensor | None,
    mode: str,
    zoneout: list[float],
    recurrent_dropout: float,
    training: bool,
    recompute: bool,
    need_input: bool,
    need_weights: bool,
) -> list[Tensor]:
    """Gradients of input, h0, c0 and every parameter; empty where not asked for or absent."""
    num_rows, directions, width = input.shape[0], len(w_ih), h0.shape[2]
    hidden = w_ih[0].shape[0] // reference.GATES[mode]
    ln_input, ln_gates, ln_cell = split_ln(ln, mode, directions)
    number = 0 if seed is None else int(seed)
    h_mask = recurrent_mask(h0, number, recurrent_dropout, training)

    if mode == "LSTM" and cells.numel() == 0 and num_rows:
        # Forward did not know that gradients would be asked for (torch.func.grad, say).
        output, _, _, gates, cells, hn = forward(
            input, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, ln, seed,
            mode, zoneout, recurrent_dropout, training, recompute, True,
        )  # fmt: skip

    def fed_states() -> Tensor:
        """What the recurrent product of each row was fed, (N, D, P)."""
        states = output.view(num_rows, directions, width)
        before = reference.previous_states(states, h0, batch_sizes)
        return before if h_mask is None else before * _rows_of_mask(h_mask, batch_sizes, num_rows)

    if gates_are_states(mode, zoneout):
        gates = output.view(num_rows, directions, 1, hidden)
    rebuild = gates.numel() == 0
    fed = fed_states() if rebuild or ln else None
    u_raw = None
    if ln:
        u_raw = input.new_empty(num_rows, directions, reference.GATES[mode], hidden)
        for d in range(directions):
            linear_into(u_raw[:, d].flatten(1), fed[:, d], w_hh[d], None)
    if rebuild:
        bias, scan_bias = split_biases(mode, b_ih, b_hh)
        gates = project(mode, input, w_ih, bias, ln_input)
        hn = _recompute_gates(mode, gates, fed, u_raw, w_hh, ln_gates, scan_bias)

    grad_gx, grad_u, grad_proj, grad_ln_cell, grad_h0, grad_c0 = scan_backward(
        torch.zeros_like(output) if grad_output is None else grad_output.contiguous(),
        None if grad_h_n is None else grad_h_n.contiguous(),
        None if grad_c_n is None else grad_c_n.contiguous(),
        gates, cells, hn, output, u_raw, batch_sizes, h0, c0, w_hh, w_hr,
        ln_gates, ln_cell, h_mask,
        cell=mode, ln_eps=LN_EPS, zoneout=zoneout, seed=number, training=training,
    )  # fmt: skip

    names = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "ln")
    grads: dict[str, list[Tensor]] = {name: [] for name in names}
    grad_input = torch.zeros_like(input) if need_input and directions > 1 else input.new_empty(0)
    for d in range(directions):
        of_gx = grad_gx[:, d].flatten(1)
        of_product, gammas = of_gx, []
        if ln:
            product = linear(input, w_ih[d], None)
            of_product, gamma_ih = _norm_backward(of_gx, product, ln_input[d])
            after_norm = reference.recurrent_side(mode, grad_gx[:, d], gates[:, d]).flatten(1)
            normalized = reference.normalize(u_raw[:, d].flatten(1), LN_EPS)[0]
            gammas = [gamma_ih, (after_norm * normalized).sum(0)]
            if mode == "LSTM":
                gammas += _cell_norm_gradients(
                    grad_ln_cell[:, d], gates[:, d], cells, c0, batch_sizes, d
                )
        if need_input:
            if directions == 1:
                grad_input = mm(of_product, w_ih[d])
            else:
                grad_input += mm(of_product, w_ih[d])
        if not need_weights:
            continue
        grads["w_ih"].append(mm(of_product.t(), input))
        grads["ln"] += [gamma.to(output.dtype) for gamma in gammas]
        if b_ih:
            grads["b_ih"].append(of_gx.sum(0))
            if mode != "GRU":
                grads["b_hh"].append(grads["b_ih"][d].clone())
            elif ln:
                grads["b_hh"].append(after_norm.sum(0))
        if w_hr:
            cell = _cells_before_zoneout(gates[:, d], cells, c0, batch_sizes, d)
            if ln_cell:
                cell = reference.cell_norm(cell, ln_cell[d], LN_EPS)
            projected = (gates[:, d, 3] * torch.tanh(cell)).to(output.dtype)
            grads["w_hr"].append(
                mm(grad_proj.view(num_rows, directions, width)[:, d].t(), projected)
            )
    if not need_weights:
        absent = [input.new_empty(0) for _ in (*w_ih, *w_hh, *b_ih, *b_hh, *w_hr, *ln)]
        return [grad_input, grad_h0, grad_c0, *absent]
    if ln:
        del grad_gx  # as large as the gates
    else:
        # Of the recurrent side: for GRU's new gate it lies behind r·(…).
        grad_u = grad_gx
        if mode == "GRU":
            grad_u[:, :, 2] *= gates[:, :, 0]
            if b_ih:
                grads["b_hh"] = [grad_u[:, d].flatten(1).sum(0) for d in range(directions)]
    if fed is None and (batch_sizes is not None or h_mask is not None):
        fed = fed_states()
    for d in range(directions):
        of_product = grad_u[:, d].flatten(1)
        if fed is None:
            states = output.view(num_rows, directions, width)[:, d]
            grads["w_hh"].append(_product_with_previous(of_product, states, h0[d], d))
        else:
            grads["w_hh"].append(mm(of_product.t(), fed[:, d]))
    return [grad_input, grad_h0, grad_c0, *(g for name in names for g in grads[name])]


def _product_with_previous(grad: Tensor, states: Tensor, first: Tensor, d: int) -> Tensor:
    """gradᵀ times the states that each row's step started from, where all have one length."""
    batch = first.shape[0]
    size = max(states.shape[0] - batch, 0)
    begin, rest = (grad[:batch], grad[batch:]) if d == 0 else (grad[size:], grad[:size])
    before = states[:size] if d == 0 else states[batch:]
    return add_mm(mm(rest.t(), before), begin.t(), first)


def _rows_of_mask(h_mask: Tensor, batch_sizes: Tensor | None, num_rows: int) -> Tensor:
    """The mask (D, B, P) of each row, (N, D, P)."""
    by_sequence = h_mask.transpose(0, 1)
    if batch_sizes is None:
        return by_sequence.repeat(num_rows // h_mask.shape[1], 1, 1)
    return torch.cat([by_sequence[:size] for size in batch_sizes.tolist()])


def _norm_backward(grad: Tensor, x: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and γ through y = γ·(x - mean)/std."""
    _, mean, rstd = torch.native_layer_norm(x, (x.shape[1],), gamma, None, LN_EPS)
    grad_x, grad_gamma, _ = torch.ops.aten.native_layer_norm_backward(
        grad.contiguous(), x, (x.shape[1],), mean, rstd, gamma, None, [True, True, False]
    )
    return grad_x, grad_gamma


def _cells_before_zoneout(
    gates: Tensor, cells: Tensor, c0: Tensor, batch_sizes: Tensor | None, d: int
) -> Tensor:
    """f·c + i·g for every row of direction ``d``, in the accumulation type."""
    before = reference.previous_states(cells, c0.to(cells.dtype), batch_sizes)[:, d]
    i, f, g = gates[:, :3].to(cells.dtype).unbind(1)
    return f * before + i * g


def _cell_norm_gradients(
    grad: Tensor, gates: Tensor, cells: Tensor, c0: Tensor, batch_sizes: Tensor | None, d: int
) -> list[Tensor]:
    cell = _cells_before_zoneout(gates, cells, c0, batch_sizes, d)
    return [(grad * reference.normalize(cell, LN_EPS)[0]).sum(0), grad.sum(0)]
