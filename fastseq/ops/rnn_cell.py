"""One step of a recurrent cell, by the shortest way to the kernels.

At batch 1 a step takes microseconds, and so does every line of Python: where nothing records or
looks at the operators, the product and the scan are called outright.
"""

import torch
from torch import Tensor

from ..reference.rnn import GATES
from .gemm import linear
from .rnn import rnn_layer
from .rnn_layer import LN_EPS
from .rnn_scan import scan
from .traced import is_traced, plain_autograd_only

_NO_ZONEOUT = [0.0, 0.0]


def rnn_cell(
    input: Tensor,
    h: Tensor,
    c: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    mode: str,
) -> tuple[Tensor, Tensor | None]:
    """(h, c) after one step; c is None unless LSTM.

    Args:
        input: (B, I). h, c: (B, H). w_ih, w_hh, b_ih, b_hh: torch's; the biases possibly None.
        mode: "RNN_TANH", "RNN_RELU", "LSTM" or "GRU".
    """
    h, c = h[None], None if c is None else c[None]
    parameters = (w_ih, w_hh) if b_ih is None else (w_ih, w_hh, b_ih, b_hh)
    recording = torch.is_grad_enabled() and (
        input.requires_grad
        or h.requires_grad
        or (c is not None and c.requires_grad)
        or any(p.requires_grad for p in parameters)
    )
    if recording or is_traced() or plain_autograd_only() or torch._C._is_any_autocast_enabled():
        biases = ([], []) if b_ih is None else ([b_ih], [b_hh])
        output, _, c_n = rnn_layer(input, None, h, c, [w_ih], [w_hh], *biases, [], [], mode=mode)
        return output, None if c_n is None else c_n[0]
    gru = mode == "GRU"
    bias = b_ih if gru or b_ih is None or b_hh is None else b_ih + b_hh
    gates = linear(input, w_ih, bias).view(input.shape[0], 1, GATES[mode], -1)
    output, _, c_n, _, _ = scan(
        gates, None, h, c, [w_hh], [b_hh] if gru and b_hh is not None else [], [], [], [], None,
        mode=mode, ln_eps=LN_EPS, zoneout=_NO_ZONEOUT, seed=0, training=False, save=False,
    )  # fmt: skip
    return output, None if c is None else c_n[0]
