"""What every search shares: the rows that are being decoded, and what a step says about them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hypothesis:
    """One result of ``generate``.

    Attributes:
        tokens: the prefix and what follows, without start and end of sentence.
        score: log-probability of what was generated, over the length penalty.
        attention: (len(tokens), source length), the weights with which each token was chosen, where
            they were asked for. Rows of a prefix are there too.
    """

    tokens: list[int]
    score: float
    attention: Tensor | None = None


@dataclass
class Rows:
    """Tokens of R rows, all of one length, each with bounds of its own.

    Attributes:
        tokens: (R, W) int64: start, prefix, what was generated, then room.
        forced: (R,) how many of the row's tokens are given, the start included.
        limit: (R,) how many tokens the row may have.
        sentence: (R,) the sentence that the row belongs to.
        attention: (R, W, S) or None; entry t holds the weights with which token t was chosen.
    """

    tokens: Tensor
    forced: Tensor
    limit: Tensor
    sentence: Tensor
    attention: Tensor | None

    def select(self, rows: Tensor) -> "Rows":
        attention = None if self.attention is None else self.attention[rows]
        fields = self.tokens, self.forced, self.limit, self.sentence
        tokens, forced, limit, sentence = (x.index_select(0, rows) for x in fields)
        return Rows(tokens, forced, limit, sentence, attention)

    def reorder(self, rows: Tensor) -> None:
        """``select`` in place, where each row is followed by one of its own sentence."""
        self.tokens = self.tokens.index_select(0, rows)
        if self.attention is not None:
            self.attention = self.attention.index_select(0, rows)

    def hypotheses(self, lengths: Tensor, scores: Tensor, eos_id: int) -> list[Hypothesis]:
        """The rows as results; ``lengths`` (R,) counts tokens with the end of sentence."""
        found = []
        for i, (tokens, length, score, forced) in enumerate(
            zip(self.tokens.tolist(), lengths.tolist(), scores.tolist(), self.forced.tolist())
        ):
            if length > forced and tokens[length - 1] == eos_id:
                length -= 1
            attention = None if self.attention is None else self.attention[i, 1:length]
            found.append(Hypothesis(tokens[1:length], score, attention))
        return found


class Decoding:
    """A model, its state, and the rows that it decodes; rows leave as their sentences end."""

    def __init__(
        self, model: Any, state: Any, rows: Rows, length: int, no_repeat_ngram: int, use_cache: bool
    ) -> None:
        self.model, self.state, self.rows = model, state, rows
        self.length = length  # tokens of every row so far
        self.eos_id, self.start_id = model.config.eos_id, model.config.bos_id
        self._longest_forced = int(rows.forced.max())
        self._no_repeat_ngram, self._use_cache = no_repeat_ngram, use_cache

    def _new_tokens(self) -> Tensor:
        """What the model has not seen: (R, t)."""
        if not self._use_cache:
            self.state.rewind()
        return self.rows.tokens[:, self.state.length : self.length]

    def log_probs(self) -> Tensor:
        """(R, V) of the next token. The start is never chosen, nor what would repeat an n-gram."""
        logits = self.model.step(self._new_tokens(), self.state)
        if self.start_id != self.eos_id:
            logits[:, self.start_id] = -torch.inf
        self._keep_attention()
        scores = torch.log_softmax(logits.float(), -1)
        if self._no_repeat_ngram and self.length > self._no_repeat_ngram:
            forbid_repeats(scores, self.rows.tokens[:, 1 : self.length], self._no_repeat_ngram)
        return scores

    def best(self, k: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities and ids of the k best next tokens, (R, k) each, best first."""
        if hasattr(self.model, "step_best") and not self._no_repeat_ngram:
            scores, tokens = self.model.step_best(self._new_tokens(), self.state, k)
            self._keep_attention()
        else:
            scores, tokens = self.log_probs().topk(k)
        if (forced := self.forced()) is not None:
            given = self.rows.tokens[:, self.length, None]
            certain = torch.full_like(scores[:1], -torch.inf)
            certain[:, 0] = 0
            scores = torch.where(forced[:, None], certain, scores)
            tokens = torch.where(forced[:, None], given, tokens)
        return scores, tokens

    def forced(self) -> Tensor | None:
        """(R,) rows whose next token is given by their prefix; None when no row has more of it."""
        return self.rows.forced > self.length if self.length < self._longest_forced else None

    def _keep_attention(self) -> None:
        if self.rows.attention is not None:
            weights = self.state.attention
            if weights is None:
                raise ValueError("need_attention=True, but this model has no attention to show")
            self.rows.attention[:, self.length, : weights.shape[1]] = weights

    def append(self, tokens: Tensor) -> None:
        """Tokens (R,) go to the rows."""
        self.rows.tokens[:, self.length] = tokens
        self.length += 1

    def select(self, rows: Tensor) -> None:
        """Keeps, repeats and reorders rows by index (R',)."""
        self.rows = self.rows.select(rows)
        self.state.select(rows)

    def reorder(self, rows: Tensor) -> None:
        """``select`` where each row is followed by one of its own sentence."""
        self.rows.reorder(rows)
        self.state.select(rows)


def forbid_repeats(scores: Tensor, tokens: Tensor, n: int) -> None:
    """Scores (R, V) of tokens that would end an n-gram which ``tokens`` (R, t) hold become -inf."""
    grams = tokens.unfold(1, n, 1)  # (R, t - n + 1, n)
    last = tokens[:, tokens.shape[1] - n + 1 :]
    seen = (grams[..., :-1] == last[:, None]).all(-1)
    scores.scatter_add_(1, grams[..., -1], torch.where(seen, -torch.inf, 0.0).to(scores.dtype))


def length_factor(generated: Tensor, penalty: float) -> Tensor:
    """GNMT's ((5 + |Y|) / 6)^penalty for |Y| generated tokens."""
    return ((5 + generated) / 6) ** penalty
