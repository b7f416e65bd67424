"""How far results may be from exact ones: twice as far as plain PyTorch's, and a few ulp."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

TF32_EPS = 2.0**-10  # of a product's operands, where TF32 is allowed


@contextmanager
def recurrent_tf32(allowed: bool) -> Iterator[None]:
    """Whether float32 products of recurrent layers may be rounded to TF32, inside."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def error_ratios(
    names: Iterable[str],
    ours: Iterable[Tensor],
    plain: Iterable[Tensor],
    exact: Iterable[Tensor],
    sizes: dict[str, float] | None = None,
    eps: float | None = None,
) -> dict[str, float]:
    """Error over the allowed, for each result.

    ``sizes``: of numbers that cancel in making a result, where they are larger than it and 1.
    ``eps``: of products' operands, where they are rounded more than the results' type says.
    """
    ratios = {}
    for name, x, y, z in zip(names, ours, plain, exact):
        x = x.detach()
        infinite = z == -torch.inf
        if x.shape != z.shape or x.dtype != y.dtype or not torch.equal(x == -torch.inf, infinite):
            ratios[name] = float("inf")
        elif z.numel():
            # For float64 the exact result is of the same precision: several ulp off itself.
            ulps, ulp = 32 if y.dtype == torch.float64 else 4, eps or torch.finfo(y.dtype).eps
            x, y, z = (r.double().masked_fill(infinite, 0) for r in (x, y, z))
            ulp = ulp * z.abs().max().clamp(min=(sizes or {}).get(name, 1.0))
            allowed = 2 * (y - z).abs().max() + ulps * ulp
            ratio = ((x - z).abs().max() / allowed).item()
            ratios[name] = ratio if ratio == ratio else float("inf")
    return ratios
