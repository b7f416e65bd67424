"""Timing, memory and machine facts. Knows nothing of what it measures.

Implementations of one case are timed in turns (A B A B …) in one process, so that a slow minute
of a shared machine falls on all of them alike; a result is the median of many turns.
"""

import functools
import gc
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# The profiler that counts memory announces itself on stderr at every start otherwise.
os.environ.setdefault("KINETO_LOG_LEVEL", "10")

NOISY = 1.25  # spread from which a timing counts as disturbed
SHORTEST_SAMPLE = 1e-3  # seconds; shorter calls are repeated within a sample


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call; ``calls`` in all over ``samples`` samples."""

    median: float
    p20: float
    p80: float
    samples: int
    calls: int

    @property
    def spread(self) -> float:
        """How far apart the samples lie: p80 / p20."""
        return self.p80 / self.p20

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Budget:
    """How long to time a case: turns go on until both ``seconds`` and ``least`` are reached."""

    seconds: float = 1.2
    least: int = 7
    most: int = 300
    patience: float = 2.5  # after this many times ``seconds`` three turns are enough
    attempts: int = 3  # at most, where samples scatter


def _seconds(function: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds a call, over ``calls`` calls. On CUDA between two events on the stream.

    Operands that fit a card's L2 stay there between calls, for all that are compared alike; layers
    in a model find theirs colder.
    """
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / calls
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - begin) / calls


def interleave(
    functions: Mapping[str, Callable[[], object]],
    device: torch.device,
    budget: Budget,
) -> dict[str, Timing]:
    """Time every function in turns."""
    calls = {}
    for name, function in functions.items():
        function()  # allocator, packed weights, autotuning
        once = _seconds(function, 1, device)
        calls[name] = max(1, min(1000, round(SHORTEST_SAMPLE / max(once, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    collecting = gc.isenabled()
    gc.disable()
    try:
        begin = time.perf_counter()
        for turn in range(budget.most):
            elapsed = time.perf_counter() - begin
            if elapsed > budget.seconds and turn >= budget.least:
                break
            if elapsed > budget.patience * budget.seconds and turn >= 3:
                break
            # Every second turn backwards, so that nobody always runs after the same neighbour.
            for name in names if turn % 2 == 0 else reversed(names):
                samples[name].append(_seconds(functions[name], calls[name], device))
    finally:
        if collecting:
            gc.enable()
    return {name: _timing(values, calls[name]) for name, values in samples.items()}


def calm(
    functions: Mapping[str, Callable[[], object]], device: torch.device, budget: Budget
) -> dict[str, Timing]:
    """``interleave``, again while the samples scatter; the steadiest attempt.

    What else runs on the machine disturbs a library that waits busily for its threads far more than
    one that does not, so ratios taken in a disturbance are worth nothing. The choice looks at the
    spread alone, never at who is faster.
    """
    attempts = []
    begin = time.perf_counter()
    while True:
        attempts.append(interleave(functions, device, budget))
        spreads = [max(t.spread for t in timings.values()) for timings in attempts]
        long = time.perf_counter() - begin > 3 * budget.seconds
        if spreads[-1] < NOISY or len(attempts) == budget.attempts or long:
            return attempts[spreads.index(min(spreads))]


def _timing(seconds: list[float], calls: int) -> Timing:
    low, high = (
        (seconds[0], seconds[0])
        if len(seconds) == 1
        else (
            statistics.quantiles(seconds, n=5, method="inclusive")[0],
            statistics.quantiles(seconds, n=5, method="inclusive")[3],
        )
    )
    return Timing(
        statistics.median(seconds) * 1e3, low * 1e3, high * 1e3, len(seconds), calls * len(seconds)
    )


def peak_memory(function: Callable[[], object], device: torch.device) -> int:
    """Bytes of torch's allocator that one call holds at most, above what was held before."""
    if device.type == "cuda":
        finish(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        kept = function()
        finish(device)
        del kept
        return torch.cuda.max_memory_allocated(device) - before
    events = [e for e in _events(function, profile_memory=True) if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def operators(function: Callable[[], object]) -> set[str]:
    """Names of the operators that one call reaches."""
    return {event.name() for event in _events(function)}


def _events(function: Callable[[], object], **options: bool) -> list[Any]:
    """What the profiler saw on the CPU, as it is: making Python's objects of it, or starting
    ``torch.profiler``, takes seconds.
    """
    with torch.autograd.profiler.profile(**options) as profiler:
        kept = function()
    del kept
    return profiler.kineto_results.events()


def finish(device: torch.device) -> None:
    """Waits for what was launched, so that what it raises is raised here."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def answers(device: torch.device) -> bool:
    """Whether the device still works: after a kernel's illegal access its process has lost it."""
    if device.type == "cuda":
        try:
            finish(device)
            torch.cuda.empty_cache()
            torch.zeros(1, device=device).cpu()
        except Exception:
            return False
    return True


# ---- what the machine can do --------------------------------------------------------------------


@functools.cache  # the machine's facts and every case's floor ask
def gemm_seconds(
    rows: int, inner: int, columns: int, dtype: torch.dtype, device: torch.device
) -> float:
    """Seconds of one matrix product through torch; on a CPU in ``dtype`` or float32, whichever is
    faster.
    """
    types = dict.fromkeys((dtype,) if device.type == "cuda" else (dtype, torch.float32))
    if device.type == "cpu":
        types = [each for each in types if each.itemsize != 2 or fast_on_cpu(each)]
    return min(_gemm_seconds(rows, inner, columns, each, device) for each in types)


def _gemm_seconds(
    rows: int, inner: int, columns: int, dtype: torch.dtype, device: torch.device
) -> float:
    a = torch.randn(rows, inner, device=device, dtype=dtype)
    b = torch.randn(columns, inner, device=device, dtype=dtype).t()
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    budget = Budget(seconds=0.1, least=7, patience=2.0)
    timing = calm({"gemm": lambda: torch.mm(a, b, out=out)}, device, budget)
    # A floor is what the machine can do: a disturbance only ever makes it look slower.
    return timing["gemm"].p20 / 1e3


def large_product(device: torch.device) -> int:
    """Rows, inner and columns of a product that shows what the device can do."""
    return 8192 if device.type == "cuda" else 1024


def product_rates(device: torch.device) -> dict[str, float]:
    """GFLOP/s of a large product by type; on CUDA float32 is without TF32, which stands apart."""
    size, rates = large_product(device), {}
    types = [torch.float32, torch.bfloat16]
    if device.type == "cuda":
        types.append(torch.float16)
    for dtype in types:
        if device.type == "cuda" or dtype == torch.float32 or fast_on_cpu(dtype):
            seconds = gemm_seconds(size, size, size, dtype, device)
            rates[str(dtype).removeprefix("torch.")] = 2 * size**3 / seconds / 1e9
    if device.type == "cuda":
        with _tf32():
            seconds = _gemm_seconds(size, size, size, torch.float32, device)
        rates["tf32"] = 2 * size**3 / seconds / 1e9
    return rates


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def fast_on_cpu(dtype: torch.dtype) -> bool:
    """Whether the CPU multiplies matrices of this 16-bit type in hardware."""
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.ops.mkldnn._is_mkldnn_fp16_supported()


@functools.cache
def bandwidth(device: torch.device) -> float:
    """GB/s of a large read."""
    data = torch.ones(1 << 27, device=device, dtype=torch.float32)
    timing = interleave({"read": lambda: data.sum()}, device, Budget(seconds=0.3, least=5))
    return data.nbytes / timing["read"].median / 1e6


def copy_bandwidth(device: torch.device) -> float:
    """GB/s of a large copy, what it reads and what it writes."""
    data = torch.ones(1 << 29, device=device, dtype=torch.float32)
    out = torch.empty_like(data)
    timing = interleave({"copy": lambda: out.copy_(data)}, device, Budget(seconds=0.1, least=5))
    return 2 * data.nbytes / timing["copy"].median / 1e6


def ceilings(device: torch.device) -> dict[str, object]:
    """The measured rates that bound all others, for a record's table of the machine."""
    rates = {f"gemm_gflops_{name}": round(rate) for name, rate in product_rates(device).items()}
    rates["read_gb_s"] = round(bandwidth(device), 1)
    if device.type == "cuda":
        rates["copy_gb_s"] = round(copy_bandwidth(device), 1)
    return rates


def machine(device: torch.device) -> dict[str, object]:
    """What the figures depend on: processor, threads, versions. Measures nothing."""
    import fastseq

    facts: dict[str, object] = {
        "device": str(device),
        "processor": _processor(),
        "logical_cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastseq": fastseq.__version__,
        "commit": _commit(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "card": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            # torch's defaults differ: its recurrent layers may round float32 to TF32, ours do as
            # its matrix products.
            "float32_products": torch.get_float32_matmul_precision(),
            "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        }
    return facts


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The revision of the source tree, where the package runs from one."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


# ---- parity -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parity:
    """Errors relative to the largest value of each result, the worst result by its limit."""

    passed: bool
    ours: float
    theirs: float
    limit: float
    result: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def relative_error(value: Tensor, oracle: Tensor) -> float:
    """max |value - oracle| / max |oracle|, on the oracle's device; infinite for NaN or another
    shape.
    """
    if value.shape != oracle.shape:
        return float("inf")
    if oracle.numel() == 0:
        return 0.0
    exact = oracle.detach().double()
    difference = (value.detach().to(exact.device).double() - exact).abs().max()
    error = float(difference / exact.abs().max().clamp_min(1e-30))
    return error if error == error else float("inf")


def parity(
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    oracle: Mapping[str, Tensor],
    ulps: float = 4.0,
) -> Parity:
    """err(ours) ≤ 2·err(theirs) + a few ulp, for every result of the float64 oracle."""
    worst, worst_excess = None, -1.0
    for name, exact in oracle.items():
        if name not in ours:
            return Parity(False, float("inf"), 0.0, 0.0, f"{name} (missing)")
        error, reference = relative_error(ours[name], exact), relative_error(theirs[name], exact)
        limit = 2 * reference + ulps * torch.finfo(ours[name].dtype).eps
        if error == float("inf"):  # whatever theirs is
            return Parity(False, error, reference, limit, name)
        if error / limit > worst_excess:
            worst_excess = error / limit
            worst = Parity(error <= limit, error, reference, limit, name)
    assert worst is not None, "an oracle without results proves nothing"
    return worst
