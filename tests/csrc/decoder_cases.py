"""Decoders of odd sizes for ``decoder_step``, and its results beside plain PyTorch's."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastseq.ops.decoder import decoder_step, pack, pad
from fastseq.reference import decoder as reference

WEIGHTS = (torch.float32, torch.bfloat16, torch.int8)
# width, heads, ffn, words, layers
SIZES = [(12, 3, 20, 37, 2), (64, 4, 72, 130, 1), (40, 1, 33, 300, 2), (96, 2, 128, 65, 3)]
FEATURES: dict[str, dict] = {
    "pre-norm": {"activation": "gelu"},
    "post-norm": {"norm_first": False, "embedding_norm": True},
    "rotary": {"rotary": True, "activation": "silu"},
    "no source": {"cross": False, "activation": "gelu_tanh"},
}


@dataclass
class Case:
    """Weights of one decoder, a few rows, and what a search would do to them between steps."""

    size: tuple[int, int, int, int, int]
    weights: torch.dtype
    rows: int = 3
    activation: str = "relu"
    norm_first: bool = True
    embedding_norm: bool = False
    rotary: bool = False
    cross: bool = True
    seed: int = 0

    CAPACITY = 24

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        width, heads, ffn, words, layers = self.size
        shapes = [(3 * width, width), (width, width)]
        shapes += [(width, width)] * 2 if self.cross else []
        shapes += [(ffn, width), (width, ffn)]
        self.linears = [
            (self.random(*shape) / shape[1] ** 0.5, self.random(shape[0]) * 0.1)
            for shape in [*shapes * layers, (words, width)]
        ]
        count = layers * (2 + self.cross) + self.norm_first
        self.norms = [
            self.random(2, width) * 0.2 + torch.tensor([[1.0], [0]]) for _ in range(count)
        ]
        self.words = self.random(words, width)
        self.places = None if self.rotary else self.random(self.CAPACITY, width)
        angles = self.random(self.CAPACITY, width // heads // 2)
        self.angles = torch.stack([angles.sin(), angles.cos()]) if self.rotary else None
        self.memory = [self.random(19, 2 * width) for _ in range(layers if self.cross else 0)]
        self.sources = torch.tensor([[0, 7], [7, 1], [8, 11]], dtype=torch.int32)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def steps(self) -> list[tuple[Tensor, Tensor]]:
        """(which rows go on, their new tokens) of each step."""
        plan = []
        rows = self.rows
        for kept, new in ((rows, 4), (2 * rows, 1), (2 * rows, 1), (rows + 1, 2), (1, 1)):
            chosen = torch.randint(rows, (kept,), generator=self.generator)
            tokens = torch.randint(len(self.words), (kept, new), generator=self.generator)
            plan.append((chosen, tokens))
            rows = kept
        return plan

    def run(self, step, best: int, plan: list[tuple[Tensor, Tensor]]) -> list[tuple]:
        """Results of each step; ``step`` takes the operator's arguments."""
        width, heads, ffn, _, layers = self.size
        packed = [pack(weight, self.weights) for weight, _ in self.linears]
        biases = [pad(bias, weight) for weight, bias in self.linears]
        scales = [s for _, s in packed if s is not None]
        slots = max(len(chosen) for chosen, _ in plan)
        cache = torch.full((layers, 2, self.CAPACITY, slots, width), torch.nan)
        ancestors = torch.zeros(self.rows, self.CAPACITY, dtype=torch.int32)
        spans = self.sources[torch.arange(self.rows) % 3] if self.cross else None
        length, results = 0, []
        for chosen, tokens in plan:
            ancestors = ancestors[chosen]
            spans = spans[chosen] if spans is not None else None
            results.append(
                step(
                    tokens, cache, ancestors, length, self.words, 1.5, self.places, self.angles,
                    torch.ones(2, width) if self.embedding_norm else None,
                    [p for p, _ in packed], biases, scales, self.norms, self.memory, spans,
                    heads, ffn, self.activation, self.norm_first, 1e-5, best,
                )
            )  # fmt: skip
            length += tokens.shape[1]
        return results

    def check(self) -> None:
        plan = self.steps()
        tolerance = {torch.float32: 2e-5, torch.bfloat16: 2e-5, torch.int8: 1e-1}[self.weights]
        expected = self.run(reference.decoder_step, 0, plan)
        found = self.run(decoder_step, 0, plan)
        for (x, _), (y, _) in zip(found, expected):
            assert x.shape == y.shape
            # A number that lies between two may be rounded to either, hence the wide bounds on
            # single logits of the narrow types. Their mean is bound more tightly.
            assert (x - y).abs().max() <= tolerance * y.abs().max(), self
            assert (x - y).abs().mean() <= 0.1 * tolerance * y.abs().max(), self
        for k in (1, 5):
            for (scores, ids), (logits, _) in zip(self.run(decoder_step, k, plan), found):
                best, where = torch.log_softmax(logits, -1).topk(k)
                torch.testing.assert_close(scores, best, rtol=1e-5, atol=1e-5)
                assert torch.equal(ids, where)


def cases() -> list[Case]:
    """Every feature with every size and type."""
    return [
        Case(size, weights, rows=(3, 1, 7, 30)[(i + n) % 4], **feature, seed=i)
        for i, size in enumerate(SIZES)
        for n, feature in enumerate(FEATURES.values())
        for weights in WEIGHTS
    ]
