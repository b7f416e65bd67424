"""``python -m fastseq.kernels.check``: parity of the Triton kernels, on this card.

Cases run in worker processes, so that a kernel that fails or waits for ever costs its case alone.
Without a card they run under Triton's interpreter, fewer of them.
"""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import reason
from .processes import Answer, Pool, failure, serve
from .rnn_dispatch import CannotServe

# Modules NAME_cases with cases(interpreted) and run(case, device); a case has a group and a name.
FAMILIES = ("rnn", "attention", "additive", "dropout")


def _module(family: str) -> Any:
    return importlib.import_module(f".{family}_cases", __package__)


@lru_cache
def cases(interpreted: bool) -> dict[str, Any]:
    """Every case by its name, which begins with its family's."""
    return {
        f"{family} {case.name}": case
        for family in FAMILIES
        for case in _module(family).cases(interpreted)
    }


def groups(interpreted: bool, family: str) -> dict[str, list[str]]:
    """Names of a family's cases by their group."""
    found: dict[str, list[str]] = {}
    for name, case in cases(interpreted).items():
        if name.startswith(f"{family} "):
            found.setdefault(case.group, []).append(name)
    return found


def run(name: str, interpreted: bool) -> Answer:
    """One case here: whether it passed, and the error of each result over the allowed."""
    import torch

    torch.utils.deterministic.fill_uninitialized_memory = True  # NaN: what nobody wrote shows
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    family, case = name.split()[0], cases(interpreted)[name]
    programs: Any = nullcontext()
    if interpreted:
        from .interpreter import convert_scalars

        convert_scalars()
    if interpreted and getattr(case, "kernel", "") == "persistent":
        from .concurrent import concurrent_programs

        programs = concurrent_programs()
    start = time.perf_counter()
    try:
        with programs:
            ratios = _module(family).run(case, "cpu" if interpreted else "cuda")
        answer: Answer = {
            "passed": all(r <= 1 for r in ratios.values()),
            "error_ratios": {k: round(r, 4) for k, r in ratios.items()},
        }
    except CannotServe as why:  # this Triton, or this card
        answer = {"passed": True, "skipped": str(why)}
    except Exception as error:
        answer = {"passed": False, **failure(error)}
    return answer | {"seconds": round(time.perf_counter() - start, 2)}


def environment(interpreted: bool, threads: int = 1) -> dict[str, str]:
    """Of workers: the package as it is imported here, and few threads each."""
    found = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if interpreted:
        found["TRITON_INTERPRET"] = "1"
    root = Path(__file__).parent.parent
    paths = [str(root if root.name != "fastseq" else root.parent), os.environ.get("PYTHONPATH")]
    found["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    found["OMP_NUM_THREADS"] = str(threads)
    return found


def check(
    names: list[str], interpreted: bool, workers: int = 1, seconds: float = 60.0
) -> Iterator[tuple[str, Answer]]:
    """Runs cases in ``workers`` processes, ``seconds`` each at most; outcomes as they come."""
    command = [sys.executable, "-m", "fastseq.kernels.check", "--serve"]
    with Pool(command, environment(interpreted), workers) as pool:
        for name, answer in pool.each(names, seconds):
            yield name, {"passed": False, **answer}


def over(answer: Answer) -> dict[str, float]:
    """Error ratios that are more than is allowed, or no number."""
    return {name: ratio for name, ratio in answer["error_ratios"].items() if not ratio <= 1}


def told(name: str, answer: Answer) -> str:
    """An outcome in a line."""
    if answer["passed"]:
        return f"skipped {name}: {answer['skipped']}" if "skipped" in answer else f"ok      {name}"
    return f"FAILED  {name}: {answer['failure'] if 'failure' in answer else over(answer)}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastseq.kernels.check", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORDS", help="cases that have these words")
    parser.add_argument("--smoke", action="store_true", help="one case of every kernel")
    parser.add_argument("--workers", type=int, default=max(1, min(16, os.cpu_count() or 2)))
    parser.add_argument("--seconds", type=float, default=60, help="limit for a case")
    parser.add_argument("--here", action="store_true", help="in this process, for a debugger")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(lambda name: run(name, os.environ.get("TRITON_INTERPRET") == "1"))
        return 0
    if why := reason():
        print(f"Triton kernels cannot be checked: {why}")
        return 0
    import torch

    interpreted = not torch.cuda.is_available()
    if interpreted:
        print("no CUDA device: Triton's interpreter")
    words = options.only.split()
    chosen = [
        name
        for name, case in cases(interpreted).items()
        if all(word in name for word in words) and (case.smoke or not options.smoke)
    ]
    outcomes = {}
    found: Iterator[tuple[str, Answer]]
    if options.here:
        found = ((name, run(name, interpreted)) for name in chosen)
    else:
        found = check(chosen, interpreted, options.workers, options.seconds)
    for name, answer in found:
        outcomes[name] = answer
        print(f"[{len(outcomes)}/{len(chosen)}] {told(name, answer)}", flush=True)
    failed = sum(not answer["passed"] for answer in outcomes.values())
    print(f"{len(outcomes) - failed} of {len(chosen)} cases passed")
    return 1 if failed or len(outcomes) < len(chosen) or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
