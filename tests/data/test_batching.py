"""Batches by token count: every example once, in an order that follows from the seed."""

import pytest
import torch
from torch.testing import assert_close

from fastseq.data import IGNORED, Blocks, Sequences, pad, pad_rows, token_batches
from fastseq.data.batching import generator, mix


def test_every_example_is_in_one_batch_and_batches_are_full():
    lengths = torch.randint(1, 90, (9001,))
    lengths[17] = 500  # longer than a batch
    for shuffle in (None, (3, 0)):
        batches = token_batches(lengths, 300, shuffle)
        assert sorted(i for batch in batches for i in batch) == list(range(9001))
        sums = torch.tensor([int(lengths[batch].sum()) for batch in batches])
        assert int(sums.max()) == 500
        assert [17] in batches
        assert int((sums > 300).sum()) == 1
        assert sums.double().mean() > 250


def test_lengths_within_a_batch_are_alike():
    lengths = torch.randint(1, 200, (5000,))
    waste = [
        1 - float(lengths[b].sum()) / (len(b) * int(lengths[b].max()))
        for b in token_batches(lengths, 2000, (0, 0))
    ]
    assert sum(waste) / len(waste) < 0.02


def test_the_order_follows_from_seed_and_epoch():
    lengths = torch.randint(1, 50, (500,))
    batches = token_batches(lengths, 100, (1, 2))
    assert token_batches(lengths, 100, (1, 2)) == batches
    assert token_batches(lengths, 100, (1, 3)) != batches
    assert token_batches(lengths, 100, (2, 2)) != batches


def test_seeds_are_mixed():
    seeds = {mix(a, b) for a in range(50) for b in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert (
        torch.rand(3, generator=generator(1, 2)).ne(torch.rand(3, generator=generator(2, 1))).all()
    )


def test_sequences_and_padding():
    sequences = Sequences([[1, 2, 3], [], [4]])
    assert sequences.lengths.tolist() == [3, 0, 1]
    tokens, lengths = pad([sequences[2], sequences[0]], 9)
    assert_close(tokens, torch.tensor([[4, 9, 9], [1, 2, 3]]))
    assert_close(lengths, torch.tensor([1, 3]))
    rows, lengths = sequences.rows([2, 1, 0])
    assert (rows.tolist(), lengths.tolist()) == ([4, 1, 2, 3], [1, 0, 3])
    assert_close(pad_rows(rows, lengths, 9), torch.tensor([[4, 9, 9], [9, 9, 9], [1, 2, 3]]))
    assert sequences.rows([2, 0], skip_first=1)[0].tolist() == [2, 3]
    assert sequences.rows([0, 2, 0], skip_last=1)[0].tolist() == [1, 2, 1, 2]
    assert len(Sequences([])) == 0
    with pytest.raises(ValueError, match="max_tokens should be at least 1, got 0"):
        token_batches(lengths, 0)


def test_blocks_cover_the_text_and_predict_no_beginning():
    documents = [[10, 11, 12], [20], [30, 31, 32, 33]]
    blocks = Blocks(documents, 4, bos_id=2, eos_id=3)
    text = [2, 10, 11, 12, 3, 2, 20, 3, 2, 30, 31, 32, 33, 3]
    starts = blocks.starts()
    read, labels = zip(*(blocks.block(int(s)) for s in starts))
    assert torch.cat(read).tolist() == text[:-1]
    expected = [t if t != 2 else IGNORED for t in text[1:]]
    assert torch.cat(labels).tolist() == expected
    assert blocks.lengths(starts).tolist() == [len(r) for r in read]


def test_blocks_of_epochs_start_elsewhere():
    blocks = Blocks([list(range(10, 500))], 16, bos_id=2, eos_id=3)
    firsts = {int(blocks.starts((0, epoch))[0]) for epoch in range(20)}
    assert len(firsts) > 5
    assert max(firsts) < 16
    with pytest.raises(ValueError, match="no text"):
        Blocks([], 16, 2, 3)
