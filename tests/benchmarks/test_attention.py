"""The attention suite on tiny cases: every kind runs, and a wrong implementation gets no speed."""

import pytest
import torch

import fastseq
from fastseq.benchmarks.attention import SUITE
from fastseq.benchmarks.attention_work import build
from fastseq.benchmarks.cases_attention import Case, cpu_suite, cuda_suite
from fastseq.benchmarks.harness import Budget, parity
from fastseq.benchmarks.suite import select

CPU = torch.device("cpu")
SHORT = Budget(seconds=0.0, least=1, most=2)

TINY = [
    Case("tiny", "attention", 2, 4, 9, 8),
    Case("tiny", "attention", 2, 4, 9, 8, True, causal=True),
    Case("tiny", "attention", 2, 4, 9, 8, True, causal=True, kv_heads=2),
    Case("tiny", "attention", 2, 2, 9, 8, dtype=torch.bfloat16),
    *(
        Case("tiny", "attention", 2, 2, 9, 8, True, mask=mask)
        for mask in ("padding", "boolean", "bias", "bias with gradient")
    ),
    Case("tiny", "attention", 2, 2, 9, 8, True, dropout=0.3),
    Case("tiny", "attention", 2, 2, 9, 8, True, causal=True, window=3),
    Case("tiny", "attention", 2, 2, 9, 8, True, causal=True, alibi=True),
    Case("tiny", "attention", 2, 2, 9, 8, True, causal=True, softcap=5.0),
    Case("tiny", "varlen", 3, 2, 0, 8, True),
    Case("tiny", "decode", 3, 4, 1, 8, keys=20, kv_heads=2),
    Case("tiny", "multihead", 2, 2, 5, 8, True, need_weights=True),
    Case("tiny", "multihead", 2, 2, 5, 8),
    Case("tiny", "encoder", 3, 2, 6, 8),
    Case("tiny", "encoder", 3, 2, 6, 8, True, padded=0.4),
    Case("tiny", "encoder", 3, 2, 6, 8, padded=0.4),
    Case("tiny", "additive", 3, 1, 5, 8, True, keys=7),
]


@pytest.mark.parametrize("case", TINY, ids=lambda case: f"{case.kind} {case.name}")
def test_case_is_measured(case: Case) -> None:
    entry = SUITE.measure(case, CPU, SHORT)
    assert entry["status"] == "ok", entry
    assert set(entry["milliseconds"]) == {"fastseq", case.baseline}
    assert entry["speedup"] > 0 and entry["floor_percent"] > 0 and entry["read_percent"] > 0


@pytest.mark.parametrize("case", TINY[:2], ids=lambda case: case.name)
def test_wrong_implementation_gets_no_speed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    right = fastseq.scaled_dot_product_attention

    def wrong(q, *args, **kwargs):
        return right(q, *args, **kwargs) + 1e-3 * q

    monkeypatch.setattr(fastseq, "scaled_dot_product_attention", wrong)
    entry = SUITE.measure(case, CPU, SHORT)
    assert entry["status"] == "failed parity" and "speedup" not in entry


def test_peers_compute_the_same() -> None:
    work = build(TINY[0], CPU)
    expected = {"y": work.timed["torch"]().double()}
    for name in ("SDPA flash", "SDPA math"):
        assert parity({"y": work.peers[name]()}, {"y": work.timed["fastseq"]()}, expected).passed
    assert set(work.peers) == set(TINY[0].peers)


def test_suites_are_sound() -> None:
    for cases in (list(cpu_suite()), list(cuda_suite())):
        names = [(c.group, c.name) for c in cases]
        assert len(set(names)) == len(names)
    cases = SUITE.cases(CPU)
    assert 5 <= len(select(cases, True, "")) < len(cases) / 3
