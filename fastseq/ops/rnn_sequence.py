"""A sequence's input projection and its scan, in one call where that can be had.

``fastseq::rnn_sequence`` is both in C++ on the CPU, where a short sequence takes less time than the
calls from Python, and ``project_and_scan`` elsewhere. Names and shapes are those of
``rnn_layer.py``.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _extension
from ..reference import rnn as reference
from .gemm import linear, linear_into, widens
from .registration import register
from .rnn_scan import fake_scan, scan

LN_EPS = 1e-5

_library = torch.library.Library("fastseq", "FRAGMENT")
_library.define(
    "rnn_sequence(Tensor input, Tensor? batch_sizes, Tensor h0, Tensor? c0, Tensor[] w_ih, "
    "Tensor[] w_hh, Tensor[] b_ih, Tensor[] b_hh, Tensor[] w_hr, Tensor? h_mask, "
    "str mode, float[] zoneout, int seed, bool training, bool save) "
    "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells, Tensor hn)"
)


def split_biases(
    mode: str, b_ih: Sequence[Tensor], b_hh: Sequence[Tensor], in_scan: bool = False
) -> tuple[Sequence[Tensor] | Sequence[None], Sequence[Tensor]]:
    """What each direction adds to its input projection, and in its scan.

    Only GRU needs the recurrent bias apart, in r·(…); else both go to the projection or the scan.
    """
    if not b_ih or mode == "GRU":
        return b_ih or [None, None], b_hh
    sums = [a + b for a, b in zip(b_ih, b_hh)]
    return ([None, None], sums) if in_scan else (sums, [])


def project(
    mode: str,
    input: Tensor,
    w_ih: Sequence[Tensor],
    bias: Sequence[Tensor] | Sequence[None],
    ln_input: Sequence[Tensor],
) -> Tensor:
    """Input side of the gates, (N, D, G, H)."""
    directions, width, gates = len(w_ih), w_ih[0].shape[0], reference.GATES[mode]
    shape = (input.shape[0], directions, gates, width // gates)
    if directions == 1 and not ln_input and not widens(input):
        return linear(input, w_ih[0], bias[0]).view(shape)
    gx = input.new_empty(input.shape[0], directions, width)
    for d in range(directions):
        if ln_input:
            product = linear(input, w_ih[d], None)
            gx[:, d] = F.layer_norm(product, (width,), ln_input[d], bias[d], LN_EPS)
        else:
            linear_into(gx[:, d], input, w_ih[d], bias[d])
    return gx.view(shape)


def project_and_scan(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: Sequence[Tensor],
    w_hh: Sequence[Tensor],
    b_ih: Sequence[Tensor],
    b_hh: Sequence[Tensor],
    w_hr: Sequence[Tensor],
    h_mask: Tensor | None,
    mode: str,
    zoneout: Sequence[float],
    seed: int,
    training: bool,
    save: bool,
    ln_input: Sequence[Tensor] = (),
    ln_gates: Sequence[Tensor] = (),
    ln_cell: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(output, h_n, c_n, gates, cells, hn), the last three empty unless to be saved."""
    # A CPU's library adds a bias in a pass of its own; the scan has the gates at hand anyhow.
    in_scan = not ln_input and input.device.type == "cpu"
    bias, scan_bias = split_biases(mode, b_ih, b_hh, in_scan)
    gates = project(mode, input, w_ih, bias, ln_input)
    output, h_n, c_n, cells, hn = scan(
        gates, batch_sizes, h0, c0, w_hh, scan_bias, w_hr, ln_gates, ln_cell, h_mask,
        cell=mode, ln_eps=LN_EPS, zoneout=zoneout, seed=seed, training=training, save=save,
    )  # fmt: skip
    return output, h_n, c_n, gates if save else gates.new_empty(0), cells, hn


def fake_sequence(
    input, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, h_mask,
    mode, zoneout, seed, training, save,
):  # fmt: skip
    count = reference.GATES[mode]
    gates = input.new_empty(input.shape[0], len(w_ih), count, w_ih[0].shape[0] // count)
    output, h_n, c_n, cells, hn = fake_scan(
        gates, batch_sizes, h0, c0, w_hh, b_hh, w_hr, [], [], h_mask,
        cell=mode, ln_eps=LN_EPS, zoneout=zoneout, seed=seed, training=training, save=save,
    )  # fmt: skip
    return output, h_n, c_n, gates if save else gates.new_empty(0), cells, hn


register(_library, "rnn_sequence", project_and_scan, fake_sequence)
_extension.load()

rnn_sequence = torch.ops.fastseq.rnn_sequence.default
