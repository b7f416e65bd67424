"""The C++ decoder step against plain PyTorch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastseq import _extension
from fastseq.ops.decoder import decoder_step
from tests.csrc.decoder_cases import FEATURES, SIZES, WEIGHTS, Case

pytestmark = pytest.mark.skipif(not _extension.load(), reason=str(_extension.reason()))
CSRC = Path(__file__).parents[2] / "csrc"


@pytest.fixture(autouse=True)
def threads():
    """One thread, unless the test asks for more: on a busy machine they wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_against_plain_torch(size: tuple, feature: str, weights: torch.dtype) -> None:
    for rows in (1, 3, 25):
        Case(size, weights, rows, **FEATURES[feature]).check()


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_bits_do_not_depend_on_threads(threads, weights: torch.dtype) -> None:
    case = Case(SIZES[2], weights, rows=5)
    plan, results = case.steps(), []
    for count in (1, 2, 3):
        threads(count)
        results.append([x for step in case.run(decoder_step, 4, plan) for x in step])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_nan_stays_in_its_row() -> None:
    case = Case(SIZES[1], torch.float32, rows=3)
    case.words[5] = torch.nan
    tokens = torch.tensor([[4], [5], [6]])
    for best in (0, 3):
        ((scores, ids),) = case.run(decoder_step, best, [(torch.arange(3), tokens)])
        assert scores[1].isnan().all() and scores[[0, 2]].isfinite().all()
        assert ((ids >= 0) & (ids < len(case.words))).all()


CHECK = """
import torch
from fastseq import _C
from tests.csrc.decoder_cases import cases
if {library!r}:
    _C.load_kernels({library!r}, {name!r})
assert _C.capability() == {name!r}
for i, case in enumerate(cases()):
    torch.set_num_threads(3 if i % 12 == 0 else 1)
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
    library = tmp_path / "emulated512.so"
    source = CSRC / "cpu" / "decoder.cpp"
    subprocess.run(["c++", "-shared", *flags, source, "-o", library], check=True)
    check_in_subprocess("emulated512", str(library))
