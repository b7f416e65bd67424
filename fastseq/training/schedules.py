"""Learning rates by the number of updates done, as a part of the highest one."""

import math
from typing import Literal, get_args

Schedule = Literal["inverse-root", "cosine", "linear", "constant"]


def learning_rate_factor(schedule: Schedule, step: int, warmup: int, steps: int) -> float:
    """The factor of update ``step``, counted from 1.

    It rises linearly through ``warmup`` updates to 1, then falls: "inverse-root" as
    √(warmup / step) (Vaswani et al., arXiv 1706.03762), "cosine" to 0 at ``steps`` (Loshchilov and
    Hutter, arXiv 1608.03983), "linear" to 0 at ``steps``; "constant" stays.

    Raises:
        ValueError: an unknown schedule.
    """
    if schedule not in get_args(Schedule):
        raise ValueError(
            f"schedule should be one of {', '.join(get_args(Schedule))}, got {schedule!r}"
        )
    if step < warmup:
        return step / warmup
    if schedule == "inverse-root":
        return math.sqrt(max(warmup, 1) / step)
    rest = min(1.0, (step - warmup) / max(1, steps - warmup))
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * rest))
    return 1 - rest if schedule == "linear" else 1.0
