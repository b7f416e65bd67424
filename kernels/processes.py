"""Jobs in processes of their own, so that one that fails, hangs or dies costs itself alone.

A worker is a Python process that runs ``serve(perform)``: it reads jobs, a line of JSON each, and
answers each with one. It leads a process group and is ended with it, so nothing is left behind.
No torch, no Triton: whoever only watches needs neither a card nor its memory.
"""

import contextlib
import faulthandler
import json
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Answer = dict[str, Any]
START = 120.0  # seconds that a worker may take to start
_ANSWERS = "FASTSEQ_ANSWERS"  # the number of the pipe, for the worker
# After these the device is lost to the process that met them.
_FATAL = (
    "CUDA error",
    "Triton Error [CUDA]",
    "illegal memory access",
    "unspecified launch failure",
)


class Failed(Exception):
    """A job that its worker could not answer; the message says why."""


def failure(error: BaseException) -> Answer:
    """What a job answers that raised: ``fatal`` where its process is of no more use."""
    text = f"{type(error).__name__}: {error}"
    where = traceback.extract_tb(error.__traceback__)
    if where:
        text += f" ({os.path.basename(where[-1].filename)}:{where[-1].lineno})"
    fatal = any(words in text for words in _FATAL) and "out of memory" not in text
    return {"failure": text[-2000:], "fatal": fatal}


def serve(perform: Callable[[Any], Answer]) -> None:
    """The worker's side: answers jobs until there are no more, or the process is of no more use."""
    faulthandler.enable()  # a process that dies says where
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(jobs,), daemon=True).start()
    with os.fdopen(int(os.environ.pop(_ANSWERS)), "w") as answers:
        print("{}", file=answers, flush=True)  # started
        while True:
            try:
                answer = perform(json.loads(jobs.get()))
            except Exception as error:
                answer = failure(error)
            print(json.dumps(answer, default=str), file=answers, flush=True)
            if answer.get("fatal"):
                return


def _receive(jobs: "queue.SimpleQueue[str]") -> None:
    """Reads jobs; where whoever gave them has ended, so does the worker, whatever it is doing."""
    for line in sys.stdin:
        jobs.put(line)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


class Worker:
    """A process that serves jobs, and what it says on its output."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        ours, theirs = os.pipe()
        self.said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=self.said, stderr=self.said, text=True,
            pass_fds=(theirs,), env={**environment, _ANSWERS: str(theirs)}, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.started = self.busy = False
        self._answers, self._read = ours, b""

    def ask(self, job: Any, seconds: float) -> Answer:
        """The worker's answer to ``job``; raises Failed where it gives none in time."""
        self.busy = True
        if not self.started:
            self._answer(START, "starting")
            self.started = True
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the read below says why
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        answer = self._answer(seconds, "answering")
        self.busy = False
        return answer

    def _answer(self, seconds: float, doing: str) -> Answer:
        end = time.monotonic() + seconds
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise Failed(f"no end of {doing} in {seconds:.0f} s{self._last_words()}")
            part = os.read(self._answers, 1 << 16)
            if not part:
                code = self.process.wait()
                how = f"signal {-code}" if code < 0 else f"exit {code}"
                raise Failed(f"died of {how} while {doing}{self._last_words()}")
            self._read += part
        line, self._read = self._read.split(b"\n", 1)
        return json.loads(line)

    def _last_words(self) -> str:
        self.said.seek(0)
        # faulthandler ends with a list of all extension modules.
        words = self.said.read().split("\n\nExtension modules")[0][-1500:].strip()
        return f": {words}" if words else ""

    def end(self) -> None:
        """Ends the worker and all that it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for file in (self.process.stdin, self.said):
            with contextlib.suppress(BrokenPipeError):
                file.close()  # type: ignore[union-attr]
        with contextlib.suppress(OSError):
            os.close(self._answers)


@dataclass
class Pool:
    """Workers started by ``command``; a context: all end with it."""

    command: list[str]
    environment: Mapping[str, str]
    workers: int = 1

    def __post_init__(self) -> None:
        self._ended = False
        self._idle: list[Worker] = []
        self._all: list[Worker] = []
        self._lock = threading.Lock()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self, count: int) -> None:
        """Starts workers ahead of their first jobs."""
        for _ in range(count):
            self._idle.append(self._new())

    def _new(self) -> Worker:
        worker = Worker(self.command, self.environment)
        with self._lock:
            self._all.append(worker)
            ended = self._ended
        if ended:  # while it was started
            self._discard(worker)
            raise Failed("there is no more work")
        return worker

    def end(self) -> None:
        with self._lock:
            self._ended = True
            workers, self._all, self._idle = self._all, [], []
        for worker in workers:
            worker.end()

    def _take(self) -> Worker:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._new()

    def _discard(self, worker: Worker) -> None:
        with self._lock:
            known = worker in self._all
            if known:
                self._all.remove(worker)
        if known:
            worker.end()

    def each(
        self, jobs: Iterable[Any], seconds: float, end: float = float("inf")
    ) -> Iterator[tuple[Any, Answer]]:
        """(job, answer) as they come, ``seconds`` a job at most, none after ``end`` (monotonic).

        Jobs that ``end`` cuts off, or that were not begun, do not come.
        """
        waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        count = 0
        for job in jobs:
            waiting.put(job)
            count += 1
        answers: queue.SimpleQueue[tuple[Any, Answer] | None] = queue.SimpleQueue()

        def work() -> None:
            worker = None
            stillborn = 0
            while stillborn < 2 and time.monotonic() < end and not self._ended:
                try:
                    job = waiting.get_nowait()
                except queue.Empty:
                    break
                try:
                    worker = worker or self._take()
                    answer = worker.ask(job, min(seconds, max(0.1, end - time.monotonic())))
                    stillborn = 0
                except Failed as why:
                    if self._ended or time.monotonic() >= end:  # the job is not to blame
                        break
                    answer = {"failure": str(why), "fatal": True}
                    stillborn = 0 if worker is not None and worker.started else stillborn + 1
                except Exception as error:  # ended from outside
                    answer = failure(error) | {"fatal": True}
                if answer.get("fatal") and worker is not None:
                    self._discard(worker)
                    worker = None
                answers.put((job, answer))
            if worker is not None and worker.busy:
                self._discard(worker)
            elif worker is not None:
                with self._lock:
                    self._idle.append(worker)
            answers.put(None)

        threads = min(self.workers, count)
        for _ in range(threads):
            threading.Thread(target=work, daemon=True).start()
        while threads:
            answer = answers.get()
            if answer is None:
                threads -= 1
            else:
                yield answer
