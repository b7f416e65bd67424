"""Greedy search and sampling: every row goes its own way."""

from collections.abc import Callable

import torch
from torch import Tensor

from .decoding import Decoding, Hypothesis, length_factor

# Chooses the next token of each row: log-probabilities (R,) and ids (R,).
Choose = Callable[[Decoding], tuple[Tensor, Tensor]]


def most_likely(decoding: Decoding) -> tuple[Tensor, Tensor]:
    scores, tokens = decoding.best(1)
    return scores[:, 0], tokens[:, 0]


def sampler(temperature: float, top_k: int, top_p: float, generator: torch.Generator | None):
    """A draw from the distribution at a temperature, cut to its top_k and then top_p part."""

    def draw(decoding: Decoding) -> tuple[Tensor, Tensor]:
        scores = decoding.log_probs()  # (R, V)
        shaped, ids = (scores / temperature).sort(-1, descending=True)
        if top_k:
            shaped, ids = shaped[:, :top_k], ids[:, :top_k]
        shares = torch.softmax(shaped, -1)
        if top_p < 1:  # as few as reach top_p in all, one at least
            shares = torch.where(shares.cumsum(-1) - shares < top_p, shares, 0)
        tokens = ids.gather(1, torch.multinomial(shares, 1, generator=generator))[:, 0]
        if (forced := decoding.forced()) is not None:
            tokens = torch.where(forced, decoding.rows.tokens[:, decoding.length], tokens)
            scores = torch.where(forced[:, None], 0.0, scores)
        return scores.gather(1, tokens[:, None])[:, 0], tokens

    return draw


def search_rows(decoding: Decoding, choose: Choose, penalty: float) -> list[tuple[int, Hypothesis]]:
    """Decodes every row to its end: (sentence, hypothesis) of each, as they end."""
    results: list[tuple[int, Hypothesis]] = []
    total = torch.zeros(len(decoding.rows.tokens), device=decoding.rows.tokens.device)
    shortest = int(decoding.rows.limit.min())
    while len(total):
        forced = decoding.forced()
        scores, tokens = choose(decoding)
        decoding.append(tokens)
        total = total + scores
        ended = tokens == decoding.eos_id
        if forced is not None:
            ended &= ~forced
        if decoding.length >= shortest:
            ended |= decoding.length >= decoding.rows.limit
        if ended.any().item():  # the step's one wait for the device
            left = (~ended).nonzero()[:, 0]
            gone = decoding.rows.select(ended.nonzero()[:, 0])
            factor = length_factor(decoding.length - gone.forced, penalty)
            lengths = torch.full_like(gone.limit, decoding.length)
            found = gone.hypotheses(lengths, total[ended] / factor, decoding.eos_id)
            results += zip(gone.sentence.tolist(), found)
            total = total[left]
            decoding.select(left)
    return results
