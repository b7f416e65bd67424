"""Jobs in worker processes: one that raises, hangs or dies costs itself alone; nothing stays."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastseq.kernels import processes
from fastseq.kernels.processes import Pool, failure

# Found by its file's name alone, it starts in no time.
HERE = {**os.environ, "PYTHONPATH": str(Path(processes.__file__).parent)}
WORKER = """
import os, signal, subprocess, sys, time
from processes import serve

def perform(job):
    if job == "raise":
        raise ValueError("no such thing")
    if job == "lost":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if job == "hang":
        child = subprocess.Popen(["sleep", "600"])
        print("child", child.pid, flush=True)
        time.sleep(600)
    if job == "exit":
        print("last words", file=sys.stderr, flush=True)
        os._exit(3)
    if job == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    print("noise on the output")
    return {"job": job, "pid": os.getpid()}

serve(perform)
"""


def pool(workers: int = 1, code: str = WORKER) -> Pool:
    return Pool([sys.executable, "-c", code], HERE, workers)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("workers", [1, 3])
def test_each_failure_costs_its_job_alone(workers: int) -> None:
    jobs = ["a", "raise", "b", "lost", "c", "hang", "d", "exit", "e", "crash", "f"]
    with pool(workers) as workplace:
        answers = dict(workplace.each(jobs, seconds=3))
        groups = {worker.process.pid for worker in workplace._all}
    assert set(answers) == set(jobs)
    assert all(answers[job]["job"] == job for job in "abcdef")
    assert answers["raise"] == {
        "failure": "ValueError: no such thing (<string>:7)", "fatal": False,
    }  # fmt: skip
    assert answers["lost"]["fatal"]  # the next job got a process of its own
    assert "no end of answering in 3 s" in answers["hang"]["failure"]
    assert "exit 3" in answers["exit"]["failure"] and "last words" in answers["exit"]["failure"]
    assert "signal 11" in answers["crash"]["failure"]
    if workers == 1:
        pids = [answers[job]["pid"] for job in "abcdef"]
        assert pids[0] == pids[1] and len(set(pids)) == 5
    assert not any(map(alive, groups))


def test_a_group_ends_as_a_whole() -> None:
    with pool() as workplace:
        ((_, answer),) = workplace.each(["hang"], seconds=1)
    child = int(answer["failure"].split("child ")[1].split()[0])
    status = Path(f"/proc/{child}/stat")
    time.sleep(0.1)
    assert not status.exists() or status.read_text().split()[2] == "Z"


def test_jobs_beyond_the_end_do_not_come_and_are_not_blamed() -> None:
    begin = time.monotonic()
    with pool() as workplace:
        answers = dict(workplace.each(["a", "hang", "b"], seconds=600, end=begin + 4))
    assert set(answers) == {"a"}
    assert time.monotonic() - begin < 30


def test_workers_that_do_not_start_are_told_and_not_tried_for_ever() -> None:
    with pool(code="raise SystemExit('no such module')") as workplace:
        answers = dict(workplace.each("abcdefgh", seconds=5))
    assert 1 <= len(answers) <= 2
    assert all("no such module" in a["failure"] for a in answers.values())


def test_workers_end_with_the_process_that_started_them() -> None:
    code = (
        "import os, sys\nfrom processes import Pool\n"
        f"workplace = Pool([sys.executable, '-c', {WORKER!r}], dict(os.environ))\n"
        "print(dict(workplace.each(['a'], 60))['a']['pid'], flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=HERE, capture_output=True, text=True)
    worker = int(done.stdout)
    for _ in range(50):
        time.sleep(0.1)
        status = Path(f"/proc/{worker}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
    raise AssertionError("the worker lives on")


def test_out_of_memory_is_not_the_end_of_a_process() -> None:
    assert not failure(RuntimeError("CUDA out of memory. Tried to allocate"))["fatal"]
    assert failure(RuntimeError("Triton Error [CUDA]: an illegal memory access"))["fatal"]
    assert not failure(ValueError("shape"))["fatal"]
