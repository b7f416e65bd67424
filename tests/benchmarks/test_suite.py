"""A suite on a card, with a processor in its place: peers, failures, records of what there is."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fastseq.benchmarks import harness, report
from fastseq.benchmarks.harness import Budget, Timing
from fastseq.benchmarks.suite import Skipped, Suite, Workload, outcome, record_of, succeeded

CPU, CARD = torch.device("cpu"), torch.device("cuda")
SHORT = Budget(seconds=0.0, least=3, most=3, attempts=1)


@dataclass(frozen=True)
class Case:
    group: str
    name: str
    peers: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    baseline: str = "torch"
    telling: bool = False


def build(case: Case, device: torch.device) -> Workload:
    if case.name == "skipped":
        raise Skipped("not here")
    if case.name == "broken":
        raise RuntimeError("[/usr/lib] | broken on purpose\n" + "and told at length " * 100)
    y = {"y": torch.ones(3)}

    def raises() -> None:
        raise RuntimeError("No available kernel")

    def waits(seconds: float):
        return lambda: time.sleep(seconds)

    calls = {"quick": waits(0.002), "slow": waits(0.02), "raises": raises}
    return Workload(
        {"fastseq": waits(0.001), "torch": waits(0.005)},
        lambda: (y, y, {"y": y["y"].double()}),
        flops=1e6,
        bytes=1e3,
        gemms=[(8, 8, 8)],
        peers={name: calls[name] for name in case.peers},
    )


CASES = [
    Case("a", "first", ("quick", "raises", "slow"), telling=True),
    Case("b", "second"),
    Case("a", "third", ("slow",)),
    Case("c", "skipped"),
    Case("c", "broken"),
]
SUITE = Suite("fake", "Fake", lambda device: CASES, build)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor passes for a card."""
    seconds = harness._seconds
    monkeypatch.setattr(harness, "_seconds", lambda f, calls, device: seconds(f, calls, CPU))
    monkeypatch.setattr(harness, "answers", lambda device: True)
    monkeypatch.setattr(harness, "finish", lambda device: None)
    monkeypatch.setattr(harness, "peak_memory", lambda function, device: 1)
    monkeypatch.setattr(harness, "bandwidth", lambda device: 100.0)
    monkeypatch.setattr(harness, "operators", lambda function: {"fastseq::rnn_layer"})
    monkeypatch.setattr(harness, "gemm_seconds", lambda *shape: 1.0)


def test_on_a_card_peers_are_timed_beside(card: None) -> None:
    entry = SUITE.measure(CASES[0], CARD, SHORT)
    assert entry["status"] == "ok" and entry["telling"] and "fatal" not in entry, entry
    assert set(entry["milliseconds"]) == {"fastseq", "torch"}
    assert entry["peers"]["raises"] == {"reason": "RuntimeError: No available kernel"}
    assert entry["peers"]["quick"]["median"] < entry["peers"]["slow"]["median"]
    assert entry["best_peer"] == "quick"
    assert 1 < entry["speedup_over_best"] < entry["speedup"]
    slower = SUITE.measure(CASES[2], CARD, SHORT)
    assert slower["best_peer"] == "torch"
    assert slower["speedup_over_best"] == slower["speedup"]
    assert "peers" not in SUITE.measure(CASES[1], CARD, SHORT)
    json.dumps(entry)


def test_on_a_processor_they_are_not() -> None:
    entry = SUITE.measure(CASES[0], CPU, SHORT)
    assert entry["status"] == "ok" and "peers" not in entry


def test_lost_device_is_fatal(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "fatal" not in SUITE.measure(CASES[4], CARD, SHORT)
    monkeypatch.setattr(harness, "answers", lambda device: False)
    entry = SUITE.measure(CASES[4], CARD, SHORT)
    assert entry["status"] == "error" and entry["fatal"] is True
    assert "on purpose" in entry["reason"] and "in build" in entry["trace"]
    entry = SUITE.measure(CASES[0], CARD, SHORT)
    assert "raises lost the device: RuntimeError: No available" in entry["reason"]
    assert entry["status"] == "error" and entry["fatal"]


def test_device_that_raises_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronize(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert not harness.answers(CARD)
    assert harness.answers(CPU)


def test_one_product_is_the_floor_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def calm(functions, device, budget):
        asked.append(device)
        return {name: Timing(1.0, 1.0, 1.0, 1, 1) for name in functions}

    monkeypatch.setattr(harness, "calm", calm)
    monkeypatch.setattr(harness, "large_product", lambda device: 16)
    harness.gemm_seconds.cache_clear()
    monkeypatch.setattr(torch, "randn", lambda *s, device=None, dtype=None: torch.zeros(*s))
    monkeypatch.setattr(torch, "empty", lambda *s, device=None, dtype=None: torch.zeros(*s))
    rates = harness.product_rates(CARD)
    harness.gemm_seconds.cache_clear()
    assert set(rates) == {"float32", "tf32", "bfloat16", "float16"} and len(asked) == 4
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("count", range(len(CASES) + 1))
def test_record_of_what_there_is(card: None, count: int, tmp_path: Path) -> None:
    measured = [SUITE.measure(case, CARD, SHORT) for case in reversed(CASES)][:count]
    record = record_of(SUITE, measured, harness.machine(CPU), SHORT, 3.0)
    report.write_json(record, tmp_path)
    assert json.loads((tmp_path / "fake.json").read_text())["summary"]["cases"] == count
    page = report.markdown(record)
    _, _, tables = page.partition("\n## ")  # after the machine's
    assert len({line.count("|") for line in tables.splitlines() if line[:1] == "|"}) <= 1
    assert all(entry["case"] in tables for entry in measured)
    assert (report.OVER_BEST in page) == (count >= 3)
    assert report.overview(record, tmp_path) == report.every_case(record, tmp_path) == (count >= 3)
    assert (tmp_path / "fake-overview.png").exists() == (count >= 3)
    report.show(record)
    assert succeeded(record) == (count == 0)


def test_record_puts_groups_together(card: None) -> None:
    entries = [outcome(case, "skipped", "late") for case in CASES]
    record = record_of(SUITE, entries, {}, SHORT, 0.0)
    assert [entry["group"] for entry in record["results"]] == ["a", "a", "b", "c", "c"]
    assert record["summary"]["skipped"] == 5


def test_table_says_what_was_best(card: None, capsys: pytest.CaptureFixture) -> None:
    entries = [SUITE.measure(case, CARD, SHORT) for case in CASES[:3]]
    record = record_of(SUITE, entries, harness.machine(CPU), SHORT, 1.0)
    rows = {e["case"]: report.row(e, report.columns(record)) for e in entries}
    at = report.columns(record).index(report.OVER_BEST)
    assert rows["first"][at].endswith("× (quick)")
    assert rows["second"][at] == ""
    assert rows["third"][at].endswith("×")
    assert "over the fastest of torch's implementations" in " ".join(report.summary_lines(record))
    plain = record_of(SUITE, entries[1:2], harness.machine(CPU), SHORT, 1.0)
    assert report.OVER_BEST not in report.columns(plain)
