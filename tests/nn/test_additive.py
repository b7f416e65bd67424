"""AdditiveAttention and Luong's attention modules."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from fastseq.nn import AdditiveAttention, ConcatAttention, DotAttention, GeneralAttention

EQ, EK, D = 4, 5, 6
KINDS = ("additive", "additive-no-bias", "concat", "dot", "general")


def make(kind: str, dtype: torch.dtype | None = torch.float64) -> Module:
    if kind == "dot":
        return DotAttention()
    if kind == "general":
        return GeneralAttention(EQ, EK, dtype=dtype)
    if kind == "concat":
        return ConcatAttention(EQ, EK, D, dtype=dtype)
    module = AdditiveAttention(EQ, EK, D, bias=kind == "additive", dtype=dtype)
    if module.bias is not None:
        torch.nn.init.normal_(module.bias)
    return module


def inputs(kind: str, batch: int = 2, queries: int = 3, keys: int = 7) -> list[Tensor]:
    width = EQ if kind == "dot" else EK
    shapes = (batch, queries, EQ), (batch, keys, width), (batch, keys, 3)
    return [torch.randn(s, dtype=torch.float64) for s in shapes]


def by_the_paper(kind: str, m: Any, query: Tensor, key: Tensor, left_out: Tensor) -> Tensor:
    """Weights, from the scores as the papers write them."""
    if kind == "dot":
        s = torch.einsum("bqd,bkd->bqk", query, key)
    elif kind == "general":
        s = torch.einsum("bqd,ed,bke->bqk", query, m.weight, key)
    elif kind == "concat":
        pairs = torch.cat([
            query[:, :, None].expand(-1, -1, key.shape[1], -1),
            key[:, None].expand(-1, query.shape[1], -1, -1),
        ], -1)  # fmt: skip
        s = torch.tanh(pairs @ m.weight.mT) @ m.v
    else:
        terms = (query @ m.w_query.mT)[:, :, None] + (key @ m.w_key.mT)[:, None]
        s = torch.tanh(terms if m.bias is None else terms + m.bias) @ m.v
    return s.masked_fill(left_out, -torch.inf).softmax(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_paper(kind: str) -> None:
    module, (query, key, value) = make(kind), inputs(kind)
    padding = torch.arange(7) >= torch.tensor([[7], [4]])
    attn_mask = torch.rand(3, 7) > 0.7
    attn_mask[:, 0] = False
    for masks, left_out in (
        ({}, torch.zeros(2, 3, 7, dtype=torch.bool)),
        ({"key_padding_mask": padding, "attn_mask": attn_mask}, padding[:, None] | attn_mask),
    ):
        exact = by_the_paper(kind, module, query, key, left_out)
        context, weights = module(query, key, value, **masks)
        torch.testing.assert_close((context, weights), (exact @ value, exact))
        torch.testing.assert_close(module(query, key, **masks)[0], exact @ key)
        alone, none = module(query, key, value, need_weights=False, **masks)
        assert none is None
        torch.testing.assert_close(alone, context)  # dot products take another way then
        masks = {n: m[1] if m.shape == (2, 7) else m for n, m in masks.items()}
        torch.testing.assert_close(
            module(query[1], key[1], value[1], **masks), (context[1], weights[1])
        )


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str) -> None:
    module = make(kind)
    names = [name for name, _ in module.named_parameters()]
    leaves = [x.requires_grad_() for x in inputs(kind, keys=4)] + list(module.parameters())

    def call(query: Tensor, key: Tensor, value: Tensor, *parameters: Tensor) -> Any:
        return torch.func.functional_call(module, dict(zip(names, parameters)), (query, key, value))

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_and_initial_values(kind: str) -> None:
    first, second = make(kind), make(kind)
    second.load_state_dict(first.state_dict())
    arguments = inputs(kind)
    assert torch.equal(first(*arguments)[0], second(*arguments)[0])
    expected = {
        "additive": {"w_query": (D, EQ), "w_key": (D, EK), "v": (D,), "bias": (D,)},
        "additive-no-bias": {"w_query": (D, EQ), "w_key": (D, EK), "v": (D,)},
        "concat": {"weight": (D, EQ + EK), "v": (D,)},
        "dot": {},
        "general": {"weight": (EK, EQ)},
    }
    assert {n: tuple(p.shape) for n, p in first.state_dict().items()} == expected[kind]
    if kind == "dot":
        return
    first.reset_parameters()
    for name, p in first.named_parameters():
        assert p.isfinite().all() and (p == 0).all() == (name == "bias")


@pytest.mark.parametrize("kind", ["additive", "concat"])
def test_keys_projected_once(kind: str) -> None:
    module, (query, key, value) = make(kind), inputs(kind)
    whole = module(query, key, value)
    keys = module.project_keys(key)
    for i in range(query.shape[1]):
        step = module(query[:, i : i + 1], key, value, projected_keys=keys)
        torch.testing.assert_close(step, tuple(y[:, i : i + 1] for y in whole))
    torch.testing.assert_close(module(query, key, projected_keys=keys), module(query, key))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_of_packed_sentences(kind: str) -> None:
    module, (_, key, _) = make(kind), inputs(kind)
    sentences = [key[0], key[1, :4], key[1, :1]]
    query = torch.randn(3, 2, EQ, dtype=torch.float64)
    padded, lengths = pad_packed_sequence(pack_sequence(sentences), batch_first=True)
    padding = torch.arange(padded.shape[1]) >= lengths[:, None]
    context, weights = module(query, padded, key_padding_mask=padding)
    for b, sentence in enumerate(sentences):
        alone = module(query[b], sentence)
        n = len(sentence)
        torch.testing.assert_close((context[b], weights[b, :, :n]), alone)
        assert (weights[b, :, n:] == 0).all()


@pytest.mark.parametrize("kind", ["additive", "general"])
def test_compile_and_export(kind: str) -> None:
    module = make(kind)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    padding = torch.arange(7) >= torch.tensor([[7], [4]])
    arguments = [x.requires_grad_() for x in inputs(kind)]
    ours, theirs = (m(*arguments, key_padding_mask=padding) for m in (compiled, module))
    torch.testing.assert_close(ours, theirs)
    for y in (ours, theirs):
        y[0].sum().backward()
    assert arguments[0].grad.isfinite().all()

    sizes = {name: torch.export.Dim(name, min=2) for name in ("batch", "queries", "keys")}
    memory = {0: sizes["batch"], 1: sizes["keys"]}
    shapes = ({0: sizes["batch"], 1: sizes["queries"]}, memory, memory, memory)
    detached = tuple(x.detach() for x in arguments)
    program = torch.export.export(module, (*detached, padding), dynamic_shapes=(*shapes,))
    longer = (*inputs(kind, 3, 5, 9), torch.arange(9) >= torch.tensor([[9], [2], [5]]))
    torch.testing.assert_close(program.module()(*longer), module(*longer))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_lower_precision(kind: str, dtype: torch.dtype) -> None:
    module, arguments = make(kind, dtype), [x.to(dtype) for x in inputs(kind)]
    exact = module.double()(*(x.double() for x in arguments))[0]
    context = module.to(dtype)(*arguments)[0]
    tolerance = 20 * torch.finfo(dtype).eps
    assert context.dtype == dtype
    torch.testing.assert_close(context.double(), exact, rtol=tolerance, atol=tolerance)


def test_errors() -> None:
    query, key, value = inputs("general")
    padding = torch.zeros(2, 7, dtype=torch.bool)
    for error, message, call in (
        (TypeError, "hidden_dim should be of type int", lambda: AdditiveAttention(4, 5, 6.0)),
        (ValueError, "key_dim should be greater than zero", lambda: GeneralAttention(4, 0)),
        (ValueError, "query should be 4 wide", lambda: make("additive")(key, key)),
        (ValueError, "key should be 5 wide", lambda: make("concat")(query, query)),
        (ValueError, "key should be 5 wide", lambda: make("general")(query, query)),
        (ValueError, "key should be 4 wide as query", lambda: make("dot")(query, key)),
        (
            ValueError,
            "value should have key's 7",
            lambda: make("general")(query, key, value[:, 1:]),
        ),
        (ValueError, "key should be 3-D as query", lambda: make("dot")(query, key[0])),
        (
            ValueError,
            "key_padding_mask should have shape",
            lambda: make("general")(query, key, key_padding_mask=padding.T),
        ),
        (
            TypeError,
            "attn_mask should be bool",
            lambda: make("dot")(query, query, attn_mask=torch.zeros(3, 3)),
        ),
    ):
        with pytest.raises(error, match=message):
            call()
