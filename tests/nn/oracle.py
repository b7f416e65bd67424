"""Modules side by side with torch's, judged by torch's in float64."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastseq

LAYERS = ("RNN", "LSTM", "GRU")
CELLS = ("RNNCell", "LSTMCell", "GRUCell")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INPUT, HIDDEN, STEPS, BATCH = 5, 9, 7, 5
LENGTHS = [3, 7, 1, 5, 3]
ULPS = 8
ULPS_OF_THE_ORACLE = 64  # in float64 the oracle rounds as much, in another order of summing

Run = Callable[..., Any]


def pair(name: str, *args: Any, **kwargs: Any) -> tuple[Module, Module]:
    """Our module and torch's, with the same parameters."""
    torch.manual_seed(1)
    theirs = getattr(torch.nn, name)(*args, **kwargs)
    torch.manual_seed(1)
    ours = getattr(fastseq.nn, name)(*args, **kwargs)
    return ours, theirs


def tensors(value: Any) -> list[Tensor]:
    """The tensors in nested results that have values to compare, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, PackedSequence):
        return [value.data]
    return [t for part in value or () for t in tensors(part)]


def to(value: Any, dtype: torch.dtype) -> Any:
    """A fresh leaf of this dtype for each tensor in nested arguments."""
    if isinstance(value, PackedSequence):
        data, *rest = value
        return PackedSequence(to(data, dtype), *rest)
    if isinstance(value, Tensor):
        strided = torch.empty_strided(value.shape, value.stride(), dtype=dtype)
        return strided.copy_(value.detach()).requires_grad_()
    if isinstance(value, (tuple, list)):
        return type(value)(to(part, dtype) for part in value)
    return value


def results(module: Module, arguments: Sequence[Any], dtype: torch.dtype) -> list[Tensor]:
    """Outputs, then gradients of inputs and parameters for a fixed random upstream gradient."""
    arguments = to(tuple(arguments), dtype)
    torch.manual_seed(3)
    outputs = tensors(module(*arguments))
    generator = torch.Generator().manual_seed(2)
    upstream = [torch.randn(y.shape, generator=generator).to(dtype) for y in outputs]
    inputs = [*tensors(arguments), *module.parameters()]
    grads = torch.autograd.grad(outputs, inputs, upstream, allow_unused=True)
    zero = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)]
    return [*outputs, *zero]


def assert_as_exact(
    ours: Module, theirs: Module, arguments: Sequence[Any], dtype: torch.dtype
) -> None:
    """err(ours) ≤ 2·err(torch) + a few ulp against float64, for outputs and all gradients."""
    arguments = to(tuple(arguments), dtype)
    found = results(ours.to(dtype), arguments, dtype)
    reference = results(theirs.to(dtype), arguments, dtype)
    exact = results(copy.deepcopy(theirs).double(), arguments, torch.float64)
    if dtype.itemsize == 2 and getattr(theirs, "nonlinearity", None) == "relu":
        # Gradients jump where rounding moves a unit to the other side of the kink.
        found, reference, exact = found[:1], reference[:1], exact[:1]
    ulps = ULPS_OF_THE_ORACLE if dtype == torch.float64 else ULPS
    for i, (x, y, z) in enumerate(zip(found, reference, exact, strict=True)):
        assert x.shape == y.shape == z.shape
        assert x.dtype == y.dtype == dtype
        if not z.numel():
            continue
        assert x.isfinite().all()
        mine, torchs = ((a.double() - z).abs().max().item() for a in (x, y))
        few = ulps * torch.finfo(dtype).eps * z.abs().max().clamp(min=0.1).item()
        assert mine <= 2 * torchs + few, f"result {i}: ours {mine:.2e}, torch {torchs:.2e}"


def states(name: str, module: Module, batch: int | None = BATCH) -> Any:
    """Random hx for a layer; unbatched if ``batch`` is None."""
    count = module.num_layers * (2 if module.bidirectional else 1)
    shape = (count,) if batch is None else (count, batch)
    h = torch.randn(*shape, module.proj_size or module.hidden_size)
    return (h, torch.randn(*shape, module.hidden_size)) if name == "LSTM" else h


def padded(module: Module, steps: int = STEPS, batch: int = BATCH) -> Tensor:
    """Random dense input in the module's layout."""
    shape = (batch, steps) if module.batch_first else (steps, batch)
    return torch.randn(*shape, module.input_size)


def packed(module: Module, *, ordered: bool) -> PackedSequence:
    lengths = sorted(LENGTHS, reverse=True) if ordered else LENGTHS
    return pack_padded_sequence(
        padded(module), torch.tensor(lengths), module.batch_first, enforce_sorted=ordered
    )
