"""``python -m fastseq.kernels.check --out DIR``: parity of the Triton kernels on this card.

Groups of cases run in processes of their own, under a time limit each, so that a kernel that fails
or waits for ever costs its group alone. Without a card: Triton's interpreter and a part of the
ahead-of-time builds, exit 0.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from . import reason

# Modules NAME_cases with groups(interpreted), cases(*group, interpreted) and run(case, device).
FAMILIES = ("rnn", "attention", "additive")
Group = tuple[str, ...]  # one of them, then what its module calls a group


def _module(group: Group) -> Any:
    return importlib.import_module(f".{group[0]}_cases", __package__)


def cases(group: Group, interpreted: bool) -> list[Any]:
    """A group's cases, in order."""
    return list(_module(group).cases(*group[1:], interpreted))


def groups(interpreted: bool, families: tuple[str, ...] = FAMILIES) -> list[Group]:
    """Each is run in a process of its own."""
    return [(f, *group) for f in families for group in _module((f,)).groups(interpreted)]


def run_group(group: Group, interpreted: bool) -> None:
    """Runs a group's cases here and prints a line of JSON for each."""
    # What torch.empty hands out holds NaN: an element that nobody wrote shows.
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    programs: Any = nullcontext()
    if interpreted:
        importlib.import_module(".interpreter", __package__).convert_scalars()
    if interpreted and "persistent" in group:
        from .concurrent import concurrent_programs

        programs = concurrent_programs()
    with programs:
        for case in cases(group, interpreted):
            start = time.perf_counter()
            try:
                ratios = _module(group).run(case, "cpu" if interpreted else "cuda")
                outcome = {"passed": all(r <= 1 for r in ratios.values()), "error_ratios": ratios}
            except Exception as failure:
                outcome = {
                    "passed": False,
                    "failure": f"{type(failure).__name__}: {failure}"[:2000],
                }
            seconds = round(time.perf_counter() - start, 2)
            print(json.dumps({**asdict(case), **outcome, "seconds": seconds}), flush=True)


def in_process(group: Group, interpreted: bool, seconds: float) -> list[dict[str, Any]]:
    """A group's outcomes, with one for each case that never reported."""
    command = [sys.executable, "-m", "fastseq.kernels.check", "--group", ",".join(group)]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    root = Path(__file__).parent.parent
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(
            None,
            [str(root if root.name != "fastseq" else root.parent), os.environ.get("PYTHONPATH")],
        )
    )
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        try:
            code = subprocess.run(
                command, stdout=out, stderr=errors, env=environment, timeout=seconds
            ).returncode
            why = f"exit {code}"
        except subprocess.TimeoutExpired:
            why = f"did not finish in {seconds:.0f} s"
        out.seek(0)
        errors.seek(0)
        outcomes = [json.loads(line) for line in out if line.startswith("{")]
        why += f": {errors.read()[-1000:]}"
    for case in cases(group, interpreted)[len(outcomes) :]:
        outcomes.append({**asdict(case), "passed": False, "failure": why, "seconds": seconds})
    return outcomes


def check(
    chosen: list[Group], interpreted: bool, workers: int, seconds: float
) -> list[dict[str, Any]]:
    def one(group: Group) -> list[dict[str, Any]]:
        outcomes = in_process(group, interpreted, seconds)
        failed = [o for o in outcomes if not o["passed"]]
        print(
            f"{' '.join(group):32} {len(outcomes) - len(failed)} of {len(outcomes)} passed",
            flush=True,
        )
        for outcome in failed:
            wrong = outcome.get("failure") or {
                k: v for k, v in outcome["error_ratios"].items() if not v <= 1
            }
            named = " ".join(str(v) for k, v in outcome.items() if k in ("feature", "shape"))
            print(f"  FAILED {named}: {wrong}", flush=True)
        return outcomes

    with ThreadPoolExecutor(workers) as threads:
        return [outcome for outcomes in threads.map(one, chosen) for outcome in outcomes]


def facts() -> dict[str, Any]:
    import triton

    found = {
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": sys.version.split()[0],
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "card": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
        }
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastseq.kernels.check", description=__doc__)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write kernels.json")
    parser.add_argument("--only", default="", metavar="WORDS", help="groups that have these words")
    parser.add_argument("--workers", type=int, default=max(1, min(8, (os.cpu_count() or 2) // 2)))
    parser.add_argument("--seconds", type=float, default=150, help="limit for a group")
    parser.add_argument("--group", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.group:
        run_group(tuple(options.group.split(",")), os.environ.get("TRITON_INTERPRET") == "1")
        return 0
    if why := reason():
        print(f"Triton kernels cannot be checked: {why}")
        return 0
    interpreted = not torch.cuda.is_available()
    found = facts()
    print(json.dumps(found))
    if interpreted:
        print("no CUDA device: Triton's interpreter and ahead-of-time builds only")
    words = options.only.split()
    chosen = [g for g in groups(interpreted) if all(word in g for word in words)]
    outcomes = check(chosen, interpreted, options.workers, options.seconds)
    failed = sum(not outcome["passed"] for outcome in outcomes)
    print(f"{len(outcomes) - failed} of {len(outcomes)} cases passed")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        record = {"machine": found, "interpreted": interpreted, "cases": outcomes}
        (options.out / "kernels.json").write_text(json.dumps(record, indent=1))
    if interpreted:
        from . import aot

        print(f"ahead-of-time builds: exit {aot.main(['--quick', '--targets', 'sm_90'])}")
        return 0
    return 1 if failed or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
