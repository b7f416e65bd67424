"""Whole numbers are real on a card of paper: lengths and indices decide what shapes there are.

PyTorch's operators on them are computed by the host, in the memory that is the card's.
"""

import ctypes
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
OPERATORS = (
    *(f"{name}.{with_}" for name in COMPARISONS for with_ in ("Tensor", "Scalar")),
    *("add.Tensor", "sub.Tensor", "mul.Tensor", "remainder.Scalar", "logical_not", "bitwise_not"),
    *("bitwise_and.Tensor", "bitwise_or.Tensor", "cumsum", "sum", "sum.dim_IntList", "aminmax"),
    *("max", "min", "any", "any.dim", "all", "all.dim", "nonzero", "index_select"),
    *("repeat_interleave.Tensor", "arange.start_out", "fill_.Scalar", "copy_", "add_.Tensor"),
    *("bitwise_or_.Tensor", "bitwise_and_.Tensor", "sub_.Tensor", "masked_fill_.Scalar", "gather"),
    *("index.Tensor", "_index_put_impl_", "isin.Tensor_Tensor", "div.Tensor_mode", "floor_divide"),
    *("where.self", "cat", "clamp", "minimum", "maximum", "random_.from", "random_.to"),
)
LARGE = 1 << 20  # elements that decide no shapes
# Of numbers that nobody computed: the later, the larger.
INDICES = ("argmax", "topk", "max.dim", "sort.stable", "multinomial")


def host(x: Tensor) -> Tensor:
    """The same memory, as a tensor of the host's."""
    storage = x.untyped_storage()
    if not storage.nbytes():
        return torch.empty(x.shape, dtype=x.dtype)
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    whole = torch.frombuffer(memory, dtype=x.dtype)
    return whole.as_strided(x.shape, x.stride(), x.storage_offset())


def _there(x: Any) -> Any:
    return host(x) if isinstance(x, Tensor) and x.is_cuda else x


def _back(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    there = torch.empty_like(x, device="cuda")
    host(there).copy_(x)
    return there


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(lambda x: found.append(x) if isinstance(x, Tensor) else None, values)
    return found


def _compute(library: torch.library.Library, name: str) -> None:
    kernel = torch.library.get_kernel(f"aten::{name}", "CUDA")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
    takes = [str(a.type) == "Tensor" for a in operator._schema.arguments if not a.kwarg_only]

    def run(*args: Any, **kwargs: Any) -> Any:
        # A number that stood for a tensor has been unwrapped on its way here.
        args = tuple(
            torch.tensor(x) if takes[n] and not isinstance(x, Tensor) else x
            for n, x in enumerate(args)
        )
        tensors = _tensors((args, kwargs))
        whole = not any(x.is_floating_point() or x.is_complex() for x in tensors)
        crossing = packet == "copy_" and not (args[0].is_cuda and args[1].is_cuda)
        large = any(x.numel() > LARGE for x in tensors)
        if crossing or large or not (whole or name in INDICES or packet in COMPARISONS):
            return kernel.call_boxed(keys, *args, **kwargs)
        given = list(tree_map(_there, args))
        values = {k: _there(x) for k, x in kwargs.items() if k != "out"}
        if "out" in kwargs:
            values["out"] = torch.empty(0, dtype=kwargs["out"].dtype)
        if name in INDICES and not whole:
            given[0] = torch.arange(given[0].shape[-1], dtype=given[0].dtype).expand_as(given[0])
        result = operator(*given, **values)
        if packet.endswith("_"):  # the host's memory is the card's
            return args[0]
        if "out" in kwargs:
            host(kwargs["out"].resize_(result.shape)).copy_(result)
            return kwargs["out"]
        return tree_map(_back, result)

    library.impl(name, run, "CUDA")


def make_real() -> torch.library.Library:
    """As long as what is returned lives."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that CUDA's own are replaced
        for name in OPERATORS + INDICES:
            _compute(library, name)
    return library
