"""Search over each of the package's own models."""

import pytest
import torch

from fastseq.generation import generate
from fastseq.models import GPT, GPTConfig, Seq2Seq, Seq2SeqConfig, Transformer, TransformerConfig

SOURCE = torch.tensor([[5, 9, 33, 60, 4], [7, 0, 0, 0, 0], [8, 8, 30, 0, 0], [9, 30, 31, 32, 0]])
LENGTHS = torch.tensor([5, 1, 3, 4])
SIZES = {"vocab_size": 61, "hidden_size": 24}
ATTENTION = {**SIZES, "num_heads": 3, "ffn_size": 40, "max_length": 40}


def seq2seq(**options) -> Seq2Seq:
    return Seq2Seq(Seq2SeqConfig(**SIZES, embedding_size=16, num_layers=2, **options))


MODELS = {
    "lstm": lambda: seq2seq(input_feeding=True),
    "gru, dot": lambda: seq2seq(cell="gru", attention="dot", bidirectional=False),
    "rnn, no attention": lambda: seq2seq(cell="rnn", attention=None),
    "transformer": lambda: Transformer(
        TransformerConfig(**ATTENTION, encoder_layers=2, decoder_layers=2)
    ),
    "gpt": lambda: GPT(GPTConfig(**ATTENTION, num_layers=2)),
}


def scattered(name: str) -> torch.nn.Module:
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.4
    return model


def tokens(results: list) -> list[list[list[int]]]:
    return [[h.tokens for h in found] for found in results]


@pytest.mark.parametrize("search", [{}, {"beam_size": 3, "num_return": 3}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_caches_and_batches_change_nothing(name: str, search: dict) -> None:
    model = scattered(name)
    prefix = [[], [4, 5], [6], [7]]

    def run(rows: slice, **options) -> list:
        given = [] if name == "gpt" else [SOURCE[rows], LENGTHS[rows]]
        return generate(model, *given, prefix=prefix[rows], max_new_tokens=9, **search, **options)

    every = slice(None)
    expected = tokens(run(every))
    assert tokens(run(every, use_cache=False)) == expected
    assert tokens(run(every, cache="paged")) == expected
    assert tokens(run(every, cache="paged", use_cache=False)) == expected
    alone = [found for i in range(4) for found in tokens(run(slice(i, i + 1)))]
    assert alone == expected
    assert model.training  # as it was


@pytest.mark.parametrize("name", ["lstm", "gru, dot", "transformer"])
@pytest.mark.parametrize("search", [{}, {"beam_size": 3, "num_return": 2}], ids=str)
def test_alignments(name: str, search: dict) -> None:
    model = scattered(name)
    options = {"prefix": [[], [4, 5], [6], [7]], "max_new_tokens": 6, **search}
    results = generate(model, SOURCE, LENGTHS, need_attention=True, **options)
    plain = generate(model, SOURCE, LENGTHS, **options)
    assert tokens(results) == tokens(plain)
    assert all(h.attention is None for found in plain for h in found)
    model.eval()
    for i, found in enumerate(results):
        for h in found:
            assert h.attention.shape == (len(h.tokens), LENGTHS[i])
            torch.testing.assert_close(h.attention.sum(1), torch.ones(len(h.tokens)))
            # One hypothesis alone, its tokens given: the same alignment.
            state = model.begin(
                SOURCE[i : i + 1, : LENGTHS[i]], LENGTHS[i : i + 1], max_length=12,
                need_attention=True,
            )  # fmt: skip
            with torch.no_grad():
                for j, token in enumerate([model.config.bos_id, *h.tokens[:-1]]):
                    model.step(torch.tensor([[token]]), state)
                    torch.testing.assert_close(
                        state.attention[0], h.attention[j], rtol=1e-4, atol=1e-5
                    )


def test_no_alignment_to_be_had() -> None:
    with pytest.raises(ValueError, match="attention"):
        generate(
            scattered("rnn, no attention"), SOURCE, LENGTHS, max_new_tokens=3, need_attention=True
        )


@pytest.mark.parametrize("name", MODELS)
def test_sampling(name: str) -> None:
    model = scattered(name)
    given = [] if name == "gpt" else [SOURCE, LENGTHS]

    def draw(seed: int) -> list:
        generator = torch.Generator().manual_seed(seed)
        return generate(
            model, *given, max_new_tokens=8, sample=True, num_return=3, temperature=1.5,
            top_k=20, top_p=0.9, generator=generator,
        )  # fmt: skip

    assert draw(1) == draw(1) and draw(1) != draw(2)
    assert all(len(found) == 3 for found in draw(1))
