"""What the card and the way to it are: ceilings, and what a launch and a grid's barrier cost."""

import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from ...kernels.device import limits_of
from ...kernels.launch import Launch
from ...kernels.rnn_state import arrive, wait
from .. import harness
from . import paper_card

Facts = dict[str, Any]
DEVICE = torch.device("cuda")
BARRIERS = 1000
LAUNCHES = 200


def on_paper() -> bool:
    return torch.cuda.get_device_name().startswith(paper_card.NAME)


@triton.jit(do_not_specialize=["s"])
def add_step(x, s):
    """As little as a kernel can do."""
    tl.store(x, tl.load(x) + s)


@triton.jit(do_not_specialize=["rounds"])
def pass_barriers(counters, rounds):
    """What a step of the persistent scans costs before it computes anything."""
    for n in range(rounds):
        arrive(counters + n)
        wait(counters + n, tl.num_programs(0))


def _microseconds(function: Callable[[], object], calls: int = 1) -> float:
    """Of a call, the median; ``calls``: of one in which so many things happen."""
    budget = harness.Budget(seconds=0.2, least=7)
    timing = harness.interleave({"it": function}, DEVICE, budget)["it"]
    return round(timing.median * 1e3 / calls, 2)


def card() -> Facts:
    """Names, versions and sizes."""
    found = {**harness.machine(DEVICE), "triton": triton.__version__}
    if shutil.which("nvidia-smi"):
        query = "name,driver_version,clocks.sm,clocks.max.sm,power.draw,temperature.gpu"
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=20)
        found["nvidia_smi"] = told.stdout.strip() or told.stderr.strip()
    return found


def launches() -> Facts:
    """Microseconds from call to call: the host's part where the kernel does nothing."""
    x = torch.zeros(1, device=DEVICE, dtype=torch.int32)
    ours = Launch(add_step, {"x": x}, {"num_warps": 1})
    add_step[(1,)](x, 1, num_warps=1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            x.add_(1)

    def many(launch: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(LAUNCHES):
                launch()

        return run

    return {
        "torch_us": _microseconds(many(lambda: x.add_(1)), LAUNCHES),
        "triton_us": _microseconds(many(lambda: add_step[(1,)](x, 1, num_warps=1)), LAUNCHES),
        "step_us": _microseconds(many(lambda: ours((1,), 1)), LAUNCHES),
        "graph_us": _microseconds(graph.replay, LAUNCHES),
    }


def barriers() -> Facts:
    """Microseconds that programs on so many multiprocessors take to wait for one another."""
    found = {}
    for programs in (8, 64, limits_of(DEVICE).multiprocessors):
        counters = torch.zeros(BARRIERS, device=DEVICE, dtype=torch.int32)

        def run(programs: int = programs, counters: torch.Tensor = counters) -> None:
            counters.zero_()
            pass_barriers[(programs,)](
                counters, BARRIERS, num_warps=4, launch_cooperative_grid=True
            )

        found[f"of_{programs}_us"] = _microseconds(run, BARRIERS)
    return found


FACTS: dict[str, Callable[[], Facts]] = {
    "card": card,
    "ceilings": lambda: harness.ceilings(DEVICE),
    "launches": launches,
    "barriers": barriers,
}
