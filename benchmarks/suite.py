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

    @property
    def name(self) -> str: ...
    @property
    def baseline(self) -> str: ...
    @property
    def peers(self) -> Sequence[str]:
        """Other implementations, which only ``bench_*.py`` times."""
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
    if work.gemms:
        return sum(harness.gemm_seconds(*gemm, dtype, device) for gemm in work.gemms)
    size = 1024 if device.type == "cpu" else 8192
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
    return summary


def succeeded(record: dict[str, Any]) -> bool:
    summary = record["summary"]
    return not summary["failed parity"] and not summary["error"]


def select(cases: Sequence[Any], quick: bool, only: str) -> list[Any]:
    """The cases whose group or name contains ``only``, a group's side by side."""
    chosen = [
        case
        for case in cases
        if (case.quick or not quick) and only.lower() in f"{case.group} {case.name}".lower()
    ]
    groups = list(dict.fromkeys(case.group for case in chosen))
    return sorted(chosen, key=lambda case: groups.index(case.group))


@dataclass(frozen=True)
class Suite:
    """``name`` is that of its files; ``build`` turns a case into things to run."""

    name: str
    title: str
    cases: Callable[[torch.device], Sequence[Any]]
    build: Callable[[Any, torch.device], Workload]

    def measure(self, case: Case, device: torch.device, budget: Budget) -> Entry:
        """One case. A case that fails parity gets no speed; one that raises is reported and the
        suite goes on.
        """
        entry: Entry = {
            "group": case.group,
            "case": case.name,
            "baseline": case.baseline,
            "dtype": str(case.dtype).removeprefix("torch."),
        }
        try:
            work = self.build(case, device)
            entry |= work.facts
            parity = harness.parity(*work.results())
            entry["parity"] = parity.as_dict()
            if not parity.passed:
                return entry | {"status": "failed parity"}
            # Handed on to torch it would be torch against itself: shown, but no merit of ours.
            called = harness.operators(work.timed["fastseq"])
            entry["served_by"] = (
                "fastseq" if any(n.startswith("fastseq::") for n in called) else "torch"
            )
            timings = harness.calm(work.timed, device, budget)
            ours, theirs = (timings[name] for name in list(work.timed)[:2])
            floor = floor_seconds(work, case.dtype, device)
            seconds = ours.median / 1e3
            gb_s = work.bytes / seconds / 1e9
            return entry | {
                "status": "ok",
                "milliseconds": {name: timing.as_dict() for name, timing in timings.items()},
                "speedup": theirs.median / ours.median,
                "noisy": max(ours.spread, theirs.spread) >= harness.NOISY,
                "gflops": work.flops / seconds / 1e9,
                "gb_s": gb_s,
                "read_percent": 100 * gb_s / harness.bandwidth(device),
                "floor_ms": floor * 1e3,
                "floor_percent": 100 * floor / seconds,
                "peak_bytes": {
                    name: harness.peak_memory(function, device)
                    for name, function in work.timed.items()
                },
            }
        except Skipped as reason:
            return entry | {"status": "skipped", "reason": str(reason)}
        except Exception as error:  # a broken case must not hide the others
            traceback.print_exc()
            return entry | {"status": "error", "reason": f"{type(error).__name__}: {error}"}

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
        record: dict[str, Any] = {
            "suite": self.name,
            "title": self.title,
            "quick": quick,
            "budget": vars(budget),
            "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            "machine": harness.machine(device),
        }
        entries: list[Entry] = []
        with report.progress(self.title, len(chosen)) as advance:
            for case in chosen:
                if time.perf_counter() - begin > limit_seconds:
                    entries.append(
                        {
                            "group": case.group,
                            "case": case.name,
                            "baseline": case.baseline,
                            "status": "skipped",
                            "reason": f"the time limit of {limit_seconds:.0f} s was reached",
                        }
                    )
                    continue
                entries.append(self.measure(case, device, budget))
                advance(report.line(entries[-1]))
        record |= {
            "seconds": round(time.perf_counter() - begin, 1),
            "summary": summarize(entries),
            "results": entries,
        }
        report.write(record, out)
        return record
