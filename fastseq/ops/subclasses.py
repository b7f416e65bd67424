"""Tensors that are more than their memory: who is asked before a kernel reads it."""

import sys
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import (
    _get_current_function_mode_stack,
    _get_overloaded_args,
    has_torch_function,
)
from torch.utils._device import DeviceContext


def overridden(given: tuple[Tensor | None, ...]) -> bool:
    """Whether a subclass's ``__torch_function__`` or a mode wants to see a call with these.

    torch.set_default_device, a mode too, has nothing to say about calls with tensors.
    """
    if not has_torch_function(given):
        return False
    modes = _get_current_function_mode_stack()
    return any(not isinstance(m, DeviceContext) for m in modes) or any(
        type(x) is not Tensor for x in _get_overloaded_args(given)
    )


def is_distributed(x: Tensor) -> bool:
    """Whether x is a DTensor: torch knows how to cut its own operators, not ours."""
    module = sys.modules.get("torch.distributed.tensor")  # it takes a second to import
    return module is not None and isinstance(x, module.DTensor)


def has_values(x: Tensor) -> bool:
    """Whether x is more than a shape: neither on the meta device nor fake."""
    return not x.is_meta and not isinstance(x, FakeTensor)


def causal_bias(mask: Any) -> Any:
    """``mask`` if it is one of torch.nn.attention.bias, whose memory holds nothing; else None."""
    if mask is None or type(mask) is Tensor:
        return None
    module = sys.modules.get("torch.nn.attention.bias")
    known = module is not None and isinstance(mask, module.CausalBias)
    return mask if known else None
