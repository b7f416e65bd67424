"""Results as they stand in results.jsonl: a dictionary a job, with its stage, name and time."""

import json
from pathlib import Path
from typing import Any

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
        wrong = {k: v for k, v in result.get("error_ratios", {}).items() if not v <= 1}
        return f"ok      {text}" if result["passed"] else f"WRONG   {text}: {wrong}"
    own = {k: v for k, v in result.items() if k not in ("stage", "job", "at", *COUNTED)}
    return f"        {text}: {own}"


def read(folder: Path) -> list[Result]:
    """The results of an earlier run; a line that was cut off is left out."""
    results = []
    for line in (folder / "results.jsonl").read_text().splitlines():
        try:
            results.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return results
