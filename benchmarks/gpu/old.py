"""``make gpu``: parity and speed on a machine with a card, from the source tree, in 8 minutes.

Facts of the machine, parity of the Triton kernels against float64, then the recurrent and the
attention suite against torch. A failing part is reported and the run goes on. Without a card: the
kernels' tests under Triton's interpreter and their ahead-of-time builds.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
SECONDS = 470  # for everything
SUITE_AT_LEAST = 220  # of these for the suites, however long the parity check took


def _python(*arguments: str, seconds: float, **environment: str) -> int:
    """Run python in the source tree; 124 where it outran its time."""
    print(f"$ python {' '.join(arguments)}", flush=True)
    try:
        return subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, timeout=seconds, env=os.environ | environment
        ).returncode
    except subprocess.TimeoutExpired:
        print(f"stopped after {seconds:.0f} s", flush=True)
        return 124


def without_card() -> int:
    """What can be proven without a GPU. Always 0: the outcome is printed."""
    print("no CUDA device here: Triton's interpreter and ahead-of-time builds only", flush=True)
    try:
        import triton  # noqa: F401
    except ImportError:
        print("Triton is not installed: nothing to check")
        return 0
    outcomes = {
        "interpreter": _python(
            "-m", "pytest", "-q", "tests/kernels", seconds=1200, TRITON_INTERPRET="1"
        ),
        "ahead-of-time builds": _python(
            "-m", "fastseq.kernels.aot", "--targets", "sm_80,sm_90,sm_100,gfx942", seconds=1200
        ),
    }
    for name, code in outcomes.items():
        print(f"{name}: {'passed' if code == 0 else f'FAILED (exit {code})'}")
    return 0


def with_card() -> int:
    from . import harness
    from .attention import SUITE as attention
    from .rnn import SUITE as rnn
    from .suite import succeeded

    begin = time.perf_counter()
    device = torch.device("cuda", torch.cuda.current_device())
    card = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")
    out = ROOT / "benchmarks" / "results" / card
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(["nvidia-smi"], check=False)
    print(json.dumps(harness.machine(device), indent=1), flush=True)
    parity = _python(
        "-m", "fastseq.kernels.check", "--out", str(out), seconds=SECONDS - SUITE_AT_LEAST
    )
    records = []
    for suite, share in ((rnn, 0.6), (attention, 1.0)):
        left = SECONDS - 15 - (time.perf_counter() - begin)
        budget = harness.Budget(seconds=0.25, least=7)
        records.append(suite.run(out, device, limit_seconds=share * left, budget=budget))
    report = out / "REPORT.md"
    verdict = "passed" if parity == 0 else f"FAILED (exit {parity})"
    note = f"\n## Kernels\n\nParity of every Triton kernel on the card: {verdict}.\n"
    report.write_text(report.read_text() + note)
    print(f"parity of the Triton kernels: {verdict}")
    print(f"{time.perf_counter() - begin:.0f} s in all")
    return 0 if parity == 0 and all(map(succeeded, records)) else 1


def main() -> int:
    # Not needed on the card, but the CPU side of the parity check is faster with it.
    if not any((ROOT / "fastseq").glob("_C*.so")):
        _python("setup.py", "-q", "build_ext", "--inplace", seconds=240)
    return with_card() if torch.cuda.is_available() else without_card()


if __name__ == "__main__":
    sys.exit(main())
