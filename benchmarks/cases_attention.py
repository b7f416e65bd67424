"""The attention suite, as data: what ``fastseq bench attention`` and ``bench_attention.py`` run."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from .harness import fast_on_cpu

Kind = Literal["attention", "varlen", "decode", "multihead", "encoder", "additive"]


@dataclass(frozen=True)
class Case:
    """One comparison. ``keys`` and ``kv_heads`` default to ``length`` and ``heads``.

    ``mask``: "padding" (keys left out at the end of each sequence, bool), "boolean" (any),
    "bias" (added), "bias with gradient". Modules have embed_dim = heads·head_dim.
    """

    group: str
    kind: Kind
    batch: int
    heads: int
    length: int
    head_dim: int
    train: bool = False
    dtype: torch.dtype = torch.float32
    causal: bool = False
    keys: int = 0
    kv_heads: int = 0
    mask: str = ""
    dropout: float = 0.0
    window: int = 0
    softcap: float = 0.0
    alibi: bool = False
    need_weights: bool = False
    learned_weights: bool = False  # which the loss is also made of
    padded: float = 0.0  # share of padding in a module's batch
    quick: bool = False  # also in the short suite

    @property
    def num_keys(self) -> int:
        return self.keys or self.length

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def baseline(self) -> str:
        """What users run today: torch's function or module, or their own where it has none."""
        return "unfused" if self.softcap or self.kind == "additive" else "torch"

    @property
    def peers(self) -> tuple[str, ...]:
        plain = self.kind == "attention" and not (self.softcap or (self.train and self.mask))
        return ("SDPA flash", "SDPA math", "FlexAttention", "flash-attn") if plain else ()

    @property
    def name(self) -> str:
        heads = f"H{self.heads}" + (f"/{self.kv_heads}" if self.kv_heads else "")
        shape = f"B{self.batch} {heads}"
        if self.length:
            shape += f" S{self.length}" + (f"x{self.keys}" if self.keys else "")
        extras = [
            {"multihead": "MultiheadAttention", "encoder": "encoder layers"}.get(self.kind, ""),
            "causal" if self.causal else "",
            self.mask,
            f"window {self.window}" if self.window else "",
            "ALiBi" if self.alibi else "",
            f"softcap {self.softcap:g}" if self.softcap else "",
            f"dropout {self.dropout}" if self.dropout else "",
            "with weights" if self.need_weights else "",
            "in the loss" if self.learned_weights else "",
            f"{self.padded:.0%} padding" if self.padded else "",
            str(self.dtype).removeprefix("torch.") if self.dtype != torch.float32 else "",
            "train" if self.train else "infer",
        ]
        return " ".join([shape, f"D{self.head_dim}", *filter(None, extras)])


def _lengths_and_masks(dtype: torch.dtype, shapes: list[tuple[int, ...]]) -> Iterator[Case]:
    """Full and causal, forward and with gradients, over shapes (B, H, S, D)."""
    kind = "" if dtype == torch.float32 else f" {str(dtype).removeprefix('torch.')}"
    for causal in (True, False):
        for train in (False, True):
            name = f"{'causal' if causal else 'full'} {'training' if train else 'inference'}{kind}"
            for shape in shapes:
                quick = shape == shapes[1]
                yield Case(name, "attention", *shape, train, dtype, causal, quick=quick)


def _features(base: Case) -> Iterator[Case]:
    """What torch's fused kernel lacks, or pays for with a mask."""
    masked = replace(base, group="masks and biases")
    for mask in ("padding", "boolean", "bias"):
        yield replace(masked, mask=mask)
    yield replace(masked, mask="padding", train=True)
    yield replace(masked, mask="bias with gradient", train=True, quick=True)
    yield replace(base, group="dropout", dropout=0.1, train=True, quick=True)
    shaped = replace(base, group="window, ALiBi, softcap")
    yield replace(shaped, window=128, causal=True)
    yield replace(shaped, window=128, causal=True, train=True)
    yield replace(shaped, alibi=True, causal=True)
    yield replace(shaped, softcap=30.0, causal=True)
    yield replace(shaped, softcap=30.0, causal=True, train=True)
    grouped = replace(base, group="grouped heads", kv_heads=2, causal=True)
    yield grouped
    yield replace(grouped, train=True)


def cpu_suite() -> Iterator[Case]:
    single = torch.float32
    shapes = [
        (1, 8, 128, 64),
        (2, 8, 512, 64),
        (1, 8, 2048, 64),
        (1, 8, 1024, 128),
        (3, 5, 333, 40),
    ]
    yield from _lengths_and_masks(single, shapes)
    for train in (False, True):
        yield Case("small", "attention", 1, 4, 16, 32, train)
        yield Case("small", "attention", 8, 4, 40, 64, train, causal=True)
    brain = torch.bfloat16
    if fast_on_cpu(brain):
        yield from _lengths_and_masks(brain, shapes)
    else:
        for train in (False, True):
            group = "bfloat16 on a CPU without it"
            yield Case(group, "attention", 1, 8, 512, 64, train, brain, causal=True)
    yield from _features(Case("", "attention", 2, 8, 512, 64))
    for train in (False, True):
        yield Case("real sentences, no padding", "varlen", 64, 8, 0, 64, train, quick=train)
    for dtype in (single, brain):
        yield Case("decoding", "decode", 32, 8, 1, 64, dtype=dtype, keys=512, quick=dtype == brain)
        yield Case("decoding", "decode", 4, 32, 1, 128, dtype=dtype, keys=2048, kv_heads=8)
        yield Case("decoding", "decode", 1, 8, 1, 64, dtype=dtype, keys=4096)
    for train in (False, True):
        for weights in (False, True):
            yield Case(
                "MultiheadAttention", "multihead", 8, 8, 128, 64, train, need_weights=weights,
                quick=weights,
            )  # fmt: skip
        if train:
            yield Case(
                "MultiheadAttention", "multihead", 8, 8, 128, 64, train, need_weights=True,
                learned_weights=True,
            )  # fmt: skip
        yield Case("Transformer encoder", "encoder", 8, 8, 128, 64, train)
        yield Case("Transformer encoder", "encoder", 16, 8, 128, 64, train, padded=0.4)
        for shape in ((32, 1, 40, 256), (8, 1, 100, 512)):
            yield Case("additive attention", "additive", *shape, train)
        yield Case("additive attention", "additive", 64, 1, 1, 512, train, keys=50)


def cuda_suite() -> Iterator[Case]:
    brain, single = torch.bfloat16, torch.float32
    shapes = [(32, 16, 512, 64), (4, 16, 4096, 128), (16, 16, 1024, 128), (2, 16, 8192, 128),
              (7, 5, 333, 80)]  # fmt: skip
    yield from _lengths_and_masks(brain, shapes)
    yield from _lengths_and_masks(single, [(4, 8, 512, 64), (2, 8, 2048, 64)])
    yield from _lengths_and_masks(torch.float16, shapes[1:3])
    for train in (False, True):
        yield Case("small", "attention", 16, 8, 64, 64, train, brain)
    yield from _features(Case("", "attention", 4, 16, 2048, 64, dtype=brain))
    for train in (False, True):
        yield Case("real sentences, no padding", "varlen", 256, 8, 0, 64, train, brain, quick=train)
    yield Case("decoding", "decode", 64, 16, 1, 128, dtype=brain, keys=4096, quick=True)
    yield Case("decoding", "decode", 16, 32, 1, 128, dtype=brain, keys=8192, kv_heads=8)
    yield Case("decoding", "decode", 1, 32, 1, 128, dtype=brain, keys=16384, kv_heads=8)
    for train in (False, True):
        for weights in (False, True):
            yield Case(
                "MultiheadAttention", "multihead", 32, 16, 512, 64, train, brain,
                need_weights=weights,
            )  # fmt: skip
        yield Case("Transformer encoder", "encoder", 32, 16, 512, 64, train, brain)
        yield Case("Transformer encoder", "encoder", 64, 16, 256, 64, train, brain, padded=0.4)
        yield Case("additive attention", "additive", 64, 1, 100, 512, train, brain)


def cases(device: torch.device) -> list[Case]:
    """The cases for a device."""
    return list(cuda_suite() if device.type == "cuda" else cpu_suite())
