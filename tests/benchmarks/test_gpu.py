"""``make gpu`` without a card: what goes wrong costs itself alone, and all else is on disk."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fastseq import kernels
from fastseq.benchmarks.gpu import report
from fastseq.benchmarks.gpu.results import failed, read
from fastseq.benchmarks.gpu.run import Run
from fastseq.benchmarks.gpu.stages import STAGES, Stage

COMMAND = (sys.executable, str(Path(__file__).with_name("gpu_worker.py")))


def stage(name: str, *jobs: str, alone: bool = True, share: float = 1.0) -> Stage:
    return Stage(name, f"Title of {name}", share, 2.0, alone, lambda: [*jobs], lambda _: {})


def run(out: Path, *stages: Stage, seconds: float = 60, earlier=()) -> int:
    return Run(out, seconds, stages, earlier, command=COMMAND, processes=2)()


def jobs(out: Path) -> dict[str, dict]:
    return {f"{r['stage']} {r['job']}": r for r in read(out)}


def test_every_result_is_kept_and_shown(tmp_path: Path) -> None:
    code = run(
        tmp_path,
        stage("facts", "card"),
        stage("smoke", "a", "wrong b", alone=False),
        stage("rnn", "x 2", "y 0.5"),
        stage("attention", "new 3"),
    )
    assert code == 1  # something is wrong
    assert len(read(tmp_path)) == 6
    text = (tmp_path / "REPORT.md").read_text()
    assert "# fastseq on test card" in text
    assert "Title of smoke: **1 of 2 right**" in text
    assert "| smoke | wrong b | error over the allowed: {'output': 2.0} |" in text
    assert "Recurrent layers: **1.00× torch** over 2 cases, 1 under 0.95×" in text
    assert "0.50× y 0.5" in text and "compiled here: 1" in text and "1 of a_kernel" in text
    assert json.loads((tmp_path / "rnn.json").read_text())["summary"]["ok"] == 2
    for picture in ("rnn-overview.png", "attention-overview.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) <= 8


def test_all_right_is_0(tmp_path: Path) -> None:
    assert run(tmp_path, stage("smoke", "a", "b", alone=False)) == 0


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("what", ["raise", "hang", "die"])
def test_a_job_that_fails_costs_itself_alone(tmp_path: Path, what: str, alone: bool) -> None:
    assert run(tmp_path, stage("smoke", "a", what, "b", alone=alone), stage("rnn", "x 2")) == 1
    found = jobs(tmp_path)
    assert {name for name, r in found.items() if not failed(r)} == {"smoke a", "smoke b", "rnn x 2"}
    said = {"raise": "raised on purpose", "hang": "no end of answering in 2 s", "die": "signal 11"}
    assert said[what] in found[f"smoke {what}"]["failure"]
    assert said[what] in (tmp_path / "REPORT.md").read_text()


def test_a_stage_that_raises_costs_itself_alone(tmp_path: Path) -> None:
    def raises() -> list[str]:
        raise RuntimeError("no jobs today")

    broken = replace(stage("rnn"), jobs=raises)
    assert run(tmp_path, stage("smoke", "a"), broken, stage("attention", "x 2")) == 1
    assert "no jobs today" in jobs(tmp_path)["rnn (the stage itself)"]["failure"]
    assert jobs(tmp_path)["attention x 2"]["status"] == "ok"


def test_time_is_shared_and_what_was_made_is_there_when_it_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastseq.benchmarks.gpu.run.REPORT_SECONDS", 0.0)
    many = [f"slow {n}" for n in range(100)]
    begin = time.monotonic()
    code = run(
        tmp_path, stage("smoke", *many, alone=False), stage("rnn", *many), stage("parity", *many),
        seconds=12,
    )  # fmt: skip
    assert time.monotonic() - begin < 25  # the pictures too
    assert code == 0  # nothing is blamed on what was not reached
    counts = {name: sum(r["stage"] == name for r in read(tmp_path)) for name in ("smoke", "rnn")}
    assert all(2 <= count < 40 for count in counts.values())
    assert any(r["stage"] == "parity" for r in read(tmp_path))
    text = (tmp_path / "REPORT.md").read_text()
    assert f"{100 - counts['smoke']} not reached" in text


def test_time_that_a_stage_leaves_goes_to_those_after_it(tmp_path: Path) -> None:
    slow = [f"slow {n}" for n in range(12)]  # 5 s
    first, second = stage("smoke", "a", share=100.0), stage("parity", *slow)
    assert run(tmp_path, first, second, seconds=20) == 0
    assert len(read(tmp_path)) == 13


def test_a_run_goes_on_where_one_stopped(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run(first, stage("smoke", "a", "wrong b"))
    (first / "results.jsonl").open("a").write('{"stage": "smo')  # cut off
    earlier = [r for r in read(first) if not failed(r)]
    assert run(second, stage("smoke", "a", "wrong b", "c"), earlier=earlier) == 1
    found = jobs(second)
    assert list(found) == ["smoke a", "smoke wrong b", "smoke c"]  # what was wrong, again
    assert found["smoke a"]["earlier"] and "earlier" not in found["smoke wrong b"]
    assert "Taken over from an earlier run: 1" in (second / "REPORT.md").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_its_results(tmp_path: Path, number: int) -> None:
    code = f"""
import sys
from pathlib import Path
from tests.benchmarks.test_gpu import run, stage
run(Path({str(tmp_path)!r}), stage("smoke", "a"), stage("rnn", "x 2", "hang"))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if " x 2" in line:
            break
    process.send_signal(number)
    process.wait(30)
    assert [r["job"] for r in read(tmp_path)] == ["a", "x 2"]
    text = (tmp_path / "REPORT.md").read_text()  # of the stage before, where there was no time
    assert "Title of smoke: **1 of 1 right**" in text
    assert ("2.00× x 2" in text) == (number == signal.SIGTERM)


def test_a_card_of_paper_is_told_in_everything_that_is_written(tmp_path: Path) -> None:
    stages = stage("facts", "card"), stage("rnn", "x 2")
    run(tmp_path, *stages)
    record = json.loads((tmp_path / "rnn.json").read_text())
    assert "rehearsal" not in record and report.ON_PAPER not in (tmp_path / "REPORT.md").read_text()
    report.write([{**r, "paper": True} for r in read(tmp_path)], stages, {}, tmp_path)
    assert json.loads((tmp_path / "rnn.json").read_text())["rehearsal"] is True
    assert report.ON_PAPER in (tmp_path / "REPORT.md").read_text()


def test_the_rehearsal_counts_what_was_not_made() -> None:
    from fastseq.benchmarks.gpu.rehearsal import lost

    def result(job: str, **answer: object) -> dict:
        return {"stage": "rnn", "job": job, "at": 1.0, **answer}

    right = [
        result("a", status="ok"),
        result("b", status="failed parity"),
        result("c", passed=False),
    ]
    assert lost(right, {"rnn": 3}) == []  # wrong on paper: none of the run's faults
    wrong = [result("d", failure="died"), result("e", status="error", reason="why"),
             result("a beam 4", failure="no scores")]  # fmt: skip
    assert lost(right + wrong, {"rnn": 8, "attention": 2}) == [
        "rnn d: died", "rnn e: why", "rnn: 2 not reached", "attention: 2 not reached",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("========= ERROR SUMMARY: 0 errors", {"passed": True}),
        ("========= Invalid __global__ read\n========= ERROR SUMMARY: 3 errors", {"passed": False}),
        ("========= Error: device not supported", {}),
    ],
)
def test_what_the_sanitizer_says(said: str, expected: dict, monkeypatch) -> None:
    from fastseq.benchmarks.gpu import stages

    done = subprocess.CompletedProcess([], 0, said, "")
    monkeypatch.setattr(stages.subprocess, "run", lambda *_, **__: done)
    answer = stages._sanitize("a case")
    assert answer == expected | {"sanitizer" if expected else "skipped": said}


def test_stages_are_chosen() -> None:
    from fastseq.benchmarks.gpu.__main__ import ROOT, arguments, chosen, is_of_results

    assert [s.name for s in chosen("", warm=False)] == [s.name for s in STAGES]
    assert "compile" not in [s.name for s in chosen("", warm=True)]
    assert [s.name for s in chosen("parity,rnn", warm=True)] == ["rnn", "parity"]
    for results in ("benchmarks/results/latest", "benchmarks/results"):
        assert is_of_results(ROOT / results)
    assert not is_of_results(ROOT / "build") and not is_of_results(Path("/elsewhere"))
    with pytest.raises(SystemExit):
        arguments(["--only", "smoke,spoke"])
    with pytest.raises(SystemExit):
        arguments(["--resume", "/nowhere"])


def test_stages_are_sound() -> None:
    names = [s.name for s in STAGES]
    assert names[:2] == ["facts", "smoke"] and len(set(names)) == len(names)
    for each in STAGES:
        if each.name != "sanitizer":  # where that is installed
            listed = each.jobs()
            assert len(listed) == len(set(listed)) > 0
    smoke = " ".join(STAGES[1].jobs())
    for kernel in ("step", "sequence", "persistent"):
        for mode in ("LSTM", "GRU", "RNN_TANH"):
            assert f"{kernel} {mode}" in smoke
    for kernel in ("causal", "bias", "dropout", "packed", "decode", "pages", "additive"):
        assert kernel in smoke
    # Nothing is in both.
    rest = next(s for s in STAGES if s.name == "parity").jobs()
    assert not set(rest) & set(STAGES[1].jobs())


@pytest.mark.skipif(not kernels.available(), reason=str(kernels.reason()))
def test_packed_kernels_are_found_wherever_they_are_unpacked(tmp_path: Path) -> None:
    from fastseq.benchmarks.gpu import cache

    made, packed, there = tmp_path / "made", tmp_path / "kernels.tar.xz", tmp_path / "there"
    code = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fastseq.benchmarks.gpu.facts import add_step
heard = []
triton.knobs.compilation.listener = lambda **told: heard.append(told["cache_hit"])
source = ASTSource(add_step, {"x": "*i32", "s": "i32"})
triton.compile(source, target=GPUTarget("cuda", 90, 32))
print(heard)
"""

    def compiled(folder: Path) -> str:
        given = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        given |= cache.environment(folder)
        done = subprocess.run(
            [sys.executable, "-c", code], env=given, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[-1]

    assert compiled(made) == "[False]"
    (made / "choice").mkdir()
    (made / "choice" / "add_step.autotune.json").write_text("{}")
    assert cache.pack(made, packed, "9.0") == 1
    with tarfile.open(packed) as tar:
        assert {Path(name).suffix for name in tar.getnames()} == {".json", ".cubin"}
        assert not any("autotune" in name for name in tar.getnames())
    made.rename(tmp_path / "elsewhere")
    assert cache.unpack(packed, there) == {"key": cache.key(), "capability": "9.0"}
    assert compiled(there) == "[True]"
