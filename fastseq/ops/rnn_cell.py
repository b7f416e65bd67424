"""One plain recurrent step as an operator: both products and the gates in one call.

``fastseq::rnn_cell`` and ``fastseq::rnn_cell_backward`` run in C++ on the CPU and in plain PyTorch
(``fastseq.reference.rnn_cell``) elsewhere. ``rnn_cell`` serves eager calls; whatever looks at
operators goes through ``fastseq::rnn_layer``, which also gives second derivatives.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _extension
from ..reference import rnn_cell as reference
from ..reference.rnn import GATES, accumulate_dtype
from .gemm import widens
from .registration import eager, register
from .traced import is_traced
from .vmap import loop_over_batched

_library = torch.library.Library("fastseq", "FRAGMENT")
_library.define(
    "rnn_cell(Tensor input, Tensor h, Tensor? c, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
    "Tensor? b_hh, str mode, bool save) "
    "-> (Tensor h_n, Tensor c_n, Tensor gates, Tensor cells, Tensor hn)"
)
_library.define(
    "rnn_cell_backward(Tensor? grad_h, Tensor? grad_c, Tensor gates, Tensor cells, Tensor hn, "
    "Tensor input, Tensor h, Tensor? c, Tensor w_ih, Tensor w_hh, bool bias, str mode, "
    "bool need_input, bool need_state, bool need_weights) -> Tensor[]"
)


def _fake_cell(input, h, c, w_ih, w_hh, b_ih, b_hh, mode, save):
    (batch, hidden), gates = h.shape, GATES[mode]
    unit = (batch, 1, hidden)
    return (
        h.new_empty(h.shape),
        h.new_empty(h.shape if mode == "LSTM" else 0),
        h.new_empty((batch, 1, gates, hidden) if save else 0),
        h.new_empty(unit if save and mode == "LSTM" else 0, dtype=accumulate_dtype(h.dtype)),
        h.new_empty(unit if save and mode == "GRU" else 0),
    )


def _fake_cell_backward(
    grad_h, grad_c, gates, cells, hn, input, h, c, w_ih, w_hh, bias, mode,
    need_input, need_state, need_weights,
):  # fmt: skip
    grads = [
        h.new_empty(input.shape if need_input else 0),
        h.new_empty(h.shape if need_state else 0),
        h.new_empty(h.shape if mode == "LSTM" else 0),
    ]
    if need_weights:
        grads += [h.new_empty(w_ih.shape), h.new_empty(w_hh.shape)]
        if bias:
            grads += [h.new_empty(w_ih.shape[0]) for _ in range(2)]
    return grads


for _name, _implementation, _fake in (
    ("rnn_cell", reference.rnn_cell, _fake_cell),
    ("rnn_cell_backward", reference.rnn_cell_backward, _fake_cell_backward),
):
    register(_library, _name, _implementation, _fake)
_library.impl(
    "rnn_cell_backward", loop_over_batched(torch.ops.fastseq.rnn_cell_backward), "Batched"
)
_native = _extension.load()
_backward = torch.ops.fastseq.rnn_cell_backward.default


def _setup(ctx, inputs, output) -> None:
    *tensors, b_ih, b_hh, ctx.mode, _save = inputs
    _h_n, c_n, *saved = output
    ctx.mark_non_differentiable(*(saved if ctx.mode == "LSTM" else (c_n, *saved)))
    ctx.set_materialize_grads(False)
    # Neither the new state nor biases are read by first derivatives: both may have been changed.
    ctx.biases = [] if b_ih is None else [b_ih, b_hh]
    ctx.versions = [b._version for b in ctx.biases]
    ctx.save_for_backward(*saved, *tensors)


def _gradients(ctx, grad_h, grad_c, *_saved):
    gates, cells, hn, input, h, c, w_ih, w_hh = ctx.saved_tensors
    biases = ctx.biases
    need_input, need_state = input.requires_grad, h.requires_grad
    need_weights = any(w.requires_grad for w in (w_ih, w_hh, *biases))
    if torch.is_grad_enabled():  # gradients that are differentiated again
        if ctx.versions != [b._version for b in biases]:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                f"inplace operation: a bias of {ctx.mode}"
            )
        # Of one step's output only a plain RNN reads anything, and there it is the gates.
        h_n = gates.view(h.shape) if ctx.mode.startswith("RNN") else h
        of_input, of_h, of_c, *of_weights = torch.ops.fastseq.rnn_layer_backward(
            grad_h, None, None if grad_c is None else grad_c[None], h_n, gates, cells, hn,
            input, None, h[None], None if c is None else c[None], [w_ih], [w_hh],
            biases[:1], biases[1:], [], [], None,
            ctx.mode, [0.0, 0.0], 0.0, False, False, need_input, need_weights,
        )  # fmt: skip
        of_h, of_c = of_h[0], None if c is None else of_c[0]
        of_weights = of_weights if need_weights else []
    else:
        of_input, of_h, of_c, *of_weights = _backward(
            grad_h, grad_c, gates, cells, hn, input, h, c, w_ih, w_hh, bool(biases),
            ctx.mode, need_input, need_state, need_weights,
        )  # fmt: skip
    of_weights += [None] * (4 - len(of_weights))
    of_input, of_h = of_input if need_input else None, of_h if need_state else None
    return of_input, of_h, None if c is None else of_c, *of_weights, None, None


_cell = eager(torch.ops.fastseq.rnn_cell.default, _setup, _gradients, native=_native)


def is_plain(input: Tensor) -> bool:
    """Whether a step of this input is converted by nobody and seen by nobody."""
    return (
        not torch._C._is_any_autocast_enabled()
        and not is_traced()
        and forward_ad._current_level < 0  # tangents, which the operator would lose
        and not widens(input)
    )


def rnn_cell(
    input: Tensor,
    h: Tensor,
    c: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    mode: str,
) -> Tensor | tuple[Tensor, Tensor]:
    """One step from input (B, I) and the state h, c (B, H): the new h, and c if ``mode`` is LSTM.

    Args:
        w_ih, w_hh, b_ih, b_hh: torch's (G·H, I), (G·H, H), (G·H,), (G·H,); both biases or none.
        mode: "RNN_TANH", "RNN_RELU", "LSTM" or "GRU".
    """
    # Saved for backward where a gradient is asked for; in C++ that is seen to anyhow.
    save = not _native and torch.is_grad_enabled()
    h_n, c_n, *_ = _cell(input, h, c, w_ih, w_hh, b_ih, b_hh, mode, save)
    return (h_n, c_n) if mode == "LSTM" else h_n
