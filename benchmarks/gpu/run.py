"""Runs the stages within one limit of time, and writes each result when it is made.

``results.jsonl`` is the record: a line a job, flushed. All else in the folder is made from it by
report.py, after each stage and at the end.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from ...kernels.check import environment
from ...kernels.processes import Answer, Pool, failure
from . import report
from .results import Result, failed, told
from .stages import STAGES, Stage

REPORT_SECONDS = 6.0  # kept for the last report


class Interrupted(BaseException):
    """The process was asked to end."""


class Run:
    """One run into ``out``; ``earlier`` results are taken over and their jobs not done again."""

    def __init__(
        self,
        out: Path,
        seconds: float,
        stages: Sequence[Stage] = STAGES,
        earlier: Sequence[Result] = (),
        settings: dict[str, str] | None = None,
        command: Sequence[str] = (sys.executable, "-m", "fastseq.benchmarks.gpu.worker"),
        processes: int | None = None,
    ) -> None:
        self.begin = time.monotonic()
        self.end = self.begin + seconds
        self.out, self.stages, self.results = out, stages, list[Result]()
        self.planned: dict[str, int] = {}
        self.processes = processes or min(16, os.cpu_count() or 1)
        cores = os.cpu_count() or 1
        self.command = list(command)
        self.environment = {
            **environment(False, threads=1 + (cores >= 2 * self.processes)),
            **(settings or {}),
        }
        out.mkdir(parents=True, exist_ok=True)
        self.log = (out / "results.jsonl").open("w")
        for result in earlier:
            self._record({**result, "earlier": True})

    def _record(self, result: Result) -> None:
        self.results.append(result)
        print(json.dumps(result, default=str), file=self.log, flush=True)

    def __call__(self) -> int:
        """All stages; 0 where nothing failed."""
        with ended_by_signals(), Pool(self.command, self.environment) as alone:
            try:
                alone.start(1)  # it loads its libraries while others work
                for n, stage in enumerate(self.stages):
                    shares = sum(s.share for s in self.stages[n:])
                    left = self.end - REPORT_SECONDS - time.monotonic()
                    self._stage(stage, alone, time.monotonic() + left * stage.share / shares)
                    self._report(pictures=False)
            except Interrupted as why:
                print(f"interrupted: {why}", flush=True)
        print("\n".join(["", *self._report(pictures=True), ""]), flush=True)
        self.log.close()
        print(f"{time.monotonic() - self.begin:.0f} s in all; written: {self.out}", flush=True)
        return int(any(failed(result) for result in self.results))

    def _stage(self, stage: Stage, alone: Pool, end: float) -> None:
        """A stage up to ``end``; what goes wrong in it is a result of it, and stays there."""
        begin = time.monotonic()
        try:
            done = {r["job"] for r in self.results if r["stage"] == stage.name}
            jobs = stage.jobs()
            self.planned[stage.name] = len(jobs)
            todo = [[stage.name, job] for job in jobs if job not in done]
            print(
                f"== {stage.title}: {len(todo)} of {len(jobs)} jobs, {end - begin:.0f} s",
                flush=True,
            )
            if stage.alone:
                self._each(alone, stage, todo, end)
            else:
                with Pool(self.command, self.environment, self.processes) as pool:
                    self._each(pool, stage, todo, end)
        except Exception as error:
            self._note(stage, "(the stage itself)", failure(error))
        print(f"   {time.monotonic() - begin:.0f} s", flush=True)

    def _each(self, pool: Pool, stage: Stage, jobs: list[list[str]], end: float) -> None:
        for (_, job), answer in pool.each(jobs, stage.job_seconds, end):
            self._note(stage, job, answer)

    def _note(self, stage: Stage, job: str, answer: Answer) -> None:
        at = round(time.monotonic() - self.begin, 1)
        result = {"stage": stage.name, "job": job, "at": at, **answer}
        self._record(result)
        print(f"{at:6.1f} s  {told(result)}", flush=True)

    def _report(self, pictures: bool) -> list[str]:
        """What one reads first of it."""
        try:
            return report.write(self.results, self.stages, self.planned, self.out, pictures)
        except Exception as error:  # the record is on disk: report.py can be run again
            return [f"no report: {failure(error)['failure']}"]


@contextmanager
def ended_by_signals():
    """SIGTERM and Ctrl-C raise Interrupted inside."""

    def stop(number, _frame):
        raise Interrupted(signal.Signals(number).name)

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)
