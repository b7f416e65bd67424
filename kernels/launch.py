"""Launching Triton kernels by argument name, and recording launches instead of making them.

Ahead-of-time builds run the launchers on meta tensors while recording, so that they compile exactly
what a device would be asked to run.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch

_recording: "list[Launch] | None" = None


@dataclass
class Launch:
    """A kernel with its arguments, to be launched once or, with ``s`` changing, once a step."""

    kernel: Any
    values: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    tile: str = ""  # for tables

    def __post_init__(self) -> None:
        settle_key(self.kernel)
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


def settle_key(kernel: Any) -> None:
    """Has Triton digest what a kernel calls before the kernel itself.

    In its cache a kernel would otherwise have several names, by what the process ran before: a
    function's constants are part of its caller's digest only where it was digested first.
    """
    if getattr(kernel, "hash", "") is not None:  # digested before, or no kernel
        return
    for name in kernel.fn.__code__.co_names:
        settle_key(kernel.fn.__globals__.get(name))
    kernel.cache_key  # noqa: B018


@contextmanager
def record() -> Iterator[list[Launch]]:
    """Launches made inside are appended to the list, and not made."""
    global _recording
    before, _recording = _recording, []
    try:
        yield _recording
    finally:
        _recording = before


def described(tile: Any) -> str:
    """A tile's sizes, for tables."""
    return " ".join(f"{k}={v}" for k, v in asdict(tile).items() if not k.startswith("num_"))


def launch_fastest(
    kernel: Any,
    values: dict[str, Any],
    tiles: tuple[Any, ...],
    programs: Callable[[dict[str, Any]], int],
    tuned_by: tuple[str, ...],
) -> None:
    """Launches with the fastest of ``tiles``, timed once for all arguments named in ``tuned_by``.

    The first one where nothing is timed: without a device, and under deterministic algorithms, for
    sums of other tiles round otherwise. ``programs``: how many, given a tile as a dictionary.
    """
    first = asdict(tiles[0])
    if programs(first) == 0:
        return
    timed = values["q"].is_cuda and not torch.are_deterministic_algorithms_enabled()
    if _recording is not None or not timed or len(tiles) == 1:
        options = {name: first.pop(name) for name in ("num_warps", "num_stages")}
        launch = Launch(kernel, {**values, **first}, options, described(tiles[0]))
        launch((programs(first),))
        return
    fixed = {name: values[name] for name in kernel.arg_names if name in values}
    grid = lambda tile: (programs(tile),)  # noqa: E731
    keys = tuple(name for name in tuned_by if name in fixed)
    _tuned(kernel, tiles, keys)[grid](**fixed, enable_fp_fusion=True)


@lru_cache
def _tuned(kernel: Any, tiles: tuple[Any, ...], tuned_by: tuple[str, ...]) -> Any:
    """The kernel with Triton's tuner around it, which keeps its choices on disk."""
    import triton

    # Triton's own takes six times as long, for a choice among a few that differ by more than noise.
    quick = partial(triton.testing.do_bench, warmup=5, rep=20)
    configs = []
    for tile in tiles:
        sizes = asdict(tile)
        options = {name: sizes.pop(name) for name in ("num_warps", "num_stages")}
        configs.append(triton.Config(sizes, **options))
    settle_key(kernel)
    tuner = triton.autotune(configs, key=list(tuned_by), do_bench=quick, cache_results=True)
    return tuner(kernel)
