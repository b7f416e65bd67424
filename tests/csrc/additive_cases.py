"""Random arguments of additive attention, and the comparison with plain PyTorch in float64."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fastseq.ops.additive_attention  # noqa: F401 (registers the operators)
from fastseq.reference import additive_attention as reference
from fastseq.reference.rnn import accumulate_dtype

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
RESULTS = ("out", "weights", "grad_q", "grad_k", "grad_value", "grad_v")

# batch, queries, keys, width, width of values
SHAPES = (
    (1, 1, 1, 1, 1),
    (2, 5, 7, 3, 4),
    (3, 1, 50, 64, 130),  # a decoder's step
    (1, 70, 33, 37, 16),  # few blocks of keys: queries are cut in parts
    (2, 19, 45, 96, 81),
    (1, 3, 300, 20, 9),
    (2, 4, 9, 200, 300),
    (2, 0, 5, 4, 4),
    (2, 5, 0, 4, 4),
    (0, 5, 7, 4, 4),
    (2, 3, 4, 0, 5),
)

# How large q and k are, the shape of the mask (b, q, k: full), and how much of it is left out.
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "full-mask": {"mask": "bqk", "left_out": 0.3},
    "padding": {"mask": "b1k", "lengths": True},
    "shared-mask": {"mask": "1qk", "left_out": 0.8},
    "key-mask": {"mask": "11k", "left_out": 0.5},
    "small": {"scale": 0.02, "v_scale": 3.0},
    "wide": {"scale": 5.0},
    "saturated": {"scale": 30.0, "mask": "b1k", "lengths": True},
    "opposite": {"opposite": 30.0},
    "far-opposite": {"opposite": 100.0},
    "outliers": {"outliers": (25.0, -100.0, 3e4)},
    "positive-v": {"positive": True},
}


@dataclass
class Case:
    shape: tuple[int, ...]
    feature: str
    dtype: torch.dtype
    layout: int = 0  # how tensors lie in memory
    grad_weights: bool = True

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(sum(self.shape) + len(self.feature))
        batch, queries, keys, width, value_width = self.shape
        chosen = FEATURES[self.feature]

        def random(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, dtype=torch.float64)

        def stored(x: Tensor) -> Tensor:
            x = x.to(self.dtype)
            if self.layout == 1:  # tokens before the batch
                return x.transpose(0, 1).contiguous().transpose(0, 1)
            if self.layout == 2:  # a slice of something wider
                wide = torch.full((*x.shape[:2], x.shape[2] + 3), torch.nan, dtype=self.dtype)
                wide[..., 1:-2] = x
                return wide[..., 1:-2]
            return x

        scale = chosen.get("scale", 1.0)
        q, k = random(batch, queries, width) * scale, random(batch, keys, width) * scale
        if far := chosen.get("opposite"):  # sums are moderate, what is summed is not
            q, k = q + far, k - far
        for value in chosen.get("outliers", ()):
            for x in (q, k):
                if x.numel():
                    x.view(-1)[torch.randint(x.numel(), (1,), generator=generator)] = value
        v = random(width) * chosen.get("v_scale", 1.0) / max(width, 1) ** 0.5
        self.q, self.k, self.value = stored(q), stored(k), stored(random(batch, keys, value_width))
        self.v = (v.abs() if chosen.get("positive") else v).to(self.dtype)
        self.grad_out = stored(random(batch, queries, value_width))
        self.upstream = (
            random(batch, queries, keys).to(accumulate_dtype(self.dtype))
            if self.grad_weights
            else None
        )
        self.mask = None
        if pattern := chosen.get("mask"):
            full = dict(zip("bqk", (batch, queries, keys)))
            size = [full.get(letter, 1) for letter in pattern]
            if chosen.get("lengths"):
                lengths = torch.randint(keys + 1, (size[0], 1, 1), generator=generator)
                self.mask = torch.arange(keys) < lengths
            else:
                self.mask = torch.rand(*size, generator=generator) > chosen["left_out"]

    def run(self, forward: Any, backward: Any, dtype: torch.dtype | None = None) -> list[Tensor]:
        def cast(x: Tensor | None) -> Tensor | None:
            return x.to(dtype) if dtype and x is not None else x

        inputs = [cast(x) for x in (self.q, self.k, self.value, self.v)]
        out, weights = forward(*inputs, self.mask)
        upstream = cast(self.grad_out), cast(self.upstream)
        return [out, weights, *backward(*upstream, *inputs, weights, self.mask)]

    def kernel(self) -> list[Tensor]:
        ops = torch.ops.fastseq
        return self.run(ops.additive_attention_forward, ops.additive_attention_backward)

    def check(self) -> None:
        """err(ours) <= 2 err(PyTorch in the same type) + a few units in the last place."""
        plain = reference.additive_attention_forward, reference.additive_attention_backward
        ours, exact = self.kernel(), self.run(*plain, torch.float64)
        for name, x, y, z in zip(RESULTS, ours, exact, self.run(*plain)):
            assert x.shape == y.shape and x.dtype == z.dtype, name
            if x.numel() == 0:
                continue
            # Gradients of scores are small differences of terms as large as grad_out · value.
            terms = (self.shape[4] ** 0.5 + 1) * name.startswith("grad_")
            few = torch.finfo(x.dtype).eps * max(y.abs().max().item(), 1e-30)
            few += torch.finfo(ours[1].dtype).eps * terms
            few *= 64 if self.dtype == torch.float64 else 8  # the oracle is no better there
            worst = (x.double() - y).abs().max().item()
            torchs = (z.double() - y).abs().max().item()
            assert worst <= 2 * torchs + few, f"{self}: {name} off by {worst}, {torchs}, {few}"


def cases(dtypes: tuple[torch.dtype, ...] = DTYPES, step: int = 1) -> list[Case]:
    """Every feature with every shape, in turn over types and layouts."""
    pairs = [(shape, feature) for shape in SHAPES for feature in FEATURES]
    return [
        Case(shape, feature, dtype, (i + n) % 3, grad_weights=i % 2 == 0)
        for i, (shape, feature) in enumerate(pairs[::step])
        for n, dtype in enumerate(dtypes)
    ]
