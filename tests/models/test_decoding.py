"""A forward over rows, steps with caches, and steps over the whole prefix give the same logits."""

import pytest
import torch
from torch import Tensor

from fastseq.models import GPT, Model, Seq2Seq
from fastseq.models.cache import PAGE
from tests.models.small import (
    BATCH,
    MODELS,
    SOURCE_LENGTHS,
    begin,
    forward,
    seq2seq,
    sources,
    targets,
    transformer,
)

CACHES = ("contiguous", "paged")
STEPS = 2 * PAGE + 5


def build(name: str) -> Model:
    return MODELS[name]().double().eval()


def unrolled(model: Model, source: Tensor, target: Tensor) -> Tensor:
    """Logits (B, T, V) of a forward."""
    return forward(model, source, target).unflatten(0, (BATCH, -1)).detach()


def assert_equal(ours: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", MODELS)
def test_steps_are_the_forward(name: str, cache: str) -> None:
    model, source, target, at = build(name), sources(), targets(STEPS), 0
    wanted, state = unrolled(model, source, target), begin(model, source, STEPS, cache)
    for tokens in (1, 1, 3, 1, PAGE - 7, 2, 1, PAGE, 3):  # within, up to and over pages
        logits = model.step(target[:, at : at + tokens], state)
        at += tokens
        assert state.length == at
        assert_equal(logits, wanted[:, at - 1])
    with pytest.raises(ValueError, match=rf"holds {STEPS} tokens.*got {at} and 2"):
        model.step(target[:, :2], state)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", MODELS)
def test_decoding_without_a_cache(name: str, cache: str) -> None:
    model, source, target = build(name), sources(), targets(5)
    wanted, state = unrolled(model, source, target), begin(model, source, 5, cache)
    for end in range(1, 6):
        state.rewind()
        assert state.length == 0
        assert_equal(model.step(target[:, :end], state), wanted[:, end - 1])


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", MODELS)
def test_sequences_are_selected(name: str, cache: str) -> None:
    """Repeated, changed about, and fewer: each goes on as if it had been so from the start."""
    model, source = build(name), sources()
    histories = targets(STEPS)
    state = begin(model, source, STEPS, cache)
    origin = torch.arange(BATCH)  # which sentence a row translates
    tokens = histories[:, :0]
    for rows, steps in (
        ([2, 0, 1, 1], 3),
        ([0, 0, 1, 2, 3, 3], PAGE - 1),
        ([1, 0, 1, 5, 4, 4], PAGE - 5),
        ([5, 0, 2], 4),
        ([1], 2),
    ):
        at = torch.tensor(rows)
        state.select(at)
        origin, tokens = origin[at], tokens[at]
        new = torch.randint(4, 37, (len(rows), steps))
        tokens = torch.cat([tokens, new], 1)
        for step in new.split(2, 1):
            logits = model.step(step, state)
        lengths = torch.full((len(rows),), tokens.shape[1])
        if isinstance(model, GPT):
            wanted = model(tokens, lengths)
        else:
            wanted = model(source[origin], SOURCE_LENGTHS[origin], tokens, lengths)
        assert_equal(logits, wanted.unflatten(0, (len(rows), -1))[:, -1].detach())
    state.rewind()
    again = torch.cat([model.step(x, state) for x in tokens.split(tokens.shape[1] - 1, 1)][1:])
    assert_equal(again, logits)


def test_rewound_sequences_share_nothing() -> None:
    model, source, target = build("gpt"), sources(), targets(PAGE + 3)
    state = begin(model, source, 2 * PAGE, "paged")
    model.step(target, state)
    state.select(torch.tensor([0, 0, 0]))
    state.rewind()
    assert_equal(model.step(target, state), unrolled(model, source, target)[:, -1])


def test_sequences_share_pages() -> None:
    model, source, target = build("transformer"), sources(), targets(2 * PAGE + 1)
    state = begin(model, source, 3 * PAGE, "paged")
    model.step(target, state)
    pages = state.cache._pool.shape[2]
    state.select(torch.arange(BATCH).repeat_interleave(4))
    table = state.cache._table
    assert (table[:, :2].unique(dim=0).shape[0], table[:, 2].unique().shape[0]) == (3, 12)
    assert state.cache._pool.shape[2] < pages + 4 * BATCH * 2


@pytest.mark.parametrize("name", ["transformer", "lstm-additive", "gru-dot-tied"])
def test_attention_is_kept(name: str) -> None:
    model, source, target = build(name), sources(), targets(4)
    options = {} if isinstance(model, Seq2Seq) else {"need_attention": True}
    plain = begin(model, source, 4)
    state = begin(model, source, 4, **options)
    assert state.attention is None
    assert_equal(model.step(target, state), model.step(target, plain))
    weights = state.attention
    assert weights.shape == source.shape
    torch.testing.assert_close(weights.sum(1).double(), torch.ones(BATCH, dtype=torch.float64))
    padding = torch.arange(source.shape[1]) >= SOURCE_LENGTHS[:, None]
    assert not weights[padding].any() and (weights[~padding] > 0).all()
    if name == "transformer":
        assert plain.attention is None
    state.select(torch.tensor([2, 0, 0]))
    assert torch.equal(state.attention, weights[[2, 0, 0]])


def test_transformer_attention_is_the_mean_over_heads() -> None:
    """Of the last layer, from its own projections."""
    model, source, target = transformer().double().eval(), sources(), targets(3)
    layer, seen = model.decoder.layers[-1], []
    layer.cross_attention.q.register_forward_hook(lambda _, __, q: seen.append(q))
    state = begin(model, source, 3, need_attention=True)
    model.step(target, state)
    q = seen[0][:, -1].unflatten(-1, (3, 4))
    memory, rows = model.encode(source, SOURCE_LENGTHS)
    k = rows.unpack(layer.cross_attention.project(memory)[0])
    scores = torch.einsum("bhd,bshd->bhs", q, k) / 2
    padding = torch.arange(source.shape[1]) >= SOURCE_LENGTHS[:, None]
    wanted = scores.masked_fill(padding[:, None], -torch.inf).softmax(-1).mean(1)
    assert_equal(state.attention, wanted.detach())


@pytest.mark.parametrize("name", ["transformer", "gpt", "lstm-general-fed"])
def test_logits_of_16_bit_models_are_float32(name: str) -> None:
    model, source, target = MODELS[name]().bfloat16().eval(), sources(), targets(5)
    state = begin(model, source, 5)
    logits = torch.stack([model.step(x, state) for x in target.split(1, 1)], 1)
    assert logits.dtype == torch.float32
    wanted = forward(model, source, target).unflatten(0, (BATCH, -1)).float()
    torch.testing.assert_close(logits, wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_steps_under_autocast(name: str) -> None:
    model, source, target = MODELS[name]().eval(), sources(), targets(5)
    exact = forward(model, source, target).unflatten(0, (BATCH, -1))
    with torch.autocast("cpu", torch.bfloat16):
        state = begin(model, source, 5)
        logits = torch.stack([model.step(x, state) for x in target.split(1, 1)], 1)
    torch.testing.assert_close(logits, exact.detach(), rtol=0.05, atol=0.05)


def test_bad_steps() -> None:
    model, source = seq2seq().eval(), sources()
    state = begin(model, source, 5)
    with pytest.raises(ValueError, match=r"shape \(3, t\) with t ≥ 1, got \(2, 1\)"):
        model.step(targets(1)[:2], state)
    with pytest.raises(ValueError, match=r"shape \(3, t\) with t ≥ 1, got \(3, 0\)"):
        model.step(targets(0), state)
    with pytest.raises(TypeError, match=r"tokens should be of integers, got torch\.float32"):
        model.step(targets(1).float(), state)
    with pytest.raises(IndexError, match=r"rows should be from 0 to 2, got \[0, 3\]"):
        state.select(torch.tensor([0, 3]))
    with pytest.raises(TypeError, match=r"rows should be one-dimensional int64, got torch\.bool"):
        state.select(torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="cache should be one of contiguous, paged, got 'ring'"):
        begin(transformer(), source, 5, "ring")
    with pytest.raises(ValueError, match="max_length should be at most the model's 96, got 97"):
        begin(transformer(), source, 97)
    with pytest.raises(ValueError, match="max_length should be greater than zero, got 0"):
        begin(model, source, 0)
