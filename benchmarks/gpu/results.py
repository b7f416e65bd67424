"""Results as they stand in results.jsonl: a dictionary a job, with its stage, name and time."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...kernels.check import over

Result = dict[str, Any]
# In every result: what Triton compiled and found, and whether the card does nothing.
COUNTED = ("compiled", "looked_up", "paper")


def failed(result: Result) -> bool:
    """Whether a result is anything but right."""
    wrong = result.get("status") in ("error", "failed parity")
    return wrong or "failure" in result or not result.get("passed", True)


def told(result: Result) -> str:
    """A result in a line."""
    text = f"{result['stage']:10} {result['job']}"
    if "failure" in result:
        return f"FAILED  {text}: {result['failure']}"
    if result.get("status") == "ok":
        return f"{result['speedup']:6.2f}× {text}"
    if "status" in result:
        reason = result.get("reason") or result.get("parity") or ""
        return f"{result['status']:7} {text}: {reason}"
    if "skipped" in result:
        return f"skipped {text}: {result['skipped']}"
    if "passed" in result:
        wrong = over(result) if "error_ratios" in result else {}
        return f"ok      {text}" if result["passed"] else f"WRONG   {text}: {wrong}"
    return f"        {text}: {found_by(result)}"


def found_by(result: Result) -> dict[str, Any]:
    """What a job answered, without what stands in every result."""
    return {k: v for k, v in result.items() if k not in ("stage", "job", "at", *COUNTED)}


def kernels(results: Sequence[Result]) -> tuple[Counter[str], int]:
    """Those that Triton compiled, by name, and how many it found compiled."""
    compiled = Counter(name for result in results for name in result.get("compiled", ()))
    return compiled, sum(result.get("looked_up", 0) for result in results)


def read(folder: Path) -> list[Result]:
    """The results of an earlier run; a line that was cut off is left out."""
    results = []
    for line in (folder / "results.jsonl").read_text().splitlines():
        try:
            results.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return results
