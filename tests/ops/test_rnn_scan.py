"""The scans' registration: schema, aliasing, fake kernels; and the fallback for other devices."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import fastseq.ops  # noqa: F401 (registers the operators)
from fastseq.reference import rnn as reference

OPTIONS: dict[str, Any] = {"ln_eps": 1e-5, "seed": 2**40 + 3}


def arguments(mode: str, *, layer_norm: bool, masked: bool, packed: bool) -> tuple:
    """Random positional arguments of ``rnn_scan``: two directions, LSTM with projection."""
    gates, hidden, batch = reference.GATES[mode], 5, 3
    width = 2 if mode == "LSTM" else hidden
    sizes = torch.tensor([3, 2, 2, 1]) if packed else None
    rows = 8 if packed else 4 * batch

    def pair(*shape: int) -> list[Tensor]:
        return [torch.randn(*shape, dtype=torch.float64) for _ in range(2)]

    return (
        torch.randn(rows, 2, gates, hidden, dtype=torch.float64),
        sizes,
        torch.randn(2, batch, width, dtype=torch.float64),
        torch.randn(2, batch, hidden, dtype=torch.float64) if mode == "LSTM" else None,
        pair(gates * hidden, width),
        pair(gates * hidden) if mode == "GRU" else [],
        pair(width, hidden) if mode == "LSTM" else [],
        pair(gates * hidden) if layer_norm else [],
        pair(2, hidden) if layer_norm and mode == "LSTM" else [],
        torch.rand(2, batch, width, dtype=torch.float64) if masked else None,
    )


@pytest.mark.parametrize("mode", list(reference.GATES))
@pytest.mark.parametrize("extras", [False, True])
def test_opcheck(mode: str, extras: bool) -> None:
    options = dict(
        OPTIONS, cell=mode, training=extras, zoneout=[0.3, 0.0] if extras else [0.0, 0.0]
    )
    args = arguments(mode, layer_norm=extras, masked=extras, packed=extras)
    for save in (False, True):
        opcheck(torch.ops.fastseq.rnn_scan.default, args, dict(options, save=save))
    gates = args[0].clone()
    output, h_n, c_n, cells, hn = torch.ops.fastseq.rnn_scan(gates, *args[1:], **options, save=True)
    _, sizes, h0, c0, w_hh, _, w_hr, ln_gates, ln_cell, mask = args
    grads = [torch.randn_like(x) if x.numel() else None for x in (output, h_n, c_n)]
    opcheck(
        torch.ops.fastseq.rnn_scan_backward.default,
        (
            *grads,
            gates,
            cells,
            hn,
            output,
            torch.randn_like(gates) if extras else None,
            sizes,
            h0,
            c0,
            w_hh,
            w_hr,
            ln_gates,
            ln_cell,
            mask,
        ),
        options,
    )


@pytest.mark.parametrize("mode", list(reference.GATES))
@pytest.mark.parametrize("extras", [False, True])
def test_cpu_kernel_is_the_reference(mode: str, extras: bool) -> None:
    options = dict(
        OPTIONS, cell=mode, training=extras, zoneout=[0.3, 0.0] if extras else [0.0, 0.0]
    )
    args = arguments(mode, layer_norm=extras, masked=extras, packed=extras)
    ours, plain = args[0].clone(), args[0].clone()
    results = torch.ops.fastseq.rnn_scan(ours, *args[1:], **options, save=True)
    expected = reference.rnn_scan(plain, *args[1:], **options, save=True)
    torch.testing.assert_close((ours, *results), (plain, *expected))


def test_other_devices_fall_back_to_plain_pytorch() -> None:
    """No kernel is registered for the meta device's siblings; dispatch must find the reference."""
    for name in ("rnn_scan", "rnn_scan_backward", "rnn_layer", "rnn_layer_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(
            f"fastseq::{name}", "CompositeExplicitAutograd"
        )


@pytest.mark.parametrize("mode", list(reference.GATES))
def test_steps_without_rows(mode: str) -> None:
    """batch_sizes that end in zeros give what they give without."""
    options = dict(OPTIONS, cell=mode, training=True, zoneout=[0.0, 0.0], save=True)
    gates, sizes, *rest = arguments(mode, layer_norm=True, masked=True, packed=True)
    longer = torch.cat([sizes, torch.zeros(2, dtype=torch.int64)])
    for scan in (torch.ops.fastseq.rnn_scan, reference.rnn_scan):
        ours, plain = gates.clone(), gates.clone()
        results = scan(ours, longer, *rest, **options)
        torch.testing.assert_close((ours, *results), (plain, *scan(plain, sizes, *rest, **options)))
