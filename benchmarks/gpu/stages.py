"""The stages of ``make gpu``, best first: their jobs, and how one is done.

Whoever lists jobs touches no card; ``perform`` runs in worker processes (worker.py).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from ...kernels import check
from ...kernels.processes import Answer
from .. import attention, models, rnn
from ..harness import Budget
from ..suite import Skipped, Suite

SUITES: dict[str, Suite] = {s.name: s for s in (rnn.SUITE, attention.SUITE, models.SUITE)}
PARITY = ("smoke", "parity", "sanitizer")  # stages that say right or wrong
BUDGET = Budget(seconds=0.2, least=7, attempts=1)
# Kernels whose memory accesses compute-sanitizer follows: small ones, for it is slow.
SANITIZED = (
    "rnn persistent LSTM bfloat16 plain T65 B37 H203",
    "rnn step LSTM bfloat16 projection, layer norm T17 B37 H75",
    "rnn sequence GRU bfloat16 plain T33 B37 H51",
    "attention packed bfloat16 packed, causal, dropout 2x4x2x130x257x64x64 layout 0",
)


@dataclass(frozen=True)
class Stage:
    """``share`` is of the time that is left, against the shares of the stages that follow."""

    name: str
    title: str
    share: float
    job_seconds: float  # a job may take
    alone: bool  # in one process, with nothing else on the card
    jobs: Callable[[], list[str]]
    perform: Callable[[str], Answer]


# ---- jobs ---------------------------------------------------------------------------------------


def _facts() -> list[str]:
    return ["card", "ceilings", "launches", "barriers"]


def _smoke() -> list[str]:
    return [name for name, case in check.cases(False).items() if case.smoke]


def _rest() -> list[str]:
    return [name for name, case in check.cases(False).items() if not case.smoke]


@cache  # every job asks
def _named(suite: Suite) -> dict[str, Any]:
    """A suite's cases by name, what tells most first, as the suite has them."""
    return {f"{c.group}: {c.name}": c for c in suite.cases(torch.device("cuda"))}


def _sanitized() -> list[str]:
    return list(SANITIZED) if shutil.which("compute-sanitizer") else []


def _compiled() -> list[str]:
    """What is timed later would compile in one process, case after case."""
    return [f"{name} {job}" for name, suite in SUITES.items() for job in _named(suite)]


# ---- doing them ---------------------------------------------------------------------------------


def _fact(name: str) -> Answer:
    from .facts import FACTS

    return FACTS[name]()


def _parity(name: str) -> Answer:
    return check.run(name, interpreted=False)


def _measure(suite: Suite) -> Callable[[str], Answer]:
    def perform(name: str) -> Answer:
        from .facts import DEVICE, on_paper

        return suite.measure(_named(suite)[name], DEVICE, BUDGET, only_right=not on_paper())

    return perform


def _compile(job: str) -> Answer:
    """Calls ours once, where the tuner compiles every tile and times none."""
    from .facts import DEVICE, on_paper
    from .tuning import untimed

    name, case = job.split(" ", 1)
    try:
        with untimed():
            work = SUITES[name].build(_named(SUITES[name])[case], DEVICE)
            work.timed["fastseq"]()
            if on_paper():  # where nothing costs the card's time: what parity asks for too
                work.results()
    except Skipped as reason:
        return {"skipped": str(reason)}
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return {"passed": True}


def _sanitize(name: str) -> Answer:
    """Memory errors of one case, in a process that keeps no memory for later."""
    command = ["compute-sanitizer", "--tool", "memcheck"]
    command += [sys.executable, "-m", "fastseq.kernels.check", "--here", "--only", name]
    alone = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=alone)
    lines = [line for line in done.stdout.splitlines() if line.startswith("=========")]
    said = "\n".join(lines[:20])[-1500:] or done.stderr[-500:]
    if "ERROR SUMMARY" not in done.stdout:  # it does not work on every machine that has it
        return {"skipped": said}
    return {"passed": "ERROR SUMMARY: 0 errors" in done.stdout, "sanitizer": said}


STAGES = (
    Stage("facts", "The card", 0.05, 30, True, _facts, _fact),
    Stage("smoke", "Parity: one case of every kernel", 0.13, 40, False, _smoke, _parity),
    Stage("compile", "Compiling what is timed", 0.14, 90, False, _compiled, _compile),
    Stage("rnn", "Recurrent layers", 0.21, 45, True, lambda: [*_named(rnn.SUITE)],
          _measure(rnn.SUITE)),
    Stage("attention", "Attention", 0.21, 60, True, lambda: [*_named(attention.SUITE)],
          _measure(attention.SUITE)),
    Stage("models", "Models", 0.10, 45, True, lambda: [*_named(models.SUITE)],
          _measure(models.SUITE)),
    Stage("parity", "Parity: all other cases", 0.20, 40, False, _rest, _parity),
    Stage("sanitizer", "Memory accesses", 0.10, 120, False, _sanitized, _sanitize),
)  # fmt: skip
