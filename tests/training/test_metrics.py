"""Scores of texts, against values worked out by hand and the libraries'."""

import pytest
import sacrebleu

from fastseq.training.metrics import answer_scores, bleu, chrf, macro_f1, rouge_l

TEXTS = ["the cat sat on the mat .", "there is a dog", ""]
REFERENCES = ["the cat sat on a mat .", "there was one dog", "a bird"]


def test_bleu_and_chrf_are_sacrebleus():
    assert bleu(TEXTS, REFERENCES) == sacrebleu.corpus_bleu(TEXTS, [REFERENCES]).score > 10
    assert chrf(TEXTS, REFERENCES) == sacrebleu.corpus_chrf(TEXTS, [REFERENCES]).score > 10
    assert bleu(REFERENCES, REFERENCES) == pytest.approx(100)


def test_rouge_l():
    # Longest common subsequences: "the cat sat on mat" 5 of 6 and 6, "there dog" 2 of 4 and 4.
    assert rouge_l(TEXTS, REFERENCES) == pytest.approx((200 * 5 / 12 + 200 * 2 / 8 + 0) / 3)
    assert rouge_l(["Été, là!"], ["été là"]) == 100
    assert rouge_l(["a b c d"], ["d c b a"]) == pytest.approx(25)


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("The Tower, of Pisa!", ["tower of pisa"], (100, 100)),
        ("tower of Rome", ["the tower of Pisa", "Rome"], (0, 200 * 2 / 6)),
        ("", [], (100, 100)),
        ("Pisa", [], (0, 0)),
        ("", ["Pisa"], (0, 0)),
    ],
)
def test_answers_are_scored_as_squad_does(answer, references, expected):
    assert answer_scores(answer, references) == pytest.approx(expected)


def test_macro_f1():
    # Class 0: 1 hit of 2 given and 1 right; class 1: 1 of 1 and 2; class 2 never occurs.
    assert macro_f1([0, 0, 1], [0, 1, 1], 3) == pytest.approx((200 / 3 + 200 / 3 + 0) / 3)
