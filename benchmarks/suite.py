"""A suite: for each case parity first, then speed in turns, then memory; and what it comes to.

Knows nothing of what its cases are: ``rnn.py`` and ``attention.py`` say that.
"""

import math
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from . import harness, report
from .harness import Budget

Entry = dict[str, Any]
Results = dict[str, Tensor]


class Skipped(Exception):
    """A case that cannot run here, with the reason."""


class Case(Protocol):
    """What a suite asks of a case."""

    group: str
    dtype: torch.dtype
    telling: bool  # of the few that say most, which come first on a card

    @property
    def name(self) -> str: ...
    @property
    def baseline(self) -> str: ...
    @property
    def peers(self) -> Sequence[str]:
        """Other implementations, timed by ``bench_*.py``, and on a card by every run."""
        ...


@dataclass
class Workload:
    """``timed`` maps a name to a call; ours is "fastseq", the comparison comes second."""

    timed: dict[str, Callable[[], object]]
    results: Callable[[], tuple[Results, Results, Results]]  # ours, theirs, float64 oracle
    flops: float
    bytes: float  # that must be moved at least once
    # The same operations as matrix products (rows, inner, columns); none: one large product.
    gemms: list[tuple[int, int, int]] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)
    peers: dict[str, Callable[[], object]] = field(default_factory=dict)  # of ``Case.peers``


def floor_seconds(work: Workload, dtype: torch.dtype, device: torch.device) -> float:
    """Time of the same operations as matrix products: nothing that depends on them is faster."""
    # On a card measuring each shape would take tenths of a second: one large product has to do.
    if work.gemms and device.type != "cuda":
        return sum(harness.gemm_seconds(*gemm, dtype, device) for gemm in work.gemms)
    size = harness.large_product(device)
    return work.flops * harness.gemm_seconds(size, size, size, dtype, device) / (2 * size**3)


def summarize(entries: list[Entry]) -> dict[str, Any]:
    """Geometric mean overall and a group, and the slowest case."""
    measured = [e for e in entries if e["status"] == "ok"]
    good = [e for e in measured if e["served_by"] == "fastseq"]
    groups: dict[str, list[float]] = {}
    for entry in good:
        groups.setdefault(entry["group"], []).append(entry["speedup"])
    counts = {
        status: sum(e["status"] == status for e in entries)
        for status in ("ok", "failed parity", "error", "skipped")
    }
    summary: dict[str, Any] = {
        "cases": len(entries),
        **counts,
        "served_by_torch": len(measured) - len(good),
    }
    if good:
        plain = [e["speedup"] for e in good if e["baseline"] == "torch" and e["dtype"] == "float32"]
        slowest = min(good, key=lambda e: e["speedup"])
        memory = [e["peak_bytes"] for e in good if min(e["peak_bytes"].values()) > 0]
        summary |= {
            "geometric_mean": statistics.geometric_mean(e["speedup"] for e in good),
            # Without 16-bit arithmetic in the CPU torch is slow beyond measure, and a loop in
            # Python is no layer: what is left says most about a user's model.
            "geometric_mean_of_torch_float32": statistics.geometric_mean(plain) if plain else None,
            "noisy": sum(e["noisy"] for e in good),
            "groups": {name: statistics.geometric_mean(values) for name, values in groups.items()},
            "slowest": {"case": slowest["case"], "speedup": slowest["speedup"]},
            "slower_than_0.95": [e["case"] for e in good if e["speedup"] < 0.95],
        }
        ratios = [m["fastseq"] / next(v for k, v in m.items() if k != "fastseq") for m in memory]
        if ratios:
            summary["memory_geometric_mean"] = statistics.geometric_mean(ratios)
        over_best = [e["speedup_over_best"] for e in good if "speedup_over_best" in e]
        if over_best:
            summary["over_best"] = {
                "cases": len(over_best),
                "geometric_mean": statistics.geometric_mean(over_best),
            }
    return summary


def succeeded(record: dict[str, Any]) -> bool:
    summary = record["summary"]
    return not summary["failed parity"] and not summary["error"]


def select(cases: Sequence[Any], quick: bool, only: str) -> list[Any]:
    """The cases whose group or name contains ``only``."""
    return [
        case
        for case in cases
        if (case.quick or not quick) and only.lower() in f"{case.group} {case.name}".lower()
    ]


def outcome(case: Case, status: str = "", reason: str = "") -> Entry:
    """What an entry says of a case before it is measured, or where that cannot be."""
    entry: Entry = {
        "group": case.group,
        "case": case.name,
        "baseline": case.baseline,
        "dtype": str(case.dtype).removeprefix("torch."),
        "telling": case.telling,
    }
    return entry | ({"status": status, "reason": reason} if status else {})


def _said(error: Exception) -> str:
    """Compilers' messages run to pages."""
    return f"{type(error).__name__}: {error}"[:1000]


def try_peers(
    peers: dict[str, Callable[[], object]], device: torch.device
) -> tuple[dict[str, Callable[[], object]], dict[str, Entry]]:
    """Those that run, each called once; and of the others why not."""
    running, failed = {}, {}
    for name, function in peers.items():
        try:
            function()
            harness.finish(device)
        except Exception as error:
            if not harness.answers(device):
                raise RuntimeError(f"{name} lost the device: {_said(error)}") from error
            failed[name] = {"reason": _said(error)}
        else:
            running[name] = function
    return running, failed


@dataclass(frozen=True)
class Suite:
    """``name`` is that of its files; ``build`` turns a case into things to run."""

    name: str
    title: str
    cases: Callable[[torch.device], Sequence[Any]]
    build: Callable[[Any, torch.device], Workload]

    def measure(
        self, case: Case, device: torch.device, budget: Budget, only_right: bool = True
    ) -> Entry:
        """One case. A case that fails parity gets no speed, unless all are to be timed; one that
        raises is reported and the suite goes on, in another process where the entry is ``fatal``.
        """
        entry = outcome(case)
        try:
            self._measure(entry, case, device, budget, only_right)
        except Skipped as reason:
            entry |= {"status": "skipped", "reason": str(reason)}
        except Exception as error:  # a broken case must not hide the others
            traceback.print_exc()
            frames = "".join(traceback.format_tb(error.__traceback__)[-8:])
            entry |= {"status": "error", "reason": _said(error), "trace": frames}
        # Only now is all that the case held free, and what failed on the card known.
        if not harness.answers(device):
            entry["fatal"] = True
        return entry

    def _measure(
        self, entry: Entry, case: Case, device: torch.device, budget: Budget, only_right: bool
    ) -> None:
        """Fills the entry as far as it comes."""
        work = self.build(case, device)
        entry |= work.facts
        parity = harness.parity(*work.results())
        entry["parity"] = parity.as_dict()
        if only_right and not parity.passed:
            entry["status"] = "failed parity"
            return
        # Handed on to torch it would be torch against itself: shown, but no merit of ours.
        called = harness.operators(work.timed["fastseq"])
        served = any(name.startswith("fastseq::") for name in called)
        entry["served_by"] = "fastseq" if served else "torch"
        # On a CPU nothing is left to choose; on a card torch's own choice may not be its best.
        peers, failed = try_peers(work.peers if device.type == "cuda" else {}, device)
        timings = harness.calm(work.timed | peers, device, budget)
        ours, theirs = (timings[name] for name in list(work.timed)[:2])
        seconds = ours.median / 1e3
        gb_s = work.bytes / seconds / 1e9
        entry |= {
            "milliseconds": {name: timings[name].as_dict() for name in work.timed},
            "speedup": theirs.median / ours.median,
            "noisy": max(ours.spread, theirs.spread) >= harness.NOISY,
            "gflops": work.flops / seconds / 1e9,
            "gb_s": gb_s,
        }
        if peers or failed:
            best = min((case.baseline, *peers), key=lambda name: timings[name].median)
            entry |= {
                "peers": {name: timings[name].as_dict() for name in peers} | failed,
                "best_peer": best,
                "speedup_over_best": timings[best].median / ours.median,
            }
        floor = floor_seconds(work, case.dtype, device)
        entry |= {
            "read_percent": 100 * gb_s / harness.bandwidth(device),
            "floor_ms": floor * 1e3,
            "floor_percent": 100 * floor / seconds,
            "peak_bytes": {
                name: harness.peak_memory(function, device) for name, function in work.timed.items()
            },
            "status": "ok",
        }

    def run(
        self,
        out: Path,
        device: torch.device,
        quick: bool = False,
        only: str = "",
        cases: Sequence[Any] | None = None,
        limit_seconds: float = math.inf,
        budget: Budget | None = None,
    ) -> dict[str, Any]:
        """Run the suite, print the table, write JSON, a page and the pictures into ``out``."""
        chosen = select(self.cases(device), quick, only) if cases is None else cases
        if not chosen:
            raise ValueError(f"no case of the suite {self.name} matches {only!r}")
        budget = budget or (Budget(seconds=0.3, least=5) if quick else Budget(seconds=1.2))
        begin = time.perf_counter()
        machine = harness.machine(device) | harness.ceilings(device)
        entries: list[Entry] = []
        with report.progress(self.title, len(chosen)) as advance:
            for case in chosen:
                if time.perf_counter() - begin > limit_seconds:
                    reason = f"the time limit of {limit_seconds:.0f} s was reached"
                    entries.append(outcome(case, "skipped", reason))
                    continue
                entries.append(self.measure(case, device, budget))
                advance(report.line(entries[-1]))
        seconds = time.perf_counter() - begin
        record = record_of(self, entries, machine, budget, seconds, quick)
        report.write(record, out)
        return record


def record_of(
    suite: Suite,
    entries: Sequence[Entry],
    machine: dict[str, Any],
    budget: Budget,
    seconds: float,
    quick: bool = False,
) -> dict[str, Any]:
    """What is written of a run, finished or not: its entries, a group's side by side."""
    groups = list(dict.fromkeys(entry["group"] for entry in entries))
    results = sorted(entries, key=lambda entry: groups.index(entry["group"]))
    return {
        "suite": suite.name,
        "title": suite.title,
        "quick": quick,
        "budget": vars(budget),
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "machine": machine,
        "seconds": round(seconds, 1),
        "summary": summarize(results),
        "results": results,
    }
