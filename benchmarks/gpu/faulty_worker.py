"""A worker whose first three jobs of every stage go wrong: what the rehearsal tries a run with."""

import os
import signal
import time

from ...kernels.processes import Answer, serve
from .stages import STAGES
from .worker import performer


def _raise() -> None:
    raise RuntimeError("raised on purpose")


FAULTS = (_raise, lambda: time.sleep(3600), lambda: os.kill(os.getpid(), signal.SIGSEGV))


def main() -> None:
    right = performer()
    places = {s.name: {job: n for n, job in enumerate(s.jobs())} for s in STAGES}

    def perform(job: list[str]) -> Answer:
        place = places[job[0]][job[1]]
        if place < len(FAULTS):
            FAULTS[place]()
        return right(job)

    serve(perform)


if __name__ == "__main__":
    main()
