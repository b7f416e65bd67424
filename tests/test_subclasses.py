"""Tensor subclasses, modes and nested tensors: asked, or served, never read blindly."""

import copy
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import CausalBias, causal_lower_right, causal_upper_left
from torch.overrides import TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._pytree import tree_map_only

import fastseq

pytestmark = pytest.mark.filterwarnings(
    "ignore:enable_nested_tensor is True",
    "ignore:The PyTorch API of nested tensors",
    "ignore:Lower right causal bias",
    "ignore:Support for mismatched",
)
SHAPES = {"small": (5, 7), "wide": (4, 9), "square": (6, 6)}


def qkv(queries: int, keys: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(2, 4, n, 8, dtype=dtype).requires_grad_() for n in (queries, keys, keys)]


def attended(q: Tensor, k: Tensor, v: Tensor, bias: CausalBias) -> Tensor:
    scores = (q @ k.mT / 8**0.5).masked_fill(~bias._materialize(), -torch.inf)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("lengths", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("bias", [causal_upper_left, causal_lower_right])
@pytest.mark.parametrize("through", ["direct", "patched", "compiled"])
def test_causal_biases_of_torch(through: str, bias: Any, lengths: tuple[int, int]) -> None:
    """They hold uninitialised memory, which torch.empty's poison in conftest.py makes NaN."""
    inputs, mask = qkv(*lengths), bias(*lengths)
    expected = attended(*inputs, mask)
    if through == "patched":
        with fastseq.patch_torch(functional=True):
            out = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
    elif through == "compiled":
        ours = torch.compile(fastseq.scaled_dot_product_attention, backend="aot_eager")
        out = ours(*inputs, attn_mask=mask)
    else:
        out = fastseq.scaled_dot_product_attention(*inputs, attn_mask=mask)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, upstream), torch.autograd.grad(expected, inputs, upstream)
    )


def test_causal_bias_with_options_and_of_other_lengths() -> None:
    q, k, v = (x.detach() for x in qkv(5, 7))
    bias, ours = causal_lower_right(5, 7), fastseq.scaled_dot_product_attention
    window, visible = (2, -1), bias._materialize()
    torch.testing.assert_close(
        ours(q, k, v, bias, window_size=window, softcap=3.0),
        ours(q, k, v, visible, window_size=window, softcap=3.0),
    )
    for dtype in (torch.float32, torch.complex64):  # the latter no kernel of ours has
        low = [x.to(dtype) for x in (q, k, v)]
        with torch.no_grad():
            try:
                expected = F.scaled_dot_product_attention(*low, attn_mask=visible)
            except RuntimeError as error:
                with pytest.raises(RuntimeError) as raised:
                    ours(*low, attn_mask=bias)
                assert str(raised.value) == str(error)
            else:
                torch.testing.assert_close(ours(*low, attn_mask=bias), expected)
    with pytest.raises(ValueError, match="CausalBias should not be used with causal=True"):
        ours(q, k, v, bias, is_causal=True)
    with pytest.raises(RuntimeError):
        ours(q, k, v, causal_lower_right(4, 7))
    torch.testing.assert_close(
        ours(q, k, v, causal_upper_left(9, 9)), ours(q, k, v, is_causal=True)
    )


@pytest.mark.parametrize("need_weights", [False, True])
def test_causal_bias_in_modules(need_weights: bool) -> None:
    module = fastseq.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    x, y = torch.randn(2, 5, 8).double(), torch.randn(2, 7, 8).double()
    bias = causal_lower_right(5, 7)
    options = {"need_weights": need_weights}
    expected = module(x, y, y, attn_mask=~bias._materialize(), **options)
    torch.testing.assert_close(module(x, y, y, attn_mask=bias, **options), expected)
    encoder = fastseq.TransformerEncoder(
        fastseq.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, dtype=torch.float64), 2
    )
    for call in ({}, {"src_key_padding_mask": torch.zeros(2, 5, dtype=torch.bool)}):
        for train in (True, False):
            encoder.train(train)
            torch.testing.assert_close(
                encoder(x, mask=causal_upper_left(5, 5), **call),
                encoder(x, mask=torch.ones(5, 5, dtype=torch.bool).triu(1), **call),
            )


class Named(Tensor):
    """Writes down which functions it is asked about, and computes as ordinary tensors do."""

    asked: ClassVar[list[Any]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Named.asked.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


class Watching(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Named.asked.append(func)
        return func(*args, **(kwargs or {}))


def functions() -> Iterator[tuple[str, Any, Any, list[Tensor]]]:
    """A name, our function, the function that is asked about, and tensors."""
    q, k, v = (x.detach() for x in qkv(5, 7))
    rows = [x.transpose(1, 2) for x in (q, k, v)]
    bounds = [torch.tensor([0, n, 2 * n], dtype=torch.int32) for n in (5, 7)]
    sdpa, varlen = fastseq.scaled_dot_product_attention, fastseq.flash_attn_varlen_func
    yield "sdpa", sdpa, F.scaled_dot_product_attention, [q, k, v]
    yield "sdpa-extras", lambda *x: sdpa(*x, softcap=2.0), sdpa, [q, k, v]
    yield "flash", fastseq.flash_attn_func, fastseq.flash_attn_func, rows
    packed = [x.flatten(0, 1) for x in rows]
    yield "varlen", lambda *x: varlen(*x, *bounds, 5, 7), varlen, packed
    cache = fastseq.flash_attn_with_kvcache
    yield "cache", lambda *x: cache(*x, cache_seqlens=3), cache, rows
    additive, weight = fastseq.additive_attention, torch.ones(8).double()
    single = [x[:, 0] for x in (q, k, v)]
    yield "additive", lambda *x: additive(*x, None, None, weight), additive, single


@pytest.mark.parametrize("name", [name for name, *_ in functions()])
@pytest.mark.parametrize("form", ["subclass", "mode"])
def test_subclasses_and_modes_are_asked_first(name: str, form: str) -> None:
    ours, asked_about, tensors = next(rest for known, *rest in functions() if known == name)
    expected = ours(*tensors)
    Named.asked.clear()
    if form == "mode":
        with Watching():
            out = ours(*tensors)
    else:
        out = ours(tensors[0], tensors[1].as_subclass(Named), tensors[2])
        assert type(out) is Named
    assert Named.asked[0] is asked_about
    torch.testing.assert_close(out.as_subclass(Tensor), expected)


class Elsewhere(Tensor):
    """Its own memory is NaN; what it stands for is another tensor."""

    stands_for: Tensor

    @staticmethod
    def of(x: Tensor) -> "Elsewhere":
        empty = torch.full_like(x, torch.nan).as_subclass(Elsewhere)
        empty.stands_for = x
        return empty

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func.__name__ == "__get__":  # a shape, a dtype
                return func(*args, **(kwargs or {}))
            real = tree_map_only(Elsewhere, lambda x: x.stands_for, (args, kwargs or {}))
            return tree_map_only(Tensor, Elsewhere.of, func(*real[0], **real[1]))


def readers() -> dict[str, Any]:
    """Of x (5, 2, 8)."""
    attention, additive = fastseq.MultiheadAttention(8, 2), fastseq.AdditiveAttention(8, 8, 6)
    dot, general = fastseq.DotAttention(), fastseq.GeneralAttention(8, 8)
    stack = fastseq.TransformerEncoder(fastseq.TransformerEncoderLayer(8, 2, 16, 0.0), 1)
    sdpa, flash = fastseq.scaled_dot_product_attention, fastseq.flash_attn_func
    return {
        "sdpa": lambda x: sdpa(x, x, x, softcap=2.0),
        "flash": lambda x: flash(x[None], x[None], x[None]),
        "MultiheadAttention": lambda x: attention(x, x, x),
        "encoder": stack,
        "additive": lambda x: additive(x, x),
        "dot": lambda x: dot(x, x),
        "general": lambda x: general(x, x, need_weights=False),
        "LSTM": fastseq.LSTM(8, 6, 2, bidirectional=True),
        "GRU": fastseq.GRU(8, 6, layer_norm=True),
        "RNNCell": lambda x: fastseq.RNNCell(8, 6)(x[0]),
        "LSTMCell": lambda x: fastseq.LSTMCell(8, 6)(x[0]),
    }


@pytest.mark.parametrize("name", readers())
@pytest.mark.parametrize("grad", [False, True])
def test_nothing_reads_the_memory_of_a_subclass(name: str, grad: bool) -> None:
    x = torch.randn(5, 2, 8)
    results = []
    for given in (x, Elsewhere.of(x)):
        torch.manual_seed(0)
        with torch.set_grad_enabled(grad):
            out = readers()[name](given)
        results.append(out[0] if isinstance(out, tuple) else out)
    assert isinstance(results[1], Elsewhere)
    torch.testing.assert_close(results[1].stands_for, results[0])


def test_default_device_is_no_mode_that_is_asked() -> None:
    q, k, v = qkv(5, 7)
    with torch.device("cpu"):
        out = fastseq.scaled_dot_product_attention(q, k, v)
        named = fastseq.scaled_dot_product_attention(q, k.as_subclass(Named), v, softcap=2.0)
    assert out.grad_fn is not None and "Flash" not in out.grad_fn.name()  # not torch's
    assert type(named) is Named


def test_modules_ask_about_inputs_masks_and_weights() -> None:
    module = fastseq.MultiheadAttention(8, 2, dtype=torch.float64)
    x, mask = torch.randn(5, 2, 8).double(), torch.randn(5, 5).double()
    expected = module(x, x, x, attn_mask=mask)
    named = x.as_subclass(Named)
    for out in (module(named, named, named, attn_mask=mask), module(x, x, named, attn_mask=mask)):
        assert type(out[0]) is Named
        torch.testing.assert_close(out[0].as_subclass(Tensor), expected[0])
    Named.asked.clear()
    out = module(x, x, x, attn_mask=mask.as_subclass(Named))
    assert Named.asked
    torch.testing.assert_close(out[0].as_subclass(Tensor), expected[0])


def test_packed_layers_ask_about_weights() -> None:
    """As of quantized ones: the stack computes the padding where a weight computes itself."""
    layer = fastseq.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    encoder = fastseq.TransformerEncoder(layer, 1, skip_padding=True)
    x, padding = torch.randn(2, 5, 8), torch.arange(5) >= torch.tensor([[5], [3]])
    expected = encoder(x, src_key_padding_mask=padding)
    weight = encoder.layers[0].self_attn.in_proj_weight
    named = torch.nn.Parameter(weight.detach().as_subclass(Named))
    assert type(named) is Named
    encoder.layers[0].self_attn.in_proj_weight = named
    Named.asked.clear()
    out = encoder(x, src_key_padding_mask=padding)
    assert F.multi_head_attention_forward in Named.asked
    torch.testing.assert_close(out.as_subclass(Tensor), expected)


def test_wrappers_without_memory() -> None:
    """Their memory is in the tensors they wrap: __torch_dispatch__ gets to see our operators."""
    inputs = [x.detach() for x in qkv(5, 7)]
    mask = torch.randn(5, 7).double()
    twice = [TwoTensor(x, -x).requires_grad_() for x in inputs]
    out = fastseq.scaled_dot_product_attention(*twice, attn_mask=TwoTensor(mask, 2 * mask))
    for part, sign, factor in (("a", 1, 1), ("b", -1, 2)):
        plain = [(sign * x).requires_grad_() for x in inputs]
        expected = F.scaled_dot_product_attention(*plain, attn_mask=factor * mask)
        torch.testing.assert_close(getattr(out, part), expected)
    out.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(twice[0].grad.b, plain[0].grad)


def nested(layout: torch.layout, *shapes: tuple[int, ...]) -> Tensor:
    return torch.nested.nested_tensor([torch.randn(s) for s in shapes], layout=layout)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_in_the_function(layout: torch.layout, grad: bool) -> None:
    q = nested(layout, (3, 4, 8), (5, 4, 8)).transpose(1, 2)
    q = q.contiguous() if layout == torch.strided else q
    q.requires_grad_(grad)
    expected = F.scaled_dot_product_attention(q, q, q)
    with fastseq.patch_torch(functional=True):
        out = F.scaled_dot_product_attention(q, q, q)
    assert out.is_nested
    for a, b in zip(out.unbind(), expected.unbind(), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises((TypeError, RuntimeError)):
        fastseq.scaled_dot_product_attention(q, q, q, softcap=2.0)
    with pytest.raises((TypeError, RuntimeError), match="strided"):
        fastseq.flash_attn_func(q, q, q)


def test_nested_tensors_in_modules() -> None:
    theirs = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2
    ).eval()
    ours = copy.deepcopy(theirs)
    fastseq.patch(ours)
    x, padding = torch.randn(3, 6, 8), torch.arange(6) >= torch.tensor([[6], [4], [2]])
    strided = torch.nested.nested_tensor([x[0], x[1, :4], x[2, :2]])
    jagged = torch.nested.nested_tensor([x[0], x[1, :4]], layout=torch.jagged)
    attention = ours.layers[0].self_attn, theirs.layers[0].self_attn
    with torch.no_grad():
        for pair in ((ours, theirs), (ours.layers[0], theirs.layers[0])):
            got, expected = (m(strided).to_padded_tensor(0) for m in pair)
            torch.testing.assert_close(got, expected)
        got, expected = (m(strided, strided, strided)[0].to_padded_tensor(0) for m in attention)
        torch.testing.assert_close(got, expected)
        for module, given in ((attention, jagged), (attention, (strided, x))):
            raised = []
            for m in module:
                with pytest.raises(Exception) as error:
                    m(given[0], given[1], given[1]) if isinstance(given, tuple) else m(*[given] * 3)
                raised.append((type(error.value), str(error.value)))
            assert raised[0] == raised[1]
        # A hook within a layer keeps it from being packed; torch nests the batch all the same.
        for model in (ours, theirs):
            model.layers[0].linear1.register_forward_hook(lambda *_: None)
        torch.testing.assert_close(
            ours(x, src_key_padding_mask=padding), theirs(x, src_key_padding_mask=padding)
        )


@pytest.fixture
def mesh(tmp_path: Any) -> Iterator[Any]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_distributed_tensors_are_torchs(mesh: Any) -> None:
    """It knows how to cut its own operators among devices."""
    from torch.distributed.tensor import DTensor, Replicate, distribute_module, distribute_tensor

    inputs, mask = qkv(5, 7, torch.float32), torch.randn(5, 7)
    spread = [distribute_tensor(x.detach(), mesh, [Replicate()]) for x in (*inputs, mask)]
    out = fastseq.scaled_dot_product_attention(*(x.requires_grad_() for x in spread))
    assert isinstance(out, DTensor)
    expected = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
    torch.testing.assert_close(out.to_local(), expected)
    x, module = torch.randn(2, 5, 8), fastseq.MultiheadAttention(8, 2, batch_first=True)
    whole = module(x, x, x)[0]
    given = distribute_tensor(x, mesh, [Replicate()])
    out = distribute_module(module, mesh)(given, given, given)[0]
    torch.testing.assert_close(out.to_local(), whole)
