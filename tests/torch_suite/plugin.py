"""A pytest plugin: the session runs with fastseq in torch's place, and its outcomes are kept.

``TORCH_SUITE_FASTSEQ=1`` puts fastseq there; ``TORCH_SUITE_OUT`` names a file for a line of JSON a
test: its name, its outcome and the last line of its failure.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

import fastseq

_place = fastseq.patch_torch(functional=True)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("TORCH_SUITE_FASTSEQ") == "1":
        _place.__enter__()
        config.add_cleanup(lambda: _place.__exit__(None, None, None))


def pytest_runtest_logreport(report: Any) -> None:
    if report.when != "call" and report.passed:
        return
    crash = getattr(report.longrepr, "reprcrash", None)
    line = {
        "test": report.nodeid.split("/")[-1],
        "outcome": report.outcome,
        "message": "" if crash is None else crash.message.splitlines()[0][:200],
    }
    with Path(os.environ["TORCH_SUITE_OUT"]).open("a") as file:
        file.write(json.dumps(line) + "\n")
