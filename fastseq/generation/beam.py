"""Beam search, all sentences and beams in one batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .decoding import Decoding, Hypothesis, Rows, length_factor


@dataclass
class Pool:
    """The best finished hypotheses of n sentences; places that are free score -inf.

    Attributes:
        scores: (n, beam), sorted. lengths: (n, beam), tokens of each. rows: n·beam rows.
    """

    scores: Tensor
    lengths: Tensor
    rows: Rows

    @classmethod
    def empty(cls, rows: Rows, beam: int) -> "Pool":
        places = torch.arange(len(rows.tokens), device=rows.tokens.device)
        lengths = rows.limit[:, None].repeat(1, beam)
        scores = torch.full(lengths.shape, -torch.inf, device=lengths.device)
        return cls(scores, lengths, rows.select(places.repeat_interleave(beam)))

    def add(self, scores: Tensor, length: int, rows: Rows) -> None:
        """Takes in candidates: scores (n, c), and n·c rows of ``length`` tokens."""
        n, beam = self.scores.shape
        self.scores, best = torch.cat([self.scores, scores], 1).topk(beam)
        added = torch.full(scores.shape, length, device=best.device)
        self.lengths = torch.cat([self.lengths, added], 1).gather(1, best)
        sentences = torch.arange(n, device=best.device)[:, None]

        def merge(old: Tensor, new: Tensor) -> Tensor:
            both = [old.view(n, beam, *old.shape[1:]), new.view(n, -1, *new.shape[1:])]
            return torch.cat(both, 1)[sentences, best].flatten(0, 1)

        # The rest of a row is the same for all rows of its sentence.
        self.rows.tokens = merge(self.rows.tokens, rows.tokens)
        if self.rows.attention is not None and rows.attention is not None:
            self.rows.attention = merge(self.rows.attention, rows.attention)

    def closed(self, attainable: Tensor) -> Tensor:
        """(n,) sentences that nothing can enter any more that would score ``attainable`` (n,)."""
        worst = self.scores[:, -1]
        return ((worst > -torch.inf) & (worst >= attainable)) | (attainable == -torch.inf)

    def select(self, sentences: Tensor) -> "Pool":
        n, beam = self.scores.shape
        places = torch.arange(n * beam, device=sentences.device).view(n, beam)[sentences].flatten()
        return Pool(self.scores[sentences], self.lengths[sentences], self.rows.select(places))

    def results(self, eos_id: int) -> list[tuple[int, Hypothesis]]:
        there = (self.scores.flatten() > -torch.inf).nonzero()[:, 0]
        rows = self.rows.select(there)
        scores, lengths = self.scores.flatten()[there], self.lengths.flatten()[there]
        return list(zip(rows.sentence.tolist(), rows.hypotheses(lengths, scores, eos_id)))


def search_beams(
    decoding: Decoding, beam: int, vocabulary: int, penalty: float
) -> list[tuple[int, Hypothesis]]:
    """Decodes every sentence with ``beam`` beams: (sentence, hypothesis), best first in each.

    Of the 2·beam best continuations of a sentence's beams, those among the first ``beam`` that end
    join the pool of finished hypotheses, and the best ``beam`` that do not end go on. A sentence is
    done when its pool is full and no beam, were it to end now, would enter it.
    """
    device = decoding.rows.tokens.device
    n, width = len(decoding.rows.tokens), 1  # beams of each sentence: at first there is one
    scores = torch.zeros(n, 1, device=device)
    pool = Pool.empty(decoding.rows, beam)
    results: list[tuple[int, Hypothesis]] = []
    while n:
        limit, given = (
            x.view(n, width)[:, :1] for x in (decoding.rows.limit, decoding.rows.forced)
        )
        forced = decoding.forced()
        k = min(2 * beam, vocabulary)
        continued, ids = decoding.best(k)
        total = (scores[:, :, None] + continued.view(n, width, k)).flatten(1)
        best, at = total.topk(min(2 * beam, width * k))
        tokens = ids.view(n, width * k).gather(1, at)
        parents = at // k + torch.arange(0, n * width, width, device=device)[:, None]

        ends = tokens == decoding.eos_id
        if forced is not None:
            ends &= ~forced.view(n, width)[:, :1]
        length = decoding.length + 1
        last = length >= limit  # (n, 1)
        ends |= last
        factor = length_factor((length - given).clamp(min=1), penalty)
        going_on = min(beam, best.shape[1] - width)  # at most one continuation of a beam ends it
        scores, going = torch.where(ends, -torch.inf, best).topk(going_on)
        attainable = scores[:, 0] / factor[:, 0]
        parents_going, tokens_going = parents.gather(1, going), tokens.gather(1, going)
        # Most steps end neither a hypothesis nor a sentence; they wait for the device only here.
        if (ends[:, :beam].any() | pool.closed(attainable).any()).item():
            finished = decoding.rows.select(parents[:, :beam].flatten())
            finished.tokens[:, decoding.length] = tokens[:, :beam].flatten()
            ending = torch.where(ends, best, -torch.inf)[:, :beam] / factor
            pool.add(ending, length, finished)
            done = last[:, 0] | pool.closed(attainable)
            left = (~done).nonzero()[:, 0]
            results += pool.select(done.nonzero()[:, 0]).results(decoding.eos_id)
            pool, n, scores = pool.select(left), len(left), scores[left]
            parents_going, tokens_going = parents_going[left], tokens_going[left]
        width = going_on
        decoding.select(parents_going.flatten())
        decoding.append(tokens_going.flatten())
    return results
