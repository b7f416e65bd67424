"""How far results may be from exact ones: twice as far as plain PyTorch's, and a few ulp."""

from collections.abc import Iterable

import torch
from torch import Tensor


def error_ratios(
    names: Iterable[str],
    ours: Iterable[Tensor],
    plain: Iterable[Tensor],
    exact: Iterable[Tensor],
    sizes: dict[str, float] | None = None,
) -> dict[str, float]:
    """Error over the allowed, for each result.

    ``sizes``: of numbers that cancel in making a result, where they are larger than it and 1.
    """
    ratios = {}
    for name, x, y, z in zip(names, ours, plain, exact):
        x, y = x.detach().cpu(), y.cpu()
        infinite = z == -torch.inf
        if x.shape != z.shape or x.dtype != y.dtype or not torch.equal(x == -torch.inf, infinite):
            ratios[name] = float("inf")
        elif z.numel():
            # For float64 the exact result is of the same precision: several ulp off itself.
            ulps, eps = 32 if y.dtype == torch.float64 else 4, torch.finfo(y.dtype).eps
            x, y, z = (r.double().masked_fill(infinite, 0) for r in (x, y, z))
            ulp = eps * z.abs().max().clamp(min=(sizes or {}).get(name, 1.0))
            allowed = 2 * (y - z).abs().max() + ulps * ulp
            ratio = ((x - z).abs().max() / allowed).item()
            ratios[name] = ratio if ratio == ratio else float("inf")
    return ratios
