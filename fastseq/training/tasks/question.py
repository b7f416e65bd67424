"""Extractive question answering on SQuAD's files (arXiv 1606.05250, 1806.03822)."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...data import (
    Question,
    Tokenizer,
    best_answer,
    pad,
    read_squad,
    token_batches,
    windows,
)
from ...models import BERTForQuestionAnswering, Model
from ..metrics import answer_scores
from .base import Batch, Examples, Shuffle, Task, cross_entropy
from .encoder import build_encoder


class QuestionWindows(Examples):
    """Questions, each with the windows over its context."""

    def __init__(self, task: "AnswerQuestions", questions: list[Question], split: str) -> None:
        data = task.settings.data
        if not questions:
            raise task.nothing_for(split, "question")
        self.questions, self.pad_id = questions, task.tokenizer.pad_id
        self.windows = [
            (number, window)
            for number, question in enumerate(questions)
            for window in windows(task.tokenizer, question, data.max_length, data.stride)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def batches(self, max_tokens: int, shuffle: Shuffle) -> list[list[int]]:
        lengths = torch.tensor([len(window.tokens) for _, window in self.windows])
        return token_batches(lengths, max_tokens, shuffle)

    def collate(self, indices: list[int], shuffle: Shuffle) -> Batch:
        chosen = [self.windows[i][1] for i in indices]
        tokens, lengths = pad([window.tokens for window in chosen], self.pad_id)
        segments = pad([window.segments for window in chosen], 0)[0]
        labels = {
            "starts": torch.tensor([window.start for window in chosen]),
            "ends": torch.tensor([window.end for window in chosen]),
            "windows": torch.tensor(indices),
        }
        inputs = {"tokens": tokens, "lengths": lengths, "segments": segments}
        return Batch(inputs, labels, int(lengths.sum()))


class AnswerQuestions(Task):
    """BERT that marks where the answer starts and ends."""

    archs: ClassVar[tuple[str, ...]] = ("bert",)
    train: QuestionWindows
    valid: QuestionWindows

    def texts(self) -> Iterator[str]:
        for question in self._questions(self.settings.data.train):
            yield question.question
            yield question.context

    def _questions(self, files: list[str]) -> Iterator[Question]:
        for file in files:
            yield from read_squad(file)

    def load(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        # By the context: none is in both.
        train, valid = self.split(self._questions, lambda question: question.context)
        self.train = QuestionWindows(self, train, "train")
        self.valid = QuestionWindows(self, valid, "valid")
        self.may_fail = any(not question.answers for question in train)

    def build(self) -> Model:
        return build_encoder(self, BERTForQuestionAnswering)

    def losses(
        self, outputs: tuple[Tensor, Tensor], batch: Batch, smoothing: float = 0.0
    ) -> Tensor:
        starts = cross_entropy(outputs[0], batch.labels["starts"])
        return (starts + cross_entropy(outputs[1], batch.labels["ends"]))[None] / 2

    def counts(self, batch: Batch) -> Tensor:
        return torch.tensor([len(batch.labels["starts"])])

    def observe(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> list[Any]:
        numbers = batch.labels["windows"].tolist()
        starts, ends = (scores.float().cpu() for scores in outputs)
        return list(zip(numbers, starts, ends))

    def scores(self, losses: dict[str, float], observed: list[Any]) -> dict[str, float]:
        by_question: dict[int, list[tuple[int, Tensor, Tensor]]] = {}
        for number, start, end in observed:
            by_question.setdefault(self.valid.windows[number][0], []).append((number, start, end))
        exact = f1 = 0.0
        for index, parts in by_question.items():
            question = self.valid.questions[index]
            numbers, starts, ends = zip(*parts)
            found = [self.valid.windows[number][1] for number in numbers]
            text, _ = best_answer(question, found, starts, ends, may_fail=self.may_fail)
            e, f = answer_scores(text, [answer for answer, _ in question.answers])
            exact, f1 = exact + e, f1 + f
        count = len(by_question)
        return {**losses, "exact_match": exact / count, "f1": f1 / count}

    @property
    def criterion(self) -> tuple[str, int]:
        return "f1", 1
