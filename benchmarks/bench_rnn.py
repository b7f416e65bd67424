"""The recurrent suite under pytest-benchmark: a group a case, implementations side by side.

    pytest benchmarks/bench_rnn.py --benchmark-group-by=group -k "GRU and infer"

``fastseq bench rnn`` times the same cases in turns and is what ratios should be quoted from;
this suite is for looking at one case closely and for comparing two commits with
``--benchmark-autosave`` and ``--benchmark-compare``.
"""

import functools
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from fastseq.benchmarks import harness, rnn
from fastseq.benchmarks.cases_rnn import Case, suite
from fastseq.benchmarks.workloads import Workload

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
COMPILE_SECONDS = 90


def _pairs() -> list:
    return [
        pytest.param(case, name, id=f"{case.name}-{name}")
        for case in suite(DEVICE)
        for name in ("fastseq", case.baseline, *(["torch.compile"] if case.compile else []))
    ]


@functools.lru_cache(maxsize=1)  # pytest runs the implementations of one case one after the other
def prepared(case: Case) -> tuple[Workload, harness.Parity]:
    try:
        work = rnn.build(case, DEVICE)
    except rnn.Skipped as reason:
        pytest.skip(str(reason))
    return work, harness.parity(*work.results())


@contextmanager
def time_box(seconds: int) -> Iterator[None]:
    """Skip the test when the block takes longer."""

    def stop(*_: object) -> None:
        pytest.skip(f"torch.compile did not finish within {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def compiled(function: Callable[[], object]) -> Callable[[], object]:
    torch._dynamo.reset()
    made = torch.compile(function)
    with time_box(COMPILE_SECONDS):
        made()
    return made


@pytest.mark.parametrize(("case", "implementation"), _pairs())
def test_rnn(case: Case, implementation: str, benchmark) -> None:
    work, parity = prepared(case)
    assert parity.passed, f"no speed without parity: {parity}"
    if implementation == "torch.compile":
        function = compiled(work.timed[case.baseline])
    else:
        function = work.timed[implementation]

    def call() -> None:
        function()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{case.group}: {case.name}"
    benchmark.name = implementation
    benchmark.pedantic(call, rounds=15, iterations=1, warmup_rounds=2)
    seconds = benchmark.stats.stats.median
    floor = rnn.floor_seconds(work.gemms, case.dtype, DEVICE)
    benchmark.extra_info |= {
        "error": parity.ours if implementation == "fastseq" else parity.theirs,
        "gflops": work.flops / seconds / 1e9,
        "gb_s": work.bytes / seconds / 1e9,
        "floor_percent": 100 * floor / seconds,
        "peak_bytes": harness.peak_memory(function, DEVICE),
    }
