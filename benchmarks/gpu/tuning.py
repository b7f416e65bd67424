"""Compiling all that a tuner would choose from, without timing it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from triton.compiler.errors import CompileTimeAssertionFailure
from triton.runtime.autotuner import Autotuner
from triton.runtime.errors import OutOfResources, PTXASError


def _run_once(self: Any, *args: Any, config: Any, **meta: Any) -> list[float]:
    try:
        self.fn.run(*args, **meta, **config.all_kwargs())
    except (OutOfResources, CompileTimeAssertionFailure, PTXASError):
        return [float("inf")] * 3
    return [1.0] * 3


def _keep_nothing(self: Any, key: Any, configs: Any, benchmark: Callable[[], None]) -> bool:
    benchmark()
    return False


@contextmanager
def untimed() -> Iterator[None]:
    """Inside, tuners run each candidate once, take the first, and keep no choice on disk."""
    before = Autotuner._bench, Autotuner.check_disk_cache
    Autotuner._bench, Autotuner.check_disk_cache = _run_once, _keep_nothing
    try:
        yield
    finally:
        Autotuner._bench, Autotuner.check_disk_cache = before
