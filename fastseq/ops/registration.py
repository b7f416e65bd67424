"""What operators share whose maths is also written in plain PyTorch (``fastseq.reference``)."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .. import _extension, kernels
from .traced import is_traced

# Whether kernels of ours serve a device; elsewhere torch's own layers are quicker than plain code.
_KERNELS = {"cpu": _extension.load(), "cuda": kernels.available(), "meta": True}


def has_kernels(device_type: str) -> bool:
    """Whether operators run in C++ or Triton on such a device, not in plain PyTorch."""
    return _KERNELS.get(device_type, False)


def register(
    library: Any, name: str, plain: Callable, fake: Callable, check: Callable | None = None
) -> None:
    """The implementations in Python: Triton's on CUDA, ``plain`` where there is no kernel.

    ``check`` is called with the arguments before either.
    """
    library.impl(name, checked(plain, check), "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastseq::{name}", checked(fake, one_device), lib=library)
    if kernels.available() and hasattr(kernels, name):
        library.impl(name, checked(getattr(kernels, name), check), "CUDA")


def checked(function: Callable, check: Callable | None) -> Callable:
    if check is None:
        return function

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        check(*arguments, **options)
        return function(*arguments, **options)

    return call


def one_device(*arguments: Any, **options: Any) -> None:
    """Raises unless tensors share a device, but for int64 on the CPU, which describes them.

    One on the meta device among others would make results of nothing but a shape.
    """
    given = tree_leaves((arguments, options))
    devices = {
        str(x.device)
        for x in given
        if isinstance(x, Tensor) and (x.dtype != torch.int64 or x.device.type != "cpu")
    }
    if len(devices) > 1:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{' and '.join(sorted(devices))}!"
        )


def eager(
    op: Callable, setup_context: Callable, backward: Callable, *, native: bool = False
) -> Callable:
    """``op`` for plain eager calls, without torch.library's generic wrapper.

    That takes longer than attention over a short sequence. Traced calls go through the operator,
    as do calls on the CPU if its gradient there is ``native``, in C++.
    """

    def direct(*arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*arguments)

    def forward(ctx, *arguments):
        results = direct(*arguments)
        setup_context(ctx, arguments, results)
        return results

    # Made by name, which shows as the results' grad_fn.
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(str(op).split(".")[1], (torch.autograd.Function,), methods)

    def call(*arguments: Any) -> Any:
        if is_traced() or (native and arguments[0].is_cpu):
            return op(*arguments)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            return function.apply(*arguments)
        return direct(*arguments)

    return call


def autocasting(device_type: str) -> bool:
    return (
        torch._C._is_any_autocast_enabled()  # no other question where none is
        and torch.amp.is_autocast_available(device_type)
        and torch.is_autocast_enabled(device_type)
    )


def autocast(*tensors: Tensor) -> Iterable[Tensor]:
    """The tensors in the dtype that autocast asks for; float64 stays."""
    device = tensors[0].device.type
    if not autocasting(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return (x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def second_gradients(
    plain: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    upstream: Sequence[Tensor | None],
    grad_gradients: Sequence[Tensor | None],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Gradients of an operator's backward, by differentiating the plain operator twice.

    Args:
        plain: the operator as a function of ``inputs``, those that have a gradient.
        upstream: the gradient of each result.
        grad_gradients: the gradient of each input's gradient.

    Returns:
        The gradients of ``upstream`` and of ``inputs``.
    """
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        given = [None if g is None else g.detach().requires_grad_() for g in upstream]
        pairs = [(y, g) for y, g in zip(plain(*leaves), given) if g is not None]
        first = torch.autograd.grad(
            [y for y, _ in pairs],
            leaves,
            [g for _, g in pairs],
            create_graph=True,
            materialize_grads=True,
        )
        chosen = [
            (f, g) for f, g in zip(first, grad_gradients) if g is not None and f.requires_grad
        ]
        variables = [g for g in given if g is not None] + leaves
        second: Iterator[Tensor | None] = iter([None] * len(variables))
        if chosen:
            fs, gs = zip(*chosen)
            second = iter(torch.autograd.grad(fs, variables, gs, allow_unused=True))
    return [None if g is None else next(second) for g in given], list(second)
