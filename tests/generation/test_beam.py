"""Beam search against all sequences there are, and against plain loops."""

import pytest
import torch

from fastseq.generation import Hypothesis, generate
from tests.generation.tiny import Tiny, all_sequences, slow_beam_search

SOURCE = torch.tensor([[4, 1, 5], [5, 0, 0], [1, 4, 0], [1, 1, 1]])
LENGTHS = torch.tensor([3, 1, 2, 3])


def agree(found: list[Hypothesis], expected: list[tuple[float, list[int]]]) -> None:
    assert [h.tokens for h in found] == [tokens for _, tokens in expected]
    torch.testing.assert_close(
        torch.tensor([h.score for h in found]),
        torch.tensor([score for score, _ in expected]),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_wide_beams_find_the_best_of_all_sequences(seed: int, penalty: float) -> None:
    model = Tiny(6, seed=seed)
    results = generate(
        model,
        SOURCE,
        LENGTHS,
        max_new_tokens=3,
        beam_size=216,
        num_return=85,
        length_penalty=penalty,
    )
    for source, length, found in zip(SOURCE, LENGTHS, results):
        expected = all_sequences(model, source[:length], 3, penalty)
        assert len(expected) == 1 + 4 + 16 + 64
        agree(found, expected)


@pytest.mark.parametrize("beam", [2, 3, 5])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("eos_bias", [-1.0, 1.5])
def test_against_plain_loops(beam: int, penalty: float, eos_bias: float) -> None:
    model = Tiny(11, eos_bias, seed=beam)
    source = torch.randint(4, 11, (9, 5))
    results = generate(
        model, source, max_new_tokens=12, beam_size=beam, num_return=beam, length_penalty=penalty
    )
    for one, found in zip(source, results):
        agree(found, slow_beam_search(model, one, beam, 12, penalty))
    rows = model.states[-1].rows
    assert rows[0] == len(source) and max(rows[1:]) == len(source) * beam
    assert eos_bias < 0 or rows[-1] < rows[1]  # sentences end at different times, and leave


def test_one_beam_is_greedy() -> None:
    model = Tiny(11, 1.0)
    source = torch.randint(4, 11, (7, 4))
    for one, found in zip(source, generate(model, source, max_new_tokens=9)):
        expected = slow_beam_search(model, one, 1, 9, 1.0)
        tokens: list[int] = []
        while len(tokens) < 9 and (word := int(model.log_probs(one, tokens).argmax())) != 3:
            tokens.append(word)
        assert found[0].tokens == tokens
        assert len(expected) == 1 and expected[0][1] == tokens


@pytest.mark.parametrize("options", [{}, {"beam_size": 3}, {"beam_size": 3, "no_repeat_ngram": 2}])
def test_batch_and_cache_change_nothing(options: dict) -> None:
    model = Tiny(9, 0.5)
    source = torch.randint(4, 9, (6, 5))
    plain = generate(model, source, max_new_tokens=10, **options)
    uncached = generate(model, source, max_new_tokens=10, use_cache=False, **options)
    alone = [generate(model, one[None], max_new_tokens=10, **options)[0] for one in source]
    for other in (uncached, alone):
        assert [[h.tokens for h in found] for found in other] == [
            [h.tokens for h in found] for found in plain
        ]


@pytest.mark.parametrize("beam", [1, 3])
def test_prefixes_of_unequal_length(beam: int) -> None:
    model = Tiny(9, 0.5)
    source = torch.randint(4, 9, (4, 5))
    prefixes = [[5, 4, 7], [], [8], [6, 3, 6, 6, 1]]  # an end of sentence inside of one is no end
    options = {"max_new_tokens": 6, "beam_size": beam, "num_return": beam}
    results = generate(model, source, prefix=prefixes, **options)
    for i, (prefix, found) in enumerate(zip(prefixes, results)):
        alone = generate(model, source[i : i + 1], prefix=[prefix], **options)[0]
        assert [h.tokens for h in found] == [h.tokens for h in alone]
        for hypothesis, other in zip(found, alone):
            assert hypothesis.tokens[: len(prefix)] == prefix
            assert len(hypothesis.tokens) <= len(prefix) + 6
            assert hypothesis.score == pytest.approx(other.score, rel=1e-5)
            generated = hypothesis.tokens[len(prefix) :]
            if len(generated) < 6:
                generated = [*generated, 3]
            total = sum(
                float(model.log_probs(source[i], [*prefix, *generated[:t]])[word])
                for t, word in enumerate(generated)
            )
            expected = total / ((5 + len(generated)) / 6)
            assert hypothesis.score == pytest.approx(expected, rel=1e-5)
    tensor = torch.tensor([[5, 4]] * 4)
    assert generate(model, source, prefix=tensor, **options) == generate(
        model, source, prefix=tensor.tolist(), **options
    )


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("beam", [1, 4])
def test_no_ngram_comes_twice(beam: int, n: int) -> None:
    model = Tiny(9, -2.0, seed=4)
    source = torch.randint(4, 9, (5, 3))

    def repeats(tokens: list[int]) -> bool:
        grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        return len(set(grams)) < len(grams)

    options = {"max_new_tokens": 15, "beam_size": beam}
    assert any(repeats(found[0].tokens) for found in generate(model, source, **options))
    for found in generate(model, source, no_repeat_ngram=n, **options):
        assert not repeats(found[0].tokens)
    if beam == 1:  # nothing else is forbidden
        for one, found in zip(source, generate(model, source, no_repeat_ngram=n, **options)):
            tokens: list[int] = []
            while len(tokens) < 15:
                scores = model.log_probs(one, tokens)
                scores[[w for w in range(9) if repeats([*tokens, w])]] = -torch.inf
                if (word := int(scores.argmax())) == 3:
                    break
                tokens.append(word)
            assert found[0].tokens == tokens


@pytest.mark.parametrize("beam", [1, 3])
def test_attention_belongs_to_the_tokens(beam: int) -> None:
    model = Tiny(9, 0.5)
    results = generate(
        model, SOURCE, LENGTHS, prefix=[[4, 5], [], [1], [7]], max_new_tokens=5, beam_size=beam,
        num_return=beam, need_attention=True,
    )  # fmt: skip
    for source, length, found in zip(SOURCE, LENGTHS, results):
        for hypothesis in found:
            before = torch.tensor([2, *hypothesis.tokens][: len(hypothesis.tokens)])
            expected = before[:, None] * source[:length].float()
            assert torch.equal(hypothesis.attention, expected)
