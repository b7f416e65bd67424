"""``python -m fastseq.kernels.aot``: compiles every Triton kernel for GPUs that need not be there.

Prints registers, shared memory and spills of each; exit 1 on a failed build, a spill over the
bound, or more shared memory than the target has.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from .device import Limits

# Modules with a function builds(limits) that yields (label, in the quick subset, what launches).
REGISTRY = ("rnn_builds", "attention_builds", "additive_builds", "dropout_builds")
# Bytes a thread may spill: float32 products, unrolled multiply-adds, use up the registers.
SPILL_BOUND = 256


@dataclass(frozen=True)
class Target:
    backend: str
    arch: int | str
    limits: Limits


TARGETS = {
    "sm_80": Target("cuda", 80, Limits(108, 163 * 1024)),
    "sm_90": Target("cuda", 90, Limits(132, 227 * 1024, tma=True)),
    "sm_100": Target("cuda", 100, Limits(148, 227 * 1024, tma=True)),
    "gfx942": Target("hip", "gfx942", Limits(304, 64 * 1024, warp=64)),
}


@dataclass
class Result:
    kernel: str
    target: str
    case: str
    dtype: str
    tile: str
    warps: int
    registers: int = 0
    shared: int = 0
    spilled: int = 0  # bytes a thread
    seconds: float = 0.0
    problem: str = ""


def _source(launch: Any) -> Any:
    """The launch's kernel with its arguments' types and constants, for triton.compile."""
    import torch
    import triton
    from triton.compiler import ASTSource

    names = {
        torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32",
        torch.float64: "fp64", torch.int32: "i32", torch.int64: "i64", torch.bool: "i1",
    }  # fmt: skip
    divisible = [["tt.divisibility", 16]]
    signature, constants, attributes = {}, {}, {}
    for i, (param, value) in enumerate(zip(launch.kernel.params, launch.arguments)):
        specialized = isinstance(value, int) and not param.do_not_specialize
        if param.is_constexpr or value is None or (specialized and value == 1):
            signature[param.name], constants[param.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[param.name] = "*" + names[value.dtype]
            attributes[(i,)] = divisible
        else:
            number = "fp32" if isinstance(value, float) else "i32"
            signature[param.name] = param.annotation_type or number
            aligned = specialized and not param.do_not_specialize_on_alignment
            if aligned and value % 16 == 0:
                attributes[(i,)] = divisible
    assert isinstance(launch.kernel, triton.JITFunction)
    return ASTSource(launch.kernel, signature, constants, attributes)


def _cuobjdump() -> str:
    import triton.backends.nvidia

    return str(Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump")


def _resources(compiled: Any, backend: str) -> tuple[int, int, int]:
    """Registers and spilled bytes a thread, and shared bytes a program."""
    if backend == "hip":
        text = compiled.asm["amdgcn"]
        read = lambda key: int(re.search(rf"\.{key}:\s+(\d+)", text)[1])  # noqa: E731
        return read("vgpr_count"), 4 * read("vgpr_spill_count"), compiled.metadata.shared
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [_cuobjdump(), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()  # type: ignore[union-attr]
    return int(registers), int(stack), compiled.metadata.shared


def _dtype(launch: Any) -> str:
    tensor = next(
        launch.values[name] for name in ("a", "gates", "q", "mask") if name in launch.values
    )
    return str(tensor.dtype).removeprefix("torch.")


def problem_of(shared: int, spilled: int, limits: Limits) -> str:
    if shared > limits.shared:
        return f"shared memory over {limits.shared}"
    return f"spills over {SPILL_BOUND} bytes" if spilled > SPILL_BOUND else ""


def build(target_name: str, module: str, index: int) -> list[Result]:
    """Compiles the kernels of one registered case for one target."""
    import triton
    from triton.backends.compiler import GPUTarget

    from .launch import record

    target = TARGETS[target_name]
    label, _, scan = list(_builds(module, target))[index]
    with record() as launches:
        scan()
    results, seen = [], set()
    for launch in launches:
        source = _source(launch)
        if (key := source.hash()) in seen:
            continue
        seen.add(key)
        options = {**launch.options, "enable_fp_fusion": True}
        result = Result(
            launch.kernel.__name__, target_name, label, _dtype(launch), launch.tile,
            options["num_warps"],
        )  # fmt: skip
        start = time.perf_counter()
        try:
            compiled = triton.compile(
                source,
                target=GPUTarget(target.backend, target.arch, target.limits.warp),
                options=options,
            )
            result.registers, result.spilled, result.shared = _resources(compiled, target.backend)
            result.problem = problem_of(result.shared, result.spilled, target.limits)
        except Exception as failure:
            result.problem = f"{type(failure).__name__}: {str(failure).strip()[-400:]}"
        result.seconds = round(time.perf_counter() - start, 2)
        results.append(result)
    return results


def _builds(module: str, target: Target) -> Any:
    return importlib.import_module(f".{module}", __package__).builds(target.limits)


def _in_processes(work: list[tuple[str, str, int]], jobs: int) -> list[list[Result]]:
    """Each case in one of ``jobs`` processes: a compiler that aborts costs its case alone."""
    here = threading.local()

    def run(job: tuple[str, str, int]) -> list[Result]:
        if not hasattr(here, "pool"):
            here.pool = ProcessPoolExecutor(1, get_context("spawn"))
        try:
            return here.pool.submit(build, *job).result()
        except BrokenProcessPool:
            del here.pool
            target, module, index = job
            label = list(_builds(module, TARGETS[target]))[index][0]
            return [Result("?", target, label, "", "", 0, problem="the compiler aborted")]

    with ThreadPoolExecutor(jobs) as threads:
        return list(threads.map(run, work))


def build_all(targets: list[str], jobs: int = 1, quick: bool = False) -> list[Result]:
    work = [
        (target, module, index)
        for target in targets
        for module in REGISTRY
        for index, (_, in_quick, _) in enumerate(_builds(module, TARGETS[target]))
        if in_quick or not quick
    ]
    return [result for results in _in_processes(work, jobs) for result in results]


def print_table(results: list[Result]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Triton kernels built ahead of time")
    for heading in ("kernel", "target", "dtype", "case", "tile"):
        table.add_column(heading)
    for heading in ("warps", "regs", "shared", "spills"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for r in results:
        table.add_row(
            r.kernel, r.target, r.dtype, r.case, r.tile, str(r.warps), str(r.registers),
            str(r.shared), str(r.spilled), f"[red]{r.problem}[/]" if r.problem else "[green]ok[/]",
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastseq.kernels.aot", description=__doc__)
    parser.add_argument("--targets", default=",".join(TARGETS), help="comma-separated")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 2), help="processes")
    parser.add_argument("--quick", action="store_true", help="a subset, for tests")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table there")
    options = parser.parse_args(arguments)
    targets = options.targets.split(",")
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"unknown targets {', '.join(sorted(unknown))}; known: {', '.join(TARGETS)}")
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set: nothing would be compiled")
    start = time.perf_counter()
    results = build_all(targets, options.jobs, options.quick)
    print_table(results)
    failed = [r for r in results if r.problem]
    elapsed = time.perf_counter() - start
    print(f"{len(results)} kernels in {elapsed:.0f} s, {len(failed)} with a problem")
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=1))
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
