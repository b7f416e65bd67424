"""The harness measures what it says."""

import math
import time

import pytest
import torch

from fastseq.benchmarks import harness
from fastseq.benchmarks.harness import Budget

CPU = torch.device("cpu")


def test_functions_are_timed_in_turns():
    order = []
    a = torch.randn(1024, 1024)

    def function(name):
        def call():
            order.append(name)
            torch.mm(a, a)

        return call

    timings = harness.interleave(
        {"first": function("first"), "second": function("second")},
        CPU,
        Budget(seconds=1e-9, least=6, patience=1e12),
    )
    turns = order[4:]  # after a warm-up and a trial of each
    assert len(turns) == 12
    assert all({x, y} == {"first", "second"} for x, y in zip(turns[::2], turns[1::2]))
    assert all(t.p20 <= t.median <= t.p80 for t in timings.values())
    assert timings["first"].samples == 6


def test_slower_function_shows_as_slower():
    timings = harness.interleave(
        {"quick": lambda: None, "slow": lambda: time.sleep(0.01)},
        CPU,
        Budget(seconds=0.05, least=5),
    )
    assert timings["slow"].median >= 10
    assert timings["quick"].median < 1
    assert timings["quick"].calls > timings["quick"].samples  # short calls are repeated


@pytest.mark.parametrize(
    ("attempts", "spreads", "chosen"),
    [(3, [1.1], 1.1), (3, [2.0, 1.2], 1.2), (3, [2.0, 1.4, 3.0], 1.4), (1, [2.0], 2.0)],
)
def test_disturbed_timings_are_taken_again(monkeypatch, attempts, spreads, chosen):
    waiting = iter(spreads)

    def interleave(functions, device, budget):
        return {"a": harness.Timing(1.0, 1.0, next(waiting), 5, 5)}

    monkeypatch.setattr(harness, "interleave", interleave)
    timings = harness.calm({"a": lambda: None}, CPU, Budget(attempts=attempts))
    assert timings["a"].spread == chosen
    assert next(waiting, None) is None


def test_peak_memory_counts_what_lives_at_once():
    size = 1 << 20

    def at_once():
        a = torch.zeros(size)
        return a + 1

    def one_after_another():
        for _ in range(4):
            torch.zeros(size)

    assert 8 * size <= harness.peak_memory(at_once, CPU) < 8.2 * size
    assert 4 * size <= harness.peak_memory(one_after_another, CPU) < 4.2 * size


def test_error_is_relative_and_catches_nan_and_shape():
    exact = torch.tensor([1.0, -4.0], dtype=torch.float64)
    assert harness.relative_error(torch.tensor([1.0, -4.4]), exact) == pytest.approx(0.1, rel=1e-5)
    assert harness.relative_error(torch.tensor([math.nan, -4.0]), exact) == math.inf
    assert harness.relative_error(torch.tensor([1.0]), exact) == math.inf


def test_parity_limit_is_twice_theirs_and_a_few_ulp():
    exact = {"y": torch.ones(8, dtype=torch.float64)}
    theirs = {"y": torch.ones(8) + 1e-4}
    assert harness.parity({"y": torch.ones(8) + 1.9e-4}, theirs, exact).passed
    verdict = harness.parity({"y": torch.ones(8) + 2.1e-4}, theirs, exact)
    assert not verdict.passed
    assert verdict.result == "y"
    assert not harness.parity({}, theirs, exact).passed
    broken = {"y": torch.full((8,), math.nan)}
    assert not harness.parity(broken, broken, exact).passed  # though theirs is no better


def test_gemm_and_bandwidth_are_of_this_world():
    seconds = harness.gemm_seconds(256, 256, 256, torch.float32, CPU)
    assert 1e-2 < 2 * 256**3 / seconds / 1e9 < 1e5
    assert 0.1 < harness.bandwidth(CPU) < 1e4


def test_machine_facts_say_what_figures_depend_on():
    facts = harness.machine(CPU)
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    ceilings = harness.ceilings(CPU)
    assert ceilings["gemm_gflops_float32"] > 0 and ceilings["read_gb_s"] > 0


def test_operators_are_those_of_the_call():
    a = torch.randn(4, 4)
    assert {"aten::mm", "aten::relu"} <= harness.operators(lambda: torch.relu(a @ a))
