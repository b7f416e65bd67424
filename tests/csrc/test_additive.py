"""The C++ kernels of additive attention against plain PyTorch in float64."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastseq import _extension
from fastseq.ops.additive_attention import additive_attention
from tests.csrc.additive_cases import DTYPES, FEATURES, RESULTS, SHAPES, Case

pytestmark = pytest.mark.skipif(not _extension.load(), reason=str(_extension.reason()))
CSRC = Path(__file__).parents[2] / "csrc"


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


CHECK = """
import torch
from fastseq import _C
from tests.csrc.additive_cases import cases
if {library!r}:
    _C.load_kernels({library!r}, {name!r})
assert _C.capability() == {name!r}
for i, case in enumerate(cases(step=3)):
    torch.set_num_threads(1 + i % 3)
    case.check()
"""


def check_in_subprocess(name: str, library: str = "", **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK.format(name=name, library=library)],
        cwd=CSRC.parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def usable() -> list[str]:
    from fastseq import _C

    return _C.usable_capabilities()


@pytest.mark.parametrize("name", usable() if _extension.load() else [])
def test_every_instruction_set(name: str) -> None:
    check_in_subprocess(name, FASTSEQ_CPU_CAPABILITY=name)


@pytest.mark.slow
@pytest.mark.skipif(not (CSRC / "cpu").is_dir(), reason="needs the source tree")
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_wide_kernels(tmp_path: Path) -> None:
    """The 64-byte kernels, with vectors cut up by the compiler."""
    flags = ["-DFASTSEQ_ISA=emulated512", "-DFASTSEQ_VECTOR_BYTES=64", "-DFASTSEQ_BF16_DOT"]
    flags += ["-std=c++17", "-O1", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-w"]
    if "avx2" in usable():
        flags += ["-mavx2", "-mfma", "-mf16c"]
    sources = [CSRC / "cpu" / f"additive_{part}.cpp" for part in ("forward", "backward")]
    library = tmp_path / "emulated512.so"
    subprocess.run(["c++", "-shared", *flags, *sources, "-o", library], check=True)
    check_in_subprocess("emulated512", str(library))


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
