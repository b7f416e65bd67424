"""Padded batches packed: where torch nests them, and on request in training too."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module

import fastseq
from tests.nn.transformer_cases import (
    BATCH,
    CAUSAL,
    OPTIONS,
    PADDING,
    SOURCE,
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


class Counter:
    """How many tokens the feed-forward networks of a stack saw."""

    def __init__(self, stack: Module, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows = 0
        original = torch.nn.TransformerEncoderLayer._ff_block

        def counted(layer: Module, x: Tensor) -> Tensor:
            self.rows += x.shape[:-1].numel()
            return original(layer, x)

        monkeypatch.setattr(torch.nn.TransformerEncoderLayer, "_ff_block", counted)


def test_inference_packs_where_torch_nests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros at padding tell torch's nested path; ours is then packed, and only then."""
    cases: list[tuple[dict[str, Any], dict[str, Any], Any, bool]] = [
        ({}, {}, PADDING, True),
        ({}, {}, PADDING.flip(1), False),  # not left-aligned
        ({"mask_check": False}, {}, PADDING, True),
        ({"norm_first": True}, {}, PADDING, False),
        ({"activation": torch.tanh}, {}, PADDING, False),
        ({"batch_first": False}, {}, PADDING, False),
        ({}, {"mask": CAUSAL}, PADDING, False),
        ({}, {}, torch.zeros_like(PADDING), True),
    ]
    for options, call, padding, packs in cases:
        options = {"batch_first": True, **options}
        theirs, ours = (m.eval() for m in pair("TransformerEncoder", **options))
        x = arguments("TransformerEncoder", options["batch_first"])[0]
        counter = Counter(ours, monkeypatch)
        with torch.no_grad():
            expected = theirs(x, src_key_padding_mask=padding, **call)
            counter.rows = 0
            out = ours(x, src_key_padding_mask=padding, **call)
        monkeypatch.undo()
        torch.testing.assert_close(out, expected)
        assert counter.rows == 2 * (int((~padding).sum()) if packs else padding.numel())
        # With gradients torch computes the padding; so do we.
        torch.testing.assert_close(
            ours(x, src_key_padding_mask=padding, **call),
            theirs(x, src_key_padding_mask=padding, **call),
        )


def test_floating_padding_is_added_in_inference() -> None:
    """As in training; torch's inference path takes every number but zero for padding."""
    encoder = build(fastseq, "TransformerEncoder", batch_first=True).eval()
    x = arguments("TransformerEncoder", True)[0].detach()
    padding = PADDING.double() * -3
    expected = encoder(x, src_key_padding_mask=padding)  # with gradients
    with torch.no_grad():
        torch.testing.assert_close(encoder(x, src_key_padding_mask=padding), expected)
        bool_out = encoder(x, src_key_padding_mask=PADDING)
    assert (bool_out - expected)[~PADDING].abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["bool", "floating", "hook"])
def test_padding_under_autocast(kind: str) -> None:
    """torch raises there: its nested tensors do not autocast. The bound is training's own error."""
    encoder = build(fastseq, "TransformerEncoder", batch_first=True).eval()
    x = arguments("TransformerEncoder", True)[0].detach()
    padding = PADDING.double().mul(-3) if kind == "floating" else PADDING
    exact = encoder(x, src_key_padding_mask=padding)
    encoder, x = encoder.float(), x.float()
    if kind == "hook":
        encoder.layers[0].linear1.register_forward_hook(lambda *_: None)
    padding = padding.float() if kind == "floating" else padding
    with torch.autocast("cpu", torch.bfloat16):
        bound = (encoder(x, src_key_padding_mask=padding) - exact)[~PADDING].abs().max()
        with torch.no_grad():
            out = encoder(x, src_key_padding_mask=padding)
    assert (out - exact)[~PADDING].abs().max() <= 2 * bound


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", ["right", "left", "holes", "empty-sequence"])
def test_skip_padding_in_training(option: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens come out as without it, padding as zeros, gradients as if padding were not there."""
    padding = {
        "right": PADDING,
        "left": PADDING.flip(1),
        "holes": torch.rand(BATCH, SOURCE) > 0.6,
        "empty-sequence": PADDING | (torch.arange(BATCH) == 1)[:, None],
    }[kind]
    options = OPTIONS[option]
    batch_first = options.get("batch_first", False)
    plain = build(fastseq, "TransformerEncoder", **options)
    packed = build(fastseq, "TransformerEncoder", skip_padding=True, **options)
    empty = (padding if batch_first else padding.t())[..., None]

    class Zeroed(Module):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return plain(*args, **kwargs).masked_fill(empty, 0)

        def parameters(self) -> Any:
            return plain.parameters()

    data = arguments("TransformerEncoder", batch_first)
    for name in ("padding", "causal-padding"):
        call = {**masks("TransformerEncoder")[name], "src_key_padding_mask": padding}
        expected = results(Zeroed(), data, call)
        counter = Counter(packed, monkeypatch)
        got = results(packed, data, call)
        assert counter.rows == 2 * int((~padding).sum())
        monkeypatch.undo()
        torch.testing.assert_close(got, expected)
    call = {"mask": CAUSAL, "src_key_padding_mask": padding}  # detected
    torch.testing.assert_close(packed(*data, **call), Zeroed()(*data, **call))


def test_skip_padding_when_it_cannot_pack() -> None:
    plain = build(fastseq, "TransformerEncoder", batch_first=True)
    packed = build(fastseq, "TransformerEncoder", batch_first=True, skip_padding=True)
    x = arguments("TransformerEncoder", True)[0]
    mask = masks("TransformerEncoder")["bool"]["mask"]
    expected = plain(x, mask, PADDING).masked_fill(PADDING[..., None], 0)
    torch.testing.assert_close(packed(x, mask, PADDING), expected)
    torch.testing.assert_close(
        packed(x[1], src_key_padding_mask=PADDING[1]),
        plain(x[1], src_key_padding_mask=PADDING[1]).masked_fill(PADDING[1][:, None], 0),
    )
    seen: list[torch.Size] = []
    packed.layers[0].register_forward_hook(lambda _, args, out: seen.append(out.shape))
    torch.testing.assert_close(
        packed(x, src_key_padding_mask=PADDING),
        plain(x, src_key_padding_mask=PADDING).masked_fill(PADDING[..., None], 0),
    )
    assert seen == [x.shape]
    with pytest.raises(
        TypeError, match=r"skip_padding needs src_key_padding_mask to be torch\.bool"
    ):
        packed(x, src_key_padding_mask=PADDING.double())


def test_padding_of_other_tokens_does_not_matter() -> None:
    packed = build(fastseq, "TransformerEncoder", batch_first=True, skip_padding=True)
    x = arguments("TransformerEncoder", True)[0]
    poisoned = x.masked_fill(PADDING[..., None], torch.nan)
    call = {"src_key_padding_mask": PADDING}
    torch.testing.assert_close(results(packed, [poisoned], call), results(packed, [x], call))


def test_compile_with_skip_padding() -> None:
    packed = build(fastseq, "TransformerEncoder", batch_first=True, skip_padding=True)
    x = arguments("TransformerEncoder", True)[0]
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(x, src_key_padding_mask=PADDING), packed(x, src_key_padding_mask=PADDING)
    )
