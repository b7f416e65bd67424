"""A worker for tests of the runner: jobs that do what their names say. Starts in no time."""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels"))
from processes import serve

FACTS = {"card": "test card", "gemm_gflops_bfloat16": 1000, "python": "3"}


def entry(name: str, speedup: float) -> dict:
    """What ``Suite.measure`` answers."""
    milliseconds = dict.fromkeys(("median", "p20", "p80"), 1.0) | {"samples": 7, "calls": 7}
    return {
        "group": "a group", "case": name, "baseline": "torch", "dtype": "bfloat16", "status": "ok",
        "served_by": "fastseq", "speedup": speedup, "noisy": False, "gflops": 1.0, "gb_s": 1.0,
        "parity": {"passed": True, "ours": 0.0, "theirs": 0.0, "limit": 1.0, "result": "output"},
        "milliseconds": {"fastseq": milliseconds, "torch": milliseconds}, "telling": True,
        "read_percent": 1.0, "floor_ms": 1.0, "floor_percent": 1.0,
        "peak_bytes": {"fastseq": 1, "torch": 1},
    }  # fmt: skip


def perform(job: list[str]) -> dict:
    stage, name = job
    what, _, number = name.partition(" ")
    if what == "raise":
        raise ValueError("raised on purpose")
    if what == "hang":
        time.sleep(600)
    if what == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "slow":
        time.sleep(0.4)
    counted = {"compiled": ["a_kernel"] if what == "new" else [], "looked_up": 1}
    if stage == "facts":
        return FACTS | counted
    if stage in ("rnn", "attention"):
        return entry(name, float(number or 1)) | counted
    return {"passed": what != "wrong", "error_ratios": {"output": 2.0 if what == "wrong" else 0.5},
            **counted}  # fmt: skip


serve(perform)
