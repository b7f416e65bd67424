"""Classes of texts."""

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...data import DataError, Row, Sequences, Tokenizer, pad_rows, token_batches
from ...models import BERTForSequenceClassification, Model
from ..metrics import macro_f1
from .base import Batch, Examples, Shuffle, Task, cross_entropy
from .encoder import build_encoder

LABELS_FILE = "labels.json"


class LabelledTexts(Examples):
    """[CLS] text [SEP] and the number of its class."""

    def __init__(self, task: "Classify", rows: list[Row], split: str) -> None:
        t, limit = task.tokenizer, task.settings.data.max_length
        encoded = t.encode_batch([row.fields[1] for row in rows])
        fits = [len(ids) + 2 <= limit for ids in encoded]
        kept = task.keep(split, rows, fits)
        self.texts = Sequences([t.cls_id, *encoded[i], t.sep_id] for i in kept)
        self.labels = torch.tensor([task.label(rows[i]) for i in kept])
        self.pad_id = t.pad_id

    def __len__(self) -> int:
        return len(self.texts)

    def batches(self, max_tokens: int, shuffle: Shuffle) -> list[list[int]]:
        return token_batches(self.texts.lengths, max_tokens, shuffle)

    def collate(self, indices: list[int], shuffle: Shuffle) -> Batch:
        rows, lengths = self.texts.rows(indices)
        inputs = {"tokens": pad_rows(rows, lengths, self.pad_id), "lengths": lengths}
        return Batch(inputs, {"classes": self.labels[indices]}, len(rows))


class Classify(Task):
    """BERT with a classifier, on lines of label and text."""

    archs: ClassVar[tuple[str, ...]] = ("bert",)

    def texts(self) -> Iterator[str]:
        for row in self.rows(self.settings.data.train):
            yield row.fields[1]

    def label(self, row: Row) -> int:
        """The number of a row's class.

        Raises:
            DataError: it does not occur in training.
        """
        name = class_name(row, self.settings.data.threshold)
        if name not in self.numbers:
            known = f"known: {', '.join(self.names)}"
            raise DataError(row.path, row.line, f"label {name!r} is not in training; {known}")
        return self.numbers[name]

    def load(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, data = tokenizer, self.settings.data
        train, valid = self.split(self.rows, lambda row: row.fields[1])
        self.names = sorted({class_name(row, data.threshold) for row in train})
        if not 2 <= len(self.names) <= 1000:
            raise DataError(
                data.train[0],
                None,
                f"{len(self.names)} different labels in column {data.columns[0]}; "
                "numeric ones take data.threshold",
            )
        self.numbers = {name: i for i, name in enumerate(self.names)}
        self.train = LabelledTexts(self, train, "train")
        self.valid = LabelledTexts(self, valid, "valid")

    def build(self) -> Model:
        return build_encoder(self, BERTForSequenceClassification, num_labels=len(self.names))

    def extra_files(self) -> dict[str, str]:
        return {LABELS_FILE: json.dumps(self.names, ensure_ascii=False)}

    def losses(self, outputs: Tensor, batch: Batch, smoothing: float = 0.0) -> Tensor:
        return cross_entropy(outputs, batch.labels["classes"], smoothing)[None]

    def counts(self, batch: Batch) -> Tensor:
        return torch.tensor([len(batch.labels["classes"])])

    def observe(self, outputs: Tensor, batch: Batch) -> list[Any]:
        return list(zip(outputs.argmax(-1).tolist(), batch.labels["classes"].tolist()))

    def scores(self, losses: dict[str, float], observed: list[Any]) -> dict[str, float]:
        predicted, labels = zip(*observed)
        hits = sum(p == label for p, label in observed)
        return {
            **losses,
            "accuracy": 100 * hits / len(observed),
            "f1": macro_f1(predicted, labels, len(self.names)),
        }

    @property
    def criterion(self) -> tuple[str, int]:
        return "accuracy", 1


def class_name(row: Row, threshold: float | None) -> str:
    """The name of a row's class: the label, or the side of the threshold it is on.

    Raises:
        DataError: there is a threshold, and the label is no number.
    """
    if threshold is None:
        return row.fields[0]
    try:
        return "negative" if float(row.fields[0]) < threshold else "positive"
    except ValueError:
        raise DataError(
            row.path, row.line, f"data.threshold needs numeric labels, got {row.fields[0]!r}"
        ) from None
