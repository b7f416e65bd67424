"""Models converted to CTranslate2 generate what ours do."""

import sys
from pathlib import Path

import pytest
import torch

from fastseq.generation import generate
from fastseq.integrations.ctranslate2 import convert
from fastseq.models import GPT, GPTConfig, Transformer, TransformerConfig

ctranslate2 = pytest.importorskip("ctranslate2")
SIZES = {"vocab_size": 61, "hidden_size": 24, "num_heads": 3, "ffn_size": 40, "max_length": 40}
TOKENS = ["<pad>", "<unk>", "<s>", "</s>", *(f"w{i}" for i in range(4, 61))]
SOURCES = [[4 + i * j % 57 for i in range(1 + j % 6)] + [3] for j in range(1, 25)]


def scattered(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.4
        # Ends of sentence are about as likely as other words.
        model.output.weight[3] = model.output.weight[20:26].mean(0) * 4.9
    return model.eval()


def transformer(**options) -> Transformer:
    layers = {"encoder_layers": 2, "decoder_layers": 3}
    return scattered(Transformer(TransformerConfig(**SIZES, **layers, **options)))


MODELS = {
    "pre-norm": lambda: transformer(output_bias=True),
    "post-norm": lambda: transformer(norm_first=False, norm_embeddings=True, activation="silu"),
    "learned": lambda: transformer(
        positions="learned", share_embeddings=False, tie_embeddings=False, activation="gelu"
    ),
    "rotary": lambda: transformer(positions="rotary", norm_eps=1e-3, scale_embeddings=False),
    "gpt": lambda: scattered(GPT(GPTConfig(**SIZES, num_layers=2))),
    "gpt, rotary": lambda: scattered(GPT(GPTConfig(**SIZES, num_layers=2, positions="rotary"))),
}


def words(tokens: list[list[int]]) -> list[list[str]]:
    return [[TOKENS[i] for i in sentence] for sentence in tokens]


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_same_tokens(name: str, beam: int, tmp_path: Path) -> None:
    model = MODELS[name]()
    convert(model, tmp_path / "model", tokens=TOKENS)
    # Their length penalty is another, and their beam search stops at the first best hypothesis.
    options = {"beam_size": beam, "length_penalty": 0.0}
    theirs = {**options, "return_scores": True, "patience": 2.0, "num_hypotheses": beam}
    if isinstance(model, Transformer):
        translator = ctranslate2.Translator(str(tmp_path / "model"), inter_threads=1)
        results = translator.translate_batch(
            words(SOURCES), max_decoding_length=12, min_decoding_length=0, **theirs
        )
        found = [(r.hypotheses[0], r.scores[0]) for r in results]
        lengths = torch.tensor([len(s) for s in SOURCES])
        source = torch.zeros(len(SOURCES), 7, dtype=torch.long)
        for row, tokens in zip(source, SOURCES):
            row[: len(tokens)] = torch.tensor(tokens)
        ours = generate(model, source, lengths, max_new_tokens=12, **options)
    else:
        prompts = [source[:-1] for source in SOURCES]
        generator = ctranslate2.Generator(str(tmp_path / "model"), inter_threads=1)
        results = generator.generate_batch(
            words([[2, *p] for p in prompts]),
            max_length=12,
            min_length=0,
            include_prompt_in_result=False,
            **theirs,
        )
        found = [(words([p])[0] + r.sequences[0], r.scores[0]) for p, r in zip(prompts, results)]
        ours = generate(model, prefix=prompts, max_new_tokens=12, **options)
    same = 0
    for (tokens, score), hypotheses in zip(found, ours):
        if words([hypotheses[0].tokens])[0] == tokens:
            same += 1
            assert hypotheses[0].score == pytest.approx(score, rel=1e-3)
        else:  # another beam search may miss what ours finds
            assert beam > 1 and hypotheses[0].score > score + 1e-3
    assert same >= 0.75 * len(SOURCES)
    if name in ("pre-norm", "rotary"):  # the others repeat themselves
        assert len({len(tokens) for tokens, _ in found}) > 1


def test_from_a_directory_with_its_tokenizer(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    model = transformer()
    model.save_pretrained(tmp_path / "model")
    vocabulary = {token: i for i, token in enumerate(TOKENS[:-3])}  # padded to a round size
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "<unk>"))
    inner.save(str(tmp_path / "model" / "tokenizer.json"))
    convert(tmp_path / "model", tmp_path / "out", quantization="int8")
    translator = ctranslate2.Translator(str(tmp_path / "out"), inter_threads=1)
    assert translator.compute_type.startswith("int8")
    (result,) = translator.translate_batch([["w5", "w9", "</s>"]], max_decoding_length=5)
    assert set(result.hypotheses[0]) <= {*TOKENS[:-3], *(f"<unused {i}>" for i in (58, 59, 60))}


def test_the_model_stays_as_it_was(tmp_path: Path) -> None:
    model = transformer(output_bias=True)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    convert(model, tmp_path / "out", quantization="int8")
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["gpt"]()
    with pytest.raises(TypeError, match="model must be a Transformer or GPT, got Linear"):
        convert(torch.nn.Linear(2, 2), tmp_path / "out")
    with pytest.raises(ValueError, match="tokens must be at most 61 different strings, got 62"):
        convert(model, tmp_path / "out", tokens=[*TOKENS, "more"])
    with pytest.raises(ValueError, match="got 61, 60 different"):
        convert(model, tmp_path / "out", tokens=[*TOKENS[:-1], "w4"])
    with pytest.raises(FileExistsError, match="force=True replaces it"):
        convert(model, tmp_path)
    monkeypatch.setitem(sys.modules, "ctranslate2.converters", None)
    with pytest.raises(ImportError, match="pip install ctranslate2"):
        convert(model, tmp_path / "out")
