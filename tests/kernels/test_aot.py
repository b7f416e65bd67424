"""Ahead-of-time builds of the Triton kernels, in processes of their own."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fastseq import kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason=str(kernels.reason()))

from fastseq.kernels import aot  # noqa: E402


def test_quick_builds(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "fastseq.kernels.aot", "--quick", "--targets", "sm_90"]
        + ["--json", str(table)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = {r["kernel"]: r for r in json.loads(table.read_text())}
    assert {
        f"rnn_{p}_{k}" for p in ("forward", "backward") for k in ("step", "sequence", "persistent")
    } <= set(results)
    parts = ("forward", "delta", "backward_keys", "backward_queries", "backward_mask", "weights")
    assert {f"attention_{p}" for p in (*parts, "decode", "merge")} <= set(results)
    parts = ("scores", "softmax", "softmax_backward", "gradients")
    assert {f"additive_{p}" for p in parts} <= set(results)
    assert "draw_mask" in results
    for result in results.values():
        assert result["registers"] > 0 and result["problem"] == ""
    # All of a unit tile's weights are on the chip: 16 units, 4 gates, 1024 long, 2 bytes.
    assert results["rnn_forward_persistent"]["shared"] >= 16 * 4 * 1024 * 2


def test_problems_are_found(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    good = aot.Result("k", "sm_90", "c", "float32", "", 4)
    monkeypatch.setattr(aot, "build_all", lambda *_: [good, replace(good, problem="spills")])
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert aot.main([]) == 1
    assert "1 with a problem" in capsys.readouterr().out
    monkeypatch.setattr(aot, "build_all", lambda *_: [good])
    assert aot.main([]) == 0
    monkeypatch.setattr(aot, "build_all", lambda *_: [])
    assert aot.main([]) == 1


def test_limits_are_held() -> None:
    roomy = aot.TARGETS["sm_90"].limits
    assert aot.problem_of(roomy.shared, 0, roomy) == ""
    assert "shared" in aot.problem_of(roomy.shared + 1, 0, roomy)
    assert aot.problem_of(0, aot.SPILL_BOUND, roomy) == ""
    assert "spills" in aot.problem_of(0, aot.SPILL_BOUND + 1, roomy)
