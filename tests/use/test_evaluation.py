"""Evaluation reads, writes and scores as training's validation does."""

import pytest

from fastseq.data import DataError, read_tsv
from fastseq.training.metrics import bleu
from fastseq.use import Translator, evaluate


def test_translations_score_as_in_training(translation):
    found = evaluate(translation.folder / "last", translation.valid, beam_size=1, buckets=[5, 8])
    assert found["bleu"] == pytest.approx(translation.scores["bleu"])
    assert found["bleu"] > 5
    assert found["chrf"] == pytest.approx(translation.scores["chrf"])
    assert [(part["from"], part["to"]) for part in found["by_length"]] == [
        (1, 5),
        (6, 8),
        (9, None),
    ]
    pairs = [row.fields for row in read_tsv(translation.valid, [1, 2])]
    short = [pair for pair in pairs if len(pair[0].split()) <= 5]
    written = Translator.open(translation.folder / "last")([s for s, _ in short], beam_size=1)
    assert found["by_length"][0]["count"] == len(short)
    assert found["by_length"][0]["bleu"] == pytest.approx(bleu(written, [t for _, t in short]))
    assert sum(part["count"] for part in found["by_length"]) == found["count"] == len(pairs)


def test_text_classes_and_answers_score_as_in_training(language, classes, questions):
    found = evaluate(language.folder / "last", language.valid)
    assert found["loss"] == pytest.approx(language.scores["loss"], rel=1e-4)
    assert found["perplexity"] == pytest.approx(language.scores["perplexity"], rel=1e-4)
    found = evaluate(classes.folder / "last", classes.valid, threshold=0.0)
    assert (found["accuracy"], found["f1"]) == pytest.approx(
        (classes.scores["accuracy"], classes.scores["f1"])
    )
    assert found["accuracy"] > 90
    found = evaluate(questions.folder / "last", questions.valid)
    assert (found["exact_match"], found["f1"]) == pytest.approx(
        (questions.scores["exact_match"], questions.scores["f1"])
    )
    assert found["f1"] > 50


def test_mistakes_name_file_and_line(translation, classes, language, tmp_path):
    with pytest.raises(DataError, match=r"valid.tsv:1: label '-?\d.5' is none of the model's: neg"):
        evaluate(classes.folder, classes.valid)
    path = tmp_path / "long.tsv"
    path.write_text(f"the cat\tle chat\n{'the cat ' * 60}\tle chat\n")
    if "transformer" in str(translation.folder):
        with pytest.raises(DataError, match=r"long.tsv:2: \d+ tokens, .* at most 40"):
            evaluate(translation.folder, path)
        assert evaluate(translation.folder, path, truncate=True)["count"] == 2
    with pytest.raises(ValueError, match=r"buckets should be rising numbers of words, got \[5, 3"):
        evaluate(translation.folder, translation.valid, buckets=[5, 3])
    with pytest.raises(ValueError, match=r"columns should be two, got \[1\]"):
        evaluate(translation.folder, translation.valid, columns=[1])
    with pytest.raises(ValueError, match=r"columns should be one or none, got \[1, 2\]"):
        evaluate(language.folder, language.valid, columns=[1, 2])
