"""``python -m fastseq.benchmarks.gpu``: what ``make gpu`` runs."""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from ...kernels import reason
from . import cache, paper_card
from .results import failed, read
from .run import Run
from .stages import STAGES, Stage

ROOT = Path(__file__).parents[2]
PACKED = ROOT / "build" / "gpu-cache.tar.xz"


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make gpu GPU_ARGS=…", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "latest")
    parser.add_argument("--seconds", type=float, default=480, help="for everything (480)")
    parser.add_argument(
        "--only", default="", metavar="STAGE,…", help=", ".join(stage.name for stage in STAGES)
    )
    parser.add_argument(
        "--resume", type=Path, metavar="DIR",
        help="go on after the run in DIR: what it found right is taken over, the rest done",
    )  # fmt: skip
    parser.add_argument("--cache", type=Path, default=PACKED, help="kernels of make gpu-cache")
    parser.add_argument("--processes", type=int, help="at most so many at once")
    options = parser.parse_args(given)
    unknown = set(filter(None, options.only.split(","))) - {stage.name for stage in STAGES}
    if unknown:
        parser.error(f"--only: no stage {', '.join(sorted(unknown))}")
    if options.resume and not (options.resume / "results.jsonl").is_file():
        parser.error(f"--resume: no results.jsonl in {options.resume}")
    return options


def prepared(packed: Path, folder: Path, capability: str) -> tuple[bool, str]:
    """Unpacks kernels made beforehand; whether this Triton and card take them, and a word on it."""
    if not packed.is_file():
        return False, f"no kernels compiled beforehand ({packed.name} is made by make gpu-cache)"
    made = cache.unpack(packed, folder)
    here = {"key": cache.key(), "capability": capability}
    if made != here:
        return False, f"{packed.name} is of {made}, and here is {here}: kernels compile here"
    return True, f"kernels compiled beforehand: {packed.name}, {here}"


def card() -> tuple[str, str]:
    """Its capability and name, "" without one; asked in another process: this one holds nothing on
    the card.
    """
    code = (
        "import torch\n"
        "if torch.cuda.is_available():\n"
        "    print('%d.%d' % torch.cuda.get_device_capability(), torch.cuda.get_device_name())"
    )
    asked = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    capability, _, name = asked.stdout.strip().partition(" ")
    return capability, name


def is_of_results(folder: Path) -> bool:
    results = ROOT / "benchmarks" / "results"
    return results in (folder.resolve(), *folder.resolve().parents)


def chosen(only: str, warm: bool) -> list[Stage]:
    """Stages by name, all for none; nothing needs compiling where it was done beforehand."""
    named = only.split(",") if only else [s.name for s in STAGES if not warm or s.name != "compile"]
    return [stage for stage in STAGES if stage.name in named]


def without_card() -> int:
    """What can be proven without a GPU. 0 unless a check fails."""
    print("no CUDA device here: Triton's interpreter and ahead-of-time builds only", flush=True)
    if why := reason():
        print(f"nothing to check: {why}")
        return 0
    targets = ["--targets", "sm_80,sm_90,sm_100,gfx942"]
    outcomes = {}
    for name, command in (
        ("interpreter", ["-m", "fastseq.kernels.check"]),
        ("ahead-of-time builds", ["-m", "fastseq.kernels.aot", *targets]),
    ):
        print(f"$ python {' '.join(command)}", flush=True)
        outcomes[name] = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
    for name, code in outcomes.items():
        print(f"{name}: {'passed' if code == 0 else f'FAILED (exit {code})'}")
    return max(outcomes.values())


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    capability, name = card()
    if not capability:
        return without_card()
    if name.startswith(paper_card.NAME) and is_of_results(options.out):
        print(f"{name} has no results to keep: make gpu-rehearsal, or --out another folder")
        return 2
    earlier = [r for r in read(options.resume) if not failed(r)] if options.resume else []
    with tempfile.TemporaryDirectory(prefix="fastseq-gpu-") as folder:
        warm, word = prepared(options.cache, Path(folder), capability)
        print(word, flush=True)
        run = Run(
            options.out, options.seconds, chosen(options.only, warm), earlier,
            cache.environment(Path(folder)), processes=options.processes,
        )  # fmt: skip
        return run()


if __name__ == "__main__":
    sys.exit(main())
