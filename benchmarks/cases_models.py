"""The models suite, as data: what ``fastseq bench models`` and ``bench_models.py`` run."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from .harness import fast_on_cpu

Model = Literal["Transformer", "GPT", "BERT"]
Baseline = Literal["transformers", "CTranslate2", "torch"]

# Width, heads, feed-forward, layers (of an encoder, of a decoder), vocabulary.
SIZES = {
    "small": (256, 4, 1024, 4, 8000),
    "base": (512, 8, 2048, 6, 8000),
}


@dataclass(frozen=True)
class Case:
    """One comparison.

    ``decode``: a model of random weights that never ends by itself, 24 tokens given, ``steps`` made
    in translation or in going on. ``train``: loss and gradients of a batch of real sentences'
    lengths, as they come, or ``bucketed``: of about one length, so that others compute little
    padding either. ``weights`` are those that decode; ``dtype`` is that of autocast, and on a card
    of the model that decodes.
    """

    group: str
    kind: Literal["decode", "train"]
    model: Model
    baseline: Baseline
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
        narrow = [x for x in dict.fromkeys((self.dtype, self.weights)) if x != torch.float32]
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
    if device.type == "cpu":
        return [*_decoding(), *_training(device)]
    # Those that tell most come first, for a run may be stopped at any time.
    telling = [replace(case, telling=True) for case in _telling()]
    known = {case.name for case in telling}
    more = [*_generation(), *_training(device)]
    return telling + [case for case in more if case.name not in known]


def _telling() -> Iterator[Case]:
    brain, single = torch.bfloat16, torch.float32
    # One sequence is launches and little else; 32 are what a server batches.
    yield _generated("GPT", 1, brain)
    yield _trained("Transformer", "torch", brain, bucketed=True)
    yield _generated("Transformer", 32, brain)
    yield _trained("GPT", "transformers", brain)
    # Large enough to be products; of about one length, so that it is not padding that is saved.
    yield _trained("Transformer", "torch", brain, batch=128, size="base", bucketed=True)
    yield _generated("Transformer", 1, single)
    yield _trained("BERT", "torch", brain)
    yield _generated("GPT", 32, single)


def _generated(
    model: Model, batch: int, dtype: torch.dtype, beam: int = 1, size: str = "small"
) -> Case:
    group = f"generation against transformers{_kind(dtype)}"
    return Case(
        group, "decode", model, "transformers", batch, beam, size, dtype=dtype, weights=dtype
    )


def _generation() -> Iterator[Case]:
    models: tuple[Model, ...] = ("Transformer", "GPT")
    for dtype in (torch.bfloat16, torch.float32):
        for model in models:
            for batch in (1, 32):
                yield _generated(model, batch, dtype)
    yield _generated("Transformer", 8, torch.bfloat16, beam=4)
    yield _generated("GPT", 32, torch.bfloat16, size="base")


def _trained(
    model: Model, baseline: Baseline, dtype: torch.dtype, batch: int = 32, size: str = "small",
    bucketed: bool = False, quick: bool = False,
) -> Case:  # fmt: skip
    return Case(
        f"training against {baseline}{_kind(dtype)}", "train", model, baseline, batch, size=size,
        dtype=dtype, bucketed=bucketed, quick=quick,
    )  # fmt: skip


def _kind(dtype: torch.dtype) -> str:
    return "" if dtype == torch.float32 else f" {str(dtype).removeprefix('torch.')}"


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
    models: tuple[Model, ...] = ("Transformer", "GPT", "BERT")
    baselines: tuple[Baseline, ...] = ("torch", "transformers")
    for dtype in types:
        for model in models:
            for baseline in baselines:
                quick = model == "Transformer" and baseline == "torch" and dtype == torch.float32
                yield _trained(model, baseline, dtype, quick=quick)
            yield _trained(model, "torch", dtype, bucketed=True)
