"""Model types in processes of their own, a few at a time, each with a limit of time."""

import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from .compare import CRASHED, NOT_BUILT, TOO_LONG, Outcome, examine, quiet


def examined(wanted: list[str], jobs: int, seconds: float) -> Iterator[Outcome]:
    """Outcomes as they come; a process each, forked from one that has everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.zoo.pool"])
    waiting = list(reversed(wanted))
    running: dict[Connection, tuple[str, BaseProcess, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            kind = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(kind, sender), daemon=True)
            process.start()
            sender.close()
            running[receiver] = (kind, process, time.monotonic() + seconds)
        for receiver in [*wait(list(running), timeout=1)] or list(running):
            assert isinstance(receiver, Connection)
            kind, process, end = running[receiver]
            if receiver.poll():
                try:
                    yield receiver.recv()
                except EOFError:
                    process.join()
                    note = f"the process ended with {process.exitcode}"
                    yield Outcome(kind, "", CRASHED, None, note)
            elif time.monotonic() > end:
                process.kill()
                yield Outcome(kind, "", TOO_LONG, None, f"more than {seconds:.0f} s")
            else:
                continue
            process.join()
            del running[receiver]


def _work(kind: str, sender: Connection) -> None:
    quiet()
    try:
        outcome = examine(kind)
    except Exception as error:
        outcome = Outcome(kind, "", NOT_BUILT, None, repr(error)[:160])
    sender.send(outcome)
