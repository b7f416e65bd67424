"""Attention of random shapes, layouts, masks and numbers against plain PyTorch in float64."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastseq import _extension
from fastseq.ops.attention import default_scale
from fastseq.reference import attention as reference

pytestmark = pytest.mark.skipif(not _extension.load(), reason=str(_extension.reason()))

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
QUERIES = (0, 1, 2, 3, 5, 8, 9, 17, 33, 65, 97, 130)
KEYS = (0, 1, 2, 3, 7, 16, 31, 64, 65, 129, 257, 300, 520)
WIDTHS = (0, 1, 2, 3, 7, 8, 16, 17, 33, 64, 65)
SPECIALS = (torch.nan, torch.inf, -torch.inf)
NAMES = "out", "lse", "grad_q", "grad_k", "grad_v", "grad_mask", "weights", "mean of weights"


def one_of(*choices: Any) -> st.SearchStrategy:
    return st.sampled_from(choices)


@dataclass
class Case:
    """Arguments of the operators by name, as tensors and numbers."""

    tensors: dict[str, Tensor | None]
    options: tuple[Any, ...]
    seed: Tensor | None

    def run(self, module: Any, dtype: torch.dtype | None = None) -> list[Tensor]:
        def cast(x: Tensor | None) -> Tensor | None:
            return x.to(dtype) if dtype and x is not None and x.is_floating_point() else x

        grad_out, grad_lse, q, k, v, mask, *context = map(cast, self.tensors.values())
        context = (mask, *context, self.seed)
        need_mask = mask is not None and mask.is_floating_point()
        out, *sums = module.attention_forward(q, k, v, *context, *self.options)
        grads = module.attention_backward(
            grad_out, grad_lse, q, k, v, out, *sums, *context, *self.options, need_mask
        )
        weights = []
        if context[1] is None:
            rest = (mask, *context[3:], *self.options)
            weights = [module.attention_weights(q, k, *sums, *rest, n) for n in (False, True)]
        return [out, sums[0], *grads, *weights]


LAYOUTS = one_of("dense", "tokens first", "slice", "step", "across", "shared")


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers, or in part the same, elsewhere in memory."""
    if layout == "tokens first":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "across":
        return x.mT.contiguous().mT
    if layout in ("slice", "step"):
        step = 1 + (layout == "step")
        wide = torch.full((*x.shape[:3], step * x.shape[3] + 3), torch.nan, dtype=x.dtype)
        wide[..., 1 : 1 + step * x.shape[3] : step] = x
        return wide[..., 1 : 1 + step * x.shape[3] : step]
    if layout == "shared" and x.shape[0] and x.shape[1]:
        return x[:1, :1].expand(x.shape)
    return x


def bounds(draw, total: int, sequences: int) -> Tensor:
    cuts = sorted(draw(st.integers(0, total)) for _ in range(sequences - 1))
    return torch.tensor([0, *cuts, total], dtype=torch.int32)


@st.composite
def cases(draw, packed: bool = False, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Case:
    dtype, size = draw(one_of(*dtypes)), draw(one_of(1, 3, 9))
    batch, key_heads, group = (
        draw(st.integers(0 if not packed else 1, 3)),
        *(draw(st.integers(1, 3)) for _ in range(2)),
    )
    heads, rows = key_heads * group, 1 if packed else batch
    sq, sk, dim, dim_v = (draw(one_of(*x)) for x in (QUERIES, KEYS, WIDTHS, WIDTHS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def random(*shape: int, by: float = 1) -> Tensor:
        x = torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1
        return laid_out((x * by).to(dtype), draw(LAYOUTS)) if len(shape) == 4 else x * by

    q, k = random(rows, heads, sq, dim, by=size), random(rows, key_heads, sk, dim, by=size)
    v, grad_out = random(rows, key_heads, sk, dim_v), random(rows, heads, sq, dim_v)
    acc = reference.accumulate_dtype(dtype)
    grad_lse = random(rows, heads, sq).to(acc) if draw(st.booleans()) else None
    cu = [None, None]
    longest = [sq, sk]
    if packed:
        cu = [bounds(draw, n, batch) for n in (sq, sk)]
        longest = [int(x.diff().max()) for x in cu]
    mask = None
    kind = None if packed else draw(one_of(None, None, "bool", "added"))
    if kind:
        shape = [n if draw(st.booleans()) else 1 for n in (batch, heads, sq, sk)]
        mask = random(*shape, by=size)
        mask = mask > -0.4 * size if kind == "bool" else mask
        if kind == "added" and draw(st.booleans()) and mask.numel():
            mask = mask.clone()
            mask.masked_fill_(mask > 0.6 * size, draw(one_of(-torch.inf, torch.finfo(dtype).min)))
    slopes = draw(one_of(None, None, None, (heads,), (batch, heads)))
    if slopes is not None:
        slopes = torch.rand(slopes, generator=generator)
    dropout_p = draw(one_of(0.0, 0.0, 0.0, 0.3, 1.0))
    seed = torch.tensor(draw(st.integers(0, 2**62))) if dropout_p else None
    sides = st.one_of(one_of(-1, -1, 0, 2**63 - 1), st.integers(0, 80))
    options = (
        draw(one_of(default_scale(q), default_scale(q), 1.0, -0.3, 0.0)),
        draw(sides), draw(sides), draw(st.booleans()),
        draw(one_of(0.0, 0.0, 0.0, 2.5, 50.0, torch.inf)), dropout_p,
        *(n + draw(st.integers(0, 5)) for n in longest),
    )  # fmt: skip
    tensors = {
        "grad_out": grad_out, "grad_lse": grad_lse, "q": q, "k": k, "v": v, "mask": mask,
        "cu_q": cu[0], "cu_k": cu[1], "slopes": slopes,
    }  # fmt: skip
    return Case(tensors, options, seed)


def check(case: Any, names: tuple[str, ...], ours: Any, exact: Any, plain: Any, few: float) -> None:
    """err(ours) <= 2 err(PyTorch in the same type) + a few units in the last place."""
    for name, x, y, z in zip(names, ours, exact, plain):
        assert x.shape == y.shape and x.dtype == z.dtype, (name, case)
        if x.numel() == 0:
            continue
        assert torch.equal(x == -torch.inf, y == -torch.inf), (name, case)
        eps = torch.finfo(x.dtype).eps
        x, y, z = (t.double().masked_fill(y == -torch.inf, 0) for t in (x, y, z))
        # Gradients are small differences of numbers about 1.
        allowed = 2 * (z - y).abs().max() + few * eps * (y.abs().max() + 1)
        assert (x - y).abs().max() <= allowed, (name, (x - y).abs().max(), allowed, case)


def check_case(case: Case) -> None:
    exact, plain = case.run(reference, torch.float64), case.run(reference)
    q, k, v = (case.tensors[name] for name in "qkv")
    # Each element sums this many products of numbers about 1, which float64 does no better.
    few = 8 * (1 + max(q.shape[3], v.shape[3], q.shape[2], k.shape[2])) ** 0.5
    if (mask := case.tensors["mask"]) is not None and mask.numel():
        few *= max(1, q.shape[:3].numel() * k.shape[2] / mask.numel()) ** 0.5
    if q.dtype == torch.float64:
        few *= 8
    check(case, NAMES, case.run(torch.ops.fastseq), exact, plain, few)


@given(cases())
def test_batches(case: Case) -> None:
    check_case(case)


@given(cases(packed=True))
def test_packed_rows(case: Case) -> None:
    check_case(case)


@st.composite
def caches(draw) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Arguments of ``attention_decode`` by name, and its options."""
    dtype, size = draw(one_of(*DTYPES)), draw(one_of(1, 3, 9))
    batch, key_heads, group, sq = (draw(st.integers(1, n)) for n in (3, 3, 4, 4))
    dim, dim_v = draw(one_of(*WIDTHS)), draw(one_of(*WIDTHS))
    lengths = [draw(st.integers(0, 600)) for _ in range(batch)]
    page = draw(one_of(None, 1, 7, 16))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def random(*shape: int, by: float = 1) -> Tensor:
        x = torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1
        return laid_out((x * by).to(dtype), draw(one_of("dense", "tokens first", "slice")))

    rows, table, capacity = batch, None, max(lengths) + draw(st.integers(0, 9))
    if page:
        blocks = -(-capacity // page)
        table = torch.randperm(batch * blocks + 2, generator=generator)[: batch * blocks]
        table = table.view(batch, blocks).int()
        rows, capacity = batch * blocks + 2, page
    heads = key_heads * group
    slopes = draw(one_of(None, None, (heads,), (batch, heads)))
    tensors = {
        "q": random(batch, heads, sq, dim, by=size),
        "k": random(rows, key_heads, capacity, dim, by=size),
        "v": random(rows, key_heads, capacity, dim_v),
        "lengths": torch.tensor(lengths, dtype=torch.int32),
        "table": table,
        "slopes": None if slopes is None else torch.rand(slopes, generator=generator),
    }
    sides = st.one_of(one_of(-1, 0, 2**63 - 1), st.integers(0, 300))
    options = default_scale(tensors["q"]), draw(sides), draw(sides), draw(one_of(0.0, 0.0, 2.5))
    return tensors, options


@given(caches())
def test_decoding(case: tuple[dict[str, Any], tuple[Any, ...]]) -> None:
    tensors, options = case
    q, k, v = (tensors[name] for name in "qkv")
    exact = reference.attention_decode(
        q.double(), k.double(), v.double(), *list(tensors.values())[3:], *options
    )
    plain = reference.attention_decode(*tensors.values(), *options)
    ours = torch.ops.fastseq.attention_decode(*tensors.values(), *options)
    few = 64 if q.dtype == torch.float64 else 8
    check(case, NAMES, ours, exact, plain, few * (1 + q.shape[3]) ** 0.5)


@given(cases(dtypes=(torch.float64, torch.float32)), st.data())
def test_special_values(case: Case, data: st.DataObject) -> None:
    """NaN and infinities come out where a query sees them, and change no other row.

    Of what it does not see they may come out too: torch multiplies it by 0, ours mostly skips it.
    """
    names = [n for n in ("q", "k", "v", "mask") if case.tensors[n] is not None]
    name = data.draw(st.sampled_from(names))
    x = case.tensors[name]
    if not x.numel() or x.dtype == torch.bool:
        return
    clean = case.run(reference, torch.float64)[0]
    x = x.clone(memory_format=torch.contiguous_format)
    for _ in range(data.draw(st.integers(1, 3))):
        x.view(-1)[data.draw(st.integers(0, x.numel() - 1))] = data.draw(one_of(*SPECIALS))
    case.tensors[name] = x
    expected, out = case.run(reference, torch.float64)[0], case.run(torch.ops.fastseq)[0].double()
    # Infinity times a weight so small that it is 0 is NaN.
    same = expected.isfinite() == out.isfinite()
    spared = torch.isclose(out, clean, rtol=1e-3, atol=1e-3)
    assert (same | spared).all(), case
    both = expected.isfinite() & out.isfinite()
    assert torch.allclose(out[both], expected[both], rtol=1e-3, atol=1e-3), case
