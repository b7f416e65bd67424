"""``fastseq bench rnn``: for each case parity first, then speed in turns, then memory."""

import functools
import math
import statistics
import time
import traceback
from pathlib import Path

import torch

from . import g2p, harness, report, workloads
from .cases_rnn import Case, suite
from .harness import Budget

Entry = dict[str, object]


class Skipped(Exception):
    """A case that cannot run here, with the reason."""


def build(case: Case, device: torch.device) -> workloads.Workload:
    if case.kind != "model":
        return workloads.build(case, device)
    path = g2p.checkpoint()
    if path is None:
        raise Skipped("the package g2p_en, which carries the trained model, is not installed")
    return g2p.build(path, case.batch, device)


@functools.cache
def _gemm_seconds(
    rows: int, inner: int, columns: int, dtype: torch.dtype, device: torch.device
) -> float:
    return harness.gemm_seconds(rows, inner, columns, dtype, device)


def floor_seconds(
    gemms: list[tuple[int, int, int]], dtype: torch.dtype, device: torch.device
) -> float:
    """Time of the same operations as matrix products of whole sequences: nothing recurrent can be
    faster.
    """
    return sum(_gemm_seconds(*gemm, dtype, device) for gemm in gemms)


def measure(case: Case, device: torch.device, budget: Budget) -> Entry:
    """One case. A case that fails parity gets no speed; one that raises is reported and the suite
    goes on.
    """
    entry: Entry = {
        "group": case.group,
        "case": case.name,
        "baseline": case.baseline,
        "dtype": str(case.dtype).removeprefix("torch."),
    }
    try:
        work = build(case, device)
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
        floor = floor_seconds(work.gemms, case.dtype, device)
        seconds = ours.median / 1e3
        return entry | {
            "status": "ok",
            "milliseconds": {name: timing.as_dict() for name, timing in timings.items()},
            "speedup": theirs.median / ours.median,
            "noisy": max(ours.spread, theirs.spread) >= harness.NOISY,
            "gflops": work.flops / seconds / 1e9,
            "gb_s": work.bytes / seconds / 1e9,
            "floor_ms": floor * 1e3,
            "floor_percent": 100 * floor / seconds,
            "peak_bytes": {
                name: harness.peak_memory(function, device) for name, function in work.timed.items()
            },
        }
    except Skipped as reason:
        return entry | {"status": "skipped", "reason": str(reason)}
    except Exception as error:  # a broken case must not hide the others
        traceback.print_exc()
        return entry | {"status": "error", "reason": f"{type(error).__name__}: {error}"}


def _mean(speedups: list[float]) -> float | None:
    return statistics.geometric_mean(speedups) if speedups else None


def summarize(entries: list[Entry]) -> dict[str, object]:
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
    summary: dict[str, object] = {
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
            "geometric_mean_of_torch_float32": _mean(plain),
            "noisy": sum(e["noisy"] for e in good),
            "groups": {name: statistics.geometric_mean(values) for name, values in groups.items()},
            "slowest": {"case": slowest["case"], "speedup": slowest["speedup"]},
            "slower_than_0.95": [e["case"] for e in good if e["speedup"] < 0.95],
        }
        ratios = [m["fastseq"] / next(v for k, v in m.items() if k != "fastseq") for m in memory]
        if ratios:
            summary["memory_geometric_mean"] = statistics.geometric_mean(ratios)
    return summary


def run(
    out: Path,
    device: torch.device,
    quick: bool = False,
    only: str = "",
    cases: list[Case] | None = None,
    limit_seconds: float = math.inf,
    budget: Budget | None = None,
) -> dict[str, object]:
    """Run the suite, print the table, write rnn.json, REPORT.md and the pictures into ``out``."""
    chosen = suite(device, quick, only) if cases is None else cases
    if not chosen:
        raise ValueError(f"no case of the recurrent suite matches {only!r}")
    budget = budget or (Budget(seconds=0.3, least=5) if quick else Budget(seconds=1.2))
    begin = time.perf_counter()
    record: dict[str, object] = {
        "suite": "rnn",
        "quick": quick,
        "budget": vars(budget),
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "machine": harness.machine(device),
    }
    entries: list[Entry] = []
    with report.progress("recurrent suite", len(chosen)) as advance:
        for case in chosen:
            if time.perf_counter() - begin > limit_seconds:
                reason = f"the time limit of {limit_seconds:.0f} s was reached"
                entries.append(
                    {
                        "group": case.group,
                        "case": case.name,
                        "baseline": case.baseline,
                        "status": "skipped",
                        "reason": reason,
                    }
                )
                continue
            entries.append(measure(case, device, budget))
            advance(report.line(entries[-1]))
    record |= {
        "seconds": round(time.perf_counter() - begin, 1),
        "summary": summarize(entries),
        "results": entries,
    }
    report.write(record, out)
    return record


def succeeded(record: dict[str, object]) -> bool:
    summary = record["summary"]
    return not summary["failed parity"] and not summary["error"]
