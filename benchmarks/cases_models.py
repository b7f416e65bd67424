"""The models suite, as data: what ``fastseq bench models`` and ``bench_models.py`` run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from .harness import fast_on_cpu

# Width, heads, feed-forward, layers (of an encoder, of a decoder), vocabulary.
SIZES = {
    "small": (256, 4, 1024, 4, 8000),
    "base": (512, 8, 2048, 6, 8000),
}


@dataclass(frozen=True)
class Case:
    """One comparison.

    ``decode``: a translation model of random weights that never ends by itself, 24 source and
    ``steps`` target tokens. ``train``: loss and gradients of a batch of real sentences' lengths, as
    they come, or ``bucketed``: of about one length, so that others compute little padding either.
    ``weights`` are those that decode; ``dtype`` is that of autocast.
    """

    group: str
    kind: Literal["decode", "train"]
    model: Literal["Transformer", "GPT", "BERT"]
    baseline: Literal["transformers", "CTranslate2", "torch"]
    batch: int
    beam: int = 1
    size: str = "small"
    dtype: torch.dtype = torch.float32
    weights: torch.dtype = torch.float32
    steps: int = 40
    bucketed: bool = False
    quick: bool = False  # also in the short suite
    telling: bool = False  # of the few that say most, which come first on a card

    @property
    def peers(self) -> tuple[str, ...]:
        return ()

    @property
    def name(self) -> str:
        narrow = [x for x in (self.dtype, self.weights) if x != torch.float32]
        search = f"beam {self.beam}" if self.beam > 1 else "greedy"
        parts = [
            f"{self.model} {self.size}",
            f"B{self.batch}",
            search if self.kind == "decode" else "bucketed" if self.bucketed else "",
            *(str(x).removeprefix("torch.") for x in narrow),
            f"against {self.baseline}",
        ]
        return " ".join(filter(None, parts))


def cases(device: torch.device) -> list[Case]:
    """The cases for a device."""
    return [*(_decoding() if device.type == "cpu" else ()), *_training(device)]


def _decoding() -> Iterator[Case]:
    group = "decoding against "
    for batch in (1, 32):
        for beam in (1, 4):
            for baseline in ("transformers", "CTranslate2"):
                quick = batch == 1 and baseline == "CTranslate2"
                yield Case(
                    group + baseline, "decode", "Transformer", baseline, batch, beam, quick=quick
                )
            yield Case(
                group + "CTranslate2 int8", "decode", "Transformer", "CTranslate2", batch, beam,
                weights=torch.int8,
            )  # fmt: skip
    yield Case(group + "CTranslate2", "decode", "Transformer", "CTranslate2", 8, 4, "base")


def _training(device: torch.device) -> Iterator[Case]:
    brain = torch.bfloat16
    types = [torch.float32, *([brain] if device.type == "cuda" or fast_on_cpu(brain) else [])]
    for dtype in types:
        kind = "" if dtype == torch.float32 else " bfloat16"
        for model in ("Transformer", "GPT", "BERT"):
            for baseline in ("torch", "transformers"):
                quick = model == "Transformer" and baseline == "torch" and not kind
                yield Case(
                    f"training against {baseline}{kind}", "train", model, baseline, 32,
                    dtype=dtype, quick=quick,
                )  # fmt: skip
            yield Case(
                f"training against torch{kind}", "train", model, "torch", 32, dtype=dtype,
                bucketed=True,
            )  # fmt: skip
