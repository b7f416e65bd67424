"""What a launch may use of a device, and standing for a device where there is none. No Triton."""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch


@dataclass(frozen=True)
class Limits:
    """What a launch may use of a device."""

    multiprocessors: int
    shared: int  # bytes of shared memory a program may have
    warp: int = 32  # threads
    tma: bool = False  # whether it fetches whole tiles by descriptors


_assumed = Limits(multiprocessors=132, shared=227 * 1024, tma=True)


def assume(limits: Limits) -> None:
    """Stands for a device where there is none: the interpreter, ahead-of-time builds (aot.py)."""
    global _assumed
    _assumed = limits


@lru_cache
def _limits_of(index: int) -> Limits:
    properties = torch.cuda.get_device_properties(index)
    shared = getattr(properties, "shared_memory_per_block_optin", 0)
    return Limits(
        properties.multi_processor_count,
        shared or properties.shared_memory_per_block,
        getattr(properties, "warp_size", 32),
        torch.version.cuda is not None and properties.major >= 9,
    )


def limits_of(device: torch.device) -> Limits:
    if device.type != "cuda":
        return _assumed
    return _limits_of(torch.cuda.current_device() if device.index is None else device.index)


def on(device: torch.device) -> Any:
    """Makes ``device`` the one that kernels are launched on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest one that is at least ``n`` and ``least``."""
    return max(least, 1 << max(n - 1, 0).bit_length())
