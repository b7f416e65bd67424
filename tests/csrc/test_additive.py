"""The C++ kernels of additive attention against plain PyTorch in float64."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastseq import _extension
from fastseq.ops.additive_attention import additive_attention
from tests.csrc import instruction_sets
from tests.csrc.additive_cases import DTYPES, FEATURES, RESULTS, SHAPES, Case
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
        Case(shape, feature, dtype, i % 3, grad_weights=i % 2 == 0).check()


@pytest.mark.parametrize("feature", ["plain", "padding", "outliers"])
@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[3], (5, 30, 40, 130, 60)], ids=str)
def test_bits_do_not_depend_on_threads(threads, feature: str, shape: tuple) -> None:
    case = Case(shape, feature, torch.float32)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(case.kernel())
    for other in results[1:]:
        for name, a, b in zip(RESULTS, results[0], other):
            assert torch.equal(a, b), name


def test_infinities_saturate_as_torch_does() -> None:
    inputs = [torch.randn(s) for s in ((1, 2, 9), (1, 5, 9), (1, 5, 4), (9,))]
    q, k, value, v = inputs
    q[0, 0, 3], k[0, 2, 8] = torch.inf, -torch.inf
    exact = torch.softmax(torch.tanh(q[:, :, None] + k[:, None]) @ v, -1)
    out, weights = additive_attention(q, k, value, v)
    torch.testing.assert_close(weights, exact)
    torch.testing.assert_close(out, exact @ value)


def test_nan_spreads_along_its_row() -> None:
    q, k, value, v = (torch.randn(s) for s in ((1, 2, 9), (1, 5, 9), (1, 5, 4), (9,)))
    q[0, 1, 4] = torch.nan
    out, weights = additive_attention(q, k, value, v)
    assert weights[0, 1].isnan().all() and out[0, 1].isnan().all()
    assert weights[0, 0].isfinite().all() and out[0, 0].isfinite().all()


def test_no_tensor_of_pairs_and_width() -> None:
    code = """
import resource, torch
from fastseq.ops.additive_attention import additive_attention
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
x, v = torch.randn(2, 300, 256, requires_grad=True), torch.randn(256)
additive_attention(x[:, :5], x[:, :5], x[:, :5], v)[0].sum().backward()
before = peak()
additive_attention(x, x, x, v)[0].sum().backward()
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30 * 1024  # KiB; the terms of the scores would be 180 MiB


CASES = "additive_cases", "cases(step=3)"


@pytest.mark.parametrize("name", instruction_sets.usable())
def test_every_instruction_set(name: str) -> None:
    instruction_sets.check(*CASES, name)


@pytest.mark.slow
@needs_sources
@needs_compiler
def test_wide_kernels(tmp_path: Path) -> None:
    instruction_sets.check_emulated(*CASES, tmp_path, "additive_forward", "additive_backward")


def test_bad_arguments() -> None:
    q, k, value, v = (torch.randn(s) for s in ((2, 5, 8), (2, 7, 8), (2, 7, 3), (8,)))
    mask = torch.ones(2, 5, 7, dtype=torch.bool)
    for message, call in (
        ("q must be", lambda: additive_attention(q[0], k, value, v)),
        ("k must have shape", lambda: additive_attention(q, k[..., :7], value, v)),
        ("k must have shape", lambda: additive_attention(q, k[:1], value, v)),
        ("value must have shape", lambda: additive_attention(q, k, value[:, :6], v)),
        ("v must have shape", lambda: additive_attention(q, k, value, v[:7])),
        ("k must be Float", lambda: additive_attention(q, k.double(), value, v)),
        ("takes float64", lambda: additive_attention(q.int(), k.int(), value.int(), v.int())),
        ("mask must be .2 or 1", lambda: additive_attention(q, k, value, v, mask[..., :6])),
        ("mask must be .2 or 1", lambda: additive_attention(q, k, value, v, mask[0])),
        ("mask must be Bool", lambda: additive_attention(q, k, value, v, mask.float())),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
