"""``fastseq::decoder_step``: packing, the plain version, and what the kernel refuses."""

from typing import Any

import pytest
import torch

from fastseq import _extension
from fastseq.ops.decoder import columns, decoder_step, pack, pad
from fastseq.reference import decoder as reference
from tests.csrc.decoder_cases import SIZES, WEIGHTS, Case


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (37, 12), (64, 64), (130, 33)], ids=str)
def test_packed_products(shape: tuple[int, int], weights: torch.dtype) -> None:
    weight, bias, x = torch.randn(shape), torch.randn(shape[0]), torch.randn(5, shape[1])
    panels, scales = pack(weight, weights)
    assert panels.dtype == weights and panels.shape[2] == columns()
    assert (scales is None) == (weights != torch.int8)
    found = reference.product(x, panels, pad(bias, weight), scales)
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    error = (found[:, : shape[0]] - exact).norm() / exact.norm()
    bound = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.int8: 2e-2}[weights]
    assert error < bound
    assert torch.equal(found[:, shape[0] :], torch.zeros_like(found[:, shape[0] :]))


@pytest.mark.parametrize("kind", ["relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("cross", [True, False])
def test_plain_version_is_a_transformer(kind: str, norm_first: bool, cross: bool) -> None:
    """Against torch's own layers, which see the whole sequence at once."""
    case = Case(SIZES[1], torch.float32, 2, kind, norm_first, cross=cross)
    width, heads, ffn = case.size[:3]
    names = {"gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh")}
    activation: Any = names.get(kind, getattr(torch.nn.functional, kind, None))
    options = {"dropout": 0.0, "batch_first": True, "norm_first": norm_first}
    kind_of_layer = torch.nn.TransformerDecoderLayer if cross else torch.nn.TransformerEncoderLayer
    layer = kind_of_layer(width, heads, ffn, activation=activation, **options).eval()
    if cross:
        # The kernel is given projected keys and values: an identity makes them the memory itself.
        case.memory = [torch.cat([case.random(19, width)] * 2, 1)]
    linears, norms = iter(case.linears), iter(case.norms)
    attentions = [layer.self_attn, *([layer.multihead_attn] if cross else [])]
    with torch.no_grad():
        for i, attention in enumerate(attentions):
            weight, bias = next(linears)
            if i == 1:
                weight = torch.cat([weight, torch.eye(width), torch.eye(width)])
                bias = torch.cat([bias, torch.zeros(2 * width)])
            attention.in_proj_weight.copy_(weight)
            attention.in_proj_bias.copy_(bias)
            for to, value in zip(attention.out_proj.parameters(), next(linears)):
                to.copy_(value)
        for linear in (layer.linear1, layer.linear2):
            for to, value in zip(linear.parameters(), next(linears)):
                to.copy_(value)
        for norm in [layer.norm1, layer.norm2, *([layer.norm3] if cross else [])]:
            for to, value in zip(norm.parameters(), next(norms)):
                to.copy_(value)
        tokens = torch.randint(130, (2, 6))
        x = case.words[tokens] * 1.5 + case.places[:6]
        mask = torch.nn.Transformer.generate_square_subsequent_mask(6)
        if cross:
            memory = case.memory[0][:, :width]
            spans = case.sources[:2].tolist()
            rows = [
                layer(x[i : i + 1], memory[None, first : first + size], tgt_mask=mask)
                for i, (first, size) in enumerate(spans)
            ]
            y = torch.cat(rows)
        else:
            y = layer(x, src_mask=mask)
        y = y[:, -1]
        if norm_first:
            y = torch.nn.functional.layer_norm(y, (width,), *next(norms))
        expected = torch.nn.functional.linear(y, *next(linears))
    plan = [(torch.arange(2), tokens[:, :4]), (torch.arange(2), tokens[:, 4:])]
    for step in (reference.decoder_step, decoder_step):
        found = case.run(step, 0, plan)[-1][0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_shapes_without_running() -> None:
    case = Case(SIZES[0], torch.bfloat16)
    seen = []

    def step(*arguments):
        with torch.device("meta"):
            moved = [
                a.to("meta") if isinstance(a, torch.Tensor)
                else [x.to("meta") for x in a] if isinstance(a, list) else a
                for a in arguments
            ]  # fmt: skip
            seen.append([(x.shape, x.dtype) for x in decoder_step(*moved)])
        real = decoder_step(*arguments)
        assert seen[-1] == [(x.shape, x.dtype) for x in real]
        return real

    for best in (0, 4):
        case.run(step, best, case.steps())
    assert len(seen) == 10


# Position in the arguments, a change, and what the message says of it.
REFUSED = [
    (0, lambda x: x.int(), "tokens must be Long"),
    (0, lambda x: x[0], "tokens must be .rows, steps."),
    (0, lambda x: x[:, :0], "tokens must have a step"),
    (0, lambda x: x + 500, "tokens must be below 37, got"),
    (1, lambda x: x[..., :11], "cache must"),
    (1, lambda x: x[0], "cache must be .layers"),
    (1, lambda x: x[:, :, :3].contiguous(), "the cache holds 3 tokens a row, got 0 and 4"),
    (1, lambda x: x[:, :, :, :2].contiguous(), "the cache has 2 slots, got 3 rows"),
    (2, lambda x: x.long(), "ancestors must be Int"),
    (2, lambda x: x[:, :5].contiguous(), "ancestors must have shape"),
    (3, lambda x: -1, "the cache holds"),
    (4, lambda x: x.double(), "words must be Float"),
    (6, lambda x: x[:2], "there are 2 positions in places, got 4 tokens"),
    (6, lambda x: x[0, 0], "there are 0 positions in places"),
    (7, lambda x: torch.rand(2, 3, 2), "there are 3 positions in angles, got 4 tokens"),
    (9, lambda x: [*x, x[0]], "too many matrices"),
    (8, lambda x: torch.ones(2, 5), "norms must have shape"),
    (9, lambda x: x[:-1], "too few matrices"),
    (9, lambda x: [y.double() for y in x], "matrices must be float32, bfloat16 or int8"),
    (9, lambda x: [x[0][:, :2].contiguous(), *x[1:]], "matrices must have shape"),
    (10, lambda x: [y[:-1] for y in x], "biases must have shape"),
    (11, lambda x: [], "int8 matrices need scales"),
    (11, lambda x: [y[:1] for y in x], "scales must have shape"),
    (12, lambda x: x[1:], "norms must be 7, got 6"),
    (13, lambda x: x[1:], "memory must have an entry a layer"),
    (13, lambda x: [y[:3] for y in x], "spans must lie within 3 source tokens"),
    (14, lambda x: x[:2], "spans must have shape"),
    (14, lambda x: x * 0, "spans must lie within 19 source tokens, got 0 and 0"),
    (15, lambda x: 5, "heads must divide the width 12, got 5"),
    (16, lambda x: 21, "must have shape"),
    (17, lambda x: "tanh", "unknown activation tanh"),
    (20, lambda x: 38, "best must be from 0 to 37, got 38"),
]


@pytest.mark.skipif(not _extension.load(), reason=str(_extension.reason()))
@pytest.mark.parametrize(("place", "change", "message"), REFUSED, ids=[m for *_, m in REFUSED])
def test_refuses(place: int, change, message: str) -> None:
    case = Case(SIZES[0], torch.int8)

    def step(*arguments):
        changed = list(arguments)
        changed[place] = change(changed[place])
        return decoder_step(*changed)

    with pytest.raises(RuntimeError, match=message):
        case.run(step, 0, case.steps()[:1])


@pytest.mark.skipif(not _extension.load(), reason=str(_extension.reason()))
def test_ancestors_of_another_cache_are_refused() -> None:
    case = Case(SIZES[0], torch.float32)

    def step(tokens, cache, ancestors, length, *others):
        ancestors[:, :length] += length * 40
        return decoder_step(tokens, cache, ancestors, length, *others)

    with pytest.raises(RuntimeError, match="ancestors must be below 6"):
        case.run(step, 0, case.steps()[:2])
