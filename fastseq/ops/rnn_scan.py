"""The recurrence alone, as operators: schemas, shapes, and which kernel serves which device.

``fastseq::rnn_scan`` and ``fastseq::rnn_scan_backward`` run in C++ on the CPU, in Triton on CUDA,
and in plain PyTorch (``fastseq.reference.rnn``, which also states the maths) elsewhere.
"""

import torch

from .. import _extension
from ..reference import rnn as reference
from .registration import register
from .rnn_check import check_scan, check_scan_backward

_library = torch.library.Library("fastseq", "FRAGMENT")

_library.define(
    "rnn_scan(Tensor(a!) gates, Tensor? batch_sizes, Tensor h0, Tensor? c0, Tensor[] w_hh, "
    "Tensor[] b_hh, Tensor[] w_hr, Tensor[] ln_gates, Tensor[] ln_cell, Tensor? h_mask, *, "
    "str cell, float ln_eps, float[] zoneout, int seed, bool training, bool save) "
    "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor hn)"
)
_library.define(
    "rnn_scan_backward(Tensor grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor gates, "
    "Tensor cells, Tensor hn, Tensor output, Tensor? u_raw, Tensor? batch_sizes, Tensor h0, "
    "Tensor? c0, Tensor[] w_hh, Tensor[] w_hr, Tensor[] ln_gates, Tensor[] ln_cell, "
    "Tensor? h_mask, *, str cell, float ln_eps, float[] zoneout, int seed, bool training) "
    "-> (Tensor grad_gx, Tensor grad_u, Tensor grad_proj, Tensor grad_ln_cell, Tensor grad_h0, "
    "Tensor grad_c0)"
)


def fake_scan(
    gates, batch_sizes, h0, c0, w_hh, b_hh, w_hr, ln_gates, ln_cell, h_mask,
    *, cell, ln_eps, zoneout, seed, training, save,
):  # fmt: skip
    num_rows, directions, _, hidden = gates.shape
    acc = reference.accumulate_dtype(gates.dtype)
    return (
        gates.new_empty(num_rows, directions * h0.shape[2]),
        torch.empty_like(h0),
        gates.new_empty(0) if c0 is None else torch.empty_like(c0),
        gates.new_empty(
            (num_rows, directions, hidden) if save and cell == "LSTM" else 0, dtype=acc
        ),
        gates.new_empty((num_rows, directions, hidden) if save and cell == "GRU" else 0),
    )


def _fake_scan_backward(
    grad_output, grad_h_n, grad_c_n, gates, cells, hn, output, u_raw, batch_sizes, h0, c0,
    w_hh, w_hr, ln_gates, ln_cell, h_mask, *, cell, ln_eps, zoneout, seed, training,
):  # fmt: skip
    num_rows, directions, _, hidden = gates.shape
    return (
        torch.empty_like(gates),
        torch.empty_like(gates) if ln_gates else gates.new_empty(0),
        torch.empty_like(output) if w_hr else gates.new_empty(0),
        gates.new_empty((num_rows, directions, hidden) if ln_cell else 0),
        torch.empty_like(h0),
        gates.new_empty(0) if c0 is None else torch.empty_like(c0),
    )


register(_library, "rnn_scan", reference.rnn_scan, fake_scan, check_scan)
register(
    _library,
    "rnn_scan_backward",
    reference.rnn_scan_backward,
    _fake_scan_backward,
    check_scan_backward,
)
_extension.load()  # registers the C++ kernels for the CPU, over the plain ones

scan = torch.ops.fastseq.rnn_scan.default
scan_backward = torch.ops.fastseq.rnn_scan_backward.default
