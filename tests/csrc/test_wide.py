"""The 64-byte kernels on any processor: the same sources, with vectors cut up by the compiler.

AVX-512 machines are rare among those that run the tests; this checks everything about those kernels
but the instructions themselves, bfloat16 pairs included.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastseq import _extension

pytestmark = [
    pytest.mark.skipif(not _extension.load(), reason=str(_extension.reason())),
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler"),
    pytest.mark.slow,
]
CSRC = Path(__file__).parents[2] / "csrc"
CHECK = """
import torch
from tests.csrc.scan_cases import check, feature_cases
from fastseq import _C
_C.load_kernels({!r}, "emulated512")
assert _C.capability() == "emulated512"
for case in feature_cases((torch.float32, torch.bfloat16))[::2]:
    torch.set_num_threads(1 + case.seed % 3)
    check(case)
"""


@pytest.mark.skipif(not (CSRC / "cpu").is_dir(), reason="needs the source tree")
def test_wide_kernels(tmp_path: Path) -> None:
    flags = ["-DFASTSEQ_ISA=emulated512", "-DFASTSEQ_VECTOR_BYTES=64", "-DFASTSEQ_BF16_DOT"]
    flags += ["-std=c++17", "-O1", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-w"]
    if "avx2" in _extension.built_capabilities() and _extension.capability() != "portable":
        flags += ["-mavx2", "-mfma", "-mf16c"]
    sources = [CSRC / "cpu" / "rnn_forward.cpp", CSRC / "cpu" / "rnn_backward.cpp"]
    library = tmp_path / "emulated512.so"
    subprocess.run(["c++", "-shared", *flags, *sources, "-o", library], check=True)
    done = subprocess.run(
        [sys.executable, "-c", CHECK.format(str(library))],
        cwd=CSRC.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
