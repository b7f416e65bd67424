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

KINDS = (
    "TransformerEncoderLayer",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerDecoder",
    "Transformer",
)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch-first": {"batch_first": True},
    "norm-first": {"norm_first": True, "batch_first": True},
    "no-bias": {"bias": False, "batch_first": True},
    "gelu": {"activation": "gelu", "batch_first": True},
    "callable": {"activation": torch.tanh},
    "eps": {"layer_norm_eps": 0.1, "batch_first": True},
}
WIDTH, HEADS, TARGET, SOURCE, BATCH = 12, 2, 5, 7, 3
LENGTHS = torch.tensor([7, 4, 1])
PADDING = torch.arange(SOURCE) >= LENGTHS[:, None]
CAUSAL = torch.nn.Transformer.generate_square_subsequent_mask(SOURCE, dtype=torch.float64)

pytestmark = pytest.mark.filterwarnings(
    "ignore:enable_nested_tensor is True",
    "ignore:The PyTorch API of nested tensors",
    "ignore:Support for mismatched",
)


def build(library: Any, kind: str, **options: Any) -> Module:
    """A module in float64 with the same initial values in either library."""
    torch.manual_seed(4)
    options = {"dropout": 0.0, "dtype": torch.float64, "dim_feedforward": 20, **options}
    if kind == "Transformer":
        return library.Transformer(
            WIDTH, HEADS, num_encoder_layers=2, num_decoder_layers=2, **options
        )
    extra = {k: options.pop(k) for k in ("skip_padding", "mask_check") if k in options}
    layer = getattr(library, kind.removesuffix("Layer") + "Layer")(WIDTH, HEADS, **options)
    if kind.endswith("Layer"):
        return layer
    norm = torch.nn.LayerNorm(WIDTH, dtype=torch.float64)
    with torch.no_grad():
        norm.bias.uniform_()
    return getattr(library, kind)(layer, 2, norm, **extra)


def pair(kind: str, **options: Any) -> tuple[Module, Module]:
    """torch's and ours; random biases and scales too."""
    theirs, ours = build(torch.nn, kind, **options), build(fastseq, kind, **options)
    with torch.no_grad():
        for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
            assert torch.equal(a, b)
            if a.dim() == 1:
                b.copy_(a.add_(torch.randn_like(a) / 4))
    return theirs, ours


def arguments(kind: str, batch_first: bool, batched: bool = True) -> list[Tensor]:
    def one(tokens: int) -> Tensor:
        shape = (BATCH, tokens) if batch_first else (tokens, BATCH)
        return torch.randn(*(shape if batched else (tokens,)), WIDTH, dtype=torch.float64)

    if kind == "Transformer":
        return [one(SOURCE), one(TARGET)]
    return [one(TARGET), one(SOURCE)] if "Decoder" in kind else [one(SOURCE)]


def masks(kind: str, batched: bool = True) -> dict[str, dict[str, Any]]:
    """Sets of masks by name, for the keyword arguments of each kind."""
    padding = PADDING if batched else PADDING[1]
    target = torch.arange(TARGET) >= torch.tensor([5, 3, 1])[:, None]
    target = target if batched else target[1]
    square = torch.rand(SOURCE, SOURCE) > 0.6
    square[:, 0] = False
    if "Encoder" in kind:
        name = "src_mask" if kind.endswith("Layer") else "mask"
        per_head = torch.randn(
            (BATCH if batched else 1) * HEADS, SOURCE, SOURCE, dtype=torch.float64
        )
        return {
            "none": {},
            "bool": {name: square},
            "per-head": {name: per_head},
            "causal": {name: CAUSAL, "is_causal": True},
            "padding": {"src_key_padding_mask": padding},
            "float-padding": {"src_key_padding_mask": padding.double() * -2.5},
            "both": {name: square, "src_key_padding_mask": padding},
            "causal-padding": {name: CAUSAL, "src_key_padding_mask": padding, "is_causal": True},
        }
    bias = torch.randn(TARGET, SOURCE, dtype=torch.float64)
    causal = CAUSAL[:TARGET, :TARGET]
    cross = {"memory_mask": bias, "memory_key_padding_mask": padding.double() * -2.5}
    hint = {"tgt_mask": causal, "tgt_is_causal": True}
    found = {
        "none": {},
        "causal": hint,
        "detected": {"tgt_mask": causal, "memory_key_padding_mask": padding},
        "target-padding": {"tgt_key_padding_mask": target, **hint},
        "memory": cross,
    }
    if kind == "Transformer":
        found["source"] = {"src_mask": CAUSAL, "src_key_padding_mask": padding.double() * -2.5}
        found["all"] = {**cross, **hint, "src_key_padding_mask": padding}
    return found


def results(module: Module, data: list[Tensor], call: dict[str, Any]) -> list[Tensor]:
    """Output, then gradients of inputs, of floating masks that want them, and of parameters."""
    leaves = [x.detach().requires_grad_() for x in data]
    given = {
        k: v.detach().requires_grad_() if isinstance(v, Tensor) and v.requires_grad else v
        for k, v in call.items()
    }
    out = module(*leaves, **given)
    upstream = torch.cos(torch.arange(out.numel(), dtype=out.dtype)).view(out.shape)
    wanted = [
        *leaves,
        *(x for x in given.values() if isinstance(x, Tensor) and x.requires_grad),
        *module.parameters(),
    ]
    return [out, *torch.autograd.grad(out, wanted, upstream, allow_unused=True)]


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


# The packed path.


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


def test_compile_without_graph_breaks() -> None:
    for kind in ("TransformerEncoder", "Transformer"):
        ours = build(fastseq, kind, batch_first=True)
        compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="aot_eager")
        name = "mask" if kind == "TransformerEncoder" else "tgt_mask"
        hint = "is_causal" if kind == "TransformerEncoder" else "tgt_is_causal"
        for length in (4, 6, 9):
            x = torch.randn(2, length, WIDTH, dtype=torch.float64)
            padding = torch.zeros(2, length, dtype=torch.float64)
            padding[1, 2:] = -torch.inf
            mask = torch.nn.Transformer.generate_square_subsequent_mask(length).double()
            data = [x] if kind == "TransformerEncoder" else [x, x + 1]
            call = {name: mask, hint: True, "src_key_padding_mask": padding}
            if kind == "Transformer":
                call["src_is_causal"] = False
            got = results(lambda_module(compiled, ours), data, call)
            torch.testing.assert_close(got, results(ours, data, call))


def lambda_module(call: Any, module: Module) -> Any:
    """A compiled module with the parameters of the one it was compiled from."""

    class Compiled:
        parameters = staticmethod(module.parameters)

        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            return call(*args, **kwargs)

    return Compiled()


def test_compile_with_skip_padding() -> None:
    packed = build(fastseq, "TransformerEncoder", batch_first=True, skip_padding=True)
    x = arguments("TransformerEncoder", True)[0]
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(x, src_key_padding_mask=PADDING), packed(x, src_key_padding_mask=PADDING)
    )


@pytest.mark.parametrize("kind", ["TransformerEncoder", "TransformerDecoder"])
def test_export_with_dynamic_length(kind: str) -> None:
    ours = build(fastseq, kind, batch_first=True).eval()
    data = tuple(arguments(kind, True))
    lengths = [torch.export.Dim(name, min=2, max=64) for name in ("t", "s")][: len(data)]
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
