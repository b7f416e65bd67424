"""Questions whose answers are pieces of a text: SQuAD's files, and windows over long texts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .files import DataError, read_lines
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Question:
    """A question on a context, and its answers: texts with where they begin. None, if it has none.

    Of training only the first answer is learned; in scoring the best match counts.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...] = ()


def read_squad(path: str | Path) -> list[Question]:
    """The questions of a SQuAD file, version 1.1 or 2.0 (arXiv 1606.05250, 1806.03822).

    Raises:
        DataError: no JSON, not that layout, or an answer that is not where the file says.
    """
    text = "\n".join(line for _, line in read_lines(path))
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(path, error.lineno, f"not JSON: {error.msg}") from None
    questions = []
    where = "data"
    try:
        for a, article in enumerate(content["data"]):
            for p, paragraph in enumerate(article["paragraphs"]):
                for q, entry in enumerate(paragraph["qas"]):
                    where = f"data[{a}].paragraphs[{p}].qas[{q}]"
                    questions.append(_question(entry, paragraph["context"]))
    except (KeyError, TypeError) as error:
        raise DataError(path, None, f"not SQuAD's layout at {where}: {error!r}") from None
    except ValueError as error:
        raise DataError(path, None, f"{where}: {error}") from None
    if not questions:
        raise DataError(path, None, "there are no questions")
    return questions


def _question(entry: dict, context: str) -> Question:
    answers = [] if entry.get("is_impossible") else entry["answers"]
    found = tuple((answer["text"], answer["answer_start"]) for answer in answers)
    for text, start in found:
        if not text or context[start : start + len(text)] != text:
            raise ValueError(f"the context has no {text!r} at {start}")
    return Question(str(entry["id"]), entry["question"], context, found)


@dataclass(frozen=True)
class Window:
    """[CLS] question [SEP] part of the context [SEP].

    tokens, segments: (T,) int64, segments 1 from the context on. first: the place of the context's
    first token; offsets: where each of its tokens begins and ends in the text. start, end: places
    of the answer's first and last token, both 0 where this window has no answer.
    """

    tokens: Tensor
    segments: Tensor
    first: int
    offsets: list[tuple[int, int]]
    start: int
    end: int


def windows(
    tokenizer: Tokenizer,
    question: Question,
    max_length: int,
    stride: int = 128,
    max_question: int = 64,
) -> list[Window]:
    """Windows of at most ``max_length`` tokens that overlap, each ``stride`` after the last.

    Raises:
        ValueError: ``max_length`` leaves no room for a context beside the longest question.
    """
    asked = tokenizer.encode(question.question)[:max_question]
    ids, offsets = tokenizer.encode_with_offsets(question.context)
    room = max_length - len(asked) - 3
    if room < 1:
        raise ValueError(
            f"max_length should be over {len(asked) + 3}, that there be room for a context beside "
            f"the question, got {max_length}"
        )
    stride = min(stride, room)
    span = _answer_tokens(question, offsets)
    found = []
    for begin in range(0, max(len(ids) - room + stride, 1), stride):
        piece = ids[begin : begin + room]
        head = [tokenizer.cls_id, *asked, tokenizer.sep_id]
        start, end = (place - begin + len(head) for place in span)
        if span[0] < begin or span[1] >= begin + len(piece) or not piece:
            start = end = 0
        tokens = torch.tensor([*head, *piece, tokenizer.sep_id])
        segments = (torch.arange(len(tokens)) >= len(head)).long()
        window = Window(tokens, segments, len(head), offsets[begin : begin + room], start, end)
        found.append(window)
    return found


def _answer_tokens(question: Question, offsets: list[tuple[int, int]]) -> tuple[int, int]:
    """The first and the last token that share a character with the first answer, or (-1, -1)."""
    if question.answers:
        text, start = question.answers[0]
        end = start + len(text)
        hit = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
        if hit:
            return hit[0], hit[-1]
    return -1, -1


def best_answer(
    question: Question,
    parts: Sequence[Window],
    starts: Sequence[Tensor],
    ends: Sequence[Tensor],
    max_answer: int = 30,
    may_fail: bool = True,
) -> tuple[str, float]:
    """The best span of all windows, as text, and its score over that of no answer.

    Args:
        starts, ends: of each window the scores (T,) of its tokens to begin and to end the answer.
        max_answer: longest answer in tokens.
        may_fail: whether "" is returned where no answer scores higher than every span.
    """
    best, text = float("-inf"), ""
    nothing = float("inf")
    for window, start, end in zip(parts, starts, ends):
        nothing = min(nothing, float(start[0] + end[0]))
        count = len(window.offsets)
        if not count:
            continue
        place = slice(window.first, window.first + count)
        scores = start[place, None].float() + end[None, place].float()  # (first, last)
        allowed = torch.ones_like(scores, dtype=torch.bool).triu().tril(max_answer - 1)
        blank = torch.tensor([a == b for a, b in window.offsets])  # a token of space alone
        allowed &= ~(blank | blank[:, None])
        scores = scores.masked_fill(~allowed, float("-inf"))
        top = int(scores.argmax())
        if float(scores.view(-1)[top]) > best:
            best = float(scores.view(-1)[top])
            first, last = divmod(top, count)
            text = question.context[window.offsets[first][0] : window.offsets[last][1]]
    if may_fail and best <= nothing:
        text = ""
    return text, best - nothing
