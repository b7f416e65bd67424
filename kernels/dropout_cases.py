"""Recurrent dropout's mask on Triton against the reference: the same bits in every dtype."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

SEED = (1 << 61) + (1 << 40) + 12345


@dataclass(frozen=True)
class Case:
    dtype: str
    shape: tuple[int, ...]
    probability: float
    smoke: bool = False  # one of the few that are run first

    @property
    def group(self) -> str:
        return "mask"

    @property
    def name(self) -> str:
        return f"mask {self.dtype} {'x'.join(map(str, self.shape))} p {self.probability}"


def cases(interpreted: bool) -> Iterator[Case]:
    for dtype in ("float32", "float16", "bfloat16", "float64"):
        for probability in (0.0, 0.1, 0.3, 1.0):
            smoke = (dtype, probability) == ("bfloat16", 0.3)
            yield Case(dtype, (2, 19, 37), probability, smoke)
        yield Case(dtype, (1, 64, 16), 0.5)  # a whole number of programs
    yield Case("float32", (2, 0, 5), 0.5)


def run(case: Case, device: str) -> dict[str, float]:
    """0 if every bit is the reference's, else infinite."""
    from ..reference import philox
    from .dropout import dropout_mask

    # Not laid out as the mask is to be.
    like = torch.ones(case.shape[::-1], dtype=getattr(torch, case.dtype)).transpose(0, 2)
    expected = philox.dropout_mask(SEED, like, case.probability)
    mask = dropout_mask(SEED, like.to(device), case.probability)
    same = (mask.dtype, mask.stride()) == (expected.dtype, expected.stride())
    return {"mask": 0.0 if same and torch.equal(mask.cpu(), expected) else float("inf")}
