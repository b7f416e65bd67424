"""Who looks at the operators that run."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad

# By names of this module, which are found sooner: short calls ask all of this.
_is_compiling = torch.compiler.is_compiling
_innermost_transform = torch._C._functorch.peek_interpreter_stack
_dispatch_modes = torch._C._len_torch_dispatch_stack
_any_requires_grad = torch._C._any_requires_grad

_FUNCTORCH_GRADIENTS = (
    torch._C._functorch.TransformType.Grad,
    torch._C._functorch.TransformType.Jvp,
)


def is_traced() -> bool:
    """Whether a compiler, a transform or a dispatch mode looks at the operators that run.

    Only then must a call go through the registered operator; else the plain function is quicker.
    """
    return _is_compiling() or _innermost_transform() is not None or _dispatch_modes() > 0


def inference(*inputs: Tensor, parameters: Iterable[Tensor | None] = ()) -> bool:
    """Whether a call is neither traced nor differentiated, forwards or backwards."""
    return (
        not is_traced()
        and forward_ad._current_level < 0
        and not (torch.is_grad_enabled() and _any_requires_grad(*inputs, *parameters))
    )


def eager_inference(*inputs: Tensor, parameters: Iterable[Tensor | None] = ()) -> bool:
    """Whether a call on the CPU is neither traced nor differentiated."""
    return inputs[0].is_cpu and inference(*inputs, parameters=parameters)


def plain_autograd_only() -> bool:
    """Whether forward-mode or a torch.func gradient is active: custom operators carry neither."""
    if _is_compiling():
        return False
    if forward_ad._current_level >= 0:
        return True
    stack = torch._C._functorch.get_interpreter_stack()
    return bool(stack) and any(level.key() in _FUNCTORCH_GRADIENTS for level in stack)
