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
    telling: bool = False  # of the few that say most, which come first on a card
    flex: bool = True  # against FlexAttention too, which compiles for 5 to 20 s

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
        """What may compute the same; what cannot here says so when it is tried."""
        if self.kind == "varlen":
            return ("torch varlen",)
        if self.kind not in ("attention", "decode"):
            return ()
        masked = bool(self.mask or self.window or self.alibi)  # where torch is given one
        weights = self.batch * self.heads * self.length * self.num_keys
        names = {
            "SDPA flash": not (self.softcap or masked),
            "SDPA efficient": not self.softcap,
            "SDPA cuDNN": not self.softcap,
            "SDPA math": not self.softcap and weights <= 1 << 29,  # it holds several times as many
            "FlexAttention": self.flex and not (self.mask or self.dropout),
            "flash-attn": not self.mask,
        }
        return tuple(name for name, serves in names.items() if serves)

    def slopes(self, device: torch.device) -> torch.Tensor:
        """ALiBi's, one a head."""
        return 2.0 ** (-8 / self.heads * torch.arange(1, self.heads + 1, device=device))

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


def _plain(causal: bool, train: bool, dtype: torch.dtype, *shape: int, **options: bool) -> Case:
    group = f"{'causal' if causal else 'full'} {'training' if train else 'inference'}"
    if dtype != torch.float32:
        group += f" {str(dtype).removeprefix('torch.')}"
    return Case(group, "attention", *shape, train, dtype, causal, **options)


def _lengths_and_masks(dtype: torch.dtype, shapes: list[tuple[int, ...]]) -> Iterator[Case]:
    """Full and causal, forward and with gradients, over shapes (B, H, S, D)."""
    for causal in (True, False):
        for train in (False, True):
            for shape in shapes:
                yield _plain(causal, train, dtype, *shape, quick=shape == shapes[1])


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
    """In sizes for a GPU, those that tell most first: it may be stopped at any time."""
    telling = [replace(case, telling=True) for case in _telling()]
    yield from telling
    known = {case.name for case in telling}
    yield from (replace(case, flex=False) for case in _more() if case.name not in known)


def _telling() -> Iterator[Case]:
    half, brain, single = torch.float16, torch.bfloat16, torch.float32
    causal = train = True
    # What models are trained with: torch's flash, cuDNN's and FlexAttention's best case.
    yield _plain(causal, train, brain, 4, 16, 4096, 128)
    # A gradient of a bias, which torch computes unfused or slowly.
    base = Case("", "attention", 4, 16, 2048, 64, dtype=brain, flex=False)
    masked = replace(base, group="masks and biases")
    yield replace(masked, mask="bias with gradient", train=True, quick=True)
    # Long caches, bound by reading alone: heads that share keys, many sequences and one.
    decoding = Case("decoding", "decode", 16, 32, 1, 128, dtype=brain, kv_heads=8, flex=False)
    yield replace(decoding, keys=8192)
    yield replace(decoding, batch=1, keys=16384)
    yield _plain(causal, not train, brain, 4, 16, 4096, 64)
    # Padding: without computing it, and masked.
    yield Case("real sentences, no padding", "varlen", 256, 8, 0, 64, True, brain, quick=True)
    yield replace(masked, mask="padding", train=True)
    yield _plain(causal, train, brain, 1, 16, 16384, 128, flex=False)
    # FlexAttention skips blocks outside a window as we do; torch's SDPA gets a mask.
    shaped = replace(base, group="window, ALiBi, softcap", causal=True)
    yield replace(shaped, batch=2, length=8192, window=1024, flex=True)
    yield replace(shaped, softcap=30.0, flex=True)
    yield _plain(not causal, train, brain, 16, 16, 1024, 128, flex=False)
    yield replace(base, group="grouped heads", kv_heads=2, causal=True, train=True)
    # float32: torch's efficient kernel against TF32 products in threes.
    yield _plain(causal, train, single, 2, 8, 2048, 64, flex=False)
    yield _plain(causal, train, half, 16, 16, 1024, 128, flex=False)
    # No library has it fused.
    yield Case("additive attention", "additive", 64, 1, 100, 512, True, brain)
    yield _plain(not causal, not train, brain, 2, 16, 8192, 128, flex=False)
    yield replace(shaped, batch=2, length=8192, window=1024, train=True)
    yield replace(base, group="dropout", dropout=0.1, train=True)
    yield replace(masked, mask="bias")
    # A whole batch of padded sentences through layers, as users call them.
    yield Case("Transformer encoder", "encoder", 64, 16, 256, 64, True, brain, padded=0.4)


def _more() -> Iterator[Case]:
    brain, single = torch.bfloat16, torch.float32
    shapes = [(32, 16, 512, 64), (4, 16, 4096, 128), (16, 16, 1024, 128), (2, 16, 8192, 128),
              (7, 5, 333, 80)]  # fmt: skip
    yield from _lengths_and_masks(brain, shapes)
    yield from _lengths_and_masks(single, [(4, 8, 512, 64), (2, 8, 2048, 64)])
    yield from _lengths_and_masks(torch.float16, shapes[1:3])
    for train in (False, True):
        yield Case("small", "attention", 16, 8, 64, 64, train, brain)
    yield from _features(Case("", "attention", 4, 16, 2048, 64, dtype=brain))
    yield Case("real sentences, no padding", "varlen", 256, 8, 0, 64, False, brain)
    yield Case("decoding", "decode", 64, 16, 1, 128, dtype=brain, keys=4096, quick=True)
    for train in (False, True):
        for weights in (False, True):
            yield Case(
                "MultiheadAttention", "multihead", 32, 16, 512, 64, train, brain,
                need_weights=weights,
            )  # fmt: skip
        yield Case("Transformer encoder", "encoder", 32, 16, 512, 64, train, brain)
        yield Case("Transformer encoder", "encoder", 64, 16, 256, 64, train, brain, padded=0.4)
    yield Case("additive attention", "additive", 64, 1, 100, 512, False, brain)


def cases(device: torch.device) -> list[Case]:
    """The cases for a device."""
    return list(cuda_suite() if device.type == "cuda" else cpu_suite())
