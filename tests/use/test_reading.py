"""Classifiers and question answerers as Python classes."""

import json
import shutil

import pytest

from fastseq.data import read_squad, read_tsv
from fastseq.models import CheckpointError
from fastseq.use import Classifier, QuestionAnswerer, TextError


def test_classes_and_probabilities(classes):
    classifier = Classifier.open(classes.folder)
    rows = [row.fields for row in read_tsv(classes.valid, [1, 2])]
    texts = [rows[0][1], " ", *(text for _, text in rows[1:])]
    found = classifier(texts, batch_size=7)
    assert (found[1].label, found[1].tokens) == ("", 0)
    right = [
        result.label == ("negative" if float(label) < 0 else "positive")
        for result, (label, _) in zip([found[0], *found[2:]], rows)
    ]
    assert sum(right) > 0.9 * len(rows)
    alone = classifier([texts[0]])[0]
    assert alone.probability == pytest.approx(found[0].probability, abs=1e-5)
    assert set(alone.probabilities) == {"negative", "positive"}
    assert sum(alone.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert alone.probability == max(alone.probabilities.values())
    assert alone.tokens == len(classifier.tokenizer.encode(texts[0])) + 2
    assert classifier.unknown(["Film", "Фильм 日本"]) == [1]


def test_long_texts_are_refused_or_cut(classes):
    classifier = Classifier.open(classes.folder)
    long = "Film 3 was lovely. " * 9
    with pytest.raises(TextError, match=r"texts\[1\]: \d+ tokens, the model reads at most 24"):
        classifier(["Film 3 was awful.", long])
    (cut,) = classifier([long], truncate=True)
    assert (cut.label, cut.tokens) == ("positive", 24)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ('["a", "b", "c"]', "3 names for a model of 2 classes"),
        ("[", "labels.json: not JSON"),
        ('{"a": 1}', "labels.json: not a list of names"),
    ],
)
def test_labels_that_do_not_fit_are_refused(classes, tmp_path, labels, message):
    folder = shutil.copytree((classes.folder / "last").resolve(), tmp_path / "model")
    (folder / "labels.json").write_text(labels)
    with pytest.raises(CheckpointError, match=message):
        Classifier.open(folder)
    (folder / "labels.json").unlink()
    assert Classifier.open(folder).names == ["0", "1"]


def test_answers_are_pieces_of_their_contexts(questions):
    answerer = QuestionAnswerer.open(questions.folder)
    asked = read_squad(questions.valid)
    found = answerer([q.question for q in asked], [q.context for q in asked], batch_size=5)
    assert all(a.text and a.text in q.context for a, q in zip(found, asked))
    hits = sum(a.text == q.answers[0][0] for a, q in zip(found, asked))
    assert hits == pytest.approx(len(asked) * questions.scores["exact_match"] / 100)
    assert hits > len(asked) / 2
    assert answerer(["", "How many rooms?"], [asked[0].context, " "]) == [
        type(found[0])(""),
        type(found[0])(""),
    ]
    # Some contexts were read through several windows.
    assert max(a.tokens for a in found) > answerer.max_length
    alone = answerer([asked[2].question], [asked[2].context])[0]
    assert alone.text == found[2].text
    assert alone.score == pytest.approx(found[2].score, abs=1e-4)
    may_be_none = answerer([asked[2].question], [asked[2].context], allow_none=True)[0]
    assert (may_be_none.text == "") == (alone.score <= 0)
    assert may_be_none.score == pytest.approx(alone.score, abs=1e-4)


def test_questions_that_cannot_be_asked(questions):
    answerer = QuestionAnswerer.open(questions.folder)
    with pytest.raises(ValueError, match="2 questions, but 1 contexts"):
        answerer(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        answerer(["a"], ["b"], stride=0)
    with pytest.raises(TextError, match=r"texts\[0\]: max_length should be over"):
        answerer(["how many rooms are there " * 9], ["House 3."])


def test_labels_are_written_by_training(classes):
    names = json.loads((classes.folder / "last" / "labels.json").read_text())
    assert Classifier.open(classes.folder / "last").names == names
