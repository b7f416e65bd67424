"""Random arguments of attention, and the comparison of a kernel with plain PyTorch in float64."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fastseq.ops.attention  # noqa: F401 (registers the operators)
from fastseq.reference import attention as reference

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
RESULTS = (
    *("out", "lse", "grad_q", "grad_k", "grad_v", "grad_mask", "weights", "mean_weights"),
    *("out with weights", "weights with out", "out with mean", "mean with out"),
)

# batch, query heads, key heads, queries, keys, width, width of values
SHAPES = (
    (1, 1, 1, 1, 1, 1, 1),
    (2, 4, 2, 5, 7, 3, 4),
    (1, 3, 3, 130, 150, 64, 64),
    (1, 6, 2, 61, 300, 40, 33),  # three heads share a key head: blocks of queries cross heads
    (1, 2, 1, 3, 1200, 64, 64),  # few queries, many keys
    (2, 2, 2, 100, 97, 17, 80),
    (1, 1, 1, 30, 290, 257, 129),  # few blocks of queries: keys are split
    (1, 8, 1, 2, 9, 8, 300),
    (2, 2, 2, 0, 5, 4, 4),
    (2, 2, 2, 5, 0, 4, 4),
    (0, 2, 1, 5, 7, 4, 4),
)

# Options of Options' order from window_left on, without the lengths.
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"window": (-1, 0)},
    "causal-bottom-right": {"window": (-1, 0), "bottom_right": True},
    "window": {"window": (20, 3), "bottom_right": True},
    "window-ahead": {"window": (0, 40), "softcap": 2.0},
    "negative-scale": {"scale": -0.3, "window": (-1, 5)},
    "softcap": {"softcap": 1.5},
    "alibi": {"alibi": True, "window": (-1, 0), "bottom_right": True},
    "dropout": {"dropout_p": 0.3, "window": (-1, 0)},
    "drop-all": {"dropout_p": 1.0},
    "bool": {"mask": "b1qk"},
    "bool-padding": {"mask": "b11k", "boolean": True, "window": (-1, 0)},
    "bias": {"mask": "bhqk", "window": (-1, 2), "dropout_p": 0.2},
    "bias-transposed": {"mask": "bhqk", "transposed": True},
    "bias-heads": {"mask": "1hqk", "softcap": 1.3, "alibi": True},
    "bias-shared": {"mask": "11qk", "dropout_p": 0.2},
    "bias-keys": {"mask": "1h1k", "window": (-1, 0)},
    "bias-queries": {"mask": "b1q1", "window": (4, 4)},
    "bias-one": {"mask": "1111"},
    "packed": {"packed": True},
    "packed-causal": {"packed": True, "window": (-1, 0), "bottom_right": True, "dropout_p": 0.1},
    "packed-alibi": {"packed": True, "alibi": True, "window": (30, 10), "softcap": 3.0},
}
FEATURES["bool"]["boolean"] = True


@dataclass
class Case:
    shape: tuple[int, ...]
    feature: str
    dtype: torch.dtype
    layout: int = 0  # how tensors lie in memory
    grad_lse: bool = True

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(sum(self.shape) + len(self.feature))
        batch, heads, key_heads, sq, sk, d, dv = self.shape
        chosen = FEATURES[self.feature]
        packed = chosen.get("packed", False)
        rows = 1 if packed else batch

        def random(*size: int) -> Tensor:
            x = torch.randn(*size, generator=generator, dtype=torch.float64).to(self.dtype)
            if self.layout == 1 and len(size) == 4:  # tokens before heads
                return x.transpose(1, 2).contiguous().transpose(1, 2)
            if self.layout == 2 and len(size) == 4:  # a slice of something wider
                wide = torch.full((*size[:3], size[3] + 3), torch.nan, dtype=self.dtype)
                wide[..., 1:-2] = x
                return wide[..., 1:-2]
            return x

        self.q, self.k = random(rows, heads, sq, d), random(rows, key_heads, sk, d)
        self.v, self.grad_out = random(rows, key_heads, sk, dv), random(rows, heads, sq, dv)
        acc = reference.accumulate_dtype(self.dtype)
        self.upstream = random(rows, heads, sq).to(acc) if self.grad_lse else None
        mask = None
        if pattern := chosen.get("mask"):
            full = dict(zip("bhqk", (batch, heads, sq, sk)))
            mask = random(*(full.get(letter, 1) for letter in pattern))
            if chosen.get("transposed"):
                mask = mask.mT.contiguous().mT
            if chosen.get("boolean"):
                mask = mask > -0.3
        bounds = [None, None]
        longest = [sq, sk]
        if packed:
            cuts = [
                torch.randint(n + 1, (batch + 2,), generator=generator).sort()[0] for n in (sq, sk)
            ]
            bounds = [
                torch.cat([torch.zeros(1), cut, torch.full((1,), n)]).int()
                for cut, n in zip(cuts, (sq, sk))
            ]
            longest = [int(b.diff().max()) for b in bounds]
        slopes = torch.rand(heads, generator=generator) if chosen.get("alibi") else None
        self.need_mask = mask is not None and mask.is_floating_point()
        self.context = (mask, *bounds, slopes, torch.tensor(123456789012345 + sk))
        self.options = (
            chosen.get("scale", d**-0.5),
            *chosen.get("window", (-1, -1)),
            chosen.get("bottom_right", False),
            chosen.get("softcap", 0.0),
            chosen.get("dropout_p", 0.0),
            *longest,
        )

    def run(
        self,
        forward: Any,
        backward: Any,
        weigh: Any,
        both: Any = None,
        dtype: torch.dtype | None = None,
    ) -> list[Tensor]:
        def cast(x: Tensor | None) -> Tensor | None:
            return x.to(dtype) if dtype and x is not None and x.is_floating_point() else x

        q, k, v, grad_out = (cast(x) for x in (self.q, self.k, self.v, self.grad_out))
        context = [cast(x) for x in self.context]
        out, lse, norm = forward(q, k, v, *context, *self.options)
        grads = backward(
            grad_out,
            cast(self.upstream),
            q,
            k,
            v,
            out,
            lse,
            norm,
            *context,
            *self.options,
            self.need_mask,
        )
        mask, packed, _, *others = context
        if packed is not None:  # weights of packed sequences would be no matrix
            return [out, lse, *grads]
        rest = (mask, *others, *self.options)
        weights = [weigh(q, k, lse, norm, *rest, mean) for mean in (False, True)]
        if both is None:
            return [out, lse, *grads, *weights, out, weights[0], out, weights[1]]
        together = [x for mean in (False, True) for x in both(q, k, v, *rest, mean)]
        return [out, lse, *grads, *weights, *together]

    def kernel(self) -> list[Tensor]:
        ops = torch.ops.fastseq
        return self.run(
            ops.attention_forward,
            ops.attention_backward,
            ops.attention_weights,
            ops.attention_with_weights,
        )

    def check(self) -> None:
        """err(ours) <= 2 err(PyTorch in the same type) + a few units in the last place."""
        plain = (
            reference.attention_forward,
            reference.attention_backward,
            reference.attention_weights,
        )
        ours, exact = self.kernel(), self.run(*plain, dtype=torch.float64)
        for name, x, y, z in zip(RESULTS, ours, exact, self.run(*plain)):
            assert x.shape == y.shape and x.dtype == z.dtype, name
            if x.numel() == 0:
                continue
            infinite = y == -torch.inf
            assert torch.equal(x == -torch.inf, infinite), name
            x, y, z = (t.double().masked_fill(infinite, 0) for t in (x, y, z))
            eps = torch.finfo(self.dtype if name != "lse" else ours[1].dtype).eps
            # The gradient of a score is a small difference of larger numbers, of which the output
            # is rounded to the dtype. Elements of a shared mask sum many.
            terms = max(1, self.q[..., 0].numel() * self.k.shape[2] // max(1, x.numel()))
            size = y.abs().max().item() + (name.startswith("grad_") and self.v.shape[3] ** 0.5)
            units = 64 if self.dtype == torch.float64 else 8  # the oracle is no better there
            few = units * eps * max(size, 1e-30) * (terms**0.5 if name == "grad_mask" else 1)
            worst, torchs = (x - y).abs().max().item(), (z - y).abs().max().item()
            assert worst <= 2 * torchs + few, (
                f"{self}: {name} off by {worst}, torch {torchs}, {few}"
            )


def cases(dtypes: tuple[torch.dtype, ...], step: int = 1) -> list[Case]:
    """Every feature with every shape that it fits, in turn over types and layouts."""
    found = []
    for i, shape in enumerate(SHAPES):
        for j, feature in enumerate(FEATURES):
            if (i * len(FEATURES) + j) % step:
                continue
            if FEATURES[feature].get("packed") and 0 in shape:
                continue
            for n, dtype in enumerate(dtypes):
                found.append(
                    Case(shape, feature, dtype, (i + j + n) % 3, grad_lse=(i + j) % 2 == 0)
                )
    return found
