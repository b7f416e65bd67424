"""MultiheadAttention against torch's: results, gradients, errors."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq.nn import MultiheadAttention

CONSTRUCTORS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-bias": {"bias": False},
    "batch-first": {"batch_first": True},
    "bias-kv": {"add_bias_kv": True},
    "zero-attention": {"add_zero_attn": True},
    "both-extra": {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
    "other-widths": {"kdim": 5, "vdim": 7},
    "other-widths-no-bias": {"kdim": 5, "vdim": 7, "bias": False, "batch_first": True},
}


def pair(**options: Any) -> tuple[torch.nn.MultiheadAttention, MultiheadAttention]:
    """torch's module and ours with the same parameters, random biases included."""
    theirs = torch.nn.MultiheadAttention(12, 3, dtype=torch.float64, **options)
    ours = MultiheadAttention(12, 3, dtype=torch.float64, **options)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def inputs(module: torch.nn.MultiheadAttention, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """(query, key, value): L = 5, S = 5 or 7, B = 2; the same tensor for self-attention."""
    source = 5 if kind == "self" else 7
    sizes = [(5, module.embed_dim), (source, module.kdim), (source, module.vdim)]
    batched = kind != "unbatched"
    shape = (lambda n: (2, n)) if module.batch_first else (lambda n: (n, 2))
    made = [
        torch.randn(*(shape(n) if batched else (n,)), width, dtype=torch.float64).requires_grad_()
        for n, width in sizes
    ]
    if kind == "self":
        return made[0], made[0], made[0]
    return (made[0], made[1], made[1]) if kind == "shared" else tuple(made)


def masks(kind: str, batched: bool, source: int) -> dict[str, Tensor]:
    batch = 2 if batched else 1
    attn = torch.rand(5, source) > 0.6
    attn[:, 0] = False
    padding = torch.zeros(batch, source, dtype=torch.bool)
    padding[-1, source - 2 :] = True
    padding = padding if batched else padding[0]
    bias = torch.randn(batch * 3, 5, source, dtype=torch.float64).requires_grad_()
    return {
        "none": {},
        "attn": {"attn_mask": attn},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": attn, "key_padding_mask": padding},
        "bias": {"attn_mask": bias},
        "bias-padding": {"attn_mask": bias, "key_padding_mask": padding.double() * -3},
    }[kind]


def compare(theirs: Any, ours: Any, leaves: list[Tensor]) -> None:
    assert (theirs[1] is None) == (ours[1] is None)
    pairs = [(a, b) for a, b in zip(theirs, ours) if a is not None]
    upstream = [torch.randn_like(a) for a, _ in pairs]
    for a, b in pairs:
        torch.testing.assert_close(b, a)
    expected, got = (
        torch.autograd.grad([p[i] for p in pairs], leaves, upstream, allow_unused=True)
        for i in (0, 1)
    )
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
@pytest.mark.parametrize("kind", ["self", "shared", "cross", "unbatched"])
def test_agrees_with_torch(constructor: str, kind: str) -> None:
    theirs, ours = pair(**CONSTRUCTORS[constructor])
    if kind in ("self", "shared") and theirs.kdim != theirs.embed_dim:
        pytest.skip("one tensor cannot have several widths")
    source = 5 if kind == "self" else 7
    for name in ("none", "attn", "padding", "both", "bias", "bias-padding"):
        for need_weights, average in ((True, True), (True, False), (False, True)):
            data = inputs(theirs, kind)
            given = masks(name, kind != "unbatched", source)
            call = {**given, "need_weights": need_weights, "average_attn_weights": average}
            leaves = list({id(x): x for x in (*data, *given.values()) if x.requires_grad}.values())
            compare(theirs(*data, **call), ours(*data, **call), leaves)


def test_gradients_of_parameters_and_causal_hint() -> None:
    theirs, ours = pair()
    data = inputs(theirs, "self")
    causal = torch.nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    for need_weights in (False, True):
        for module in (theirs, ours):
            module.zero_grad()
            out, _ = module(*data, attn_mask=causal, is_causal=True, need_weights=need_weights)
            out.pow(2).sum().backward()
        for a, b in zip(theirs.parameters(), ours.parameters()):
            torch.testing.assert_close(b.grad, a.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_no_more_than_torchs(dtype: torch.dtype) -> None:
    theirs, ours = pair(batch_first=True)
    x = torch.randn(3, 33, 12, dtype=torch.float64)
    exact = theirs(x, x, x, need_weights=False)[0]
    theirs, ours, x = theirs.to(dtype), ours.to(dtype), x.to(dtype)
    errors = [(m(x, x, x, need_weights=False)[0] - exact).abs().max() for m in (theirs, ours)]
    assert errors[1] <= 2 * errors[0] + 4 * torch.finfo(dtype).eps * exact.abs().max()


def test_same_initial_values_and_representation() -> None:
    torch.manual_seed(3)
    theirs = torch.nn.MultiheadAttention(12, 3, kdim=5)
    torch.manual_seed(3)
    ours = MultiheadAttention(12, 3, kdim=5)
    for (name, a), (other, b) in itertools.zip_longest(
        theirs.state_dict().items(), ours.state_dict().items()
    ):
        assert name == other and torch.equal(a, b)
    assert repr(ours) == repr(theirs)
    assert torch.equal(copy.deepcopy(ours).out_proj.weight, ours.out_proj.weight)


def test_dropout_is_in_the_weights_too() -> None:
    _, ours = pair(dropout=0.4)
    x = torch.randn(6, 2, 12, dtype=torch.float64)
    out, weights = ours(x, x, x, average_attn_weights=False)
    assert 0.2 < (weights == 0).double().mean() < 0.6
    value = torch.nn.functional.linear(x, ours.in_proj_weight[24:], ours.in_proj_bias[24:])
    heads = value.view(6, 2, 3, 4).permute(1, 2, 0, 3)
    expected = ours.out_proj((weights @ heads).permute(2, 0, 1, 3).reshape(6, 2, 12))
    torch.testing.assert_close(out, expected)
    ours.eval()
    torch.testing.assert_close(ours(x, x, x)[0], ours(x, x, x)[0])


def test_query_without_keys() -> None:
    _, ours = pair()
    x = torch.randn(4, 2, 12, dtype=torch.float64).requires_grad_()
    padding = torch.tensor([[False] * 4, [True] * 4])
    out, weights = ours(x, x, x, key_padding_mask=padding)
    assert (weights[1] == 0).all() and out.isfinite().all()
    torch.testing.assert_close(out[:, 1], ours.out_proj.bias.expand(4, 12))
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: m(x[..., :5], x, x),
        lambda m, x: m(x, x[..., :5], x),
        lambda m, x: m(x, x[0], x),
        lambda m, x: m(x[None], x, x),
        lambda m, x: m(x, x, x[:3]),
        lambda m, x: m(x, x, x, attn_mask=torch.zeros(3, 4)),
        lambda m, x: m(x, x, x, attn_mask=torch.zeros(2, 4, 4)),
        lambda m, x: m(x, x, x, attn_mask=torch.zeros(4, 4, dtype=torch.int32)),
        lambda m, x: m(x, x, x, key_padding_mask=torch.zeros(2, 3, dtype=torch.bool)),
        lambda m, x: m(x, x, x, key_padding_mask=torch.zeros(2, 2, 4, dtype=torch.bool)),
        lambda m, x: m(x, x, x, is_causal=True),
        lambda m, x: m(x, x, x, attn_mask=torch.zeros(4, 4, dtype=torch.float16)),
        lambda m, x: m(x, x, x, attn_mask=torch.zeros(4, 4).half(), need_weights=False),
        lambda m, x: m(x, x, x, attn_mask=[[0.0] * 4] * 4),
        lambda m, x: m(x.float(), x.float(), x.float()),
    ],
)
def test_errors_are_torchs(call: Any) -> None:
    theirs, ours = pair()
    x = torch.randn(4, 2, 12, dtype=torch.float64)
    with pytest.raises(Exception) as expected:
        call(theirs, x)
    with pytest.raises(type(expected.value)) as got:
        call(ours, x)
    assert str(got.value) == str(expected.value)


def test_compile_and_autocast() -> None:
    theirs, ours = pair(batch_first=True)
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (4, 7, 9):
        x = torch.randn(2, length, 12, dtype=torch.float64).requires_grad_()
        compare(ours(x, x, x), compiled(x, x, x), [x])
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    exact = theirs(x, x, x, need_weights=False)[0]
    theirs, ours, x = theirs.float(), ours.float(), x.float()
    with torch.autocast("cpu", torch.bfloat16):
        expected, got = (m(x, x, x, need_weights=False)[0] for m in (theirs, ours))
    assert got.dtype == expected.dtype
    errors = [(out - exact).abs().max() for out in (expected, got)]
    assert errors[1] <= 2 * errors[0]


def test_empty_batch() -> None:
    _, ours = pair(batch_first=True)
    x = torch.randn(0, 4, 12, dtype=torch.float64)
    for need_weights in (False, True):
        got = ours(x, x, x, need_weights=need_weights)
        assert got[0].shape == x.shape and (got[1] is None or got[1].shape == (0, 4, 4))


def test_inference_of_short_and_long_calls() -> None:
    theirs, ours = (m.eval() for m in pair(batch_first=True))
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    with torch.no_grad():
        for call in ({}, {"need_weights": False}, {"average_attn_weights": False}):
            torch.testing.assert_close(ours(x, x, x, **call), theirs(x, x, x, **call))
            torch.testing.assert_close(ours(x, x + 1, x, **call), theirs(x, x + 1, x, **call))
    long = torch.randn(1, 250, 12, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(long, long, long), theirs(long, long, long))
