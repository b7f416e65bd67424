"""The same tokens and scores as ``transformers``' generate, from its Marian and GPT-2."""

from pathlib import Path

import pytest
import torch

from fastseq.generation import generate
from fastseq.models import GPT, Transformer

transformers = pytest.importorskip("transformers")
NEW = 12


def marian(directory: Path):
    config = transformers.MarianConfig(
        vocab_size=61, d_model=24, encoder_layers=2, decoder_layers=2, encoder_attention_heads=3,
        decoder_attention_heads=3, encoder_ffn_dim=40, decoder_ffn_dim=40, pad_token_id=60,
        eos_token_id=0, decoder_start_token_id=60, forced_eos_token_id=None, init_std=0.6,
        scale_embedding=True, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.MarianMTModel(config).eval()
    model.final_logits_bias[0, 60] = -1e9  # we never generate the start
    model.final_logits_bias[0, 0] = 3.0
    model.save_pretrained(directory)
    return model


def gpt2(directory: Path):
    config = transformers.GPT2Config(
        vocab_size=61, n_embd=24, n_layer=2, n_head=3, n_positions=64, bos_token_id=5,
        eos_token_id=5, initializer_range=0.5,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(directory)
    return model


def theirs(
    model, options: dict, num_return: int = 1, **inputs
) -> list[tuple[list[int], float | None]]:
    """Tokens after the input, up to the end, and scores."""
    beam = options.get("beam_size", 1)
    result = model.generate(
        **inputs, max_new_tokens=NEW, do_sample=False, num_beams=beam, length_penalty=0.0,
        no_repeat_ngram_size=options.get("no_repeat_ngram", 0), num_return_sequences=num_return,
        return_dict_in_generate=True, output_scores=True, pad_token_id=60,
    )  # fmt: skip
    # Greedy search of theirs has no scores of sequences.
    scores = result.sequences_scores.tolist() if beam > 1 else [None] * len(result.sequences)
    given = inputs["input_ids"].shape[1] if "decoder_input_ids" not in inputs else None
    start = 1 if model.config.is_encoder_decoder else given
    end = model.config.eos_token_id
    found = []
    for row, score in zip(result.sequences[:, start:].tolist(), scores):
        found.append((row[: row.index(end)] if end in row else row[:NEW], score))
    return found


@pytest.mark.parametrize(
    "options", [{}, {"beam_size": 4, "num_return": 3}, {"no_repeat_ngram": 2}], ids=str
)
@pytest.mark.parametrize("cache", ["contiguous", "paged"])
def test_marian(options: dict, cache: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = marian(tmp_path)
    ours = Transformer.from_marian(tmp_path)
    source = torch.randint(1, 60, (12, 7))
    lengths = torch.randint(1, 8, (12,))
    mask = torch.arange(7) < lengths[:, None]
    source[~mask] = 60
    count = options.get("num_return", 1)
    expected = theirs(model, options, count, input_ids=source, attention_mask=mask.long())
    found = generate(
        ours, source, lengths, max_new_tokens=NEW, length_penalty=0.0, cache=cache, **options
    )
    check([h for hypotheses in found for h in hypotheses], expected)
    assert len({len(tokens) for tokens, _ in expected}) > 1  # some sentences end early


@pytest.mark.parametrize(
    "options", [{}, {"beam_size": 3, "num_return": 2}, {"beam_size": 2, "no_repeat_ngram": 3}],
    ids=str,
)  # fmt: skip
def test_gpt2(options: dict, tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = gpt2(tmp_path)
    ours = GPT.from_pretrained(tmp_path)
    prompt = torch.randint(6, 60, (6, 4))
    start = torch.full((6, 1), 5)
    inputs = torch.cat([start, prompt], 1)
    expected = theirs(
        model, options, options.get("num_return", 1), input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
    )  # fmt: skip
    found = generate(ours, prefix=prompt, max_new_tokens=NEW, length_penalty=0.0, **options)
    for row, hypotheses in zip(prompt.tolist(), found):
        assert all(h.tokens[:4] == row for h in hypotheses)
    check([h for hypotheses in found for h in hypotheses], expected, given=4)


def check(found: list, expected: list[tuple[list[int], float | None]], given: int = 0) -> None:
    assert [h.tokens[given:] for h in found] == [tokens for tokens, _ in expected]
    for hypothesis, (_, score) in zip(found, expected):
        assert score is None or hypothesis.score == pytest.approx(score, rel=1e-3, abs=1e-4)
