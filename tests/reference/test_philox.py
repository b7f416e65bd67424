"""The generator against the known answers of its authors, and the statistics of the masks."""

import pytest
import torch

from fastseq.reference.philox import dropout_mask, philox


def test_known_answer() -> None:
    """Random123's kat_vectors: philox4x32-10, counter and key all zero."""
    words = philox(0, torch.zeros(1, dtype=torch.int64))
    assert [int(w) for w in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_every_bit_of_counter_and_seed_matters() -> None:
    counter = torch.randint(2**62, (1,))
    seed = int(torch.randint(2**62, ()))
    words = torch.cat(philox(seed, counter))
    for bit in range(63):
        assert not torch.equal(torch.cat(philox(seed, counter ^ (1 << bit))), words)
        assert not torch.equal(torch.cat(philox(seed ^ (1 << bit), counter)), words)
    assert not torch.equal(torch.cat(philox(seed, counter, stream=1)), words)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_dropout_mask(probability: float) -> None:
    like = torch.empty(3, 211, 157)
    mask = dropout_mask(1234567890123, like, probability)
    kept = (mask != 0).double().mean()
    assert (
        abs(kept - (1 - probability))
        < 5 * (probability * (1 - probability) / mask.numel()) ** 0.5 + 1e-12
    )
    if probability < 1:
        torch.testing.assert_close(mask[mask != 0].unique(), torch.tensor([1 / (1 - probability)]))
    assert torch.equal(mask, dropout_mask(1234567890123, like, probability))
    if 0 < probability < 1:
        assert not torch.equal(mask, dropout_mask(1234567890124, like, probability))
