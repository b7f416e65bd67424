"""Triton's interpreter with a thread for each program: for programs that wait for one another.

The stock interpreter runs programs one after another; a persistent kernel would wait for ever.
"""

import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from triton.runtime import interpreter

_here = threading.local()


def _run_grid(self, *args_dev, **kwargs) -> None:
    """``GridExecutor.__call__`` with a thread for each program."""
    argspec = inspect.getfullargspec(self.fn)
    kwargs = {k: v for k, v in kwargs.items() if k in argspec.args or k in argspec.kwonlyargs}
    args_hst, kwargs_hst = self._init_args_hst(args_dev, kwargs)
    scope = interpreter._patch_lang(self.fn)
    failures = []

    def run(index, args):
        _here.grid_idx = index
        try:
            self.fn(**args)
        except BaseException as failure:
            failures.append(failure)

    try:
        args = inspect.getcallargs(self.fn, *args_hst, **kwargs_hst)
        args = {
            name: arg if name in self.constexprs else interpreter._implicit_cvt(arg)
            for name, arg in args.items()
        }
        grid = tuple(self.grid) + (1,) * (3 - len(self.grid))
        interpreter.interpreter_builder.set_grid_dim(*grid)
        threads = [
            threading.Thread(target=run, args=((x, y, z), args), daemon=True)
            for x in range(grid[0])
            for y in range(grid[1])
            for z in range(grid[2])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        if failures:
            raise failures[0]
        if any(thread.is_alive() for thread in threads):
            raise TimeoutError("a program waits for ever")
    finally:
        if scope is not None:
            scope.restore()
    self._restore_args_dev(args_dev, args_hst, kwargs, kwargs_hst)


@contextmanager
def concurrent_programs() -> Iterator[None]:
    builder = type(interpreter.interpreter_builder)
    serial = interpreter.GridExecutor.__call__
    interval = sys.getswitchinterval()
    # At a call of a device function the interpreter walks its module's globals, or adds to them.
    lock = threading.RLock()
    walks = interpreter._patch_lang, interpreter.InterpretedFunction.rewrite

    def alone(function):
        def call(*args):
            with lock:
                return function(*args)

        return call

    # Each thread has a program id of its own.
    builder.grid_idx = property(
        lambda self: getattr(_here, "grid_idx", None),
        lambda self, index: setattr(_here, "grid_idx", index),
    )
    interpreter.GridExecutor.__call__ = _run_grid
    interpreter._patch_lang, interpreter.InterpretedFunction.rewrite = map(alone, walks)
    sys.setswitchinterval(1e-4)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        interpreter.GridExecutor.__call__ = serial
        interpreter._patch_lang, interpreter.InterpretedFunction.rewrite = walks
        del builder.grid_idx
