"""What a task is: examples to batches, batches to losses, a model's outputs to scores."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data import IGNORED, DataError, Row, Tokenizer, held_out, read_tsv
from ...models import Model
from ..config import ConfigError, Settings

Example = TypeVar("Example")
Shuffle = tuple[int, int] | None  # (seed, epoch) of training; None for validation


@dataclass
class Batch:
    """What the model reads, by the names of its arguments, and what it should answer.

    tokens: how many the batch holds, for speed.
    """

    inputs: dict[str, Any]
    labels: dict[str, Tensor]
    tokens: int

    def to(self, device: torch.device) -> "Batch":
        def moved(values: dict[str, Any]) -> dict[str, Any]:
            return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}

        return Batch(moved(self.inputs), moved(self.labels), self.tokens)


class Examples(ABC):
    """Examples of one split."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abstractmethod
    def batches(self, max_tokens: int, shuffle: Shuffle) -> list[list[int]]:
        """The batches of an epoch, as indices for ``collate``."""

    @abstractmethod
    def collate(self, indices: list[int], shuffle: Shuffle) -> Batch:
        """A batch of the epoch for which ``batches`` was last called."""


class Task(ABC):
    """A task of ``fastseq train``.

    After ``load`` it has ``tokenizer``, ``train`` and ``valid``. ``notes`` says what was left out.
    """

    terms: ClassVar[tuple[str, ...]] = ("loss",)  # the losses, each a mean over its own count
    archs: ClassVar[tuple[str, ...]]
    train: Examples
    valid: Examples
    tokenizer: Tokenizer

    def __init__(self, settings: Settings) -> None:
        if settings.arch not in self.archs:
            raise ConfigError(
                f"arch should be one of {', '.join(self.archs)} for {settings.task}, got "
                f"{settings.arch!r}"
            )
        if not settings.data.train:
            raise ConfigError(f"{settings.task} needs data.train (--data): a file to learn from")
        self.settings = settings
        self.notes: list[str] = []

    @abstractmethod
    def texts(self) -> Iterator[str]:
        """Texts to learn a tokenizer from."""

    @abstractmethod
    def load(self, tokenizer: Tokenizer) -> None:
        """Reads the examples."""

    @abstractmethod
    def build(self) -> Model:
        """A new model."""

    @property
    def criterion(self) -> tuple[str, int]:
        """The validation score that the best checkpoint has, and 1 or -1: whether most is best."""
        return "loss", -1

    def losses(self, outputs: Any, batch: Batch, smoothing: float = 0.0) -> Tensor:
        """The sum over a batch of each of the losses, float (k,).

        Args:
            outputs: what the model returned.
            smoothing: of labels, in training.
        """
        return cross_entropy(outputs, batch.labels["tokens"], smoothing)[None]

    def counts(self, batch: Batch) -> Tensor:
        """What to divide these sums by, int64 (k,)."""
        return (batch.labels["tokens"] != IGNORED).sum()[None]

    def observe(self, outputs: Any, batch: Batch) -> list[Any]:
        """What ``scores`` needs of a validation batch: plain values."""
        return []

    def scores(self, losses: dict[str, float], observed: list[Any]) -> dict[str, float]:
        """Validation scores, from mean losses and what was observed."""
        return {**losses, "perplexity": perplexity(losses[self.terms[0]])}

    def write(self, model: Model, rank: int, world: int) -> list[Any]:
        """Texts that the model writes for this process's part of the validation examples, to be
        gathered for ``judge``. None by default."""
        return []

    def judge(self, written: list[Any]) -> tuple[dict[str, float], list[str]]:
        """Scores of what all processes wrote, and a few examples to show."""
        return {}, []

    def extra_files(self) -> dict[str, str]:
        """Texts by file name that belong to the model, beside configuration and tokenizer."""
        return {}

    def special_ids(self) -> dict[str, int]:
        """Fields that every model's configuration has."""
        t = self.tokenizer
        return {
            "vocab_size": len(t),
            "pad_id": t.pad_id,
            "unk_id": t.unk_id,
            "bos_id": t.bos_id,
            "eos_id": t.eos_id,
        }

    def configure(self, kind: type, fixed: dict[str, Any]) -> Any:
        """The model's configuration from [model] and what the task fixes.

        Raises:
            ConfigError: a field is unknown, has a wrong value, or is not the user's to choose.
        """
        chosen = self.settings.model
        if taken := sorted(fixed.keys() & chosen.keys()):
            raise ConfigError(
                f"model.{taken[0]} follows from arch {self.settings.arch} and the data: "
                f"{fixed[taken[0]]!r}"
            )
        try:
            return kind(**fixed, **chosen)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"[model]: {error}") from None

    def rows(self, files: list[str]) -> Iterator[Row]:
        """The two columns of tab-separated files."""
        columns = self.settings.data.columns
        if len(columns) != 2:
            raise ConfigError(f"data.columns should be two, got {columns}")
        for file in files:
            yield from read_tsv(file, columns)

    def split(
        self, read: Callable[[list[str]], Iterable[Example]], text: Callable[[Example], str]
    ) -> tuple[list[Example], list[Example]]:
        """Examples for training and for validation.

        Args:
            read: examples of files.
            text: by whose hash examples are held out, where validation has no files of its own.
        """
        data = self.settings.data
        train, valid = list(read(data.train)), list(read(data.valid))
        if not data.valid:
            held = [held_out(text(example), data.valid_fraction) for example in train]
            valid = [example for example, out in zip(train, held) if out]
            train = [example for example, out in zip(train, held) if not out]
        return train, valid

    def nothing_for(self, split: str, what: str) -> DataError:
        """The error of a split that has no examples, and what to do about it."""
        data = self.settings.data
        if split == "train" or data.valid:
            files = data.train if split == "train" else data.valid
            return DataError(", ".join(files), None, f"there is no {what} in it")
        return DataError(
            ", ".join(data.train),
            None,
            f"no {what} is held out for validation by data.valid_fraction = {data.valid_fraction}; "
            "raise it, or name files with --valid",
        )

    def keep(self, split: str, rows: list[Row], fits: list[bool]) -> list[int]:
        """Indices of the rows that fit ``data.max_length``; a note says which do not.

        Raises:
            DataError: none does.
        """
        data, left_out = self.settings.data, [row for row, fit in zip(rows, fits) if not fit]
        if len(left_out) == len(rows):
            files = (data.valid if split == "valid" else []) or data.train
            if not rows:
                raise self.nothing_for(split, "example")
            reason = f"no {split} example is within data.max_length = {data.max_length} tokens"
            raise DataError(", ".join(files), None, reason)
        if left_out:
            self.notes.append(
                f"{len(left_out)} of {len(rows)} {split} examples are over data.max_length = "
                f"{data.max_length} tokens and left out, the first at "
                f"{left_out[0].path}:{left_out[0].line}"
            )
        return [i for i, fit in enumerate(fits) if fit]


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Sum over rows (N, V) of the cross-entropy with labels (N,), but where they are IGNORED."""
    return F.cross_entropy(
        logits.float(), labels, reduction="sum", ignore_index=IGNORED, label_smoothing=smoothing
    )


def perplexity(loss: float) -> float:
    """e^loss."""
    return float(torch.tensor(loss).exp())
