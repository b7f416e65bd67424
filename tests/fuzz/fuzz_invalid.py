"""Good calls with one argument spoilt: an error that says something, or what torch says."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastseq
from fastseq.functional import (
    flash_attn_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
    scaled_dot_product_attention,
)

ERRORS = (ValueError, TypeError, RuntimeError, NotImplementedError, IndexError)


class Target(NamedTuple):
    """ours(**arguments), torch's counterpart if there is one, and arguments that may be written."""

    ours: Callable[..., Any]
    theirs: Callable[..., Any] | None
    arguments: dict[str, Any]
    written: tuple[str, ...] = ()


def ints(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def module(name: str, *sizes: int, **options: Any) -> tuple[Any, Any]:
    """Ours, and torch's with the same parameters."""
    pair = [getattr(library, name)(*sizes, **options) for library in (fastseq, torch.nn)]
    pair[1].load_state_dict(pair[0].state_dict())
    return pair[0], pair[1]


def torchs_attention(attn_mask: Any, **rest: Any) -> Tensor:
    """torch's function, and what it says of masks of few dimensions too, which ours broadcasts."""
    if isinstance(attn_mask, Tensor) and attn_mask.dim() < 2:
        attn_mask = attn_mask.expand(1, *attn_mask.shape[-1:] or (1,))
    return F.scaled_dot_product_attention(attn_mask=attn_mask, **rest)


def of_functions() -> dict[str, Target]:
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    rows = {"q": q.transpose(1, 2), "k": k.transpose(1, 2), "v": v.transpose(1, 2)}
    options = {"dropout_p": 0.0, "softmax_scale": 0.3, "causal": True, "window_size": (3, -1)}
    options |= {"softcap": 2.0, "alibi_slopes": torch.rand(4)}
    packed = {n: x.flatten(0, 1) for n, x in rows.items()}
    packed |= {"cu_seqlens_q": ints(0, 5, 10), "cu_seqlens_k": ints(0, 7, 14)}
    new = {n: torch.randn(2, 3, h, 8) for n, h in (("q", 4), ("k", 2), ("v", 2))}
    cached = {n: x for n, x in options.items() if n != "dropout_p"}
    cached |= {**new, "cache_seqlens": ints(4, 6)}
    cached |= {"rotary_cos": torch.randn(12, 4), "rotary_sin": torch.randn(12, 4)}
    caches = {n: torch.randn(2, 12, 2, 8) for n in ("k_cache", "v_cache")}
    pages = {n: torch.randn(9, 4, 2, 8) for n in ("k_cache", "v_cache")}
    table = {"block_table": ints([0, 1, 2], [5, 4, 3])}
    additive = {"query": q[:, 0], "key": k[:, 0], "value": v[:, 0], "w_query": torch.randn(6, 8)}
    additive |= {"w_key": torch.randn(6, 8), "v": torch.randn(6), "bias": torch.randn(6)}
    additive |= {"key_padding_mask": torch.rand(2, 7) > 0.7, "attn_mask": torch.rand(5, 7) > 0.7}
    sdpa = {"query": q, "key": k, "value": v, "attn_mask": torch.randn(5, 7), "dropout_p": 0.0}
    sdpa |= {"is_causal": False, "scale": 0.3, "enable_gqa": True}
    extras = {"window_size": (3, 2), "softcap": 2.0, "alibi_slopes": torch.rand(2, 4)}
    ours, written = scaled_dot_product_attention, ("k_cache", "v_cache")
    return {
        "sdpa": Target(ours, torchs_attention, sdpa),
        "sdpa-extras": Target(ours, None, sdpa | extras),
        "flash": Target(flash_attn_func, None, rows | options),
        "varlen": Target(
            flash_attn_varlen_func, None, packed | options | {"max_seqlen_q": 5, "max_seqlen_k": 7}
        ),
        "cache": Target(
            flash_attn_with_kvcache,
            None,
            caches | cached | {"cache_batch_idx": ints(1, 0)},
            written,
        ),
        "paged": Target(flash_attn_with_kvcache, None, pages | cached | table, written),
        "additive": Target(fastseq.additive_attention, None, additive),
    }


def of_modules() -> dict[str, Target]:
    x, memory, state = torch.randn(2, 5, 8), torch.randn(2, 7, 8), torch.randn(1, 2, 8)
    mask, padding = torch.rand(5, 5) > 0.8, torch.arange(5) >= torch.tensor([[5], [3]])
    attention = {"query": x, "key": x, "value": x, "key_padding_mask": padding}
    attention |= {"attn_mask": mask}
    encoder = {"src": x, "src_mask": mask, "src_key_padding_mask": padding}
    decoder = {"tgt": x, "memory": memory, "tgt_mask": mask, "tgt_key_padding_mask": padding}
    scored = {"query": x, "key": memory, "value": memory, "attn_mask": torch.rand(5, 7) > 0.8}
    options = {"batch_first": True, "dropout": 0.0}
    stacks = [
        library.TransformerEncoder(
            library.TransformerEncoderLayer(8, 2, 16, **options), 2, enable_nested_tensor=False
        )
        for library in (fastseq, torch.nn)
    ]
    stacks[1].load_state_dict(stacks[0].state_dict())
    return {
        "MultiheadAttention": Target(*module("MultiheadAttention", 8, 2, **options), attention),
        "EncoderLayer": Target(*module("TransformerEncoderLayer", 8, 2, 16, **options), encoder),
        "DecoderLayer": Target(*module("TransformerDecoderLayer", 8, 2, 16, **options), decoder),
        "Encoder": Target(*stacks, {"src": x, "mask": mask, "src_key_padding_mask": padding}),
        "AdditiveAttention": Target(fastseq.AdditiveAttention(8, 8, 6), None, scored),
        "GeneralAttention": Target(fastseq.GeneralAttention(8, 8), None, scored),
        "DotAttention": Target(fastseq.DotAttention(), None, scored),
        "LSTM": Target(
            *module("LSTM", 8, 8, batch_first=True), {"input": x, "hx": (state, state.clone())}
        ),
        "GRU": Target(*module("GRU", 8, 8, batch_first=True), {"input": x, "hx": state}),
        "GRUCell": Target(*module("GRUCell", 8, 8), {"input": x[0], "hx": torch.randn(5, 8)}),
    }


def of_tensors() -> dict[str, Callable[[Tensor], Any]]:
    return {
        "None": lambda x: None,
        "list": lambda x: x.tolist(),
        "number": lambda x: 1.0,
        "text": lambda x: "tensor",
        "double": lambda x: x.double(),
        "half": lambda x: x.half(),
        "int64": lambda x: x.long(),
        "bool": lambda x: x > 0,
        "complex": lambda x: x.to(torch.complex64),
        "meta": lambda x: x.to("meta"),
        "sparse": lambda x: x.to_sparse(),
        "nested": lambda x: torch.nested.as_nested_tensor([x, x]),
        "unsqueezed": lambda x: x[None],
        "one-fewer-dimension": lambda x: x[0],
        "scalar": lambda x: x.flatten()[0],
        "one-row-only": lambda x: x[:1],
        "no-rows": lambda x: x[:0],
        "shorter": lambda x: x[..., :-1],
        "longer": lambda x: torch.cat([x, x[..., :1]], -1),
        "middle": lambda x: x.narrow(-2, 0, x.shape[-2] - 1) if x.dim() > 1 else x[1:],
        "empty-middle": lambda x: x.narrow(-2, 0, 0) if x.dim() > 1 else x[:0],
        "repeated": lambda x: torch.cat([x, x]),
        "transposed": lambda x: x.transpose(0, -1),
        "expanded": lambda x: x[:1].expand_as(x),
        "negative": lambda x: -x if x.dtype != torch.bool else ~x,
        "huge": lambda x: x.long() + 2**32,
        "big": lambda x: x + 99 if x.dtype != torch.bool else x,
        "gradient": lambda x: x.float().clone().requires_grad_(),
    }


OTHERS = (
    None,
    -1,
    0,
    99,
    2**40,
    0.5,
    float("nan"),
    float("inf"),
    True,
    "x",
    (1,),
    (2, 2),
    (1, 2.5),
)
OTHERS = (*OTHERS, torch.tensor(0.5), torch.nn.Parameter(torch.tensor(0.5)), torch.ones(2))


def spoilt(value: Any, draw: Callable[..., Any]) -> Any:
    """Another value in the place of a good one."""
    if isinstance(value, tuple) and isinstance(value[0], Tensor):
        first = spoilt(value[0], draw)
        return draw(st.sampled_from([(first, value[1]), (value[0], first), value[:1], value[0]]))
    if isinstance(value, Tensor):
        return of_tensors()[draw(st.sampled_from(sorted(of_tensors())))](value)
    return draw(st.sampled_from(OTHERS))


def tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    found = values.values() if isinstance(values, dict) else values
    return [x for v in found for x in tensors(v)] if isinstance(values, (dict, tuple)) else []


def same(x: Tensor, y: Tensor) -> bool:
    if x.is_meta or x.is_nested or x.is_sparse:
        return True
    return torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0))


def outcome(call: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call(**arguments)
    except Exception as error:
        return error


def torchs(call: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Without torch's inference path, which takes a floating mask for a boolean one.

    But that is also less strict: what it alone takes, ours may leave to it.
    """
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        result = outcome(call, arguments)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return outcome(call, arguments) if isinstance(result, Exception) else result


def check(target: Target, arguments: dict[str, Any]) -> None:
    kept = {n: x for n, x in arguments.items() if n not in target.written}
    caches = [x for n, x in arguments.items() if n in target.written and isinstance(x, Tensor)]
    before = [[x.detach().clone() for x in tensors(part)] for part in (kept, tuple(caches))]
    got = outcome(target.ours, arguments)
    assert all(map(same, tensors(kept), before[0]))
    expected = None if target.theirs is None else torchs(target.theirs, arguments)
    if isinstance(got, Exception):
        # An assertion of torch's own is another one where it takes another path.
        others = (type(expected), AssertionError) if isinstance(expected, Exception) else ()
        assert isinstance(got, (*ERRORS, *others)) and str(got), repr(got)
        assert all(map(same, caches, before[1]))
    elif isinstance(expected, Exception):
        pytest.fail(f"torch raises {expected!r}, ours does not")
    elif expected is not None:
        for x, y in zip(tensors(got), tensors(expected), strict=True):
            assert x.shape == y.shape and x.dtype == y.dtype and x.device == y.device
            if not x.is_meta and not x.is_nested and not arguments.get("dropout_p"):
                seen = ~y.isnan()  # of a query without keys, which ours answers with zeros
                torch.testing.assert_close(x[seen], y[seen], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", of_functions())
@given(data=st.data())
def test_function(name: str, data: st.DataObject) -> None:
    torch.manual_seed(0)
    target = of_functions()[name]
    argument = data.draw(st.sampled_from(sorted(target.arguments)))
    check(target, target.arguments | {argument: spoilt(target.arguments[argument], data.draw)})


@pytest.mark.parametrize("name", of_modules())
@given(data=st.data())
def test_module(name: str, data: st.DataObject) -> None:
    torch.manual_seed(0)
    target = of_modules()[name]
    if data.draw(st.booleans()) and isinstance(target.ours, torch.nn.Module):
        target.ours.eval()
        _ = target.theirs and target.theirs.eval()
    argument = data.draw(st.sampled_from(sorted(target.arguments)))
    changed = target.arguments | {argument: spoilt(target.arguments[argument], data.draw)}
    with torch.set_grad_enabled(data.draw(st.booleans())):
        check(target, changed)
