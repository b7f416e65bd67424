"""Runs PyTorch's own tests of these modules twice, on torch's and on fastseq's, and compares.

    python -m tests.torch_suite PYTORCH/test [--only WORDS] [--out torch_suite.md]

The folder is ``test/`` of PyTorch's sources, of the version that is installed or near it. Tests
that fail on torch's own modules count for nothing. Exit code 1 if a test that torch's modules pass
fails on ours and ``differs.py`` does not say why.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from .differs import DIFFERS

# Files, and the tests in them that concern these modules; all where there is no name.
FILES = {
    "nn/test_packed_sequence.py": "",
    "nn/test_multihead_attention.py": "",
    "test_native_mha.py": "",
    "test_nn.py": "rnn or lstm or gru or transformer or multihead",
    # Second derivatives of whole stacks, entry by entry, take minutes each.
    "test_modules.py": "(nn_RNN or nn_LSTM or nn_GRU or nn_Multihead or nn_Transformer) and not "
    "(gradgrad and (nn_Transformer or nn_Multihead))",
    "test_transformers.py": "",
}
_ROOT = Path(__file__).parents[2]
HEADER = f"""# PyTorch's own tests

PyTorch's tests of recurrent, attention and transformer modules, run with fastseq's in place of
`torch.nn`'s and of `scaled_dot_product_attention` (`patch_torch(functional=True)`), on a CPU, with
torch {torch.__version__}. `make torch-suite PYTORCH=…` makes this page from a copy of their folder.
Counted are the tests that torch's own modules pass; those that differ stand below, with why.
"""


def run(folder: Path, name: str, words: str, fastseq: bool) -> dict[str, dict[str, str]]:
    """The outcome of each test of a file, by its name, with fastseq in torch's place or without."""
    with tempfile.TemporaryDirectory() as kept:
        out = Path(kept) / "outcomes.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.torch_suite.plugin"]
        # None of PyTorch's own settings of pytest, which are made for another version of it.
        command += ["-p", "no:cacheprovider", "--noconftest", "-c", os.devnull]
        command += ["--rootdir", str(folder), *(["-k", words] if words else []), name]
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]),
            "TORCH_SUITE_FASTSEQ": str(int(fastseq)),
            "TORCH_SUITE_OUT": str(out),
        }
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        if not out.is_file():
            raise SystemExit(f"{name} did not run:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        lines = [json.loads(line) for line in out.read_text().splitlines()]
    results: dict[str, dict[str, str]] = {}
    for line in lines:  # a test with subtests has several: its worst counts
        before = results.get(line["test"])
        if before is None or before["outcome"] != "failed":
            results[line["test"]] = line
    return results


def compare(folder: Path, name: str, words: str) -> tuple[str, list[tuple[str, str, str | None]]]:
    """The file's row of the table, and what differs: test, message, and why if that is known."""
    theirs, ours = (run(folder, name, words, fastseq) for fastseq in (False, True))
    passed = [test for test, line in theirs.items() if line["outcome"] == "passed"]
    different = []
    for test in passed:
        line = ours.get(test, {"outcome": "lost", "message": "the process ended before it"})
        if line["outcome"] != "passed":
            why = next((why for known, why in DIFFERS.items() if re.search(known, test)), None)
            different.append((test, line["message"], why))
    row = f"| {name} | {len(passed)} | {len(passed) - len(different)} | {len(different)} |"
    return row, different


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="test/ of PyTorch's sources")
    parser.add_argument("--only", default="", help="files whose names contain this")
    parser.add_argument("--out", type=Path, help="a file for the table")
    options = parser.parse_args()
    files = {name: words for name, words in FILES.items() if options.only in name}
    for name in files:
        if not (options.folder / name).is_file():
            parser.error(f"folder should be test/ of PyTorch's sources: no {name} in it")
    table = ["| file | passed by torch's | by fastseq's too | differ |", "|---|---:|---:|---:|"]
    listed, unknown = [], 0
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
        folder = options.folder.resolve()
        jobs = [pool.submit(compare, folder, name, words) for name, words in files.items()]
        for job in jobs:
            row, different = job.result()
            table.append(row)
            print(row, flush=True)
            for test, message, why in different:
                unknown += why is None
                listed.append(f"- `{test}`: {why or 'NOT EXPLAINED: ' + message}")
                print(" ", listed[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join([HEADER, *table, "", *listed, ""]))
    return unknown > 0


if __name__ == "__main__":
    sys.exit(main())
