"""Attention under forward mode, batched gradients, the meta device and fake tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

import fastseq
from fastseq.functional import flash_attn_func, flash_attn_varlen_func, scaled_dot_product_attention

F64 = {"dtype": torch.float64}


def frozen(module: torch.nn.Module) -> torch.nn.Module:
    return module.requires_grad_(False).eval()


def attention(**options: Any) -> Callable[[Tensor], Any]:
    module = frozen(fastseq.MultiheadAttention(8, 2, batch_first=True, **F64))
    return lambda x: module(x, x, x, **options)


def packed(x: Tensor, **options: Any) -> Any:
    bounds = torch.tensor([0, 5, 5, 10], dtype=torch.int32)
    rows = x.flatten(0, 1).unflatten(1, (2, 4))
    return flash_attn_varlen_func(rows, rows, rows, bounds, bounds, 5, 5, **options)


def functions() -> dict[str, Callable[[Tensor], Any]]:
    """Of x (2, 5, 8), with parameters that need no gradient."""
    layer = frozen(fastseq.TransformerEncoderLayer(8, 2, 16, batch_first=True, **F64))
    additive = frozen(fastseq.AdditiveAttention(8, 8, 6, **F64))
    general = frozen(fastseq.GeneralAttention(8, 8, **F64))
    bias = torch.randn(5, 5, **F64)
    slopes = torch.tensor([0.5, 0.25], **F64)

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(2, (2, 4))

    return {
        "weights": attention(),
        "weights-each": attention(average_attn_weights=False, attn_mask=bias),
        "no-weights": attention(need_weights=False),
        "encoder": layer,
        "additive": lambda x: additive(x, x),
        "general": lambda x: general(x, x),
        "sdpa": lambda x: scaled_dot_product_attention(x, x, x),
        "extras": lambda x: scaled_dot_product_attention(
            *[heads(x).transpose(1, 2)] * 3, softcap=2.0, window_size=(2, 1), alibi_slopes=slopes
        ),
        "flash": lambda x: flash_attn_func(*[heads(x)] * 3, causal=True),
        "varlen": lambda x: packed(x, causal=True, alibi_slopes=slopes),
    }


def outputs(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [x for x in result if x is not None]


@pytest.mark.parametrize("name", functions())
@pytest.mark.parametrize("mode", ["func", "dual"])
def test_forward_mode(name: str, mode: str) -> None:
    """The tangent of every result is what a step along it says, with frozen parameters too."""
    function = functions()[name]
    x, tangent = torch.randn(2, 5, 8, **F64), torch.randn(2, 5, 8, **F64)
    if mode == "func":
        _, along = torch.func.jvp(lambda x: tuple(outputs(function(x))), (x,), (tangent,))
    else:
        with forward_ad.dual_level():
            found = outputs(function(forward_ad.make_dual(x, tangent)))
            along = tuple(forward_ad.unpack_dual(y).tangent for y in found)
    step = 1e-6 * tangent
    for got, after, before in zip(
        along, outputs(function(x + step)), outputs(function(x - step)), strict=True
    ):
        torch.testing.assert_close(got, (after - before) / 2e-6, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("name", functions())
def test_batched_gradients(name: str) -> None:
    """jacobian(vectorize=True) and is_grads_batched=True: rows of the jacobian at once."""
    function = functions()[name]
    x = torch.randn(2, 5, 8, **F64).requires_grad_()
    for i, y in enumerate(outputs(function(x))):

        def one(x: Tensor, i: int = i) -> Tensor:
            return outputs(function(x))[i]

        each = torch.autograd.functional.jacobian(one, x)
        torch.testing.assert_close(torch.autograd.functional.jacobian(one, x, vectorize=True), each)
        upstream = torch.randn(3, *y.shape, **F64)
        (got,) = torch.autograd.grad(one(x), x, upstream, is_grads_batched=True)
        torch.testing.assert_close(got, torch.tensordot(upstream, each, y.dim()))


def test_numbers_that_require_a_gradient() -> None:
    """torch's error, as for its own; slopes get theirs."""
    x = torch.randn(1, 2, 5, 4, **F64)
    learned = torch.nn.Parameter(torch.tensor(0.5))
    flash, extras = x.transpose(1, 2), {"window_size": (3, 3)}
    for name in ("scale", "dropout_p"):
        for mask in (None, x.new_zeros(5, 5)):
            with pytest.raises(TypeError) as theirs:
                torch.nn.functional.scaled_dot_product_attention(x, x, x, mask, **{name: learned})
            for more in ({}, extras):
                with pytest.raises(TypeError) as ours:
                    scaled_dot_product_attention(x, x, x, mask, **{name: learned}, **more)
                assert str(ours.value).replace(" (position 5)", "") == str(theirs.value)
    for name in ("softmax_scale", "dropout_p", "softcap"):
        with pytest.raises(TypeError, match=f"{name} should be a number, got Parameter"):
            flash_attn_func(flash, flash, flash, **{name: learned})
    with pytest.raises(TypeError, match="softcap should be a number, got Parameter"):
        scaled_dot_product_attention(x, x, x, softcap=learned)

    slopes = torch.rand(2, **F64).requires_grad_()
    for call in (
        lambda s: scaled_dot_product_attention(x, x, x, alibi_slopes=s, softcap=1.0),
        lambda s: flash_attn_func(flash, flash, flash, alibi_slopes=s[None], causal=True),
        lambda s: packed(torch.cat([x, x]).transpose(1, 2).flatten(2), alibi_slopes=s),
    ):
        assert torch.autograd.gradcheck(call, (slopes,))


MODULES: dict[str, tuple[Callable[..., torch.nn.Module], int]] = {
    "attention": (lambda **k: fastseq.MultiheadAttention(8, 2, **k), 3),
    "encoder": (
        lambda **k: fastseq.TransformerEncoder(
            fastseq.TransformerEncoderLayer(8, 2, 16, batch_first=True, **k), 2
        ),
        1,
    ),
    "decoder": (
        lambda **k: fastseq.TransformerDecoder(
            fastseq.TransformerDecoderLayer(8, 2, 16, batch_first=True, **k), 2
        ),
        2,
    ),
    "transformer": (lambda **k: fastseq.Transformer(8, 2, 1, 1, 16, batch_first=True, **k), 2),
    "additive": (lambda **k: fastseq.AdditiveAttention(8, 8, 6, **k), 2),
    "dot": (lambda **_: fastseq.DotAttention(), 2),
    "lstm": (lambda **k: fastseq.LSTM(8, 8, **k), 1),
    "gru": (lambda **k: fastseq.GRU(8, 8, 2, layer_norm=True, **k), 1),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("train", [True, False])
def test_meta_device(name: str, train: bool) -> None:
    """Built, called and differentiated without memory; then given some and filled."""
    make, inputs = MODULES[name]
    x = torch.randn(2, 5, 8)
    module = make(device="meta").train(train)
    out = outputs(module(*[torch.empty_like(x, device="meta").requires_grad_()] * inputs))[0]
    assert out.is_meta
    out.sum().backward()
    filled = module.to_empty(device="cpu")
    for parameter in filled.parameters():
        torch.nn.init.normal_(parameter)
    copy = make().train(train)
    copy.load_state_dict(filled.state_dict())
    torch.manual_seed(0)
    expected = outputs(copy(*[x] * inputs))[0]
    assert expected.shape == out.shape
    torch.manual_seed(0)
    torch.testing.assert_close(outputs(filled(*[x] * inputs))[0], expected)


@pytest.mark.parametrize("name", MODULES)
def test_fake_tensors(name: str) -> None:
    make, inputs = MODULES[name]
    module, x = make().eval(), torch.randn(2, 5, 8)
    options = {}
    if name == "encoder":
        options = {"src_key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2])}
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        given = {n: mode.from_tensor(mask) for n, mask in options.items()}
        fake = outputs(module(*[mode.from_tensor(x)] * inputs, **given))[0]
    assert fake.shape == outputs(module(*[x] * inputs, **options))[0].shape
