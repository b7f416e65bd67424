"""Beam search, all sentences and beams in one batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.beam import beam_step, closed
from .decoding import Decoding, Hypothesis, Rows


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
    n, width = len(decoding.rows.tokens), 1  # beams of each sentence: at first there is one
    scores = torch.zeros(n, 1, device=decoding.rows.tokens.device)
    given, limit = decoding.rows.forced, decoding.rows.limit
    pool = Pool.empty(decoding.rows, beam)
    results: list[tuple[int, Hypothesis]] = []
    while n:
        k = min(2 * beam, vocabulary)
        continued, ids = (x.view(n, width, k) for x in decoding.best(k))
        length = decoding.length + 1
        scores, rows, tokens, ended, ended_rows, ended_tokens, attainable, event = beam_step(
            scores, continued, ids, pool.scores[:, -1].contiguous(), given, limit,
            length, beam, decoding.eos_id, penalty,
        )  # fmt: skip
        same = width == scores.shape[1]
        # Most steps end neither a hypothesis nor a sentence; they wait for the device only here.
        if event.item():
            finished = decoding.rows.select(ended_rows.flatten())
            finished.tokens[:, decoding.length] = ended_tokens.flatten()
            pool.add(ended, length, finished)
            done = (length >= limit) | closed(pool.scores[:, -1], attainable)
            if done.any().item():
                left, same = (~done).nonzero()[:, 0], False
                results += pool.select(done.nonzero()[:, 0]).results(decoding.eos_id)
                pool, n, scores = pool.select(left), len(left), scores[left]
                rows, tokens, given, limit = (x[left] for x in (rows, tokens, given, limit))
        width = scores.shape[1]
        if same:
            decoding.reorder(rows.flatten())
        else:
            decoding.select(rows.flatten())
        decoding.append(tokens.flatten())
    return results
