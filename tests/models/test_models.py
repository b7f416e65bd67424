"""What each model does beyond parity: initial values, gradients, dropout, options, errors."""

import math

import pytest
import torch
from torch import Tensor

from fastseq.models import (
    BERT,
    GPT,
    BERTConfig,
    BERTForPretraining,
    BERTForQuestionAnswering,
    BERTForSequenceClassification,
    BERTForTokenClassification,
    Model,
    Seq2Seq,
    Transformer,
    pack,
    unpack,
)
from fastseq.models.layers import attend_rows, rotated
from fastseq.models.rows import Rows
from tests.models.small import (
    ATTENTION,
    BATCH,
    MODELS,
    SOURCE_LENGTHS,
    forward,
    gpt,
    seq2seq,
    sources,
    targets,
    transformer,
)

LENGTHS = torch.tensor([4, 9, 6])
HEADS = (
    BERTForPretraining,
    BERTForSequenceClassification,
    BERTForTokenClassification,
    BERTForQuestionAnswering,
)


def bert(kind: type = BERT, **options) -> Model:
    return kind(BERTConfig(**ATTENTION, num_layers=2, num_labels=3, **options))


def total(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A scalar that depends on every finite element."""
    parts = output if isinstance(output, tuple) else (output,)
    return sum((x[x.isfinite()].float() ** 2).sum() for x in parts)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", [*MODELS, *(kind.__name__ for kind in HEADS)])
def test_gradients_reach_every_parameter(name: str, dtype: torch.dtype | None) -> None:
    """In training mode with dropout, in float32 and under autocast."""
    heads = {kind.__name__: kind for kind in HEADS}
    model = bert(heads[name]) if name in heads else MODELS[name]()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        if name in heads:
            output = model(targets(9), LENGTHS, torch.randint(0, 2, (BATCH, 9)))
        else:
            output = forward(model, sources(), targets(9), LENGTHS)
    total(output).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), parameter_name
        assert parameter.grad.isfinite().all() and parameter.grad.dtype == torch.float32


@pytest.mark.parametrize("name", MODELS)
def test_autocast_is_near(name: str) -> None:
    model, source, target = MODELS[name]().eval(), sources(), targets(9)
    exact = forward(model, source, target, LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        near = forward(model, source, target, LENGTHS)
    assert near.dtype == torch.bfloat16
    torch.testing.assert_close(near.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_padding_and_neighbours_mean_nothing(name: str) -> None:
    model, source, target = MODELS[name]().double().eval(), sources(), targets(11)
    together = forward(model, source, target, LENGTHS).detach()
    for i, logits in enumerate(together.split(LENGTHS.tolist())):
        at, length, own = slice(i, i + 1), int(LENGTHS[i]), int(SOURCE_LENGTHS[i])
        if isinstance(model, GPT):
            alone = model(target[at, :length], LENGTHS[at])
        else:
            alone = model(source[at, :own], SOURCE_LENGTHS[at], target[at, :length], LENGTHS[at])
        torch.testing.assert_close(alone, logits, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_dropout_is_for_training(name: str) -> None:
    model, source, target = MODELS[name](), sources(), targets(9)
    one, other = (forward(model, source, target) for _ in range(2))
    assert not torch.equal(one, other)
    model.eval()
    one, other = (forward(model, source, target) for _ in range(2))
    assert torch.equal(one, other)


def test_every_dropout_is_used() -> None:
    for name in ("dropout", "attention_dropout", "activation_dropout"):
        rates = {"dropout": 0.0, "attention_dropout": 0.0, name: 0.5}
        for model in (transformer(**rates), gpt(**rates), bert(**rates)):
            arguments = (sources(), SOURCE_LENGTHS, targets(9), LENGTHS)
            given = arguments if isinstance(model, Transformer) else arguments[2:]
            assert not torch.equal(model(*given), model(*given)), (name, type(model))


def test_initial_values_of_gpt() -> None:
    model = gpt()
    wide = GPT(model.config.replace(hidden_size=96, ffn_size=200, num_layers=8))
    layer = wide.decoder.layers[3]
    for weight, std in (
        (wide.embedding.words.weight, 0.02),
        (layer.attention.qkv.weight, 0.02),
        (layer.feed_forward.up.weight, 0.02),
        (layer.attention.out.weight, 0.02 / 4),
        (layer.feed_forward.down.weight, 0.02 / 4),
    ):
        assert abs(weight.std().item() / std - 1) < 0.05
    assert not layer.attention.qkv.bias.any() and not layer.feed_forward.down.bias.any()


def test_initial_values_of_transformer() -> None:
    model = Transformer(transformer().config.replace(hidden_size=96, ffn_size=200))
    layer = model.decoder.layers[0]
    for weight, bound in (
        (layer.attention.qkv.weight, math.sqrt(6 / (4 * 96))),
        (layer.cross_attention.q.weight, math.sqrt(6 / (4 * 96))),
        (layer.cross_attention.kv.weight, math.sqrt(6 / (4 * 96))),
        (layer.attention.out.weight, math.sqrt(6 / (2 * 96))),
        (layer.feed_forward.up.weight, math.sqrt(6 / 296)),
    ):
        assert 0.98 * bound < weight.abs().max() <= bound
    assert abs(model.output.weight.std().item() * math.sqrt(96) - 1) < 0.05
    assert not layer.cross_attention.kv.bias.any()


def test_rotary_positions_are_rotations() -> None:
    """Pairs (i, i + D/2) as complex numbers, turned by position / 10000^(2i/D)."""
    lengths = torch.tensor([5, 2])
    rows = Rows.of(lengths, 5)
    q, k, v = torch.randn(3, 7, 2, 6, dtype=torch.float64)
    speed = 10000 ** (-torch.arange(3, dtype=torch.float64) / 3)
    turn = torch.polar(torch.ones(7, 3).double(), rows.positions[:, None] * speed)[:, None]

    def by_hand(x: Tensor) -> Tensor:
        turned = torch.complex(*x.chunk(2, -1)) * turn
        return torch.cat([turned.real, turned.imag], -1)

    plain = attend_rows(rows, rows, causal=True)
    ours = rotated(plain, rows.positions, 9)(0, q, k, v, 0.0)
    torch.testing.assert_close(ours, plain(0, by_hand(q), by_hand(k), v, 0.0))
    later = rotated(plain, rows.positions + 3, 9)(0, q, k, v, 0.0)
    torch.testing.assert_close(ours, later)  # only distances count


def test_teacher_forcing() -> None:
    """At 0 the decoder reads its own words: what greedy decoding reads."""
    for model in (seq2seq(), seq2seq(cell="gru", input_feeding=True)):
        model.double().eval()
        source, target = sources(), targets(9)
        taught = forward(model, source, target)
        own = model(source, SOURCE_LENGTHS, target, torch.full((3,), 9), teacher_forcing=0.0)
        state, word = model.begin(source, SOURCE_LENGTHS, max_length=9), target[:, :1]
        for logits in own.unflatten(0, (3, 9)).unbind(1):
            step = model.step(word, state)
            torch.testing.assert_close(step, logits.detach(), rtol=1e-11, atol=1e-11)
            word = step.argmax(1, keepdim=True)
        assert not torch.allclose(own, taught)
        mixed = model(source, SOURCE_LENGTHS, target, torch.full((3,), 9), teacher_forcing=0.5)
        assert not torch.allclose(mixed, taught) and not torch.allclose(mixed, own)
    with pytest.raises(ValueError, match=r"teacher_forcing should be from 0 to 1, got 1\.5"):
        model(source, SOURCE_LENGTHS, target, LENGTHS, teacher_forcing=1.5)


def test_layers_drop_between_them_step_by_step() -> None:
    """Steps, which input feeding needs, have the dropout that the whole sequence has."""
    model = seq2seq(input_feeding=True, cell="gru", dropout=0.0)
    model.decoder.dropout = 0.5
    arguments = (sources(), SOURCE_LENGTHS, targets(9), LENGTHS)
    assert not torch.equal(model(*arguments), model(*arguments))
    model.eval()
    assert torch.equal(model(*arguments), model(*arguments))


@pytest.mark.parametrize("name", ["gpt-rotary-untied", "lstm-additive"])
def test_compiled(name: str) -> None:
    model, source, target = MODELS[name]().double().eval(), sources(), targets(9)
    wanted = forward(model, source, target, LENGTHS)
    wanted.sum().backward()
    grads = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager")
    given = (
        (target, LENGTHS) if isinstance(model, GPT) else (source, SOURCE_LENGTHS, target, LENGTHS)
    )
    found = compiled(*given)
    torch.testing.assert_close(found, wanted)
    found.sum().backward()
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_masked_words_alone_are_computed() -> None:
    model = bert(BERTForPretraining).double().eval()
    tokens, masked = targets(9), torch.zeros(BATCH, 9, dtype=torch.bool)
    masked[0, 1] = masked[1, 0] = masked[1, 8] = masked[2, 5] = True
    every, follows = model(tokens, LENGTHS)
    words, again = model(tokens, LENGTHS, None, masked)
    assert words.shape == (4, 37)
    torch.testing.assert_close(words, unpack(every, LENGTHS)[masked])
    assert torch.equal(again, follows)
    none, _ = model(tokens, LENGTHS, None, masked & False)
    assert none.shape == (0, 37)
    masked[0, 4] = True
    with pytest.raises(ValueError, match="masked_positions should be False at padding"):
        model(tokens, LENGTHS, None, masked)
    with pytest.raises(ValueError, match=r"masked_positions should have tokens' shape \(3, 9\), g"):
        model(tokens, LENGTHS, None, masked[:2])


def test_answers_are_not_in_padding() -> None:
    start, end = bert(BERTForQuestionAnswering)(targets(9), LENGTHS)
    padding = torch.arange(9) >= LENGTHS[:, None]
    for logits in (start, end):
        assert logits.shape == (BATCH, 9)
        assert torch.equal(logits == -torch.inf, padding)
    loss = torch.nn.functional.cross_entropy(start, torch.tensor([3, 8, 0]))
    loss.backward()
    assert loss.isfinite()


def test_segments_matter_and_are_zero_by_default() -> None:
    model, tokens = bert().eval(), targets(9)
    plain = model(tokens, LENGTHS)
    assert torch.equal(plain, model(tokens, LENGTHS, torch.zeros_like(tokens)))
    assert not torch.allclose(plain, model(tokens, LENGTHS, torch.ones_like(tokens)))
    with pytest.raises(ValueError, match=r"no pooler: config\.pooler is False"):
        bert(pooler=False).pool(plain, Rows.of(LENGTHS, 9))


@pytest.mark.parametrize("positions", ["learned", "rotary", "sinusoidal"])
@pytest.mark.parametrize("vocab_size", [37, 41])
def test_transformer_from_bert(vocab_size: int, positions: str) -> None:
    source, lengths = sources(), SOURCE_LENGTHS
    start = bert(mask_id=6, eos_id=9, positions=positions).double().eval()
    for parameter in start.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model = Transformer.from_bert(start, vocab_size=vocab_size, decoder_layers=3, dropout=0.0)
    assert model.training and next(model.parameters()).dtype == torch.float64
    torch.testing.assert_close(model.eval().encode(source, lengths)[0], start(source, lengths))
    assert model.config.eos_id == 9 and model.config.decoder_layers == 3
    assert (model.target_embedding.words is model.source_embedding.words) == (vocab_size == 37)
    ours, theirs = model.decoder.layers, start.encoder.layers
    for i in range(2):
        assert torch.equal(ours[i].feed_forward.up.weight, theirs[i].feed_forward.up.weight)
    assert ours[2].attention.qkv.weight.std() < 0.03 < ours[0].attention.qkv.weight.std()
    total(model(source, lengths, targets(9), LENGTHS)).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    before = start.embedding.words.weight.clone()
    with torch.no_grad():
        model.source_embedding.words.weight.zero_()
    assert torch.equal(start.embedding.words.weight, before)
    cold = Transformer.from_bert(start, decoder_from_bert=False)
    assert cold.decoder.layers[0].attention.qkv.weight.std() < 0.03


def test_pack_and_unpack() -> None:
    x = torch.randn(3, 9, 2, 5, requires_grad=True)
    rows = pack(x, LENGTHS)
    assert torch.equal(rows, torch.cat([x[i, :n] for i, n in enumerate(LENGTHS.tolist())]))
    back = unpack(rows, LENGTHS)
    padding = torch.arange(9) >= LENGTHS[:, None]
    assert torch.equal(back, x.masked_fill(padding[..., None, None], 0))
    (grad,) = torch.autograd.grad(back.sum(), x)
    assert torch.equal(grad, (~padding)[..., None, None].expand_as(x).float())
    assert unpack(pack(targets(9), LENGTHS), LENGTHS).dtype == torch.int64
    with pytest.raises(ValueError, match="rows should be 19, the sum of lengths, got 18"):
        unpack(rows[1:], LENGTHS)
    with pytest.raises(ValueError, match=r"x should be \(3, T, …\) as lengths has it, got \(2, 9"):
        pack(x[:2], LENGTHS)


BAD = [
    ({"target": torch.zeros(3, 9)}, TypeError, r"target should be of integers, got torch\.float32"),
    ({"target": targets(9)[0]}, ValueError, r"target should have shape \(B, T\), got \(9,\)"),
    (
        {"target": targets(9)[:2], "target_lengths": LENGTHS[:2]},
        ValueError,
        "target should have source's batch 3, got 2",
    ),
    ({"target_lengths": LENGTHS[:2]}, ValueError, r"target_lengths should have shape \(3,\) as"),
    ({"target_lengths": LENGTHS + 1}, ValueError, "target_lengths should be from 1 to 9, got 5 to"),
    ({"target_lengths": LENGTHS - 4}, ValueError, "target_lengths should be from 1 to 9, got 0 to"),
    (
        {"target": targets(9) + 40},
        ValueError,
        "target should have ids from 0 to 36, as the vocabul",
    ),
    ({"source": sources() - 40}, ValueError, "source should have ids from 0 to 36, as the vocabul"),
    ({"source_lengths": LENGTHS * 1.0}, TypeError, "source_lengths should be of integers, got t"),
]


@pytest.mark.parametrize("build", [transformer, seq2seq])
@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_bad_input(build, changes: dict, error: type, message: str) -> None:
    given = {
        "source": sources(),
        "source_lengths": SOURCE_LENGTHS,
        "target": targets(9),
        "target_lengths": LENGTHS,
    }
    with pytest.raises(error, match=message):
        build()(**{**given, **changes})


def test_sequences_that_are_too_long() -> None:
    long, lengths = torch.ones(1, 97, dtype=torch.int64), torch.tensor([97])
    message = "has a sequence of 97 tokens, the model's max_length is 96"
    with pytest.raises(ValueError, match=f"tokens {message}"):
        gpt()(long, lengths)
    with pytest.raises(ValueError, match=f"source {message}"):
        transformer()(long, lengths, long[:, :5], lengths - 92)
    with pytest.raises(ValueError, match=f"target {message}"):
        transformer()(long[:, :5], lengths - 92, long, lengths)
    gpt()(long, lengths - 1)  # padding does not count
    Seq2Seq(seq2seq().config)(long, lengths, long, lengths)
