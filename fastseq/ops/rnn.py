"""Recurrent layers as differentiable operators.

``fastseq::rnn_layer`` and ``fastseq::rnn_layer_backward`` own autograd, autocast, vmap and double
backward, once for every backend, over the products and scans of ``rnn_layer.py``.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference import rnn as reference
from .registration import autocasting, register
from .rnn_check import check_layer, check_layer_backward
from .rnn_layer import backward, forward, gates_are_states, recurrent_mask, split_ln
from .rnn_sequence import LN_EPS, fake_sequence, split_biases
from .traced import is_traced, plain_autograd_only
from .vmap import is_batched, loop_over, loop_over_batched, vmap_layer

_unsafe_view = torch.ops.aten._unsafe_view.default
_library = torch.library.Library("fastseq", "FRAGMENT")
_PARAMETERS = (
    "Tensor input, Tensor? batch_sizes, Tensor h0, Tensor? c0, Tensor[] w_ih, Tensor[] w_hh, "
    "Tensor[] b_ih, Tensor[] b_hh, Tensor[] w_hr, Tensor[] ln, Tensor? seed"
)
_OPTIONS = "str mode, float[] zoneout, float recurrent_dropout, bool training, bool recompute"
_library.define(
    f"rnn_layer({_PARAMETERS}, {_OPTIONS}, bool save) "
    "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells, Tensor hn)"
)
_library.define(
    "rnn_layer_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor output, "
    f"Tensor gates, Tensor cells, Tensor hn, {_PARAMETERS}, {_OPTIONS}, "
    "bool need_input, bool need_weights) -> Tensor[]"
)


def _fake_layer(
    input, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, ln, seed,
    mode, zoneout, recurrent_dropout, training, recompute, save,
):  # fmt: skip
    output, h_n, c_n, gates, cells, hn = fake_sequence(
        input, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, None,
        mode, zoneout, 0, training, save and not gates_are_states(mode, zoneout),
    )  # fmt: skip
    if recompute:
        gates, hn = gates.new_empty(0), hn.new_empty(0)
    return output, h_n, c_n, gates, cells, hn


def _fake_layer_backward(
    grad_output, grad_h_n, grad_c_n, output, gates, cells, hn,
    input, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, ln, seed,
    mode, zoneout, recurrent_dropout, training, recompute, need_input, need_weights,
):  # fmt: skip
    weights = (*w_ih, *w_hh, *b_ih, *b_hh, *w_hr, *ln)
    return [
        torch.empty_like(input) if need_input else input.new_empty(0),
        torch.empty_like(h0),
        input.new_empty(0) if c0 is None else torch.empty_like(c0),
        *(torch.empty_like(w) if need_weights else input.new_empty(0) for w in weights),
    ]


_NUM_OPTIONS = 5  # mode, zoneout, recurrent_dropout, training, recompute


def _unflatten(flat: Sequence, lengths: Sequence[int]) -> list[list]:
    parts, start = [], 0
    for length in lengths:
        parts.append(list(flat[start : start + length]))
        start += length
    return parts


def _save(ctx, states, lists, seed, options, results, unread=()) -> None:
    """Keeps what the gradients need; ``states`` are input, batch_sizes, h0, c0.

    Of the parameters, those at ``unread`` only second derivatives read: whoever asks for first ones
    may have changed them.
    """
    output, _, _, *saved = results
    weights = [w for part in lists for w in part]
    ctx.set_materialize_grads(False)
    ctx.options, ctx.lengths = options, [len(part) for part in lists]
    ctx.needed = states[0].requires_grad, torch._C._any_requires_grad(*weights)
    ctx.unread = [(i, weights[i], weights[i]._version) for i in unread]
    for i in unread:
        weights[i] = None
    ctx.save_for_backward(output, *saved, *states, seed, *weights)


def _saved(ctx) -> Sequence[Tensor | None]:
    """What was kept; if second derivatives may follow, as it was then."""
    saved = ctx.saved_tensors
    if not ctx.unread:
        return saved
    saved, first = list(saved), len(saved) - sum(ctx.lengths)
    for i, weight, version in ctx.unread:
        if weight._version != version and torch.is_grad_enabled():
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                f"inplace operation: a parameter {list(weight.shape)} of {ctx.options[0]} is at "
                f"version {weight._version}; expected version {version} instead"
            )
        saved[first + i] = weight
    return saved


def _gradients(ctx, grads) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Gradients of (input, h0, c0) and of the parameters, in order."""
    output, gates, cells, hn, input, batch_sizes, h0, c0, seed, *weights = _saved(ctx)
    need_input, need_weights = ctx.needed
    grad_output, *of_states = grads
    if grad_output is not None and grad_output.dim() == 3:
        grad_output = grad_output.reshape(output.shape)
    # The operator can be traced and is differentiable again; the plain function is quicker.
    registered = torch.is_grad_enabled() or is_traced() or is_batched(grads)
    op = torch.ops.fastseq.rnn_layer_backward if registered else backward
    of_input, of_h0, of_c0, *of_weights = op(
        grad_output, *of_states, output, gates, cells, hn, input, batch_sizes, h0, c0,
        *_unflatten(weights, ctx.lengths), seed, *ctx.options, need_input, need_weights,
    )  # fmt: skip
    return (
        [of_input if need_input else None, of_h0, None if c0 is None else of_c0],
        of_weights if need_weights else [None] * len(weights),
    )


def _setup_layer(ctx, inputs, output) -> None:
    input, batch_sizes, h0, c0, *lists, seed = inputs[: -_NUM_OPTIONS - 1]
    ctx.mark_non_differentiable(*output[3:])
    _save(ctx, (input, batch_sizes, h0, c0), lists, seed, inputs[-_NUM_OPTIONS - 1 : -1], output)


def _layer_gradients(ctx, grad_output, grad_h_n, grad_c_n, *_saved):
    (of_input, of_h0, of_c0), of_weights = _gradients(ctx, (grad_output, grad_h_n, grad_c_n))
    lists = _unflatten(of_weights, ctx.lengths)
    return (of_input, None, of_h0, of_c0, *lists, *[None] * (2 + _NUM_OPTIONS))


def _unread(lengths: Sequence[int], options: Sequence, need_input: bool) -> Sequence[int]:
    """Which parameters first derivatives do not read: biases, and w_ih where no input needs one."""
    w_ih, w_hh, b_ih, b_hh, _, ln = lengths
    first = w_ih + w_hh
    biases = range(first, first + b_ih + b_hh)
    if options[-1]:  # the gates are computed anew
        return ()
    return biases if need_input or ln else (*range(w_ih), *biases)


class _EagerLayer(torch.autograd.Function):
    """``fastseq::rnn_layer`` without the operator's registration around it.

    The formulas are the operator's; lists of tensors cost torch.library's generic wrapper more time
    than a short sequence takes, so eager calls come here and traced ones go through the operator.
    """

    @staticmethod
    def forward(ctx, lengths, options, inner, dense, input, batch_sizes, h0, c0, seed, *weights):
        lists = _unflatten(weights, lengths)
        output, *others = forward(input, batch_sizes, h0, c0, *lists, seed, *options, True)
        unread = _unread(lengths, options, input.requires_grad)
        _save(ctx, (input, batch_sizes, h0, c0), lists, seed, options, (output, *others), unread)
        if not inner:  # the caller may change its output in place, and backward reads its own
            output = (output.view(*dense, output.shape[1]) if dense else output).clone()
        return output, *others[:2]

    @staticmethod
    def backward(ctx, *grads):
        (of_input, of_h0, of_c0), of_weights = _gradients(ctx, grads)
        return (None, None, None, None, of_input, None, of_h0, of_c0, None, *of_weights)


def _differentiable_layer(
    input, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, ln, seed,
    mode, zoneout, recurrent_dropout, training, recompute,
):  # fmt: skip
    """The layer in plain differentiable PyTorch, for second derivatives."""
    ln_input, ln_gates, ln_cell = split_ln(ln, mode, len(w_ih))
    number = 0 if seed is None else int(seed)
    bias, scan_bias = split_biases(mode, b_ih, b_hh)
    projections = []
    for d, weight in enumerate(w_ih):
        gx = F.linear(input, weight, None if ln_input else bias[d])
        if ln_input:
            gx = F.layer_norm(gx, gx.shape[1:], ln_input[d], bias[d], LN_EPS)
        projections.append(gx.unflatten(1, (reference.GATES[mode], -1)))
    output, h_n, c_n, *_ = reference.scan(
        torch.stack(projections, 1), batch_sizes, h0, c0, w_hh, scan_bias, w_hr,
        ln_gates, ln_cell, recurrent_mask(h0.detach(), number, recurrent_dropout, training),
        mode=mode, ln_eps=LN_EPS, zoneout=zoneout, seed=number, training=training,
    )  # fmt: skip
    return output, h_n, c_n


def _setup_layer_backward(ctx, inputs, output) -> None:
    grads, arguments = inputs[:3], inputs[7:]
    *arguments, _need_input, _need_weights = arguments
    input, batch_sizes, h0, c0, *lists, seed = arguments[:-_NUM_OPTIONS]
    ctx.options, ctx.lengths = arguments[-_NUM_OPTIONS:], [len(part) for part in lists]
    ctx.save_for_backward(
        *grads, input, batch_sizes, h0, c0, seed, *(w for part in lists for w in part)
    )


def _layer_second_gradients(ctx, grad_gradients):
    """Gradients of the layer's gradients: differentiate twice through the plain PyTorch layer."""
    grad_outputs, (input, batch_sizes, h0, c0, seed, *weights) = (
        ctx.saved_tensors[:3],
        ctx.saved_tensors[3:],
    )
    with torch.enable_grad():
        variables = [
            None if x is None else x.detach().requires_grad_() for x in (input, h0, c0, *weights)
        ]
        upstream = [None if g is None else g.detach().requires_grad_() for g in grad_outputs]
        input_, h0_, c0_, *weights_ = variables
        results = _differentiable_layer(
            input_, batch_sizes, h0_, c0_, *_unflatten(weights_, ctx.lengths), seed, *ctx.options
        )
        pairs = [
            (y, g)
            for y, g in zip(results, upstream, strict=True)
            if y is not None and g is not None
        ]
        present = [x for x in variables if x is not None]
        first = torch.autograd.grad(
            [y for y, _ in pairs],
            present,
            [g for _, g in pairs],
            create_graph=True,
            materialize_grads=True,
        )
        wanted = [g for x, g in zip(variables, grad_gradients, strict=True) if x is not None]
        chosen = [
            (f, w)
            for f, w in zip(first, wanted, strict=True)
            if w is not None and f.shape == w.shape and f.requires_grad
        ]
        leaves = present + [g for g in upstream if g is not None]
        second = iter(
            torch.autograd.grad(
                [f for f, _ in chosen], leaves, [w for _, w in chosen], allow_unused=True
            )
            if chosen
            else [None] * len(leaves)
        )
    of_variables = [None if x is None else next(second) for x in variables]
    of_upstream = [None if g is None else next(second) for g in upstream]
    of_input, of_h0, of_c0, *of_weights = of_variables
    return (
        *of_upstream, *[None] * 4, of_input, None, of_h0, of_c0,
        *_unflatten(of_weights, ctx.lengths), *[None] * (3 + _NUM_OPTIONS),
    )  # fmt: skip


register(_library, "rnn_layer", forward, _fake_layer, check_layer)
register(_library, "rnn_layer_backward", backward, _fake_layer_backward, check_layer_backward)
torch.library.register_autograd(
    "fastseq::rnn_layer", _layer_gradients, setup_context=_setup_layer, lib=_library
)
torch.library.register_autograd(
    "fastseq::rnn_layer_backward",
    _layer_second_gradients,
    setup_context=_setup_layer_backward,
    lib=_library,
)
torch.library.register_vmap("fastseq::rnn_layer", vmap_layer, lib=_library)
torch.library.register_vmap(
    "fastseq::rnn_layer_backward", loop_over(torch.ops.fastseq.rnn_layer_backward), lib=_library
)
_library.impl(
    "rnn_layer_backward", loop_over_batched(torch.ops.fastseq.rnn_layer_backward), "Batched"
)


def _shaped(output: Tensor, dense: tuple[int, int] | None) -> Tensor:
    """Rows that nobody else holds as (T, B, width): no view, which detach_() would refuse."""
    return output if dense is None else _unsafe_view(output, (*dense, output.shape[1]))


def rnn_layer(
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
    *,
    mode: str,
    zoneout: Sequence[float] = (0.0, 0.0),
    recurrent_dropout: float = 0.0,
    training: bool = True,
    recompute: bool = False,
    seed: Tensor | None = None,
    inner: bool = False,
    dense: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One recurrent layer, one or both directions, over packed rows.

    Args:
        input: (N, I), rows of all steps, time-major, as ``PackedSequence.data``.
        batch_sizes: (T,) int64 on the CPU, not increasing; None for a dense batch (N = T·B).
        h0: (D, B, P) initial hidden state; c0: (D, B, H) initial cell state (LSTM), else None.
        w_ih, w_hh, b_ih, b_hh: torch's (G·H, I), (G·H, P), (G·H,), (G·H,); one a direction, the
            biases possibly none.
        w_hr: (P, H) projections, or none.
        ln: layer-norm parameters, one direction after the other: γ of W_ih x (G·H,), γ of W_hh h
            (G·H,) and, for LSTM, γ and β of the cell (H,); none without layer-norm.
        mode: "RNN_TANH", "RNN_RELU", "LSTM" or "GRU".
        zoneout: probability for h and for c (Krueger et al., 2016).
        recurrent_dropout: probability of the variational mask on h (Gal & Ghahramani, 2016).
        recompute: keep only states for backward and compute the gates anew.
        seed: int64 scalar on the CPU for the random masks; None draws it from torch's generator.
        inner: nobody changes the output in place, which backward may then share.
        dense: (T, B) for an output of (T, B, D·P), which is no view.

    Returns:
        output (N, D·P), or as ``dense`` says, h_n (D, B, P), and c_n (D, B, H), None unless LSTM.
        All floating tensors share one dtype: float64, float32, bfloat16 or float16.
    """
    if seed is None and training and (recurrent_dropout > 0 or max(zoneout) > 0):
        seed = torch.randint(2**62, (), dtype=torch.int64)
    if plain_autograd_only():
        output, *ends = _differentiable_layer(
            input, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, ln, seed,
            mode, list(zoneout), recurrent_dropout, training, recompute,
        )  # fmt: skip
        return _shaped(output, dense), *ends
    if autocasting(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        cast = lambda x: x.to(dtype) if x.dtype != torch.float64 else x  # noqa: E731
        input, h0, c0 = cast(input), cast(h0), None if c0 is None else cast(c0)
        w_ih, w_hh, b_ih, b_hh, w_hr, ln = (
            [cast(w) for w in part] for part in (w_ih, w_hh, b_ih, b_hh, w_hr, ln)
        )
    weights = (*w_ih, *w_hh, *b_ih, *b_hh, *w_hr, *ln)
    states = (input, h0) if c0 is None else (input, h0, c0)
    save = torch.is_grad_enabled() and any(x.requires_grad for x in (*states, *weights))
    options = (mode, list(zoneout), recurrent_dropout, training, recompute)
    lists = (w_ih, w_hh, b_ih, b_hh, w_hr, ln)
    if is_traced():
        output, h_n, c_n, *_ = torch.ops.fastseq.rnn_layer(
            input, batch_sizes, h0, c0, *lists, seed, *options, save
        )
        output = _shaped(output.clone() if save and not inner else output, dense)
    elif save:
        lengths = [len(part) for part in lists]
        output, h_n, c_n = _EagerLayer.apply(
            lengths, options, inner, dense, input, batch_sizes, h0, c0, seed, *weights
        )
    else:
        output, h_n, c_n, *_ = forward(input, batch_sizes, h0, c0, *lists, seed, *options, False)
        output = _shaped(output, dense)
    return output, h_n, None if c0 is None else c_n
