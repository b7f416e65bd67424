"""Parity of the attention kernels with the reference in float64: the cases, and one's outcome.

Used on a card and under Triton's interpreter by check.py. Sizes are odd, outputs hold NaN before;
all is computed where the kernels run, the reference too.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .parity import error_ratios

# By the group: options in the order of the operator's, masks by their shape, tensors by a flag.
FEATURES: dict[str, dict[str, dict[str, Any]]] = {
    "window": {
        "plain": {},
        "causal": {"window": (-1, 0)},
        "causal, bottom-right": {"window": (-1, 0), "bottom_right": True, "grad_lse": False},
        "window": {"window": (20, 3), "bottom_right": True, "grad_lse": False},
        "window ahead, softcap": {"window": (0, 40), "softcap": 2.0},
        "alibi of a sequence": {"alibi": 2, "window": (-1, 0), "bottom_right": True},
        "large scores": {"size": 9},
        "negative scale": {"scale": -0.3, "window": (-1, 5)},
    },
    "mask": {
        "bool": {"mask": "b1qk", "boolean": True},
        "bool for keys": {"mask": "b11k", "boolean": True, "window": (-1, 0), "dropout_p": 0.3},
        "bias": {"mask": "bhqk", "window": (-1, 2), "dropout_p": 0.2},
        "bias, transposed": {"mask": "bhqk", "transposed": True, "lowest": True},
        "bias of heads": {"mask": "1hqk", "softcap": 1.3, "alibi": 1},
        "bias of all": {"mask": "11qk", "dropout_p": 0.2, "grad_lse": False},
        "bias of keys": {"mask": "1h1k", "window": (-1, 0)},
        "bias of queries": {"mask": "b1q1", "window": (4, 4)},
        "bias, one": {"mask": "1111"},
    },
    "packed": {
        "dropout": {"dropout_p": 0.3, "window": (-1, 0)},
        "dropout of all": {"dropout_p": 1.0},
        "packed": {"packed": True},
        "packed, causal, dropout": {
            "packed": True, "window": (-1, 0), "bottom_right": True, "dropout_p": 0.1,
        },
        "packed, alibi, softcap": {
            "packed": True, "alibi": 1, "window": (30, 10), "softcap": 3.0,
        },
    },
    "decode": {
        "causal": {"window": (-1, 0)},
        "pages": {"window": (-1, 0), "page": 7},
        "no window": {"page": 16, "softcap": 2.0},
        "window, alibi": {"window": (20, 0), "alibi": 1},
        "pages, window, alibi of a sequence": {"window": (9, 2), "alibi": 2, "page": 5},
    },
}  # fmt: skip
# batch, query heads, key heads, queries, keys, width of heads, of values.
_SMALL = [(1, 2, 1, 17, 65, 24, 24), (2, 2, 1, 33, 20, 80, 20), (1, 2, 2, 65, 17, 64, 16)]
_EDGES = [(1, 1, 1, 1, 130, 64, 64), (1, 3, 3, 20, 1, 1, 3), (2, 1, 1, 3, 0, 4, 4)]
_WIDE = (2, 4, 2, 130, 257, 64, 64)  # of every feature on a card
# What differs in the kernels' code or walk: widths, few queries or keys, none, many of both.
_CARD = [
    (1, 6, 2, 515, 301, 128, 128), (3, 2, 1, 77, 333, 80, 24), (1, 2, 2, 200, 190, 256, 256),
    (1, 1, 1, 1, 1000, 128, 64), (2, 4, 4, 1, 1, 1, 1), (2, 4, 1, 600, 5, 40, 72),
    (1, 1, 1, 3, 0, 16, 16), (2, 8, 2, 1024, 1024, 64, 64),
]  # fmt: skip
# Of decoding, where keys stands for the capacity of each cache.
_SMALL_DECODE = [(2, 4, 2, 1, 70, 24, 24), (3, 2, 1, 3, 50, 64, 20), (2, 9, 1, 2, 33, 16, 80)]
_EDGES_DECODE = [(1, 1, 1, 1, 65, 1, 1), (2, 2, 2, 5, 3, 40, 40)]
_WIDE_DECODE = (3, 8, 2, 1, 5000, 128, 128)
_CARD_DECODE = [
    (2, 6, 6, 3, 515, 64, 64), (70, 4, 1, 1, 300, 80, 40), (2, 32, 1, 4, 1000, 256, 256),
    (1, 2, 1, 1, 1, 16, 16),
]  # fmt: skip
RESULTS = "out", "lse", "grad_q", "grad_k", "grad_v", "grad_mask", "weights", "mean_weights"
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Case:
    family: str  # of features
    feature: str
    dtype: str
    shape: tuple[int, ...]
    layout: int  # 0: as the shape says; 1: tokens before heads; 2: a slice of something wider
    tile: int = -1  # which of a kernel's list; -1: what is the first
    weights: bool = True  # whether they are made too
    smoke: bool = False  # one of the few that are run first

    @property
    def group(self) -> str:
        return f"{self.family} {self.dtype}"

    @property
    def name(self) -> str:
        shape = "x".join(map(str, self.shape))
        tile = "" if self.tile < 0 else f" tile {self.tile}"
        return f"{self.group} {self.feature} {shape} layout {self.layout}{tile}"


def cases(interpreted: bool) -> Iterator[Case]:
    """Features, shapes and types, crossed where that changes the code; the interpreter is slow."""
    return _interpreted_cases() if interpreted else _card_cases()


def _interpreted_cases() -> Iterator[Case]:
    for family, features in FEATURES.items():
        decode = family == "decode"
        small, edges = (_SMALL_DECODE, _EDGES_DECODE) if decode else (_SMALL, _EDGES)
        # The interpreter rounds bfloat16 wrongly where the mantissa overflows.
        for dtype in ("float32", "float16"):
            for n, feature in enumerate(features):
                if dtype == "float32":
                    shapes = [small[n % len(small)], edges[n % len(edges)]]
                else:  # differs in what is rounded, not in what is computed
                    shapes = [small[n % len(small)]] if n % 2 == 0 else []
                for m, shape in enumerate(shapes):
                    yield Case(family, feature, dtype, shape, (n + m) % 3)


def _card_cases() -> Iterator[Case]:
    first = {"plain", "causal", "bias", "dropout", "packed, causal, dropout", "pages"}
    for family, features in FEATURES.items():
        decode = family == "decode"
        for n, feature in enumerate(features):
            # Each feature in one type, in turn: it is the same code in all.
            smoke = feature in first
            dtype = "bfloat16" if smoke else DTYPES[n % 3]
            shape = _WIDE_DECODE if decode else _WIDE
            weights = feature in ("causal", "bias", "bool")
            yield Case(family, feature, dtype, shape, n % 3, weights=weights, smoke=smoke)
        for n, shape in enumerate(_CARD_DECODE if decode else _CARD):
            feature = list(features)[n % 2]
            if family in ("window", "decode"):
                yield Case(family, feature, DTYPES[n % 3], shape, (n + 1) % 3, weights=False)
    for dtype in DTYPES:
        # Aligned rows, which descriptors fetch; and every tile that a tuner may choose.
        for dim in (64, 128, 256):
            shape = (1, 2, 1, 200, 330, dim, dim)
            for tile in range(4):
                yield Case("window", "causal", dtype, shape, 0, tile, weights=False)
    yield Case("window", "causal", "float32", _WIDE, 0)
    yield Case("decode", "causal", "float32", _WIDE_DECODE, 0)
    yield Case("mask", "bias", "float32", _WIDE, 0, weights=False)


def _random(
    generator: torch.Generator, dtype: torch.dtype, device: str, layout: int, *size: int
) -> Tensor:
    """Laid out on the device: a copy of a slice would be dense."""
    x = torch.randn(*size, generator=generator).to(device, dtype)
    if layout == 1 and len(size) == 4:
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == 2 and len(size) == 4:
        wide = x.new_empty(*size[:3], size[3] + 3)
        wide[..., 1:-2] = x
        return wide[..., 1:-2]
    return x


def _mask(
    chosen: dict[str, Any], generator: torch.Generator, dtype: torch.dtype, device: str,
    full: tuple[int, ...],
) -> Tensor | None:  # fmt: skip
    if "mask" not in chosen:
        return None
    sizes = dict(zip("bhqk", full))
    mask = _random(
        generator, dtype, device, 0, *(sizes.get(letter, 1) for letter in chosen["mask"])
    )
    if chosen.get("boolean"):
        return mask > -0.3
    if chosen.get("lowest"):
        mask[..., ::3] = torch.finfo(dtype).min
        mask[:, :, 1::5] = -torch.inf
    return mask.mT.contiguous().mT if chosen.get("transposed") else mask


def _bounds(n: int, sequences: int, generator: torch.Generator) -> Tensor:
    """n tokens cut into sequences, some of them empty."""
    cuts = torch.randint(n + 1, (sequences - 1,), generator=generator).sort()[0]
    return torch.cat([torch.zeros(1), cuts, torch.full((1,), n)]).int()


def arguments(case: Case, device: str) -> tuple[dict[str, Any], tuple[Any, ...], bool]:
    """Tensors by name, the operators' options, and whether the mask's gradient is wanted."""
    chosen = FEATURES[case.family][case.feature]
    batch, heads, key_heads, sq, sk, dim, value_dim = case.shape
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(sum(case.shape))
    packed = chosen.get("packed", False)
    rows = 1 if packed else batch

    def new(*size: int) -> Tensor:
        return _random(generator, dtype, device, case.layout, *size)

    bounds: list[Tensor | None] = [None, None]
    longest = [sq, sk]
    if packed:
        cut = [_bounds(n, batch + 2, generator) for n in (sq, sk)]
        bounds, longest = [b.to(device) for b in cut], [int(b.diff().max()) for b in cut]
    alibi = chosen.get("alibi", 0)
    slopes = _slopes(alibi, batch, heads, generator, device)
    mask = _mask(chosen, generator, dtype, device, (batch, heads, sq, sk))
    tensors = {
        "grad_out": new(rows, heads, sq, value_dim),
        "grad_lse": new(rows, heads, sq).float() if chosen.get("grad_lse", True) else None,
        "q": new(rows, heads, sq, dim).mul_(chosen.get("size", 1)),
        "k": new(rows, key_heads, sk, dim).mul_(chosen.get("size", 1)),
        "v": new(rows, key_heads, sk, value_dim),
        "mask": mask,
        "cu_seqlens_q": bounds[0],
        "cu_seqlens_k": bounds[1],
        "alibi_slopes": slopes,
    }
    options = (
        chosen.get("scale", dim**-0.5), *chosen.get("window", (-1, -1)),
        chosen.get("bottom_right", False), chosen.get("softcap", 0.0),
        chosen.get("dropout_p", 0.0), *longest,
    )  # fmt: skip
    return tensors, options, mask is not None and mask.is_floating_point()


def _slopes(
    dims: int, batch: int, heads: int, generator: torch.Generator, device: str
) -> Tensor | None:
    if not dims:
        return None
    return torch.rand((batch, heads)[2 - dims :], generator=generator).to(device)


def _exact(tensors: dict[str, Any]) -> dict[str, Any]:
    return {
        name: x.double() if x is not None and x.is_floating_point() else x
        for name, x in tensors.items()
    }


def decode_arguments(case: Case, device: str) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Tensors by name, and the operator's options; lengths from 0 to the capacity."""
    chosen = FEATURES[case.family][case.feature]
    batch, heads, key_heads, sq, capacity, dim, value_dim = case.shape
    generator = torch.Generator().manual_seed(sum(case.shape))
    page = chosen.get("page", 0)
    blocks = -(-capacity // page) if page else 0
    rows = (batch * blocks + 3, page) if page else (batch, capacity)
    table = None
    if page:
        table = torch.randperm(rows[0], generator=generator)[: batch * blocks]
        table = table.view(batch, blocks).int().to(device)
    lengths = torch.randint(capacity + 1, (batch,), generator=generator).int()
    lengths[0], lengths[-1] = (capacity, 0) if batch > 1 else (capacity, capacity)

    def new(*size: int) -> Tensor:
        return _random(generator, getattr(torch, case.dtype), device, case.layout, *size)

    tensors = {
        "q": new(batch, heads, sq, dim),
        "k_cache": new(rows[0], key_heads, rows[1], dim),
        "v_cache": new(rows[0], key_heads, rows[1], value_dim),
        "cache_seqlens": lengths.to(device),
        "block_table": table,
        "alibi_slopes": _slopes(chosen.get("alibi", 0), batch, heads, generator, device),
    }
    window = chosen.get("window", (-1, -1))
    return tensors, (dim**-0.5, *window, chosen.get("softcap", 0.0))


def _run_decode(case: Case, device: str) -> dict[str, float]:
    from ..reference import attention as reference
    from . import attention

    tensors, options = decode_arguments(case, device)
    exact = reference.attention_decode(*_exact(tensors).values(), *options)
    plain = reference.attention_decode(*tensors.values(), *options)
    ours = attention.attention_decode(*tensors.values(), *options)
    return error_ratios(RESULTS, ours, plain, exact)


def run(case: Case, device: str) -> dict[str, float]:
    """Error of each result over the allowed error; all must be at most 1."""
    from ..reference import attention as reference
    from . import attention

    tile = "16,16" if device == "cpu" else "" if case.tile < 0 else str(case.tile)
    os.environ["FASTSEQ_ATTENTION_TILE"] = tile
    if case.family == "decode":
        return _run_decode(case, device)
    tensors, options, need_mask = arguments(case, device)
    seed = torch.tensor((1 << 40) + 7)

    def both(module: Any, given: dict[str, Any]) -> list[Tensor]:
        given = dict(given)
        upstream = given.pop("grad_out"), given.pop("grad_lse")
        q, k, v, *context = given.values()
        out, *sums = module.attention_forward(q, k, v, *context, seed, *options)
        grads = module.attention_backward(
            *upstream, q, k, v, out, *sums, *context, seed, *options, need_mask
        )
        mask, packed, _, slopes = context
        # Of packed sequences they would be no matrix.
        each = (False, True) if case.weights and packed is None else ()
        weights = [
            module.attention_weights(q, k, *sums, mask, slopes, seed, *options, mean)
            for mean in each
        ]
        return [out, sums[0], *grads, *weights]

    exact = both(reference, _exact(tensors))
    plain = both(reference, tensors)
    ours = both(attention, tensors)
    batch, heads, _, sq, sk, _, value_dim = case.shape
    # The gradient of a score is a small difference of products of this size, of which delta holds
    # one made from the rounded output; an element of a broadcast mask sums many.
    sizes = dict.fromkeys(RESULTS[2:6], value_dim**0.5)
    if need_mask:
        terms = batch * heads * sq * sk / max(1, exact[5].numel())
        sizes["grad_mask"] *= max(1, terms) ** 0.5
    return error_ratios(RESULTS, ours, plain, exact, sizes)
