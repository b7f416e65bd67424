"""The C++ attention kernels against plain PyTorch in float64."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastseq import _extension
from fastseq.ops.attention import attention, attention_decode
from fastseq.reference import attention as reference
from tests.csrc import instruction_sets
from tests.csrc.attention_cases import DTYPES, FEATURES, SHAPES, Case
from tests.csrc.instruction_sets import needs_compiler, needs_sources

pytestmark = pytest.mark.skipif(not _extension.load(), reason=str(_extension.reason()))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("feature", FEATURES)
def test_against_float64(feature: str, dtype: torch.dtype) -> None:
    for i, shape in enumerate(SHAPES):
        if not (FEATURES[feature].get("packed") and 0 in shape):
            Case(shape, feature, dtype, i % 3, grad_lse=i % 2 == 0).check()


@pytest.mark.parametrize("feature", ["causal", "bias-heads", "bias-keys", "dropout", "packed"])
@pytest.mark.parametrize("shape", [SHAPES[3], SHAPES[4], (3, 4, 2, 200, 1100, 16, 16)], ids=str)
def test_bits_do_not_depend_on_threads(threads, feature: str, shape: tuple) -> None:
    case = Case(shape, feature, torch.float32)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(case.kernel())
    for other in results[1:]:
        for name, a, b in zip(("out", "lse", "q", "k", "v", "mask"), results[0], other):
            assert torch.equal(a, b), name


def test_layout_follows_the_inputs() -> None:
    q, k = torch.randn(2, 70, 3, 16).transpose(1, 2), torch.randn(2, 3, 70, 16)
    out, _ = attention(q, k, k)
    assert out.stride() == q.stride()
    q.requires_grad_()
    (grad,) = torch.autograd.grad(attention(q, k, k)[0].sum(), q)
    assert grad.stride() == q.stride()


def test_memory_grows_with_the_sequence_alone() -> None:
    """Dropout and a shared bias: no (queries, keys) matrix for each head, forward or backward."""
    code = """
import resource, torch
from fastseq.ops.attention import attention
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
q = torch.randn(1, 4, 4096, 16, requires_grad=True)
bias = torch.zeros(1, 1, 1, 4096, requires_grad=True)
small = q[:, :, :64]
attention(small, small, small, bias[..., :64], dropout_p=0.1)[0].sum().backward()
before = peak()
attention(q, q, q, bias, dropout_p=0.1)[0].sum().backward()
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60 * 1024  # KiB; the weights of the heads would be 256 MiB


def paged(cache: Tensor, table: Tensor, size: int) -> Tensor:
    """Pages of a (B, heads, capacity, width) cache, in the table's places; the rest is NaN."""
    pages = torch.full((int(table.max()) + 2, cache.shape[1], size, cache.shape[3]), torch.nan)
    pages = pages.to(cache.dtype)
    for b in range(cache.shape[0]):
        for i, part in enumerate(cache[b].split(size, 1)):
            pages[table[b, i], :, : part.shape[1]] = part
    return pages


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [(4, 4, 1), (8, 2, 1), (6, 2, 2), (7, 1, 3)], ids=str)
@pytest.mark.parametrize("page", [0, 7, 16])
def test_decode(dtype: torch.dtype, heads: tuple[int, int, int], page: int) -> None:
    hq, hk, sq = heads
    for d, dv, options in (
        (64, 64, {}),
        (40, 33, {"window": (50, 0)}),
        (3, 80, {"softcap": 1.5, "window": (-1, -1)}),
        (128, 8, {"alibi_slopes": torch.rand(4, hq)}),
    ):
        q = torch.randn(4, sq, hq, d).to(dtype).transpose(1, 2)
        caches = [torch.randn(4, 600, hk, n).to(dtype).transpose(1, 2) for n in (d, dv)]
        lengths = torch.tensor([600, 257, 3, 0], dtype=torch.int32)
        for x in caches:  # what lies behind a sequence's end must not matter
            for b, n in enumerate(lengths.tolist()):
                x[b, :, n:] = torch.nan
        table = None
        if page:
            blocks = -(-600 // page)
            table = torch.randperm(4 * blocks, dtype=torch.int32).view(4, blocks)
        stored = [paged(x, table, page) if page else x for x in caches]
        out, lse = attention_decode(q, *stored, lengths, table, **options)
        names = {"scale": d**-0.5, "window": (-1, 0), "softcap": 0.0, "alibi_slopes": None}
        names.update(options)
        arguments = (names["scale"], *names["window"], names["softcap"])
        exact, results = [
            reference.attention_decode(
                q.to(t),
                *(x.to(t) for x in stored),
                lengths,
                table,
                names["alibi_slopes"],
                *arguments,
            )
            for t in (torch.float64, dtype)
        ]
        for x, y, z in zip((out, lse), exact, results):
            infinite = y == -torch.inf
            assert torch.equal(x == -torch.inf, infinite)
            x, y, z = (t.double().masked_fill(infinite, 0) for t in (x, y, z))
            eps = torch.finfo(dtype if x is not lse else lse.dtype).eps
            assert (x - y).abs().max() <= 2 * (z - y).abs().max() + 16 * eps * y.abs().max()


def test_decode_does_not_depend_on_threads_or_batch(threads) -> None:
    q, cache = torch.randn(3, 4, 1, 32), torch.randn(3, 2, 700, 32)
    lengths = torch.tensor([700, 300, 511], dtype=torch.int32)
    threads(1)
    once = attention_decode(q, cache, cache, lengths)
    for count in (2, 3):
        threads(count)
        for a, b in zip(once, attention_decode(q, cache, cache, lengths)):
            assert torch.equal(a, b)
    for b in range(3):
        alone = attention_decode(
            q[b : b + 1], cache[b : b + 1], cache[b : b + 1], lengths[b : b + 1]
        )
        assert torch.equal(alone[0][0], once[0][b])


CASES = "attention_cases", "cases((torch.float64, torch.float32, torch.bfloat16, torch.float16), 5)"


@pytest.mark.parametrize("name", instruction_sets.usable())
def test_every_instruction_set(name: str) -> None:
    instruction_sets.check(*CASES, name)


@pytest.mark.slow
@needs_sources
@needs_compiler
def test_wide_kernels(tmp_path: Path) -> None:
    instruction_sets.check_emulated(
        *CASES, tmp_path, "attention_forward", "attention_backward", "attention_decode"
    )


def test_bad_arguments() -> None:
    q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8)
    lengths = torch.tensor([7, 7], dtype=torch.int32)
    table = torch.tensor([[0], [2]], dtype=torch.int32)
    bounds = torch.tensor([0, 9], dtype=torch.int32)
    for message, call in (
        ("k must be", lambda: attention(q, k[..., :7], k)),
        ("v must be", lambda: attention(q, k, k[:, :1])),
        ("must divide", lambda: attention(q[:, :3], k, k)),
        ("q is, got", lambda: attention(q, k.double(), k)),
        ("takes float64", lambda: attention(q.int(), k.int(), k.int())),
        ("mask must broadcast", lambda: attention(q, k, k, torch.zeros(2, 4, 5, 6))),
        ("bool or floating", lambda: attention(q, k, k, torch.zeros(2, 4, 5, 7, dtype=torch.long))),
        ("dropout_p must be", lambda: attention(q, k, k, dropout_p=1.5)),
        ("alibi_slopes must", lambda: attention(q, k, k, alibi_slopes=torch.rand(3))),
        ("softcap must", lambda: attention(q, k, k, softcap=-1.0)),
        ("come together", lambda: attention(q, k, k, cu_seqlens_q=bounds)),
        (
            "cu_seqlens_q must run",
            lambda: attention(q[:1], k[:1], k[:1], cu_seqlens_q=bounds, cu_seqlens_k=bounds),
        ),
        ("cache_seqlens", lambda: attention_decode(q, k, k, lengths + 1)),
        ("int32", lambda: attention_decode(q, k, k, lengths.long())),
        ("block_table", lambda: attention_decode(q, k, k, lengths, table)),
    ):
        with pytest.raises((RuntimeError, ValueError), match=message):
            call()
