"""Transformer modules against torch's: results and gradients, whichever path torch takes."""

import copy
import inspect
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module

import fastseq
from tests.nn.transformer_cases import (
    BATCH,
    HEADS,
    KINDS,
    OPTIONS,
    PADDING,
    SOURCE,
    WIDTH,
    arguments,
    build,
    masks,
    pair,
    results,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:enable_nested_tensor is True",
    "ignore:The PyTorch API of nested tensors",
    "ignore:Support for mismatched",
)


# torch's inference path takes whatever is not zero in a floating mask for "left out".
MISREAD = ("per-head", "float-padding", "source")


@contextmanager
def inference_path(enabled: bool) -> Iterator[None]:
    """Within it torch's inference path is allowed or not."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_torch_in_training_and_inference(kind: str, option: str) -> None:
    theirs, ours = pair(kind, **OPTIONS[option])
    data = arguments(kind, OPTIONS[option].get("batch_first", False))
    for name, call in masks(kind).items():
        torch.testing.assert_close(results(ours, data, call), results(theirs, data, call))
        with torch.no_grad(), inference_path(name not in MISREAD):
            torch.testing.assert_close(ours.eval()(*data, **call), theirs.eval()(*data, **call))
        for module in (theirs, ours):
            module.train()


@pytest.mark.parametrize("kind", KINDS)
def test_unbatched(kind: str) -> None:
    theirs, ours = pair(kind, batch_first=True)
    data = arguments(kind, True, batched=False)
    for call in masks(kind, batched=False).values():
        torch.testing.assert_close(results(ours, data, call), results(theirs, data, call))


def test_gradient_of_a_mask() -> None:
    theirs, ours = pair("TransformerEncoder", batch_first=True)
    bias = torch.randn(BATCH * HEADS, SOURCE, SOURCE, dtype=torch.float64).requires_grad_()
    call = {"mask": bias, "src_key_padding_mask": PADDING.double() * -3}
    data = arguments("TransformerEncoder", True)
    torch.testing.assert_close(results(ours, data, call), results(theirs, data, call))


@pytest.mark.parametrize("kind", KINDS)
def test_same_as_torchs_class_in_all_else(kind: str) -> None:
    theirs, ours = build(torch.nn, kind, dropout=0.3), build(fastseq, kind, dropout=0.3)
    assert isinstance(ours, type(theirs)) and type(ours) is getattr(fastseq.nn, kind)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(theirs.modules(), ours.modules(), strict=True):
        if isinstance(a, torch.nn.MultiheadAttention) or type(a).__name__ in KINDS:
            assert type(b) is getattr(fastseq.nn, type(a).__name__)
        assert vars(a).keys() == vars(b).keys()
    expected = dict(inspect.signature(type(theirs)).parameters)
    got = dict(inspect.signature(type(ours)).parameters)
    got.pop("skip_padding", None)
    assert list(got) == list(expected)
    data = arguments(kind, False)
    ours.eval()
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other) is type(ours)
        assert torch.equal(other(*data), ours(*data))


def test_custom_stacks_and_layers_stay() -> None:
    encoder = build(torch.nn, "TransformerEncoder")
    ours = fastseq.Transformer(WIDTH, HEADS, 1, 1, 20, custom_encoder=encoder, dtype=torch.float64)
    assert ours.encoder is encoder and type(encoder) is torch.nn.TransformerEncoder
    assert type(encoder.layers[0].self_attn) is torch.nn.MultiheadAttention
    assert type(ours.decoder.layers[0].multihead_attn) is fastseq.MultiheadAttention

    class Own(torch.nn.TransformerEncoderLayer):
        def forward(self, src: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return 2 * src

    stack = fastseq.TransformerEncoder(Own(WIDTH, HEADS, 20), 3, skip_padding=True)
    x = torch.randn(SOURCE, BATCH, WIDTH)
    expected = (8 * x).masked_fill(PADDING.t()[..., None], 0)
    torch.testing.assert_close(stack(x, src_key_padding_mask=PADDING), expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: m(x[..., :5]),
        lambda m, x: m(x, mask=torch.zeros(3, 4)),
        lambda m, x: m(x, mask=torch.zeros(7, 7, dtype=torch.int32)),
        lambda m, x: m(x, src_key_padding_mask=torch.zeros(3, 6, dtype=torch.bool)),
        lambda m, x: m(x, src_key_padding_mask=torch.zeros(3, 7, dtype=torch.int32)),
        lambda m, x: m(x, is_causal=True),
        lambda m, x: m(x[0, 0, 0]),
        lambda m, x: m(x.float()),
    ],
)
def test_errors_are_torchs(call: Any) -> None:
    theirs, ours = pair("TransformerEncoder", batch_first=True)
    x = arguments("TransformerEncoder", True)[0]
    with pytest.raises(Exception) as expected:
        call(theirs, x)
    with pytest.raises(type(expected.value)) as got:
        call(ours, x)
    assert str(got.value) == str(expected.value)


def test_torchs_warning() -> None:
    with pytest.warns(UserWarning, match="enable_nested_tensor is True, but"):
        build(fastseq, "TransformerEncoder", norm_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(fastseq, "TransformerEncoder", batch_first=True)


def test_dropout() -> None:
    """Outputs differ from call to call in training, have the mean of inference, and not in eval."""
    ours = build(fastseq, "TransformerEncoderLayer", dropout=0.2, batch_first=True)
    x = arguments("TransformerEncoderLayer", True)[0]
    outs = torch.stack([ours(x) for _ in range(200)])
    assert not torch.equal(outs[0], outs[1])
    ours.eval()
    assert torch.equal(ours(x), ours(x))
    assert (outs.mean(0) - ours(x)).abs().mean() < 0.1 * ours(x).abs().mean()
    packed = build(fastseq, "TransformerEncoder", dropout=0.2, batch_first=True, skip_padding=True)
    first, second = (packed(x, src_key_padding_mask=PADDING) for _ in range(2))
    assert not torch.equal(first, second) and (first[PADDING] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_no_more_than_torchs(dtype: torch.dtype) -> None:
    theirs, ours = pair("TransformerEncoder", batch_first=True)
    data = arguments("TransformerEncoder", True)
    call = {"src_key_padding_mask": PADDING}
    exact = results(theirs, data, call)
    data = [x.to(dtype) for x in data]
    found = [results(m.to(dtype), data, call) for m in (theirs, ours)]
    for z, a, b in zip(exact, *found, strict=True):
        few = 16 * torch.finfo(dtype).eps * z.abs().max().clamp(min=0.1)
        assert (b - z).abs().max() <= 2 * (a - z).abs().max() + few


def test_autocast() -> None:
    theirs, ours = pair("Transformer", batch_first=True)
    data = arguments("Transformer", True)
    call = masks("Transformer")["memory"]
    exact = theirs(*data, **call)
    theirs, ours = theirs.float(), ours.float()
    data, call = [x.float() for x in data], {k: v.float() for k, v in call.items()}
    with torch.autocast("cpu", torch.bfloat16):
        expected, got = (m(*data, **call) for m in (theirs, ours))
    assert got.dtype == expected.dtype
    errors = [(out - exact).abs().max() for out in (expected, got)]
    assert errors[1] <= 2 * errors[0] + 0.01 * exact.abs().max()


@pytest.mark.parametrize("kind", ["TransformerEncoder", "TransformerDecoder"])
def test_compile_without_graph_breaks(kind: str) -> None:
    ours = build(fastseq, kind, batch_first=True)
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="aot_eager")
    name, hint = ("mask", "is_causal") if "Encoder" in kind else ("tgt_mask", "tgt_is_causal")
    for length in (4, 9):
        x = torch.randn(2, length, WIDTH, dtype=torch.float64)
        padding = torch.zeros(2, length, dtype=torch.float64)
        padding[1, 2:] = -torch.inf
        mask = torch.nn.Transformer.generate_square_subsequent_mask(length).double()
        call = {name: mask, hint: True}
        call["src_key_padding_mask" if "Encoder" in kind else "memory_key_padding_mask"] = padding
        data = [x] if "Encoder" in kind else [x, x + 1]
        got = results(as_module(compiled, ours), data, call)
        torch.testing.assert_close(got, results(ours, data, call))


def as_module(call: Any, module: Module) -> Any:
    """A compiled module with the parameters of the one it was compiled from."""

    class Compiled:
        parameters = staticmethod(module.parameters)

        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            return call(*args, **kwargs)

    return Compiled()


@pytest.mark.parametrize("kind", ["TransformerEncoder", "TransformerDecoder"])
def test_export_with_dynamic_length(kind: str) -> None:
    ours = build(fastseq, kind, batch_first=True).eval()
    data = tuple(arguments(kind, True))
    lengths = [torch.export.Dim(name, min=2, max=4096) for name in ("t", "s")][: len(data)]
    names = ["src"] if len(data) == 1 else ["tgt", "memory"]
    program = torch.export.export(
        ours, data, dynamic_shapes={n: {1: d} for n, d in zip(names, lengths)}
    )
    longer = [torch.randn(BATCH, 11 + i, WIDTH, dtype=torch.float64) for i in range(len(data))]
    torch.testing.assert_close(program.module()(*longer), ours(*longer))


def test_trained_alike() -> None:
    """Twenty steps of an optimizer lead both to the same parameters."""
    found = []
    for library in (torch.nn, fastseq):
        module = build(library, "Transformer", batch_first=True)
        torch.manual_seed(5)
        source, target = arguments("Transformer", True)
        optimizer = torch.optim.SGD(module.parameters(), 0.05)
        for _ in range(20):
            optimizer.zero_grad()
            out = module(source, target, src_key_padding_mask=PADDING.double() * -1e9)
            (out - target.flip(1)).pow(2).mean().backward()
            optimizer.step()
        found.append(list(module.parameters()))
    for a, b in zip(*found):
        torch.testing.assert_close(b, a)
