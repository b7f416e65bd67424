"""What the pytest-benchmark suites share: a group a case, implementations side by side.

``fastseq bench`` times the same cases in turns and is what ratios should be quoted from; these are
for looking at one case closely and for comparing two commits with ``--benchmark-autosave`` and
``--benchmark-compare``.
"""

import functools
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from . import harness
from .suite import Case, Skipped, Suite, Workload, floor_seconds

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
COMPILE_SECONDS = 90


def pairs(suite: Suite) -> list:
    """Every case with each of its implementations."""
    return [
        pytest.param(case, name, id=f"{case.name}-{name}")
        for case in suite.cases(DEVICE)
        for name in ("fastseq", case.baseline, *case.peers)
    ]


@functools.lru_cache(maxsize=1)  # pytest runs the implementations of one case one after the other
def _prepared(suite: Suite, case: Case) -> tuple[Workload, harness.Parity]:
    try:
        work = suite.build(case, DEVICE)
    except Skipped as reason:
        pytest.skip(str(reason))
    return work, harness.parity(*work.results())


@contextmanager
def _time_box(seconds: int) -> Iterator[None]:
    """Skip the test when the block takes longer."""

    def stop(*_: object) -> None:
        pytest.skip(f"the first call did not finish within {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def _function(case: Case, implementation: str, work: Workload) -> Callable[[], object]:
    if implementation in work.timed:
        return work.timed[implementation]
    torch._dynamo.reset()
    if implementation == "torch.compile":
        function = torch.compile(work.timed[case.baseline])
    else:
        function = work.peers[implementation]
    with _time_box(COMPILE_SECONDS):
        try:
            function()
        except (RuntimeError, NotImplementedError, ImportError) as error:
            pytest.skip(f"{implementation} does not run here: {error}")
    return function


def run(suite: Suite, case: Case, implementation: str, benchmark: Any) -> None:
    """One implementation of one case, with error, rates, floor and memory beside its times."""
    work, parity = _prepared(suite, case)
    assert parity.passed, f"no speed without parity: {parity}"
    function = _function(case, implementation, work)

    def call() -> None:
        function()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{case.group}: {case.name}"
    benchmark.name = implementation
    benchmark.pedantic(call, rounds=15, iterations=1, warmup_rounds=2)
    seconds = benchmark.stats.stats.median
    benchmark.extra_info |= {
        "error": parity.ours if implementation == "fastseq" else parity.theirs,
        "gflops": work.flops / seconds / 1e9,
        "gb_s": work.bytes / seconds / 1e9,
        "floor_percent": 100 * floor_seconds(work, case.dtype, DEVICE) / seconds,
        "peak_bytes": harness.peak_memory(function, DEVICE),
    }
