"""The functions with torch's and flash-attn's signatures."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq import functional
from fastseq.functional import (
    flash_attn_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
    scaled_dot_product_attention,
)
from fastseq.ops import attention
from fastseq.ops.attention import is_short


def rand(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype).requires_grad_()


CALLS: dict[str, tuple[list[tuple[int, ...]], dict[str, Any]]] = {
    "two-dims": ([(5, 3), (7, 3), (7, 4)], {}),
    "three-dims": ([(2, 5, 3), (2, 7, 3), (2, 7, 4)], {"is_causal": True}),
    "four-dims": ([(2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4)], {"scale": 0.3}),
    "five-dims": ([(2, 3, 2, 5, 4), (2, 3, 2, 7, 4), (2, 3, 2, 7, 4)], {"is_causal": True}),
    "broadcast-batch": ([(2, 3, 5, 4), (1, 3, 7, 4), (1, 3, 7, 4)], {}),
    "broadcast-five": ([(2, 3, 2, 5, 4), (1, 3, 2, 7, 4), (2, 1, 2, 7, 4)], {}),
    "one-key-head": ([(2, 3, 5, 4), (2, 1, 7, 4), (2, 1, 7, 4)], {}),
    "gqa": ([(2, 6, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4)], {"enable_gqa": True}),
    "empty-batch": ([(0, 3, 5, 4), (0, 3, 7, 4), (0, 3, 7, 4)], {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_agrees_with_torch(name: str) -> None:
    shapes, options = CALLS[name]
    inputs = [rand(*s) for s in shapes]
    ours = scaled_dot_product_attention(*inputs, **options)
    theirs = F.scaled_dot_product_attention(*inputs, **options)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream)
    )


@pytest.mark.parametrize(
    "shape",
    [
        (7,),
        (1,),
        (5, 7),
        (5, 1),
        (1, 7),
        (3, 5, 7),
        (3, 1, 7),
        (2, 3, 5, 7),
        (2, 1, 1, 7),
        (1, 3, 5, 1),
    ],
)
@pytest.mark.parametrize("kind", ["bool", "bias"])
def test_masks_of_every_shape(shape: tuple[int, ...], kind: str) -> None:
    inputs = [rand(2, 3, 5, 4), rand(2, 3, 7, 4), rand(2, 3, 7, 4)]
    mask: Tensor = torch.rand(shape) > 0.3 if kind == "bool" else rand(*shape)
    full = mask.expand(2, 3, 5, 7)
    ours = scaled_dot_product_attention(*inputs, attn_mask=mask)
    theirs = F.scaled_dot_product_attention(*inputs, attn_mask=full)
    torch.testing.assert_close(ours, theirs)
    leaves = [*inputs, mask] if kind == "bias" else inputs
    upstream = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(theirs, leaves, upstream)
    )


def test_mask_of_five_dimensional_input() -> None:
    inputs = [rand(2, 3, 2, 5, 4), rand(2, 3, 2, 7, 4), rand(2, 3, 2, 7, 4)]
    for shape in ((5, 7), (2, 5, 7), (3, 1, 5, 7), (2, 1, 2, 1, 7)):
        mask = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(
            scaled_dot_product_attention(*inputs, attn_mask=mask),
            F.scaled_dot_product_attention(*inputs, attn_mask=mask),
        )


@pytest.mark.parametrize(
    "call",
    [
        lambda q, sdpa: sdpa(q, q.double(), q),
        lambda q, sdpa: sdpa(q, q[..., :3], q),
        lambda q, sdpa: sdpa(q, q[:, :2], q[:, :2]),
        lambda q, sdpa: sdpa(q, q[:, :3], q[:, :3], enable_gqa=True),
        lambda q, sdpa: sdpa(q, q, q, attn_mask=torch.ones(5, 5, dtype=torch.int32)),
        lambda q, sdpa: sdpa(q, q, q, attn_mask=torch.ones(5, 5, dtype=torch.float64)),
        lambda q, sdpa: sdpa(q, q, q, attn_mask=torch.ones(3, 5, 5, dtype=torch.bool)),
        lambda q, sdpa: sdpa(q, q, q, attn_mask=torch.ones(2, 2, 4, 5, 5, dtype=torch.bool)),
        lambda q, sdpa: sdpa(q, q, q, dropout_p=1.5),
        lambda q, sdpa: sdpa(q[0, 0, 0], q[0, 0, 0], q[0, 0, 0]),
        lambda q, sdpa: sdpa(q, q, q.tolist()),
        lambda q, sdpa: sdpa(q, None, q),
        lambda q, sdpa: sdpa(q, q, q, [True]),
        lambda q, sdpa: sdpa(q, q, q, attn_mask=torch.zeros(5, 5).to_sparse()),
        lambda q, sdpa: sdpa(q, q, q, q.new_zeros(5, 5), 0.0, 1),
        lambda q, sdpa: sdpa(q, q, q, q.new_zeros(5, 5), scale="1"),
    ],
)
def test_bad_input_as_torch_reports_it(call: Any) -> None:
    q = torch.randn(2, 4, 5, 8)
    with pytest.raises(Exception) as theirs:
        call(q, F.scaled_dot_product_attention)
    with pytest.raises(type(theirs.value)) as ours:
        call(q, scaled_dot_product_attention)
    assert str(ours.value) == str(theirs.value)


def test_beyond_torch() -> None:
    q, k, v = rand(2, 3, 9, 4), rand(2, 3, 9, 4), rand(2, 3, 9, 5)
    slopes = torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64)
    out, lse = scaled_dot_product_attention(
        q,
        k,
        v,
        is_causal=True,
        window_size=(3, -1),
        softcap=2.0,
        alibi_slopes=slopes,
        return_lse=True,
    )
    i, j = torch.arange(9)[:, None], torch.arange(9)
    s = 2 * torch.tanh(q @ k.mT / 2 / 2) - slopes[:, None, None] * (i - j).abs()
    s = s.masked_fill((j > i) | (j < i - 3), -torch.inf)
    torch.testing.assert_close(lse, s.logsumexp(-1))
    torch.testing.assert_close(out, s.softmax(-1) @ v)


def literal(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """(S, H, D) attention, aligned bottom-right."""
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[0] // k.shape[0], 0) for x in (k, v))
    s = q @ k.mT / math.sqrt(q.shape[-1])
    if causal:
        i, j = torch.arange(s.shape[1])[:, None], torch.arange(s.shape[2])
        s = s.masked_fill(j > i + s.shape[2] - s.shape[1], -torch.inf)
    return (s.softmax(-1).nan_to_num() @ v).transpose(0, 1)


@pytest.mark.parametrize("causal", [False, True])
def test_flash_layout_and_alignment(causal: bool) -> None:
    q, k, v = rand(2, 4, 6, 3), rand(2, 7, 2, 3), rand(2, 7, 2, 5)
    out, lse, _ = flash_attn_func(q, k, v, causal=causal, return_attn_probs=True)
    torch.testing.assert_close(out, torch.stack([literal(*x, causal) for x in zip(q, k, v)]))
    assert lse.shape == (2, 6, 4)


def test_flash_varlen_and_its_errors() -> None:
    lengths_q, lengths_k = [2, 0, 4, 1], [3, 2, 4, 0]
    bounds = [
        torch.tensor([0, *x], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        for x in (lengths_q, lengths_k)
    ]
    q, k, v = rand(7, 4, 3), rand(9, 2, 3), rand(9, 2, 5)
    out = flash_attn_varlen_func(q, k, v, *bounds, 4, 4, causal=True)
    parts = zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k))
    torch.testing.assert_close(out, torch.cat([literal(*x, True) for x in parts]))
    with pytest.raises(ValueError, match="cu_seqlens_q should be one-dimensional int32"):
        flash_attn_varlen_func(q, k, v, bounds[0].long(), bounds[1], 4, 4)
    with pytest.raises(ValueError, match="should have one length"):
        flash_attn_varlen_func(q, k, v, bounds[0][:-1], bounds[1], 4, 4)
    for window in (3, (1,), (1, 2.5)):
        with pytest.raises(ValueError, match="window_size should be two ints"):
            flash_attn_func(*[torch.randn(1, 4, 2, 8)] * 3, window_size=window)
        with pytest.raises(ValueError, match="window_size should be two ints"):
            scaled_dot_product_attention(*[torch.randn(1, 2, 4, 8)] * 3, window_size=window)
    with pytest.raises(ValueError, match="divides q's"):
        flash_attn_varlen_func(q[:, :3], k, v, *bounds, 4, 4)
    with pytest.raises(TypeError, match="max_seqlen_k should be an int, got Tensor"):
        flash_attn_varlen_func(q, k, v, *bounds, 4, torch.tensor(4))
    with pytest.raises(ValueError, match="cu_seqlens_k should be on cpu as q is, got meta"):
        flash_attn_varlen_func(q, k, v, bounds[0], bounds[1].to("meta"), 4, 4)


@pytest.mark.parametrize("slopes", [None, "learned"])
@pytest.mark.parametrize(
    "wrong, message",
    [
        ([0, 5, 3, 6, 7], "cu_seqlens_q must not decrease"),
        ([1, 2, 3, 6, 7], "cu_seqlens_q must run from 0 to the number of tokens, 7"),
        ([0, 2, 2, 6, 9], "cu_seqlens_q must run from 0 to the number of tokens, 7"),
        ([0, 5, 5, 6, 7], "a sequence be longer than max_seqlen, 4"),
    ],
)
def test_bounds_of_sequences(wrong: list[int], message: str, slopes: str | None) -> None:
    """By the kernel, and by plain PyTorch, which learned slopes take."""
    q, k = torch.randn(7, 2, 8), torch.randn(9, 2, 8)
    bounds = [torch.tensor(x, dtype=torch.int32) for x in (wrong, [0, 3, 5, 9, 9])]
    learned = torch.ones(2, requires_grad=True) if slopes else None
    with pytest.raises(RuntimeError, match=message):
        flash_attn_varlen_func(q, k, k, *bounds, 4, 4, alibi_slopes=learned)


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_flash_cache(paged: bool, interleaved: bool) -> None:
    """Decoding in pieces against the cache gives what the whole sequence gives at once."""
    total, batch = 11, 3
    q, k, v = (torch.randn(batch, total, h, 8, dtype=torch.float64) for h in (4, 2, 2))
    angle = torch.rand(total, 2, dtype=torch.float64)
    cos, sin = angle.cos(), angle.sin()
    table = torch.randperm(12, dtype=torch.int32).view(3, 4) if paged else None
    shape = (12, 3, 2, 8) if paged else (batch, 12, 2, 8)
    caches = [torch.full(shape, torch.nan, dtype=torch.float64) for _ in range(2)]
    outs, held = [], 0
    for step in (4, 1, 1, 3, 2):
        at = slice(held, held + step)
        outs.append(
            flash_attn_with_kvcache(
                q[:, at], *caches, k[:, at], v[:, at], cos, sin, held,
                block_table=table, causal=True, rotary_interleaved=interleaved,
            )
        )  # fmt: skip
        held += step
    whole_q, whole_k = (turn(x, cos, sin, interleaved) for x in (q, k))
    torch.testing.assert_close(
        torch.cat(outs, 1), flash_attn_func(whole_q, whole_k, v, causal=True)
    )
    with pytest.raises(ValueError, match="holds 12 tokens"):
        flash_attn_with_kvcache(
            q[:, :2], *caches, k[:, :2], v[:, :2], cache_seqlens=held, block_table=table
        )


def turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotary embedding by complex multiplication, of the first four features."""
    first = x[..., :4]
    pairs = first.unflatten(-1, (2, 2)) if interleaved else first.unflatten(-1, (2, 2)).mT
    turned = torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin)[:, None]
    real = torch.view_as_real(turned)
    return torch.cat([(real if interleaved else real.mT).flatten(-2), x[..., 4:]], -1)


class Attend(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, k, is_causal=True)


@pytest.mark.parametrize("training", [False, True])
def test_compiled_and_exported_for_every_length(training: bool) -> None:
    """Whatever length it was traced with: also one that eager calls leave to torch."""

    def data(queries: int, keys: int) -> tuple[Tensor, Tensor]:
        q, k = torch.randn(2, 3, queries, 8), torch.randn(2, 3, keys, 8)
        return q.requires_grad_(training), k.requires_grad_(training)

    model = Attend()
    dims = [torch.export.Dim(name, min=2, max=5000) for name in ("queries", "keys")]
    with torch.set_grad_enabled(training):
        exported = torch.export.export(model, data(5, 9), dynamic_shapes=[{2: d} for d in dims])
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
        compiled(*data(5, 9))
        for lengths in ((2, 3), (33, 70), (190, 260)):
            given = data(*lengths)
            expected = F.scaled_dot_product_attention(given[0], given[1], given[1], is_causal=True)
            for call in (exported.module(), compiled):
                torch.testing.assert_close(call(*given), expected)


def test_short_calls_by_device() -> None:
    for device, bound in (("cpu", 2**19), ("cuda", 2**27)):
        assert is_short(device, bound) and not is_short(device, bound + 1)
    assert not is_short("mps", 0)


def test_short_inference_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the bound, without a gradient, a mask or what torch does not have."""
    calls: list[Any] = []

    def torchs(*arguments: Any, **options: Any) -> Tensor:
        calls.append(arguments)
        return F.scaled_dot_product_attention(*arguments, **options)

    monkeypatch.setattr(functional, "_torch_attention", torchs)
    q, k = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4)
    learns = k.clone().requires_grad_()
    for bound, arguments, options, taken in (
        (q.numel() * 7, (q, k, k), {"is_causal": True}, True),
        (q.numel() * 7 - 1, (q, k, k), {"is_causal": True}, False),
        (2**19, (q, k, learns), {}, False),
        (2**19, (q, k, k), {"softcap": 3.0}, False),
        (2**19, (q, k, k, torch.zeros(5, 7)), {}, False),
    ):
        monkeypatch.setitem(attention._SHORT, "cpu", bound)
        calls.clear()
        scaled_dot_product_attention(*arguments, **options)
        assert bool(calls) == taken, (bound, options)
