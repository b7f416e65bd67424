"""The fast decoder against the models that it packs."""

import copy

import pytest
import torch

from fastseq import _extension
from fastseq.generation import FastDecoder, generate
from fastseq.generation.search import _fastest
from fastseq.models import GPT, GPTConfig, Transformer, TransformerConfig
from tests.generation.tiny import Tiny

SIZES = {"vocab_size": 61, "hidden_size": 24, "num_heads": 3, "ffn_size": 40, "max_length": 40}
SOURCE = torch.tensor([[5, 9, 33, 60, 4], [7, 0, 0, 0, 0], [8, 8, 30, 0, 0]])
LENGTHS = torch.tensor([5, 1, 3])


def scattered(model: torch.nn.Module) -> torch.nn.Module:
    """The model with all parameters random, so that none goes unnoticed."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.3
    return model.eval()


def transformer(**options) -> Transformer:
    layers = {"encoder_layers": 2, "decoder_layers": 3}
    return scattered(Transformer(TransformerConfig(**SIZES, **layers, **options)))


def gpt(**options) -> GPT:
    return scattered(GPT(GPTConfig(**SIZES, num_layers=2, **options)))


MODELS = {
    "pre-norm": lambda: transformer(output_bias=True),
    "post-norm": lambda: transformer(norm_first=False, norm_embeddings=True, activation="silu"),
    "learned": lambda: transformer(positions="learned", share_embeddings=False, activation="gelu"),
    "rotary": lambda: transformer(positions="rotary", tie_embeddings=False, norm_eps=1e-3),
    "no heads in common": lambda: transformer(scale_embeddings=False, bos_id=3),
    "gpt": gpt,
    "gpt, rotary": lambda: gpt(positions="rotary", norm_first=False, tie_embeddings=False),
}


def begin(model, rows: int = 3, **options):
    if isinstance(model.config, GPTConfig):
        return model.begin(batch_size=rows, max_length=30, **options)
    return model.begin(SOURCE, LENGTHS, max_length=30, **options)


@pytest.mark.parametrize("name", MODELS)
def test_steps_as_the_model(name: str) -> None:
    model = MODELS[name]()
    decoder = FastDecoder(model)
    ours, theirs = begin(decoder), begin(model)
    rows = 3
    for chosen, steps in (
        (torch.arange(3), 3),
        (torch.tensor([2, 2, 0, 1, 1, 0]), 1),  # the beams of a search
        (torch.tensor([5, 0, 0, 3, 4, 2]), 1),
        (torch.tensor([1, 4]), 4),  # some sentences are done
        (torch.tensor([1, 1, 1, 0, 0, 0, 0]), 2),
    ):
        for state in (ours, theirs):
            state.select(chosen)
        rows = len(chosen)
        tokens = torch.randint(4, 61, (rows, steps))
        logits = model.step(tokens, theirs)
        if model.config.bos_id != model.config.eos_id:
            logits[:, model.config.bos_id] = -torch.inf
        assert ours.length == theirs.length - steps
        before = copy.copy(ours)
        torch.testing.assert_close(decoder.step(tokens, ours), logits, rtol=1e-4, atol=1e-4)
        assert ours.length == theirs.length
        scores, ids = decoder.step_best(tokens, before, 5)
        expected, expected_ids = torch.log_softmax(logits, -1).topk(5)
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(ids, expected_ids)


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("name", ["pre-norm", "post-norm", "gpt"])
def test_narrow_weights_are_near(name: str, weights: torch.dtype) -> None:
    model = MODELS[name]()
    exact, narrow = FastDecoder(model), FastDecoder(model, weights)
    tokens = torch.randint(4, 61, (3, 12))
    logits, near = (d.step(tokens, begin(d)) for d in (exact, narrow))
    keep = torch.arange(61) != model.config.bos_id
    error = (near - logits)[:, keep].norm() / logits[:, keep].norm()
    assert 1e-4 < error < 0.03, error


@pytest.mark.parametrize("options", [{}, {"beam_size": 4, "num_return": 3}, {"no_repeat_ngram": 2}])
@pytest.mark.parametrize("name", ["pre-norm", "post-norm", "gpt"])
def test_generates_the_same(name: str, options: dict) -> None:
    model = MODELS[name]()
    assert isinstance(_fastest(model, None, True), FastDecoder) == _extension.load()
    given = [] if name == "gpt" else [SOURCE, LENGTHS]
    options = {"max_new_tokens": 12, "prefix": [[5, 6], [], [7]], **options}
    plain = generate(model, *given, cache="paged", **options)
    for other in (
        generate(model, *given, **options),
        generate(FastDecoder(model), *given, **options),
        generate(FastDecoder(model), *given, use_cache=False, **options),
        generate(model, *given, weights=torch.float32, **options),
    ):
        assert [[h.tokens for h in found] for found in other] == [
            [h.tokens for h in found] for found in plain
        ]
        for found, expected in zip(other, plain):
            assert [h.score for h in found] == pytest.approx([h.score for h in expected], rel=1e-4)


def test_many_tokens_at_once() -> None:
    model = scattered(GPT(GPTConfig(**{**SIZES, "max_length": 600}, num_layers=1)))
    decoder = FastDecoder(model)
    tokens = torch.randint(4, 61, (2, 550))
    states = [m.begin(batch_size=2, max_length=560) for m in (decoder, model)]
    expected = model.step(tokens, states[1])
    expected[:, model.config.bos_id] = -torch.inf
    torch.testing.assert_close(decoder.step(tokens, states[0]), expected, rtol=1e-4, atol=1e-4)


def test_packs_again_only_what_changed() -> None:
    model = transformer()
    first = FastDecoder(model)
    assert FastDecoder(model)._packed is first._packed
    assert FastDecoder(model, torch.int8)._packed is not first._packed
    with torch.no_grad():
        model.output.weight.mul_(2)
    second = FastDecoder(model)
    assert second._packed is not first._packed
    tokens = torch.full((3, 1), 5)
    assert not torch.equal(second.step(tokens, begin(second)), first.step(tokens, begin(first)))
    # What passes by the versions of parameters: fused optimizers, and data.
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(SOURCE, LENGTHS, SOURCE, LENGTHS).sum().backward()
    optimizer.step()
    third = FastDecoder(model)
    assert third._packed is not second._packed
    model.output.weight.data += 1
    assert FastDecoder(model)._packed is not third._packed


def test_modes_of_torch() -> None:
    """Inside of inference mode and autocast, and with a model that was made there."""
    plain = generate(transformer(), SOURCE, LENGTHS, max_new_tokens=5)
    torch.manual_seed(0)
    with torch.inference_mode():
        model = transformer()
        inside = generate(model, SOURCE, LENGTHS, max_new_tokens=5)
    assert generate(model, SOURCE, LENGTHS, max_new_tokens=5) == inside == plain
    with torch.autocast("cpu", torch.bfloat16):  # the encoder's part
        near = generate(model, SOURCE, LENGTHS, max_new_tokens=1)
    for found, expected in zip(near, generate(model, SOURCE, LENGTHS, max_new_tokens=1)):
        assert found[0].score == pytest.approx(expected[0].score, abs=0.5)


def test_best_of_the_whole_vocabulary() -> None:
    model = scattered(GPT(GPTConfig(**{**SIZES, "vocab_size": 150}, num_layers=1)))
    decoder, tokens = FastDecoder(model), torch.tensor([[5], [6]])
    scores, ids = decoder.step_best(tokens, decoder.begin(batch_size=2, max_length=3), 149)
    assert scores.exp().sum(1).tolist() == pytest.approx([1, 1], rel=1e-5)
    assert all(sorted(row) == [i for i in range(150) if i != 2] for row in ids.tolist())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: FastDecoder(Tiny(9)), TypeError, "model must be a Transformer or GPT, got Tiny"),
        (lambda: FastDecoder(gpt().double()), TypeError, "must be float32 on the CPU, but embed"),
        (lambda: FastDecoder(gpt(), torch.float16), ValueError, "weights must be one of"),
        (lambda: FastDecoder(gpt()).begin(batch_size=1, max_length=41), ValueError, "at most the"),
        (lambda: begin(FastDecoder(gpt()), cache="paged"), ValueError, "'contiguous'"),
        (lambda: FastDecoder(gpt()).begin(SOURCE, LENGTHS, max_length=4), TypeError, "batch_size"),
        (lambda: FastDecoder(transformer()).begin(batch_size=1, max_length=4), TypeError, "source"),
        (lambda: step(torch.tensor([[5]])), ValueError, r"tokens must be \(3, t\)"),
        (lambda: step(torch.full((3, 31), 5)), ValueError, "the state holds 30 tokens"),
        (lambda: step(torch.full((3, 1), 61)), RuntimeError, "tokens must be below 61, got 61"),
        (lambda: generate(gpt(), max_new_tokens=41), ValueError, "max_length is 40"),
        (
            lambda: generate(gpt(), max_new_tokens=4, weights=torch.int8, cache="paged"),
            ValueError,
            "weights=torch.int8 needs the contiguous cache",
        ),
    ],
)
def test_refuses(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def step(tokens: torch.Tensor) -> torch.Tensor:
    decoder = FastDecoder(gpt())
    return decoder.step(tokens, begin(decoder))
