"""How well a trained model does on a file: the metric of its task, for translations by length."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..data import Blocks, DataError, Row, Tokenizer, read_documents, read_squad, read_tsv
from ..models import (
    GPT,
    BERTForQuestionAnswering,
    BERTForSequenceClassification,
    CheckpointError,
    Model,
    load,
)
from ..training.metrics import answer_scores, bleu, chrf, macro_f1, rouge_l
from ..training.tasks.base import cross_entropy, perplexity
from ..training.tasks.classify import class_name
from ..training.tasks.language_model import BlockExamples
from .reading import Classifier, QuestionAnswerer, class_names
from .trained import TextError, model_directory
from .writing import Translator

BUCKETS = (10, 20, 30, 40, 50)


def evaluate(
    directory: str | Path,
    file: str | Path,
    *,
    columns: Sequence[int] | None = None,
    threshold: float | None = None,
    device: torch.device | str | None = None,
    buckets: Sequence[int] = BUCKETS,
    batch_size: int = 32,
    truncate: bool = False,
    **search: Any,
) -> dict[str, Any]:
    """Scores of the model in a directory on a file like those that ``fastseq train`` reads.

    - An encoder-decoder writes what its sources ask for: ``bleu``, ``chrf`` and ``rouge_l`` against
      the references, and the first two ``by_length``, for sources of 1 to 10, 11 to 20 … words.
    - A classifier: ``accuracy`` and ``f1``, the mean over classes.
    - A question answerer: ``exact_match`` and ``f1`` on SQuAD's JSON.
    - A GPT: ``perplexity`` of the text, and ``loss``, the mean in nats per token.

    Args:
        columns: of a tab-separated file, from 1: source and target, or label and text, by default
            1 and 2; for a GPT the one of the text, plain text if None.
        threshold: for numeric labels, as in training: those below are the class "negative".
        buckets: the most words of a source in each bucket but the last.
        batch_size: sentences or blocks that are worked on together.
        truncate: cut texts that are longer than the model reads.
        search: of translations, as ``Translator.candidates``.

    Raises:
        DataError: the file cannot be read, or has a text that the model cannot.
        FileNotFoundError, CheckpointError: there is no such model in the directory.
        ValueError: columns or buckets are not of this kind.
    """
    folder = model_directory(directory)
    model, tokenizer = load(folder, device), Tokenizer.load(folder)
    try:
        if isinstance(model, GPT):
            return _of_text(model, tokenizer, file, columns or (), batch_size)
        if isinstance(model, BERTForQuestionAnswering):
            return _of_answers(QuestionAnswerer(model, tokenizer), file, batch_size)
        rows = _rows(file, columns or (1, 2))
        options = {"batch_size": batch_size, "truncate": truncate}
        if isinstance(model, BERTForSequenceClassification):
            classifier = Classifier(model, tokenizer, class_names(folder))
            return _of_classes(classifier, rows, threshold, options)
        return _of_translations(Translator(model, tokenizer), rows, buckets, options | search)
    except TextError as error:
        row = rows[error.index]
        raise DataError(row.path, row.line, error.reason) from None
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None


def _rows(file: str | Path, columns: Sequence[int]) -> list[Row]:
    if len(columns) != 2:
        raise ValueError(f"columns should be two, got {list(columns)}")
    rows = list(read_tsv(file, columns))
    if not rows:
        raise DataError(file, None, "there is nothing in it")
    return rows


def _of_translations(
    translator: Translator, rows: list[Row], buckets: Sequence[int], options: dict[str, Any]
) -> dict[str, Any]:
    if list(buckets) != sorted(set(buckets)) or min(buckets, default=1) < 1:
        raise ValueError(f"buckets should be rising numbers of words, got {list(buckets)}")
    sources, references = zip(*(row.fields for row in rows))
    written = translator(sources, **options)
    parts = []
    for least, most in zip([1, *(edge + 1 for edge in buckets)], [*buckets, None]):
        inside = [
            (text, reference)
            for source, text, reference in zip(sources, written, references)
            if least <= len(source.split()) <= (most or float("inf"))
        ]
        if inside:
            texts, wanted = zip(*inside)
            scores = {"bleu": bleu(texts, wanted), "chrf": chrf(texts, wanted)}
            parts.append({"from": least, "to": most, "count": len(inside), **scores})
    return {
        "count": len(rows),
        "bleu": bleu(written, references),
        "chrf": chrf(written, references),
        "rouge_l": rouge_l(written, references),
        "by_length": parts,
    }


def _of_classes(
    classifier: Classifier, rows: list[Row], threshold: float | None, options: dict[str, Any]
) -> dict[str, Any]:
    numbers = {name: i for i, name in enumerate(classifier.names)}
    labels = [numbers.get(class_name(row, threshold), -1) for row in rows]
    if -1 in labels:
        row = rows[labels.index(-1)]
        known = ", ".join(classifier.names)
        raise DataError(
            row.path, row.line, f"label {row.fields[0]!r} is none of the model's: {known}"
        )
    found = classifier([row.fields[1] for row in rows], **options)
    predicted = [numbers[result.label] for result in found]
    hits = sum(p == label for p, label in zip(predicted, labels))
    return {
        "count": len(rows),
        "accuracy": 100 * hits / len(rows),
        "f1": macro_f1(predicted, labels, len(numbers)),
    }


def _of_answers(answerer: QuestionAnswerer, file: str | Path, batch_size: int) -> dict[str, Any]:
    questions = read_squad(file)
    answers = answerer(
        [q.question for q in questions],
        [q.context for q in questions],
        allow_none=not all(q.answers for q in questions),
        batch_size=batch_size,
    )
    scores = [
        answer_scores(answer.text, [text for text, _ in q.answers])
        for answer, q in zip(answers, questions)
    ]
    exact, f1 = (sum(column) / len(scores) for column in zip(*scores))
    return {"count": len(questions), "exact_match": exact, "f1": f1}


@torch.no_grad()
def _of_text(
    model: Model,
    tokenizer: Tokenizer,
    file: str | Path,
    columns: Sequence[int],
    batch_size: int,
) -> dict[str, Any]:
    if len(columns) > 1:
        raise ValueError(f"columns should be one or none, got {list(columns)}")
    documents = ["\n".join(d) for d in read_documents(file, *columns)]
    if not documents:
        raise DataError(file, None, "there is nothing in it")
    length = model.config.max_length
    blocks = Blocks(tokenizer.encode_batch(documents), length, tokenizer.bos_id, tokenizer.eos_id)
    examples = BlockExamples(blocks, model.config.pad_id)
    device = next(model.parameters()).device
    loss, count = 0.0, 0
    for indices in examples.batches(batch_size * length, None):
        batch = examples.collate(indices, None).to(device)
        loss += float(cross_entropy(model(**batch.inputs), batch.labels["tokens"]))
        count += int((batch.labels["tokens"] >= 0).sum())
    return {"tokens": count, "loss": loss / count, "perplexity": perplexity(loss / count)}
