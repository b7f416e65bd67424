"""Models that read: classes of texts, and answers out of texts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..data import Question, Tokenizer, best_answer, pad, windows
from ..models import (
    BERTForQuestionAnswering,
    BERTForSequenceClassification,
    CheckpointError,
    Model,
)
from ..training.tasks.classify import LABELS_FILE
from .trained import TextError, Trained, check_texts, like_lengths


@dataclass(frozen=True)
class Classification:
    """The likeliest class, its probability, that of every class, and how many tokens were read.

    Of an empty text the label is empty, too.
    """

    label: str
    probability: float = 0.0
    probabilities: dict[str, float] = field(default_factory=dict)
    tokens: int = 0


class Classifier(Trained):
    """Classes of texts by a ``BERTForSequenceClassification``.

    Args:
        names: of the classes; their numbers if None. ``open`` takes those in labels.json.
    """

    kinds = (BERTForSequenceClassification,)

    def __init__(
        self, model: Model, tokenizer: Tokenizer, names: Sequence[str] | None = None
    ) -> None:
        super().__init__(model, tokenizer)
        count = self.config.num_labels
        self.names = list(map(str, range(count))) if names is None else list(names)
        if len(self.names) != count:
            raise CheckpointError(f"{len(self.names)} names for a model of {count} classes")

    @classmethod
    def _options(
        cls, directory: Path, device: torch.device, options: dict[str, Any]
    ) -> dict[str, Any]:
        return {"names": class_names(directory), **options}

    @torch.no_grad()
    def __call__(
        self, texts: Sequence[str], *, batch_size: int = 32, truncate: bool = False
    ) -> list[Classification]:
        """The class of each text.

        Args:
            batch_size: texts that are worked on together, of like lengths.
            truncate: cut texts that are longer than the model reads.

        Raises:
            TextError: a text is too long, and ``truncate`` is False, or is no Unicode.
        """
        check_texts(texts)
        t = self.tokenizer
        encoded = [
            [t.cls_id, *ids, t.sep_id] if ids else [] for ids in t.encode_batch(_stripped(texts))
        ]
        encoded = self._fitting(encoded, truncate)
        results = [Classification("")] * len(texts)
        for batch in like_lengths([len(ids) for ids in encoded], batch_size):
            tokens, lengths = pad([torch.tensor(encoded[i]) for i in batch], self.config.pad_id)
            logits = self.model(tokens.to(self.device), lengths.to(self.device))
            for i, row in zip(batch, logits.float().softmax(-1).tolist()):
                each = dict(zip(self.names, row))
                best = max(each, key=lambda name: each[name])
                results[i] = Classification(best, each[best], each, len(encoded[i]))
        return results


def class_names(directory: Path) -> list[str] | None:
    """The names in a model's labels.json, or None where there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    path = directory / LABELS_FILE
    if not path.exists():
        return None
    try:
        names = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    if not isinstance(names, list):
        raise CheckpointError(f"{path}: not a list of names")
    return names


@dataclass(frozen=True)
class Answer:
    """A piece of the context, its score over that of no answer, and how many tokens were read."""

    text: str
    score: float = 0.0
    tokens: int = 0


class QuestionAnswerer(Trained):
    """Answers that are pieces of a text, by a ``BERTForQuestionAnswering``."""

    kinds = (BERTForQuestionAnswering,)

    @torch.no_grad()
    def __call__(
        self,
        questions: Sequence[str],
        contexts: Sequence[str],
        *,
        allow_none: bool = False,
        max_answer: int = 30,
        stride: int = 128,
        batch_size: int = 32,
    ) -> list[Answer]:
        """The answer to each question in its context; long ones are read through windows.

        Args:
            allow_none: whether the answer may be "", as in SQuAD 2.0.
            max_answer: its most tokens. stride: tokens from one window to the next.
            batch_size: windows that are worked on together.

        Raises:
            TextError: a question or context is no Unicode.
            ValueError: there are not as many contexts as questions, or a number is out of range.
        """
        if len(questions) != len(contexts):
            raise ValueError(f"{len(questions)} questions, but {len(contexts)} contexts")
        for name, value in (("max_answer", max_answer), ("stride", stride)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        check_texts(questions)
        check_texts(contexts)
        asked = [
            Question("", question, context)
            for question, context in zip(_stripped(questions), contexts)
        ]
        parts = []
        for i, q in enumerate(asked):
            read = bool(q.question and q.context.strip())
            try:
                found = windows(self.tokenizer, q, self.config.max_length, stride) if read else []
            except ValueError as error:  # no room beside the question
                raise TextError(i, str(error)) from None
            parts.append(found)
        flat = [window for found in parts for window in found]
        scores: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for batch in like_lengths([len(window.tokens) for window in flat], batch_size):
            tokens, lengths = pad([flat[i].tokens for i in batch], self.config.pad_id)
            segments, _ = pad([flat[i].segments for i in batch], 0)
            inputs = (x.to(self.device) for x in (tokens, lengths, segments))
            starts, ends = (x.float().cpu() for x in self.model(*inputs))
            scores |= {i: (start, end) for i, start, end in zip(batch, starts, ends)}
        answers, first = [], 0
        for q, found in zip(asked, parts):
            if not found:
                answers.append(Answer(""))
                continue
            starts, ends = zip(*(scores[first + i] for i in range(len(found))))
            first += len(found)
            text, score = best_answer(q, found, starts, ends, max_answer, allow_none)
            answers.append(Answer(text, score, sum(len(window.tokens) for window in found)))
        return answers


def _stripped(texts: Sequence[str]) -> list[str]:
    return [text.strip() for text in texts]
