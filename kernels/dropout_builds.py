"""Recurrent dropout's kernel for ahead-of-time builds: real launches, on meta tensors."""

from collections.abc import Callable, Iterator

import torch

from .device import Limits, assume
from .dropout import dropout_mask

Build = tuple[str, bool, Callable[[], None]]  # label, part of the quick subset, what launches


def builds(limits: Limits) -> Iterator[Build]:
    assume(limits)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        state = torch.empty(2, 16, 512, dtype=dtype, device="meta")
        yield "mask", dtype == torch.bfloat16, lambda x=state: dropout_mask(1 << 40, x, 0.3)
