"""``make gpu-rehearsal``: all of ``make gpu`` on a card of paper, in the environment of a real one.

Kernels do nothing there (paper_card/), so figures mean nothing; but each must be made, kernels must
be found compiled, what goes wrong must cost itself alone, and a run whose time is up must leave a
report. ``--compile`` (``make gpu-cache``) compiles every kernel that a run will ask for, and packs
them for the card's machine.
"""

import argparse
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from . import cache
from .__main__ import PACKED, ROOT, card, chosen, prepared
from .faulty_worker import FAULTS
from .results import Result, kernels, read
from .run import Run
from .stages import STAGES

OUT = ROOT / "build" / "rehearsal"
WORKER = (sys.executable, "-m", "fastseq.benchmarks.gpu.worker")
FAULTY = (sys.executable, "-m", "fastseq.benchmarks.gpu.faulty_worker")
COMPILING = ("facts", "smoke", "compile", "parity")  # stages that need every kernel there is
PROCESSES = 2
# Its hypotheses end by what their scores are, and nobody computes any on paper.
NOT_ON_PAPER = " beam "


def settings(folder: Path) -> dict[str, str]:
    """Of processes: the cache in ``folder``, and a driver of paper for Triton to link to."""
    libraries = str(Path(torch.__file__).parent / "lib")
    return cache.environment(folder) | {"TRITON_LIBCUDA_PATH": libraries}


def lost(results: list[Result], planned: dict[str, int]) -> list[str]:
    """Figures that were not made: jobs that failed, and so many of a stage that did not come.

    On paper a wrong result is none of the run's faults.
    """
    found = [
        f"{r['stage']} {r['job']}: {r.get('failure') or r.get('reason')}"
        for r in results
        if ("failure" in r or r.get("status") == "error") and NOT_ON_PAPER not in r["job"]
    ]
    done = Counter(r["stage"] for r in results)
    missing = {name: count - done[name] for name, count in planned.items()}
    return found + [f"{name}: {n} not reached" for name, n in missing.items() if n]


def compile_all() -> int:
    """Fills a cache by running what needs kernels, and packs it."""
    with tempfile.TemporaryDirectory(prefix="fastseq-gpu-") as folder:
        stages = [s for s in STAGES if s.name in COMPILING]
        # A job may compile twenty kernels here, where few processors share the work.
        patient = [replace(s, job_seconds=900, share=1) for s in stages]
        run = Run(
            OUT / "cache", 7200, patient, settings=settings(Path(folder)),
            processes=PROCESSES,
        )  # fmt: skip
        run()
        PACKED.parent.mkdir(exist_ok=True)
        kernels = cache.pack(Path(folder), PACKED, card()[0])
    size = PACKED.stat().st_size / 2**20
    print(f"{kernels} kernels of Triton {cache.key()}, {size:.1f} MiB: {PACKED}")
    return told("compiling", lost(run.results, run.planned))


def told(what: str, wrong: list[str]) -> int:
    for line in wrong:
        print(f"  LOST  {line[:400]}")
    print(f"{what}: {f'{len(wrong)} lost' if wrong else 'as it should be'}", flush=True)
    return len(wrong)


def whole(folder: Path) -> int:
    """Everything, with time enough: each figure must be made, and nothing compiled."""
    stages = chosen("", warm=True)
    run = Run(OUT, 3600, stages, settings=settings(folder), processes=PROCESSES)
    run()
    compiled, looked_up = kernels(run.results)
    figures = lost(run.results, run.planned)
    print(f"kernels looked up: {looked_up}, compiled: {sum(compiled.values())} {dict(compiled)}")
    print(f"figures made: {len(run.results)}, lost: {len(figures)}")
    stale = [f"{sum(compiled.values())} kernels compiled: run make gpu-cache"] if compiled else []
    return told("the whole run", figures + stale)


def with_faults(folder: Path) -> int:
    """A job that raises, one that hangs and one that dies in every stage: the fourth is done."""
    out = OUT / "faults"
    stages = [
        replace(s, job_seconds=60 if s.name == "compile" else 20, jobs=lambda s=s: s.jobs()[:4])
        for s in STAGES
    ]
    Run(out, 1800, stages, settings=settings(folder), command=FAULTY, processes=PROCESSES)()
    wrong, record = [], read(out)
    for stage in stages:
        results = [r for r in record if r["stage"] == stage.name]
        jobs = stage.jobs()
        expected = min(len(FAULTS), len(jobs)) if results else 0
        failures = sum("failure" in r for r in results)
        if (len(results), failures) != (len(jobs), expected):
            wrong.append(f"{stage.name}: {len(results)} results, {failures} failures of {expected}")
    return told("a job that raises, one that hangs, one that dies, in every stage", wrong)


def short(folder: Path, seconds: float = 90) -> int:
    """Time that runs out in every stage leaves a readable report."""
    out = OUT / "short"
    run = Run(out, seconds, STAGES, settings=settings(folder), processes=PROCESSES)
    run()
    text = (out / "REPORT.md").read_text()
    wrong = [] if len(read(out)) == len(run.results) else ["results.jsonl is not what was made"]
    wrong += [f"{s.name} is not in the report" for s in STAGES if f"| {s.title} |" not in text]
    done = Counter(r["stage"] for r in run.results)
    cut = [s for s in STAGES if done[s.name] < run.planned[s.name]]
    wrong += [] if len(cut) > len(STAGES) / 2 else ["time did not run out"]
    wrong += [
        f"blamed for the time: {r['stage']} {r['job']}" for r in run.results if "failure" in r
    ]
    return told(f"{seconds:.0f} s for everything, cut off in {len(cut)} stages", wrong)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make gpu-rehearsal", description=__doc__)
    parser.add_argument("--compile", action="store_true", help="only compile and pack the kernels")
    options = parser.parse_args()
    if options.compile or not PACKED.is_file():
        code = compile_all()
        if options.compile:
            return int(code > 0)
    with tempfile.TemporaryDirectory(prefix="fastseq-gpu-") as folder:
        warm, word = prepared(PACKED, Path(folder), card()[0])
        print(word, flush=True)
        if not warm:
            print("run make gpu-cache")
            return 1
        wrong = sum(part(Path(folder)) for part in (whole, with_faults, short))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
