"""Launching Triton kernels by argument name, and recording launches instead of making them.

Ahead-of-time builds run the launchers on meta tensors while recording, so that they compile exactly
what a device would be asked to run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

_recording: "list[Launch] | None" = None


@dataclass
class Launch:
    """A kernel with its arguments, to be launched once or, with ``s`` changing, once a step."""

    kernel: Any
    values: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    tile: str = ""  # for tables

    def __post_init__(self) -> None:
        names = self.kernel.arg_names
        self.arguments = [0 if name == "s" else self.values[name] for name in names]
        self._step = names.index("s") if "s" in names else None

    def __call__(self, grid: tuple[int, ...], s: int = 0) -> None:
        if _recording is not None:
            _recording.append(self)
            return
        if self._step is not None:
            self.arguments[self._step] = s
        # Fused multiply-add is not Triton's default in every release.
        self.kernel[grid](*self.arguments, enable_fp_fusion=True, **self.options)


@contextmanager
def record() -> Iterator[list[Launch]]:
    """Launches made inside are appended to the list, and not made."""
    global _recording
    before, _recording = _recording, []
    try:
        yield _recording
    finally:
        _recording = before
