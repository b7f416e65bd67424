"""``fastseq::beam_step``: what beam search does between two steps of a model, in one call.

It runs in C++ on the CPU and in plain PyTorch (``fastseq.reference.beam``) elsewhere. In shapes, n
is sentences, w the beams of each, k continuations of a beam, b the beams that are wanted, and
c = min(2b, w·k).

    scores          (n, w) float32, log-probabilities of the beams
    continued, ids  (n, w, k), log-probabilities of each beam's best next tokens, best first, and
                    the tokens
    worst           (n,), what a finished hypothesis must beat; -inf while there is room for more
    given, limit    (n,) int64, how many of a sentence's tokens are given, and how many it may have
    length          tokens of a beam with the next one

Of the c best continuations of a sentence those end that come to ``eos_id`` beyond what is given, or
to the limit. With the factor ((5 + |generated|) / 6)^penalty it returns

    going: scores (n, min(b, c - w)), the rows (of n·w) that they continue, and tokens: the best
        that do not end; -inf where there are not so many
    ended: scores over the factor (n, min(b, c)), rows and tokens of the first b; -inf where a
        continuation does not end
    attainable (n,), the best of going over the factor
    event, a bool: whether a hypothesis or a sentence ended (``closed``)
"""

import torch
from torch import Tensor

from .. import _extension
from ..reference import beam as reference

_library = torch.library.Library("fastseq", "FRAGMENT")
_library.define(
    "beam_step(Tensor scores, Tensor continued, Tensor ids, Tensor worst, Tensor given, "
    "Tensor limit, int length, int beam, int eos_id, float penalty) -> (Tensor going, "
    "Tensor going_rows, Tensor going_tokens, Tensor ended, Tensor ended_rows, "
    "Tensor ended_tokens, Tensor attainable, Tensor event)"
)


def _fake(scores: Tensor, continued: Tensor, ids: Tensor, *others) -> tuple[Tensor, ...]:
    n, width, k = continued.shape
    beam = others[4]
    best = min(2 * beam, width * k)
    shapes = (n, min(beam, best - width)), (n, min(beam, best))
    groups = [x.new_empty(shape) for shape in shapes for x in (scores, ids, ids)]
    return *groups, scores.new_empty(n), scores.new_empty((), dtype=torch.bool)


_library.impl("beam_step", reference.beam_step, "CompositeExplicitAutograd")
torch.library.register_fake("fastseq::beam_step", _fake, lib=_library)
_extension.load()

beam_step = torch.ops.fastseq.beam_step.default
closed = reference.closed
