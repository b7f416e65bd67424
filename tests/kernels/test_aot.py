"""Ahead-of-time builds of the Triton kernels, in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
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


def compiled_for(launch: Callable[..., None], *arguments: object) -> dict[str, str]:
    """Which kernels a call asks for: by number and name, what identifies their sources."""
    from fastseq.kernels.device import assume
    from fastseq.kernels.launch import record

    assume(aot.TARGETS["sm_90"].limits)
    with record() as launches:
        launch(*arguments)
    return {f"{n} {x.kernel.__name__}": aot._source(x).hash() for n, x in enumerate(launches)}


def new(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def attend(batch: int, heads: int, key_heads: int, length: int, bias: bool = False) -> None:
    from fastseq.kernels import attention

    q, k = new(batch, heads, length, 64), new(batch, key_heads, length, 64)
    mask = new(1, 1, length, length) if bias else None
    context = (mask, None, None, None, None, 0.125, -1, -1, False, 0.0, 0.0, length, length)
    out, *sums = attention.attention_forward(q, k, k, *context)
    attention.attention_backward(out, sums[0], q, k, k, out, *sums, *context, bias)
    for average in (False, True):
        attention.attention_weights(q, k, *sums, mask, *context[3:], average)


def attend_packed(batch: int, tokens: int, longest: int) -> None:
    from fastseq.kernels import attention

    q, bounds = new(1, 8, tokens, 64), new(batch + 1, dtype=torch.int32)
    context = (None, bounds, bounds, None, None, 0.125, -1, 0, False, 0.0, 0.0, longest, longest)
    out, *sums = attention.attention_forward(q, q, q, *context)
    attention.attention_backward(out, sums[0], q, q, q, out, *sums, *context, False)


def decode(batch: int, heads: int, key_heads: int, pages: int, page: int = 0) -> None:
    """``page`` 0: a contiguous cache of that many tokens."""
    from fastseq.kernels import attention

    cache, table = new(batch, key_heads, pages, 64), None
    if page:
        cache = new(batch * pages, key_heads, page, 64)
        table = new(batch, pages, dtype=torch.int32)
    lengths = new(batch, dtype=torch.int32)
    q = new(batch, heads, 1, 64)
    attention.attention_decode(q, cache, cache, lengths, table, None, 0.125, -1, -1, 0.0)


def attend_additively(batch: int, queries: int, keys: int) -> None:
    from fastseq.kernels import additive

    q, k, v = new(batch, queries, 512), new(batch, keys, 512), new(512)
    mask = new(batch, 1, keys, dtype=torch.bool)
    out, weights = additive.additive_attention_forward(q, k, k, v, mask)
    additive.additive_attention_backward(out, None, q, k, k, v, weights, mask)


def scan(kernel: str, mode: str, hidden: int, batch: int) -> None:
    from fastseq.kernels.rnn_builds import _scan

    for backward in (False, True):
        _scan(kernel, mode, torch.float16, hidden, batch=batch, extras=True, backward=backward)


compiles = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled"
)


@compiles
def test_head_counts_share_kernels() -> None:
    """Another number of heads or sequences compiles nothing; another group one kernel."""
    both = (2, 8, 8, 96, True), (3, 12, 12, 96, True)
    eight, twelve = (compiled_for(attend, *arguments) for arguments in both)
    assert len(eight) == 7
    assert twelve == eight
    grouped = compiled_for(attend, 2, 12, 3, 96, True)
    changed = [name for name, source in grouped.items() if source != eight[name]]
    assert changed == ["2 attention_backward_keys"]
    assert compiled_for(decode, 2, 8, 8, 96) == compiled_for(decode, 3, 12, 3, 96)


@compiles
@pytest.mark.parametrize(
    ("launch", "calls"),
    [
        (attend, [(2, 8, 8, 1023), (3, 8, 8, 1000), (1, 8, 8, 515)]),
        (attend, [(2, 8, 8, 1024), (1, 8, 8, 512)]),  # whole tiles: unchecked
        (attend_packed, [(2, 1024, 600), (3, 1001, 333), (7, 512, 100)]),
        (decode, [(2, 32, 4, 4096), (3, 32, 4, 1001)]),
        (decode, [(2, 32, 4, 256, 16), (3, 32, 4, 65, 16)]),
        (attend_additively, [(8, 60, 50), (7, 33, 16), (2, 17, 48)]),
        *(
            (scan, [(kernel, mode, hidden, batch) for batch in (16, 15, 13)])
            for kernel, hidden in (("step", 512), ("sequence", 64), ("persistent", 512))
            for mode in ("LSTM", "GRU", "RNN_TANH")
        ),
    ],
    ids=lambda x: x.__name__ if callable(x) else str(x[0]),
)
def test_batches_share_kernels(
    launch: Callable[..., None], calls: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of another size or length compiles nothing: training does not stop for it."""
    monkeypatch.setenv("FASTSEQ_RNN_KERNEL", "")  # which a scan sets
    first, *others = (compiled_for(launch, *arguments) for arguments in calls)
    assert first
    assert others == [first] * len(others)


def test_precision_is_the_builds_own() -> None:
    """Not what the process was set to, or left with by the build before."""
    code = """
import torch
from fastseq.kernels import aot, attention_builds
from fastseq.kernels.launch import record
for label, _, launch in attention_builds.builds(aot.TARGETS["sm_90"].limits):
    for left in ("tf32", "ieee"):
        torch.backends.cuda.matmul.fp32_precision = left
        with record() as launches:
            launch()
        values = launches[0].values
        if values["q"].dtype == torch.float32:
            print(label.split(), values["PRECISION"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any("mask=added" in line for line in lines) and "['D=128'] tf32x3" in lines
    for line in lines:
        assert line.endswith("'tf32'] tf32" if "'tf32'" in line else "] tf32x3"), line


def test_limits_are_held() -> None:
    roomy = aot.TARGETS["sm_90"].limits
    assert aot.problem_of(roomy.shared, 0, roomy) == ""
    assert "shared" in aot.problem_of(roomy.shared + 1, 0, roomy)
    assert aot.problem_of(0, aot.SPILL_BOUND, roomy) == ""
    assert "spills" in aot.problem_of(0, aot.SPILL_BOUND + 1, roomy)
