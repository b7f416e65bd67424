"""What beam search does between two steps of a model, in plain PyTorch."""

import torch
from torch import Tensor


def beam_step(
    scores: Tensor,
    continued: Tensor,
    ids: Tensor,
    worst: Tensor,
    given: Tensor,
    limit: Tensor,
    length: int,
    beam: int,
    eos_id: int,
    penalty: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See ``fastseq.ops.beam``."""
    n, width, k = continued.shape
    total = (scores[:, :, None] + continued).flatten(1)
    best, at = total.topk(min(2 * beam, width * k))
    tokens = ids.flatten(1).gather(1, at)
    parents = at // k + torch.arange(0, n * width, width, device=at.device)[:, None]

    last = (length >= limit)[:, None]
    ends = (tokens == eos_id) & (given < length)[:, None] | last
    factor = ((5 + (length - given).clamp(min=1)) / 6) ** penalty
    ended = torch.where(ends, best, -torch.inf)[:, :beam] / factor[:, None]
    # At most one continuation of a beam ends it.
    going, chosen = torch.where(ends, -torch.inf, best).topk(min(beam, best.shape[1] - width))
    attainable = going[:, 0] / factor
    event = (ended != -torch.inf).any() | closed(worst, attainable).any()
    return (
        going, parents.gather(1, chosen), tokens.gather(1, chosen),
        ended, parents[:, :beam].contiguous(), tokens[:, :beam].contiguous(),
        attainable, event,
    )  # fmt: skip


def closed(worst: Tensor, attainable: Tensor) -> Tensor:
    """Which sentences nothing can enter any more: their pools are full of better hypotheses, or no
    beam is left."""
    return ((worst > -torch.inf) & (worst >= attainable)) | (attainable == -torch.inf)
