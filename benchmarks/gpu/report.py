"""``python -m fastseq.benchmarks.gpu.report DIR``: the report and all else of a run's results.

Seven files beside results.jsonl: REPORT.md, and a record and a picture of each suite.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from ...kernels.check import over
from .. import report
from ..suite import record_of
from .results import Result, failed, found_by, kernels, read
from .stages import BUDGET, PARITY, STAGES, SUITES, Stage

ON_PAPER = (
    "**A rehearsal on a card of paper: its kernels do nothing. No figure here means anything, and "
    "what is called right or wrong is neither.**"
)


def write(
    results: Sequence[Result], stages: Sequence[Stage], planned: dict[str, int], out: Path,
    pictures: bool = True,
) -> list[str]:  # fmt: skip
    """All files that results make; pictures take seconds. The report's lines up to its tables."""
    machine = _machine(results)
    head = [f"# fastseq on {machine.get('card', 'a card')}", ""]
    on_paper = any(result.get("paper") for result in results)
    if on_paper:
        head += [ON_PAPER, ""]
    head += _verdict(results, stages, planned) + _wrong(results)
    head += _stages(results, stages, planned)
    lines = [*head]
    for name, suite in SUITES.items():
        entries = [r for r in results if r["stage"] == name and "status" in r]
        if not entries:
            continue
        record = record_of(suite, entries, machine, BUDGET, _seconds(results, name))
        record |= {"rehearsal": True} if on_paper else {}
        report.write_json(record, out)
        lines += ["", f"# {suite.title}", ""]
        if pictures and _drawn(record, out):
            lines += [f"![Speed-up over torch, a bar a group]({name}-overview.png)", ""]
        lines += report.tables(record)
    lines += ["", "# The card", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in _facts(results).items()]
    report.replace(out / "REPORT.md", "\n".join(lines) + "\n")
    return head


def _drawn(record: dict[str, Any], out: Path) -> bool:
    """A picture is no reason to be without a report."""
    try:
        return report.overview(record, out)
    except Exception as error:
        print(f"no picture of {record['title']}: {type(error).__name__}: {error}", flush=True)
        return False


def _of(results: Iterable[Result], *stages: str) -> list[Result]:
    return [result for result in results if result["stage"] in stages]


def _facts(results: Sequence[Result]) -> dict[str, Any]:
    """What the first stage found, in one table."""
    facts: dict[str, Any] = {}
    for result in _of(results, "facts"):
        prefix = "" if result["job"] in ("card", "ceilings") else f"{result['job']}: "
        facts |= {f"{prefix}{name}": value for name, value in found_by(result).items()}
    return facts


def _machine(results: Sequence[Result]) -> dict[str, Any]:
    """Of those, what a suite's record says of the machine."""
    return {name: value for name, value in _facts(results).items() if ":" not in name}


def _seconds(results: Sequence[Result], stage: str) -> float:
    at = [result["at"] for result in _of(results, stage)]
    return max(at) - min(at) if at else 0.0


def _verdict(
    results: Sequence[Result], stages: Sequence[Stage], planned: dict[str, int]
) -> list[str]:
    """What one reads first."""
    lines = []
    for stage in stages:
        if stage.name in PARITY and (own := _of(results, stage.name)):
            right = sum(not failed(result) for result in own)
            missing = planned.get(stage.name, len(own)) - len(own)
            text = f"- {stage.title}: **{right} of {len(own)} right**"
            lines.append(text + (f", {missing} not reached" if missing > 0 else ""))
    for name, suite in SUITES.items():
        own = _of(results, name)
        good = [r for r in own if r.get("status") == "ok" and r["served_by"] == "fastseq"]
        if good:
            slow = sum(r["speedup"] < 0.95 for r in good)
            mean = geometric_mean(r["speedup"] for r in good)
            lines.append(
                f"- {suite.title}: **{mean:.2f}× torch** over {len(good)} cases, {slow} under 0.95×"
            )
            worst = sorted(good, key=lambda r: r["speedup"])[:5]
            lines += [f"  - {r['speedup']:.2f}× {r['case']}{_bound(r)}" for r in worst]
    compiled, found = kernels(results)
    lines.append(f"- Kernels found compiled: {found}; compiled here: {sum(compiled.values())}")
    lines += [f"  - {count} of {name}" for name, count in compiled.most_common(8)]
    earlier = sum(bool(result.get("earlier")) for result in results)
    lines += [f"- Taken over from an earlier run: {earlier}"] * bool(earlier)
    return [*lines, ""]


def _bound(entry: Result) -> str:
    """What a case's time is made of, as far as its entry knows."""
    parts = [f"{entry['floor_percent']:.0f} % of a large product's rate"]
    parts.append(f"{entry['read_percent']:.0f} % of a large read's")
    if "best_peer" in entry:
        parts.append(f"{entry['speedup_over_best']:.2f}× of {entry['best_peer']}")
    return f" ({', '.join(parts)})"


def _wrong(results: Sequence[Result]) -> list[str]:
    """All that failed, with the reason."""
    lines = []
    for result in filter(failed, results):
        reason = result.get("failure") or result.get("reason") or result.get("sanitizer")
        if reason is None and "error_ratios" in result:
            reason = f"error over the allowed: {over(result)}"
        elif reason is None:
            reason = f"parity: {result.get('parity')}"
        text = " ".join(str(reason).split()).replace("|", "¦")[:300]
        lines.append(f"| {result['stage']} | {result['job']} | {text} |")
    return ["# What failed", "", "| stage | job | |", "|---|---|---|", *lines, ""] if lines else []


def _stages(
    results: Sequence[Result], stages: Sequence[Stage], planned: dict[str, int]
) -> list[str]:
    lines = [
        "# Stages",
        "",
        "| stage | done | of | failed | until, s |",
        "|---|---:|---:|---:|---:|",
    ]
    for stage in stages:
        own = _of(results, stage.name)
        wrong = sum(map(failed, own))
        at = f"{max(r['at'] for r in own):.0f}" if own else ""
        lines.append(
            f"| {stage.title} | {len(own)} | {planned.get(stage.name, '')} | {wrong or ''} | {at} |"
        )
    return lines


def main() -> int:
    out = Path(sys.argv[1])
    write(read(out), STAGES, {stage.name: len(stage.jobs()) for stage in STAGES}, out)
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
