"""One recurrent step with both of its products, in plain PyTorch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .rnn import GATES, recurrent_side, rnn_scan, rnn_scan_backward

_PLAIN: dict[str, Any] = {"ln_eps": 1e-5, "zoneout": [0.0, 0.0], "seed": 0, "training": False}


def _as_scan(h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return h[None], None if c is None else c[None]


def rnn_cell(
    input: Tensor,
    h: Tensor,
    c: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    mode: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``fastseq::rnn_cell``; absent results are empty tensors."""
    gru = mode == "GRU"
    gates = F.linear(input, w_ih, b_ih).unflatten(1, (1, GATES[mode], -1))
    if b_hh is not None and not gru:
        gates = gates + b_hh.view(gates.shape[1:])
    output, _, c_n, cells, hn = rnn_scan(
        gates, None, *_as_scan(h, c), [w_hh], [b_hh] if gru and b_hh is not None else [],
        [], [], [], None, cell=mode, save=save, **_PLAIN,
    )  # fmt: skip
    return (
        output,
        c_n.flatten(0, -2) if mode == "LSTM" else c_n,
        gates if save else c_n.new_empty(0),
        cells,
        hn,
    )


def rnn_cell_backward(
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    gates: Tensor,
    cells: Tensor,
    hn: Tensor,
    input: Tensor,
    h: Tensor,
    c: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: bool,
    mode: str,
    need_input: bool,
    need_state: bool,
    need_weights: bool,
) -> list[Tensor]:
    """``fastseq::rnn_cell_backward``: of input, h, c and, if needed, the weights and biases."""
    grad_gx, *_, grad_h0, grad_c0 = rnn_scan_backward(
        torch.zeros_like(h) if grad_h is None else grad_h, None,
        None if grad_c is None else grad_c[None], gates, cells, hn, torch.empty_like(h), None,
        None, *_as_scan(h, c), [w_hh], [], [], [], None, cell=mode, **_PLAIN,
    )  # fmt: skip
    of_input = grad_gx.flatten(1)
    of_product = recurrent_side(mode, grad_gx[:, 0], gates[:, 0]).flatten(1)
    grads = [
        of_input @ w_ih if need_input else input.new_empty(0),
        grad_h0[0] if need_state else input.new_empty(0),
        grad_c0[0] if mode == "LSTM" else grad_c0,
    ]
    if need_weights:
        grads += [of_input.t() @ input, of_product.t() @ h]
        if bias:
            grads += [of_input.sum(0), of_product.sum(0)]
    return grads
