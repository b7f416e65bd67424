"""Pairs are cleaned and split, and the shipped sample is what it should be."""

import random

import pytest

from fastseq.data import (
    SAMPLE_TRAIN,
    SAMPLE_VALID,
    clean_pair,
    clean_pairs,
    held_out,
    read_tsv,
    split_pairs,
    write_pairs,
)


@pytest.mark.parametrize(
    ("pair", "clean"),
    [
        (("_Open  file\n", "_Ouvrir le fichier"), ("Open file", "Ouvrir le fichier")),
        (("Save &As", "Enregistrer &sous"), ("Save As", "Enregistrer sous")),
        (("E_xit", "_Quitter"), ("Exit", "Quitter")),
        (
            ("no user_name here", "pas de user_name ici"),
            ("no user_name here", "pas de user_name ici"),
        ),
        (("%(n)d of %s", "%(n)d sur %s"), ("%(n)d of %s", "%(n)d sur %s")),
        (("cafe\u0301", "un café"), ("café", "un café")),
        (("OK", "OK"), None),
        (("42", "43"), None),
        (("<b><i><u>a</u></i></b>", "<b><i><u>b</u></i></b>"), None),
        (("word", "mot " * 30), None),
    ],
)
def test_cleaning(pair, clean):
    assert clean_pair(*pair) == clean


def test_pairs_come_once():
    assert list(clean_pairs([("a b", "c"), ("a  b", "c "), ("a b", "d")])) == [
        ("a b", "c"),
        ("a b", "d"),
    ]


def test_a_source_is_never_on_both_sides():
    rng = random.Random(0)
    words = [f"{rng.choice(['Word', 'word'])}  {i % 700}" for i in range(2000)]
    split = split_pairs([(w, str(i)) for i, w in enumerate(words)], 0.1)
    train, valid = ({" ".join(s.split()).lower() for s, _ in part} for part in split)
    assert not train & valid
    assert len(split.train) + len(split.valid) == 2000
    assert 0.05 < len(valid) / 700 < 0.15
    assert not held_out("anything", 0.0)
    assert held_out("anything", 1.0)


def test_written_pairs_are_read_again(tmp_path):
    pairs = [("a cat", "un chat"), ("summer", "l'été")]
    for name in ("pairs.tsv", "pairs.tsv.xz", "pairs.tsv.gz"):
        write_pairs(pairs, tmp_path / name)
        assert [row.fields for row in read_tsv(tmp_path / name, [1, 2])] == pairs


def test_the_sample_is_clean_and_split_by_source():
    train, valid = (
        [row.fields for row in read_tsv(file, [1, 2])] for file in (SAMPLE_TRAIN, SAMPLE_VALID)
    )
    assert len(train) > 8000
    assert len(valid) > 300
    assert not {source for source, _ in train} & {source for source, _ in valid}
    assert list(clean_pairs(train)) == train
    assert SAMPLE_TRAIN.stat().st_size + SAMPLE_VALID.stat().st_size < 2**20
    assert "BSD-3-Clause" in (SAMPLE_TRAIN.parent / "NOTICE").read_text()
