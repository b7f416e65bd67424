"""What the modules add to torch's: checks of the options, layer-norm parameters, their names."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from ..ops.registration import autocasting as autocasting

SERVED_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def probability(name: str, value: object) -> float:
    """``value`` as a float in [0, 1), else ValueError."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError(f"{name} should be a number in range [0, 1), got {value!r}")
    return float(value)


def zoneout_pair(value: float | Sequence[float], mode: str) -> tuple[float, float]:
    """Zoneout of h and of c. One number goes for both; a pair only an LSTM can take."""
    if value == 0:  # a constant, that torch.compile would otherwise make an input of the graph
        return 0.0, 0.0
    if isinstance(value, (tuple, list)):
        if mode != "LSTM" or len(value) != 2:
            raise ValueError(
                f"zoneout should be a number, or for LSTM a pair of numbers (h, c), got {value!r}"
            )
        return probability("zoneout", value[0]), probability("zoneout", value[1])
    rate = probability("zoneout", value)
    return rate, rate if mode == "LSTM" else 0.0


def flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")
    return value


def is_mask(x: Tensor, query: Tensor) -> bool:
    return isinstance(x, Tensor) and x.dtype in (torch.bool, torch.float32, query.dtype)


def norm_names(mode: str, suffix: str = "") -> list[str]:
    """Names of one direction's layer-norm parameters, in the order that ops.rnn_layer takes."""
    names = ["weight_ln_ih", "weight_ln_hh"]
    if mode == "LSTM":
        names += ["weight_ln_cell", "bias_ln_cell"]
    return [name + suffix for name in names]


def add_norms(module: Module, names: list[str], like: Any, hidden_size: int) -> None:
    """Registers γ = 1 and β = 0; those of the gates are as long as the weight ``like`` has rows."""
    for name in names:
        size = hidden_size if "_cell" in name else like.shape[0]
        module.register_parameter(name, Parameter(like.new_empty(size)))
    reset_norms(module, names)


@torch.no_grad()
def reset_norms(module: Module, names: list[str]) -> None:
    for name in names:
        getattr(module, name).fill_(float(name.startswith("weight")))


def options_repr(module: Module, names: Sequence[str]) -> str:
    """``, name=value`` for each option that differs from its default, the class attribute."""

    def changed() -> Iterator[str]:
        for name in names:
            value = getattr(module, name)
            if value != getattr(type(module), name):
                yield f", {name}={value}"

    return "".join(changed())
