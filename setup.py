"""Builds fastseq._C; everything else about the package is in pyproject.toml.

The kernels under csrc/cpu are compiled once per instruction set and chosen at run time. Where there
is no compiler or no PyTorch to build against, the package installs without the extension and
fastseq/_build.json says why (``fastseq info`` shows it). FASTSEQ_BUILD_EXT=0 skips the build.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
KERNELS = [
    "rnn_forward",
    "rnn_backward",
    "attention_forward",
    "attention_backward",
    "attention_weights",
    "attention_decode",
    "additive_forward",
    "additive_backward",
    "decoder",
]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
# name: (vector bytes, flags)
X86 = {
    "avx2": (32, AVX2),
    "avx512": (64, AVX512),
    "avx512_bf16": (
        64,
        [*AVX512, "-mavx512bf16", "-mavx512vnni", "-DFASTSEQ_BF16_DOT", "-DFASTSEQ_BASE=avx512"],
    ),
}
COMMON = ["-std=c++17", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-Wno-psabi"]
KERNEL_FLAGS = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-Wno-ignored-attributes"]


class Unavailable(Exception):
    """The extension cannot be built here; the message says what is missing."""


def find_compiler() -> list[str]:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(shlex.split(name)[0]):
            return shlex.split(name)
    raise Unavailable("no C++ compiler found (looked for $CXX, c++, g++, clang++)")


def compile_commands(compiler: list[str], build: Path) -> tuple[list[list[str]], list[str]]:
    """One command per object, longest first, and the objects."""
    try:
        import pybind11
        import torch
        from torch.utils.cpp_extension import include_paths
    except ImportError as error:
        raise Unavailable(f"building needs PyTorch and pybind11: {error}") from None
    x86 = X86 if platform.machine().lower() in ("x86_64", "amd64") else {}
    includes = [*include_paths(), pybind11.get_include(), sysconfig.get_path("include")]
    torch_flags = [flag for path in includes for flag in ("-isystem", path)]
    if not torch._C._GLIBCXX_USE_CXX11_ABI:
        torch_flags.append("-D_GLIBCXX_USE_CXX11_ABI=0")
    csrc = ROOT / "csrc"
    units = [
        (name, csrc / f"{name}.cpp", ["-O1", *torch_flags])
        for name in (
            "bindings",
            "products",
            "rnn_cell_autograd",
            "attention_autograd",
            "attention_bindings",
            "additive_bindings",
            "decoder_bindings",
            "beam_bindings",
        )
    ]
    for isa, (width, flags) in {"portable": (16, ["-O1"] if x86 else []), **x86}.items():
        definitions = [f"-DFASTSEQ_ISA={isa}", f"-DFASTSEQ_VECTOR_BYTES={width}"]
        for kernel in KERNELS:
            source = csrc / "cpu" / f"{kernel}.cpp"
            units.append((f"{kernel}_{isa}", source, [*KERNEL_FLAGS, *flags, *definitions]))
    abi = torch_flags[-1:] if "-D_GLIBCXX_USE_CXX11_ABI=0" in torch_flags else []
    dispatch_flags = ["-O2", *abi, *(["-DFASTSEQ_HAVE_X86"] if x86 else [])]
    units.append(("dispatch", csrc / "dispatch.cpp", dispatch_flags))
    commands, objects = [], []
    for name, source, flags in units:
        objects.append(str(build / f"{name}.o"))
        commands.append([*compiler, "-c", *COMMON, *flags, str(source), "-o", objects[-1]])
    return commands, objects


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"{shlex.join(command)} failed:\n{done.stderr[-4000:]}")


def build_extension(target: Path, build: Path) -> None:
    import torch

    compiler = find_compiler()
    build.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    commands, objects = compile_commands(compiler, build)
    with ThreadPoolExecutor(min(len(commands), os.cpu_count() or 1)) as pool:
        list(pool.map(run, commands))
    # OpenMP's symbols stay open: torch's own runtime, already in the process, resolves them.
    libraries = ["-ltorch_cpu", "-ltorch", "-lc10", "-ltorch_python", "-ldl"]
    library_path = Path(torch.__file__).parent / "lib"
    run([*compiler, "-shared", *objects, f"-L{library_path}", *libraries, "-o", str(target)])


class BuildExtension(build_ext):
    """Compiles csrc/ once per instruction set, and records the outcome beside the package."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        outcome: dict[str, str] = {"python": sys.version.split()[0]}
        try:
            if os.environ.get("FASTSEQ_BUILD_EXT") == "0":
                raise Unavailable("skipped, because FASTSEQ_BUILD_EXT=0 at install")
            build_extension(target, Path(self.build_temp).resolve())
            import torch

            outcome["torch"] = torch.__version__
        except Unavailable as error:
            outcome["error"] = str(error)
        except Exception:  # the package works without it; say what went wrong
            outcome["error"] = traceback.format_exc(limit=3)
        if "error" in outcome:
            print(f"fastseq: installing without CPU kernels: {outcome['error']}", file=sys.stderr)
        target.parent.mkdir(parents=True, exist_ok=True)
        (target.parent / "_build.json").write_text(json.dumps(outcome))

    def copy_extensions_to_source(self) -> None:
        """For --inplace and editable installs, after setuptools built into build_lib."""
        super().copy_extensions_to_source()
        package = self.get_finalized_command("build_py").get_package_dir("fastseq")
        self.copy_file(str(Path(self.build_lib) / "fastseq" / "_build.json"), package)


setup(
    packages=[
        *find_packages(include=["fastseq", "fastseq.*"]),
        "fastseq.kernels",
        *("fastseq.kernels." + name for name in find_packages("kernels")),
        "fastseq.benchmarks",
        *("fastseq.benchmarks." + name for name in find_packages("benchmarks")),
    ],
    package_dir={
        "fastseq": "fastseq",
        "fastseq.kernels": "kernels",
        "fastseq.benchmarks": "benchmarks",
    },
    ext_modules=[Extension("fastseq._C", sources=[], optional=True)],
    cmdclass={"build_ext": BuildExtension},
)
