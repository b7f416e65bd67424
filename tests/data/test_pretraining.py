"""BERT's examples: pairs of sentences, masks, and that both follow from their seeds."""

import pytest
import torch

from fastseq.data import IGNORED, Corpus, assemble, mask_tokens


@pytest.fixture(scope="module")
def corpus():
    # Token t of sentence s of document d is 10000·d + 100·s + t: it tells where it is from.
    documents = [
        [[10000 * d + 100 * s + t for t in range(3 + (d + s) % 9)] for s in range(2 + d % 12)]
        for d in range(1, 200)
    ]
    return Corpus(documents)


def test_pairs_follow_or_come_from_elsewhere(corpus):
    pairs = corpus.pairs(40, seed=1, epoch=0)
    flat = corpus.tokens.flat
    for pair in pairs:
        assert 5 <= pair.length <= 40
        a, b = flat[slice(*pair.a)], flat[slice(*pair.b)]
        same = int(a[0]) // 10000 == int(b[0]) // 10000
        assert same == pair.follows
        assert len(set((a // 10000).tolist())) == len(set((b // 10000).tolist())) == 1
        if pair.follows:
            assert pair.a[1] <= pair.b[0]
    follows = sum(pair.follows for pair in pairs) / len(pairs)
    assert 0.35 < follows < 0.6


def test_single_sentences_are_parted_within():
    documents = [[[1000 * d + t for t in range(1 + d % 20)]] for d in range(1, 400)]
    corpus = Corpus(documents)
    flat, pairs = corpus.tokens.flat, corpus.pairs(16, seed=1, epoch=0)
    assert len(pairs) == len(documents)
    for pair, (document,) in zip(pairs, documents):
        a, b = flat[slice(*pair.a)].tolist(), flat[slice(*pair.b)].tolist()
        assert a and b and pair.length <= 16
        assert {x // 1000 for x in a} == {document[0] // 1000}
        assert pair.follows == (b[0] // 1000 == document[0] // 1000)
        if pair.follows and len(document) <= 13:
            assert a + b == document
        if len(document) == 1:
            assert a == document and not pair.follows
    follows = sum(pair.follows for pair in pairs) / len(pairs)
    assert 0.4 < follows < 0.55
    # What comes from elsewhere begins within a sentence, too: the beginning tells nothing.
    begins = [flat[p.b[0]].item() % 1000 == 0 for p in pairs if not p.follows]
    assert sum(begins) / len(begins) < 0.2


def test_pairs_follow_from_seed_and_epoch(corpus):
    assert corpus.pairs(40, 1, 0) == corpus.pairs(40, 1, 0)
    assert corpus.pairs(40, 1, 0) != corpus.pairs(40, 1, 1)


def test_without_room_for_both_the_longer_part_gives(corpus):
    long = Corpus([[list(range(10, 200))] * 2, [list(range(300, 490))] * 2])
    for pair in long.pairs(64, 0, 0):
        assert pair.length == 64
        sizes = pair.a[1] - pair.a[0], pair.b[1] - pair.b[0]
        assert abs(sizes[0] - sizes[1]) <= 1 or min(sizes) < 30  # the shorter one is whole


def test_assembled_pairs_have_segments(corpus):
    pair = corpus.pairs(40, 1, 0)[5]
    tokens, segments = assemble(corpus, pair, cls_id=2, sep_id=3)
    first = pair.a[1] - pair.a[0] + 2
    assert tokens[0] == 2
    assert tokens[first - 1] == tokens[-1] == 3
    assert len(tokens) == len(segments) == pair.length
    assert segments.tolist() == [0] * first + [1] * (pair.length - first)


def test_of_the_chosen_eighty_percent_are_masked_and_ten_other_words():
    tokens = torch.randint(5, 1000, (40000,))
    special = torch.zeros(40000, dtype=torch.bool)
    special[::7] = True
    read, labels = mask_tokens(tokens, special, 4, 5, 1000, (1, 2, 3))
    chosen = labels != IGNORED
    count = int(chosen.sum())
    assert count == round(0.15 * int((~special).sum()))
    assert not (chosen & special).any()
    assert torch.equal(labels[chosen], tokens[chosen])
    assert torch.equal(read[~chosen], tokens[~chosen])
    masked = read[chosen] == 4
    kept = read[chosen] == tokens[chosen]
    assert abs(float(masked.double().mean()) - 0.8) < 0.02
    assert abs(float(kept.double().mean()) - 0.1) < 0.02
    assert int(read.min()) >= 4


def test_masks_follow_from_the_seed():
    tokens, special = torch.arange(5, 105), torch.zeros(100, dtype=torch.bool)
    first = mask_tokens(tokens, special, 4, 5, 200, (1, 2, 3))
    again = mask_tokens(tokens, special, 4, 5, 200, (1, 2, 3))
    other = mask_tokens(tokens, special, 4, 5, 200, (1, 2, 4))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[1], other[1])
    assert int((mask_tokens(tokens[:1], special[:1], 4, 5, 9, (0,))[1] != IGNORED).sum()) == 1


def test_one_document_is_too_few():
    with pytest.raises(ValueError, match="at least 2 documents, got 1"):
        Corpus([[[1, 2]], [[]]])
