"""Sampling: the distribution that is drawn from, and its cuts."""

import pytest
import torch

from fastseq.generation import generate
from tests.generation.tiny import BOS, Tiny


def first_words(model: Tiny, count: int, **options) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    (found,) = generate(
        model, max_new_tokens=1, sample=True, num_return=count, generator=generator, **options
    )
    assert len(found) == count
    words = torch.tensor([h.tokens[0] if h.tokens else 3 for h in found])
    return torch.bincount(words, minlength=model.config.vocab_size) / count


def exact(model: Tiny, temperature: float) -> torch.Tensor:
    return torch.softmax(model.log_probs(None, []) / temperature, -1).float()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_frequencies(temperature: float) -> None:
    model = Tiny(9)
    found, expected = first_words(model, 20000, temperature=temperature), exact(model, temperature)
    assert found[BOS] == 0
    assert (found - expected).abs().max() < 4 * (0.25 / 20000) ** 0.5


def test_top_k_and_top_p_keep_the_best() -> None:
    model = Tiny(9)
    probabilities, order = exact(model, 1.5).sort(descending=True)
    threshold = float(probabilities[:3].sum()) - 1e-3
    for options, kept in (
        ({"top_k": 2}, 2),
        ({"top_p": threshold}, 3),  # the third is needed to reach it
        ({"top_k": 6, "top_p": float(probabilities[0]) * 0.5}, 1),
        ({"top_k": 100}, 8),
    ):
        found = first_words(model, 20000, temperature=1.5, **options)
        expected = torch.zeros(9)
        expected[order[:kept]] = probabilities[:kept] / probabilities[:kept].sum()
        assert torch.equal(found > 0, expected > 0), options
        assert (found - expected).abs().max() < 4 * (0.25 / 20000) ** 0.5


def test_the_best_token_alone_is_greedy() -> None:
    model = Tiny(11, 0.5)
    source = torch.randint(4, 11, (5, 4))
    greedy = generate(model, source, max_new_tokens=10)
    sampled = generate(model, source, max_new_tokens=10, sample=True, top_k=1)
    assert [f[0].tokens for f in sampled] == [f[0].tokens for f in greedy]
    assert [f[0].score for f in sampled] == pytest.approx([f[0].score for f in greedy])


def test_draws_follow_the_generator_and_scores_are_the_models() -> None:
    model = Tiny(11, 0.5)
    source, prefix = torch.randint(4, 11, (3, 4)), [[5], [6, 7], []]

    def draw(seed: int, **options):
        generator = torch.Generator().manual_seed(seed)
        return generate(
            model, source, prefix=prefix, max_new_tokens=8, sample=True, temperature=2.0,
            num_return=4, generator=generator, length_penalty=0.0, **options,
        )  # fmt: skip

    results = draw(0)
    assert draw(0) == results and draw(1) != results
    again = draw(0, use_cache=False)
    assert [[h.tokens for h in f] for f in again] == [[h.tokens for h in f] for f in results]
    assert len({tuple(h.tokens) for f in results for h in f}) > 8
    for i, found in enumerate(results):
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        for h in found:
            assert h.tokens[: len(prefix[i])] == prefix[i]
            generated = h.tokens[len(prefix[i]) :]
            if len(generated) < 8:
                generated = [*generated, 3]
            total = sum(
                float(model.log_probs(source[i], [*prefix[i], *generated[:t]])[word])
                for t, word in enumerate(generated)
            )
            assert h.score == pytest.approx(total, rel=1e-5)
