"""What torch's modules reject, ours reject with the same exception and the same words."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.utils.rnn import pack_padded_sequence

import fastseq
from tests.nn.oracle import CELLS, LAYERS

X = torch.randn(4, 3, 5)  # (T, B, I)
H = torch.randn(1, 3, 6)
PACKED = pack_padded_sequence(X, torch.tensor([4, 2, 1]))


def outcome(call: Callable[[], Any]) -> tuple[type, str]:
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return type(None), ""


def same_rejection(build: Callable[[Any], Callable[[], Any]]) -> None:
    expected, found = outcome(build(torch.nn)), outcome(build(fastseq.nn))
    assert expected[0] is not type(None), "torch accepts this"
    assert found == expected


CONSTRUCTIONS: dict[str, tuple[tuple, dict[str, Any]]] = {
    "no-hidden": ((5, 0), {}),
    "no-input": ((0, 6), {}),
    "negative-hidden": ((5, -1), {}),
    "float-hidden": ((5, 6.0), {}),
    "float-input": ((5.0, 6), {}),
    "no-layers": ((5, 6, 0), {}),
    "bias-int": ((5, 6), {"bias": 1}),
    "batch-first-int": ((5, 6), {"batch_first": 1}),
    "dropout-above": ((5, 6), {"dropout": 1.5}),
    "dropout-below": ((5, 6), {"dropout": -0.5}),
    "dropout-bool": ((5, 6), {"dropout": True}),
    "proj-negative": ((5, 6), {"proj_size": -1}),
    "proj-too-large": ((5, 6), {"proj_size": 6}),
    "unknown-argument": ((5, 6), {"nonsense": 1}),
    "missing": ((5,), {}),
    "dtype": ((5, 6), {"dtype": "float"}),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("case", CONSTRUCTIONS)
def test_construction(name: str, case: str) -> None:
    args, kwargs = CONSTRUCTIONS[case]
    same_rejection(lambda nn: lambda: getattr(nn, name)(*args, **kwargs))


def test_nonlinearity() -> None:
    same_rejection(lambda nn: lambda: nn.RNN(5, 6, nonlinearity="sin"))
    same_rejection(lambda nn: lambda: nn.RNNCell(5, 6, nonlinearity="sin")(X[0]))


def test_dropout_warning_is_torchs() -> None:
    with pytest.warns(UserWarning, match="non-zero dropout expects num_layers greater than 1"):
        fastseq.LSTM(5, 6, dropout=0.5)


def both(name: str, change: Callable[[Tensor], Tensor]) -> Any:
    """The state of H's shape after a change; twice for LSTM."""
    return (change(H), change(H)) if name.startswith("LSTM") else change(H)


CALLS: dict[str, Callable[[str], tuple]] = {
    "1-D": lambda name: (X[0, 0],),
    "4-D": lambda name: (X[None],),
    "none": lambda name: (None,),
    "list": lambda name: ([X],),
    "integers": lambda name: (X.long(),),
    "wider": lambda name: (torch.randn(4, 3, 7),),
    "float64": lambda name: (X.double(),),
    "no-steps": lambda name: (X[:0],),
    "no-steps-or-sequences": lambda name: (X[:0, :0],),
    "meta": lambda name: (X.to("meta"),),
    "sparse": lambda name: (X.to_sparse(),),
    "hx-string": lambda name: (X, "hx"),
    "hx-1-D": lambda name: (X, both(name, lambda h: h[0, 0])),
    "hx-2-D": lambda name: (X, both(name, lambda h: h[0])),
    "hx-batch": lambda name: (X, both(name, lambda h: h[:, :2])),
    "hx-width": lambda name: (X, both(name, lambda h: h[..., :2])),
    "hx-layers": lambda name: (X, both(name, lambda h: h.expand(2, 3, 6))),
    "hx-meta": lambda name: (X, both(name, lambda h: h.to("meta"))),
    "hx-float64": lambda name: (X, both(name, lambda h: h.double())),
    "hx-three": lambda name: (X, (H, H, H)),
    "hx-one": lambda name: (X, (H,)),
    "unbatched-hx-3-D": lambda name: (X[0], both(name, lambda h: h)),
    "unbatched-hx-width": lambda name: (X[0], both(name, lambda h: h[0, :, :2])),
    "packed-hx-batch": lambda name: (PACKED, both(name, lambda h: h[:, :2])),
    "packed-hx-2-D": lambda name: (PACKED, both(name, lambda h: h[0])),
    "packed-float64": lambda name: (PACKED.double(),),
    "packed-hx-float64": lambda name: (PACKED, both(name, lambda h: h.double())),
    "packed-wider": lambda name: (pack_padded_sequence(X[..., :3], torch.tensor([4, 2, 1])),),
    "too-many": lambda name: (X, both(name, lambda h: h), None),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("case", CALLS)
def test_call(name: str, case: str) -> None:
    arguments = CALLS[case](name)

    def build(nn: Any) -> Callable[[], Any]:
        module = getattr(nn, name)(5, 6)
        return lambda: module(*arguments)

    expected, found = outcome(build(torch.nn)), outcome(build(fastseq.nn))
    assert expected[0] is not type(None), "torch accepts this"
    if case == "too-many":  # the words count the arguments; ours has one more
        assert found[0] is expected[0]
    else:
        assert found == expected


def test_projection_state() -> None:
    same_rejection(lambda nn: lambda: nn.LSTM(5, 6, proj_size=2)(X, (H, H)))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_parameters_of_mixed_types(name: str, dtype: torch.dtype) -> None:
    def build(nn: Any) -> Callable[[], Any]:
        module = getattr(nn, name)(5, 6)
        module.weight_hh_l0 = Parameter(module.weight_hh_l0.to(dtype))
        return lambda: module(X)

    same_rejection(build)


@pytest.mark.parametrize("name", LAYERS)
def test_parameter_on_another_device(name: str) -> None:
    def build(nn: Any) -> Callable[[], Any]:
        module = getattr(nn, name)(5, 6)
        module.bias_hh_l0 = Parameter(module.bias_hh_l0.to("meta"))
        return lambda: module(X)

    same_rejection(build)


@pytest.mark.parametrize("name", LAYERS)
def test_complex_numbers_go_to_torch(name: str) -> None:
    modules: list[Module] = []
    for nn in (torch.nn, fastseq.nn):
        torch.manual_seed(0)
        modules.append(getattr(nn, name)(5, 6, dtype=torch.complex64))
    x = X.to(torch.complex64)
    assert torch.equal(modules[0](x)[0], modules[1](x)[0])
    extended = getattr(fastseq.nn, name)(5, 6, zoneout=0.1, dtype=torch.complex64)
    with pytest.raises(TypeError, match=r"one dtype out of"):
        extended(x)
    with pytest.raises(TypeError, match=r"lengths="):
        modules[1](x, lengths=[4, 2, 1])


CELL_CALLS: dict[str, Callable[[str], tuple]] = {
    "3-D": lambda name: (X,),
    "none": lambda name: (None,),
    "integers": lambda name: (X[0].long(),),
    "float64": lambda name: (X[0].double(),),
    "wider": lambda name: (torch.randn(3, 7),),
    "meta": lambda name: (X[0].to("meta"),),
    "hx-string": lambda name: (X[0], "hx"),
    "hx-1-D": lambda name: (X[0], both(name, lambda h: h[0, 0])),
    "hx-3-D": lambda name: (X[0], both(name, lambda h: h)),
    "hx-batch": lambda name: (X[0], both(name, lambda h: h[0, :2])),
    "hx-width": lambda name: (X[0], both(name, lambda h: h[0, :, :2])),
    "hx-float64": lambda name: (X[0], both(name, lambda h: h[0].double())),
    "hx-meta": lambda name: (X[0], both(name, lambda h: h[0].to("meta"))),
    "hx-three": lambda name: (X[0], (H[0], H[0], H[0])),
    "hx-one": lambda name: (X[0], (H[0],)),
    "unbatched-hx-2-D": lambda name: (X[0, 0], both(name, lambda h: h[0])),
    "unbatched-hx-width": lambda name: (X[0, 0], both(name, lambda h: h[0, 0, :2])),
}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("case", CELL_CALLS)
def test_cell_call(name: str, case: str) -> None:
    arguments = CELL_CALLS[case](name)

    def build(nn: Any) -> Callable[[], Any]:
        module = getattr(nn, name)(5, 6)
        return lambda: module(*arguments)

    same_rejection(build)


@pytest.mark.parametrize("case", ["batch", "width", "1-D"])
def test_cell_state_of_lstm(case: str) -> None:
    c = {"batch": H[0, :2], "width": H[0, :, :2], "1-D": H[0, 0]}[case]
    same_rejection(lambda nn: lambda: nn.LSTMCell(5, 6)(X[0], (H[0], c)))


LENGTHS: dict[str, Any] = {
    "zero": [4, 0, 1],
    "negative": torch.tensor([4, -2, 1]),
    "nan": torch.tensor([4.0, float("nan"), 1.0]),
    "nan-list": [4.0, float("nan"), 1.0],
    "count": torch.tensor([4, 2]),
    "scalar": torch.tensor(4),
    "string": "421",
}


@pytest.mark.parametrize("case", LENGTHS)
def test_lengths_in_the_words_of_packing(case: str) -> None:
    """As pack_padded_sequence puts it."""
    lengths = LENGTHS[case]
    ordered = case == "count"  # where it checks the number
    expected = outcome(lambda: pack_padded_sequence(X, lengths, enforce_sorted=ordered))
    assert expected[0] is not type(None)
    for name in LAYERS:
        module = getattr(fastseq.nn, name)(5, 6)
        assert outcome(lambda m=module: m(X, lengths=lengths)) == expected


def test_lengths_beyond_the_input() -> None:
    """torch's packing reads past the input here; its unpacking has the words."""
    expected = outcome(
        lambda: torch.nn.utils.rnn.pad_packed_sequence(
            pack_padded_sequence(torch.randn(5, 3, 5), torch.tensor([5, 2, 1])), total_length=4
        )
    )
    assert outcome(lambda: fastseq.GRU(5, 6)(X, lengths=[5, 2, 1])) == expected


def test_lengths_and_packed() -> None:
    with pytest.raises(ValueError, match="not with a PackedSequence"):
        fastseq.GRU(5, 6)(PACKED, lengths=[4, 2, 1])


OPTIONS: list[tuple[type[Exception], dict[str, Any], str]] = [
    (ValueError, {"zoneout": 1.0}, r"zoneout should be a number in range \[0, 1\)"),
    (ValueError, {"zoneout": -0.1}, r"zoneout should be a number in range \[0, 1\)"),
    (ValueError, {"zoneout": "a"}, r"zoneout should be a number in range \[0, 1\)"),
    (ValueError, {"zoneout": (0.1, 0.1, 0.1)}, "zoneout should be a number, or for LSTM a pair"),
    (ValueError, {"recurrent_dropout": 1.0}, r"recurrent_dropout should be a number in range"),
    (TypeError, {"layer_norm": 1}, "layer_norm should be of type bool, got: int"),
    (TypeError, {"recompute": 0}, "recompute should be of type bool, got: int"),
]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("error", "options", "words"), OPTIONS)
def test_own_options(
    name: str, error: type[Exception], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(error, match=words):
        getattr(fastseq, name)(5, 6, **options)


@pytest.mark.parametrize("name", ["RNN", "GRU", "GRUCell", "RNNCell"])
def test_only_lstm_has_a_second_zoneout(name: str) -> None:
    with pytest.raises(ValueError, match="for LSTM a pair"):
        getattr(fastseq.nn, name)(5, 6, zoneout=(0.1, 0.2))
