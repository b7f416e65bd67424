"""Tokenizers: round trips, special tokens, offsets, files."""

import pytest

from fastseq.data import SAMPLE_TRAIN, DataError, Tokenizer, read_tsv


@pytest.fixture(scope="module")
def texts():
    return [text for row in read_tsv(SAMPLE_TRAIN, [1, 2]) for text in row.fields][:3000]


@pytest.fixture(scope="module", params=["bpe", "wordpiece"])
def tokenizer(request, texts):
    return Tokenizer.train(texts, 600, request.param)


ODD = "L'été, «  où » est-ce </s> [SEP] 漢字 😀 ?"


def test_special_tokens_stand_first(tokenizer):
    t = tokenizer
    assert [t.pad_id, t.unk_id, t.bos_id, t.eos_id, t.mask_id] == [0, 1, 2, 3, 4]
    assert (t.cls_id, t.sep_id) == (2, 3)
    assert len(t) == 600


def test_names_of_special_tokens_in_a_text_are_text(tokenizer):
    assert not {0, 2, 3, 4} & set(tokenizer.encode(ODD))


def test_bytes_give_every_text_back(texts):
    tokenizer = Tokenizer.train(texts, 400)
    for text in [ODD, *texts[:200]]:
        ids = tokenizer.encode(text)
        assert tokenizer.unk_id not in ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("") == []


def test_offsets_find_the_words(tokenizer):
    ids, offsets = tokenizer.encode_with_offsets("la souris verte")
    assert ids == tokenizer.encode("la souris verte")
    assert "".join("la souris verte"[a:b] for a, b in offsets) == "lasourisverte"


def test_a_source_has_its_ends(tokenizer):
    ids = tokenizer.encode("le fichier")
    begin = [] if tokenizer.inner.token_to_id("[CLS]") is None else [tokenizer.cls_id]
    assert tokenizer.encode_source("le fichier") == [*begin, *ids, tokenizer.eos_id]
    assert tokenizer.encode_source_batch(["le fichier", ""]) == [
        [*begin, *ids, tokenizer.eos_id],
        [*begin, tokenizer.eos_id],
    ]


def test_lower_case(texts):
    tokenizer = Tokenizer.train(texts, 500, "wordpiece", lowercase=True)
    assert tokenizer.encode("Le FICHIER") == tokenizer.encode("le fichier")


def test_it_is_kept_in_a_file(tokenizer, tmp_path, texts):
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = Tokenizer.load(path)
        assert again.encode_batch(texts[:50]) == tokenizer.encode_batch(texts[:50])
        assert again.decode_batch([[5, 6], [2, 7, 3]]) == tokenizer.decode_batch([[5, 6], [7]])


def test_the_same_texts_give_the_same_tokenizer(tokenizer, texts):
    kind = "bpe" if tokenizer.inner.token_to_id("[CLS]") is None else "wordpiece"
    assert Tokenizer.train(texts, 600, kind).inner.to_str() == tokenizer.inner.to_str()


def test_files_that_are_none_are_told(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_bad_arguments_are_told():
    with pytest.raises(ValueError, match="kind should be 'bpe' or 'wordpiece', got 'unigram'"):
        Tokenizer.train(["a"], 500, "unigram")
    with pytest.raises(ValueError, match="vocab_size should be at least 261 for bpe, got 260"):
        Tokenizer.train(["a"], 260)
