"""The recurrent operators refuse what their kernels would index wrongly."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq.ops.rnn_check import check_layer, check_layer_backward, check_scan, check_scan_backward
from tests.csrc.scan_cases import Case
from tests.ops.test_rnn_cell import step
from tests.ops.test_rnn_layer import Problem

OPS = torch.ops.fastseq


def changed(x: Any, **sizes: int) -> Any:
    """Zeros of x's shape but for ``d0``, ``d1``, …; of lists the first entry so changed."""
    if isinstance(x, list):
        return [changed(x[0], **sizes), *x[1:]]
    shape = [sizes.get(f"d{d}", n) for d, n in enumerate(x.shape)]
    return x.new_zeros(shape)


SCAN: list[tuple[str, Any, str]] = [
    ("gates", lambda x: changed(x, d0=11), "multiple of the batch"),
    ("gates", lambda x: changed(x, d2=3), "gates"),
    ("gates", lambda x: x.long(), "gates|does not take"),
    ("h0", lambda x: changed(x, d1=4), "must have shape|multiple of the batch"),
    ("h0", lambda x: x[0], "h0 must be"),
    ("h0", lambda x: x.double(), "h0 must be"),
    ("c0", lambda x: changed(x, d2=16), "c0 must have shape"),
    ("c0", lambda x: None, "only an LSTM has c0"),
    ("w_hh", lambda x: changed(x, d0=67), "w_hh must have shape"),
    ("w_hh", lambda x: [], "w_hh must have"),
    ("w_hh", lambda x: [*x, *x], "w_hh must have"),
    ("b_hh", lambda x: changed(x, d0=51), "b_hh must have shape"),
    ("h_mask", lambda x: torch.ones(1, 3, 16), "h_mask must have shape"),
    ("batch_sizes", lambda x: torch.tensor([3, 3, 3, 4]), "batch_sizes must"),
    ("batch_sizes", lambda x: torch.tensor([6, 6, -1]), "batch_sizes must"),
    ("batch_sizes", lambda x: torch.tensor([3, 3, 3]), "batch_sizes must sum"),
    ("batch_sizes", lambda x: torch.tensor([3.0, 3, 3, 3]), "batch_sizes must be"),
    ("zoneout", lambda x: [float("nan"), 0.0], r"zoneout must be two probabilities in \[0, 1\)"),
    ("zoneout", lambda x: [0.0, 1.0], "zoneout must be"),
    ("zoneout", lambda x: [0.0], "zoneout must"),
    ("cell", lambda x: "GRU", "gates|only an LSTM"),
    ("cell", lambda x: "nothing", "unknown mode"),
]
BACKWARD: list[tuple[str, Any, str]] = [
    ("cells", lambda x: changed(x, d0=9), "cells must have shape"),
    ("cells", lambda x: x.double(), "cells must be"),
    ("output", lambda x: changed(x, d1=16), "output must have shape"),
    ("grad_output", lambda x: changed(x, d0=9), "grad_output must have shape"),
    ("grad_h_n", lambda x: changed(x, d1=2), "grad_h_n must have shape"),
    ("grad_c_n", lambda x: changed(x, d2=2), "grad_c_n must have shape"),
    ("u_raw", lambda x: torch.zeros(12, 1, 4, 17), "u_raw comes with ln_gates"),
]


@pytest.mark.parametrize("where", ["kernels", "check"])
@pytest.mark.parametrize(("name", "change", "message"), SCAN + BACKWARD)
def test_scans(name: str, change: Any, message: str, where: str) -> None:
    """In C++ and in Python, which asks the same before the kernels of other devices."""
    case = Case("LSTM")
    forward = {**case.arguments, **case.options}
    saved = case.forward()
    backward = {
        **{k: v for k, v in forward.items() if k != "b_hh"},
        **{k: saved[k] for k in ("gates", "cells", "hn", "output")},
        **case.upstream,
        "u_raw": None,
    }
    calls: list[tuple[Any, Any, dict[str, Any]]] = [
        (OPS.rnn_scan, check_scan, {**forward, "save": True}),
        (OPS.rnn_scan_backward, check_scan_backward, backward),
    ]
    for op, check, arguments in calls:
        call = op if where == "kernels" else check
        call(**arguments)
        if name in arguments:
            with pytest.raises(RuntimeError, match=message):
                call(**{**arguments, name: change(arguments[name])})


CELL: list[tuple[int, Any, str]] = [
    (2, lambda x: torch.cat([x, x]), "gates must have a row for each of h"),
    (2, lambda x: x[:4], "gates"),
    (3, lambda x: x[:4], "cells must have shape"),
    (5, lambda x: x[:4], "input and w_ih must be"),
    (5, lambda x: x[:, :3], "input and w_ih must be"),
    (6, lambda x: x[:4], "multiple of the batch|must have"),
    (6, lambda x: x[:, :4], "as wide as hidden_size"),
    (7, lambda x: x[:4], "c0 must have shape"),
    (8, lambda x: x[:4], "input and w_ih must be"),
    (9, lambda x: x[:4], "w_hh must have shape"),
    (0, lambda x: x[:4], "grad_h must have shape"),
    (1, lambda x: x[:4], "grad_c must have shape"),
]


@pytest.mark.parametrize("batch", [5, 9])
@pytest.mark.parametrize(("position", "change", "message"), CELL)
def test_cell_backward(position: int, change: Any, message: str, batch: int) -> None:
    given = step("LSTM", batch, 4, 5, True, torch.float32)
    h, c, *saved = OPS.rnn_cell(*given, "LSTM", True)
    arguments: list[Any] = [h, c, *saved, *given[:5]]
    options = (True, "LSTM", True, True, True)
    OPS.rnn_cell_backward(*arguments, *options)
    arguments[position] = change(arguments[position])
    with pytest.raises(RuntimeError, match=message):
        OPS.rnn_cell_backward(*arguments, *options)


@pytest.mark.parametrize("batch", [3, 9])
def test_cell_biases(batch: int) -> None:
    *given, b_ih, b_hh = step("GRU", batch, 4, 5, True, torch.float32)
    for biases in ((b_ih[:1], b_hh), (b_ih, b_hh[:1]), (b_ih, None), (b_ih[None], b_hh)):
        with pytest.raises(RuntimeError, match=r"b_ih and b_hh must|both biases"):
            OPS.rnn_cell(*given, *biases, "GRU", False)


LAYER: list[tuple[int, Any, str]] = [
    (0, lambda x: x[:, :4], "w_ih must have shape"),
    (0, lambda x: x[:7], "multiple of the batch"),
    (0, lambda x: x.long(), "input must be one of"),
    (2, lambda x: x[:, :, :3], "as wide as hidden_size"),
    (3, lambda x: x[:, :2], "c0 must have shape"),
    (4, lambda x: [x[0][:-1]], "rows a unit"),
    (5, lambda x: [*x, *x], "w_hh must have 1 entries"),
    (6, lambda x: [], "b_ih and b_hh must be given both"),
    (7, lambda x: [x[0].float()], "b_hh must be torch.float64"),
    (7, lambda x: [x[0][:1]], "b_hh must have shape"),
    (9, lambda x: [torch.zeros(16)], "ln must have 4 entries"),
    (11, lambda x: "LSTM2", "unknown mode"),
    (12, lambda x: [0.2, float("nan")], "zoneout must be"),
    (13, lambda x: float("nan"), "recurrent_dropout must be"),
]


@pytest.mark.parametrize(("position", "change", "message"), LAYER)
def test_layer(position: int, change: Any, message: str) -> None:
    problem = Problem("LSTM")
    arguments = [*problem.split(*problem.flat), None, "LSTM", [0.0, 0.0], 0.0, True, False]
    output, h_n, c_n, *saved = OPS.rnn_layer(*arguments, True)
    given = [output, h_n, c_n, output, *saved]
    check_layer(*arguments)
    check_layer_backward(*given, *arguments, True, True)
    arguments[position] = change(arguments[position])
    for call in (
        lambda: OPS.rnn_layer(*arguments, True),
        lambda: OPS.rnn_layer_backward(*given, *arguments, True, True),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


@pytest.mark.parametrize("position", [0, 2, 3, 4, 5, 6, 7])
def test_meta_tensor_among_others(position: int) -> None:
    """torch would take the operator's shapes for its results."""

    def meta(x: Any) -> Any:
        return [y.to("meta") for y in x] if isinstance(x, list) else x.to("meta")

    def calls(arguments: list[Any]) -> list[Any]:
        options = ("LSTM", [0.0, 0.0])
        h, c = (x[0] if isinstance(x, Tensor) else x for x in arguments[2:4])
        return [
            lambda: OPS.rnn_layer(*arguments, [], [], None, *options, 0.0, True, False, True),
            lambda: OPS.rnn_sequence(*arguments, [], None, *options, 0, True, True),
            lambda: OPS.rnn_cell(
                arguments[0][:3], h, c, *(x[0] for x in arguments[4:8]), "LSTM", False
            ),
        ]

    problem = Problem("LSTM")
    arguments = [
        [y.detach() for y in x] if isinstance(x, list) else None if x is None else x.detach()
        for x in problem.split(*problem.flat)[:8]
    ]
    for call in calls(arguments):
        call()
    arguments[position] = meta(arguments[position])
    for call in calls(arguments):
        with pytest.raises(RuntimeError, match="on the same device"):
            call()
    if position == 0:
        case = Case("GRU")
        with pytest.raises(RuntimeError, match="on the same device"):
            OPS.rnn_scan(
                **{**case.arguments, "h0": case.arguments["h0"].to("meta")},
                **case.options, save=True,
            )  # fmt: skip
