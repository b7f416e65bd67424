"""Parity of the additive attention kernels with the reference in float64: cases, and an outcome."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .parity import error_ratios

# The mask's shape, if any, and whether there is a gradient of the weights.
FEATURES: dict[str, tuple[str, bool]] = {
    "plain": ("", False),
    "mask of all": ("bqk", True),
    "mask of keys": ("b1k", False),
    "mask of a batch": ("1qk", True),
}
# batch, queries, keys, width, width of values.
_SMALL = [(2, 9, 35, 20, 12), (1, 1, 20, 70, 5), (2, 10, 7, 65, 33), (2, 3, 0, 4, 4)]
_LARGE = [(3, 61, 75, 200, 130), (16, 1, 50, 512, 512), (2, 17, 300, 65, 33), (2, 3, 0, 4, 4)]
RESULTS = ("out", "weights", "grad_q", "grad_k", "grad_value", "grad_v")


@dataclass(frozen=True)
class Case:
    feature: str
    dtype: str
    shape: tuple[int, ...]
    smoke: bool = False  # one of the few that are run first

    @property
    def group(self) -> str:
        return self.dtype

    @property
    def name(self) -> str:
        return f"{self.dtype} {self.feature} {'x'.join(map(str, self.shape))}"


def cases(interpreted: bool) -> Iterator[Case]:
    # The interpreter rounds bfloat16 wrongly where the mantissa overflows.
    for dtype in ("float32", "float16") if interpreted else ("float32", "bfloat16", "float16"):
        # float16 differs in what is rounded, not in what is computed.
        brief = dtype == "float16"
        for feature in ["mask of all"] if brief else FEATURES:
            for n, shape in enumerate(_SMALL if interpreted else _LARGE):
                smoke = (dtype, feature, n) == ("bfloat16", "mask of all", 0)
                yield Case(feature, dtype, shape, smoke)


def arguments(case: Case, device: str) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The gradients of the results; q, k, value, v and the mask."""
    batch, tq, tk, dim, value_dim = case.shape
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(sum(case.shape))
    pattern, of_weights = FEATURES[case.feature]

    def new(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, dtype)

    mask = None
    if pattern:
        sizes = {"b": batch, "q": tq, "k": tk, "1": 1}
        mask = torch.rand([sizes[x] for x in pattern], generator=generator) > 0.3
        mask[:, :1] &= mask.shape[1] == 1  # a query that sees nothing
        mask = mask.to(device)
    inputs = [new(batch, tq, dim), new(batch, tk, dim), new(batch, tk, value_dim), new(dim), mask]
    upstream = [new(batch, tq, value_dim), new(batch, tq, tk).float() if of_weights else None]
    return upstream, inputs


def run(case: Case, device: str) -> dict[str, float]:
    """Error of each result over the allowed error; all must be at most 1."""
    from ..reference import additive_attention as reference
    from . import additive

    def both(module: Any, dtype: torch.dtype | None = None) -> list[Tensor]:
        def widened(x: Tensor | None) -> Tensor | None:
            return x if x is None or not x.is_floating_point() else x.to(dtype or x.dtype)

        upstream, (q, k, value, v, mask) = ([*map(widened, xs)] for xs in arguments(case, device))
        out, weights = module.additive_attention_forward(q, k, value, v, mask)
        return [
            out, weights,
            *module.additive_attention_backward(*upstream, q, k, value, v, weights, mask),
        ]  # fmt: skip

    exact, plain = both(reference, torch.float64), both(reference)
    batch, tq, tk, _, value_dim = case.shape
    # Sums of that many random terms, each a difference of products of values.
    terms = dict(zip(RESULTS[2:], (tk, tq, tq, batch * tq * tk)))
    sizes = {name: (max(1, n) * value_dim) ** 0.5 for name, n in terms.items()}
    return error_ratios(RESULTS, both(additive), plain, exact, sizes)
