"""Ahead-of-time builds of the Triton kernels, in processes of their own."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

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


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled")
def test_head_counts_share_kernels() -> None:
    """Another number of heads or sequences compiles nothing; another group one kernel."""
    from fastseq.kernels import attention
    from fastseq.kernels.launch import record

    def sources(batch: int, heads: int, key_heads: int) -> dict[str, str]:
        new = lambda *shape: torch.empty(shape, dtype=torch.bfloat16, device="meta")  # noqa: E731
        q, k, bias = new(batch, heads, 96, 64), new(batch, key_heads, 96, 64), new(1, 1, 96, 96)
        context = (bias, None, None, None, None, 0.125, -1, -1, False, 0.0, 0.0, 96, 96)
        with record() as launches:
            out, lse = attention.attention_forward(q, k, k, *context)
            attention.attention_backward(out, lse, q, k, k, out, lse, *context, True)
            for average in (False, True):
                attention.attention_weights(q, k, lse, bias, *context[3:], average)
            lengths = torch.empty(batch, dtype=torch.int32, device="meta")
            attention.attention_decode(q, k, k, lengths, None, None, 0.125, -1, -1, 0.0)
        return {
            f"{n} {launch.kernel.__name__}": aot._source(launch).hash()
            for n, launch in enumerate(launches)
        }

    eight = sources(2, 8, 8)
    assert len(eight) == 9
    assert sources(3, 12, 12) == eight
    grouped = sources(2, 12, 3)
    changed = [name for name, source in grouped.items() if source != eight[name]]
    assert changed == ["2 attention_backward_keys"]


def test_limits_are_held() -> None:
    roomy = aot.TARGETS["sm_90"].limits
    assert aot.problem_of(roomy.shared, 0, roomy) == ""
    assert "shared" in aot.problem_of(roomy.shared + 1, 0, roomy)
    assert aot.problem_of(0, aot.SPILL_BOUND, roomy) == ""
    assert "spills" in aot.problem_of(0, aot.SPILL_BOUND + 1, roomy)
