"""Runs the cases of a kernel family on each instruction set, in processes of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastseq import _extension

CSRC = Path(__file__).parents[2] / "csrc"
CHECK = """
import torch
from fastseq import _C
from tests.csrc.{module} import {cases}
if {library!r}:
    _C.load_kernels({library!r}, {name!r})
assert _C.capability() == {name!r}
for i, case in enumerate({call}):
    torch.set_num_threads(1 + i % 3)
    case.check()
"""


def usable() -> list[str]:
    """Those that this processor has; none without the extension."""
    if not _extension.load():
        return []
    from fastseq import _C

    return _C.usable_capabilities()


# For tests that call ``check_emulated``.
needs_sources = pytest.mark.skipif(not (CSRC / "cpu").is_dir(), reason="needs the source tree")
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


def check(module: str, call: str, name: str, library: str = "") -> None:
    """Checks the cases that ``call`` lists, a call of a function of tests/csrc/``module``.py.

    Args:
        name: the instruction set; library: where its kernels are, unless in the extension.
    """
    function = call.split("(")[0]
    code = CHECK.format(module=module, cases=function, call=call, name=name, library=library)
    environment = {} if library else {"FASTSEQ_CPU_CAPABILITY": name}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CSRC.parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def check_emulated(module: str, call: str, folder: Path, *kernels: str) -> None:
    """``check`` of the 64-byte kernels and bfloat16 pairs, with vectors cut up by the compiler."""
    flags = ["-DFASTSEQ_ISA=emulated512", "-DFASTSEQ_VECTOR_BYTES=64", "-DFASTSEQ_BF16_DOT"]
    flags += ["-std=c++17", "-O1", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-w"]
    if "avx2" in usable():
        flags += ["-mavx2", "-mfma", "-mf16c"]
    sources = [CSRC / "cpu" / f"{kernel}.cpp" for kernel in kernels]
    library = folder / "emulated512.so"
    subprocess.run(["c++", "-shared", *flags, *sources, "-o", library], check=True)
    check(module, call, "emulated512", str(library))
