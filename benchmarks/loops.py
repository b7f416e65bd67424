"""Recurrent layers as users write them by hand for what torch lacks: a loop over time.

The input product is taken for all steps at once, as a careful user would. Formulas are those of
torch's cells with layer-norm on both products and on the cell (Ba et al., 2016), zoneout
(Krueger et al., 2017) and one dropout mask a sequence on the recurrent state (Gal & Ghahramani,
2016).
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def run(
    mode: str,
    x: Tensor,
    weights: Mapping[str, Tensor],
    *,
    zoneout: float = 0.0,
    recurrent_dropout: float = 0.0,
    training: bool = False,
    zoned: Callable[[int, int, Tensor], Tensor] | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One layer, one direction, dense: x (T, B, I) -> output (T, B, H), final h (B, H).

    ``weights``: w_ih, w_hh, b_ih, b_hh, and with layer-norm ln_ih, ln_hh, for LSTM also
    ln_cell_weight, ln_cell_bias. ``zoned(t, which, like)`` and ``mask`` replace the random
    choices, so that two implementations can be compared; ``which`` is 0 for h, 1 for c.
    """
    steps, batch, _ = x.shape
    hidden = weights["w_hh"].shape[1]
    norm = "ln_ih" in weights
    h = x.new_zeros(batch, hidden)
    c = torch.zeros_like(h)
    w_hh_t = weights["w_hh"].t()
    if norm:
        gx = F.layer_norm(F.linear(x, weights["w_ih"]), weights["ln_ih"].shape, weights["ln_ih"])
        gx = gx + weights["b_ih"]
    else:
        gx = F.linear(x, weights["w_ih"], weights["b_ih"])
    if training and recurrent_dropout and mask is None:
        mask = F.dropout(torch.ones_like(h), recurrent_dropout)

    def zone(t: int, which: int, old: Tensor, new: Tensor) -> Tensor:
        if not zoneout:
            return new
        if not training:
            return torch.lerp(new, old, zoneout)
        keep = torch.rand_like(old) < zoneout if zoned is None else zoned(t, which, old)
        return torch.where(keep, old, new)

    outputs = []
    for t in range(steps):
        u = (h if mask is None else h * mask) @ w_hh_t
        if norm:
            u = F.layer_norm(u, weights["ln_hh"].shape, weights["ln_hh"])
        u = u + weights["b_hh"]
        if mode == "LSTM":
            i, f, g, o = (gx[t] + u).chunk(4, 1)
            new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            normed = new_c
            if norm:
                normed = F.layer_norm(
                    new_c, (hidden,), weights["ln_cell_weight"], weights["ln_cell_bias"]
                )
            h, c = zone(t, 0, h, o.sigmoid() * normed.tanh()), zone(t, 1, c, new_c)
        elif mode == "GRU":
            xr, xz, xn = gx[t].chunk(3, 1)
            ur, uz, un = u.chunk(3, 1)
            z = (xz + uz).sigmoid()
            n = torch.tanh(xn + (xr + ur).sigmoid() * un)
            h = zone(t, 0, h, n + z * (h - n))
        else:
            h = zone(t, 0, h, torch.tanh(gx[t] + u))
        outputs.append(h)
    return torch.stack(outputs), h
