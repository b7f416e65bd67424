"""BERT's pre-training examples: sentence pairs with masked words (Devlin et al., arXiv 1810.04805).

All draws follow from (seed, epoch, example), so an epoch can be entered at any example.
"""

import itertools
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from .batching import Sequences, generator, mix

IGNORED = -100  # the label of tokens that are not to be predicted


@dataclass(frozen=True)
class SentencePair:
    """Two runs of sentences of a corpus, as ranges of its tokens, and whether b follows a."""

    a: tuple[int, int]
    b: tuple[int, int]
    follows: bool

    @property
    def length(self) -> int:
        """With [CLS] and two [SEP]."""
        return self.a[1] - self.a[0] + self.b[1] - self.b[0] + 3


class Corpus:
    """Documents as token sentences.

    Args:
        documents: each a list of sentences, each a list of tokens. Empty ones are left out.

    Raises:
        ValueError: fewer than two documents: there would be no other to draw from.
    """

    def __init__(self, documents: list[list[list[int]]]) -> None:
        documents = [kept for d in documents if (kept := [s for s in d if s])]
        if len(documents) < 2:
            raise ValueError(f"pre-training takes at least 2 documents, got {len(documents)}")
        self.tokens = Sequences(sentence for document in documents for sentence in document)
        firsts = [0]
        for document in documents:
            firsts.append(firsts[-1] + len(document))
        self.documents = list(itertools.pairwise(firsts))
        self._ends: list[int] = self.tokens.ends.tolist()

    def pairs(self, max_length: int, seed: int, epoch: int) -> list[SentencePair]:
        """An epoch's pairs: every document cut into runs of sentences of about ``max_length``.

        One in ten runs is cut shorter, at random. Half of the runs are parted in two; to the first
        part of the others comes a run of another document, and the rest of theirs goes back. A run
        of a single sentence is parted within it, and then so is what comes from elsewhere.
        """
        rng = random.Random(mix(seed, epoch))
        return [pair for d in range(len(self.documents)) for pair in self._cut(d, max_length, rng)]

    def _cut(self, document: int, max_length: int, rng: random.Random):
        room = max_length - 3
        start, end = self.documents[document]
        while start < end:
            target = rng.randint(2, room) if rng.random() < 0.1 else room
            stop = self._run(start, end, target)
            follows = rng.random() < 0.5
            if stop - start == 1:
                first, cut, last = self._parted(start, rng)
                follows = follows and cut < last
                a, b = (first, cut), (cut, last)
                if not follows:
                    first, cut, last = self._parted(self._elsewhere(document, rng)[0], rng)
                    b = (cut, last) if cut < last else (first, last)
            else:
                middle = rng.randint(start + 1, stop - 1)
                a, b = self._span(start, middle), self._span(middle, stop)
                if not follows:
                    first, last = self._elsewhere(document, rng)
                    b = self._span(first, self._run(first, last, max(1, target // 2)))
                    stop = middle
            a, b = _truncate(a, b, room, rng)
            yield SentencePair(a, b, follows)
            start = stop

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        """The tokens of sentences."""
        return self._ends[start], self._ends[stop]

    def _parted(self, sentence: int, rng: random.Random) -> tuple[int, int, int]:
        """First token of a sentence, a cut within it, and its end; one token is cut at its end."""
        first, last = self._span(sentence, sentence + 1)
        return first, rng.randint(first + 1, max(first + 1, last - 1)), last

    def _run(self, start: int, end: int, target: int) -> int:
        """Where a run of sentences from ``start`` ends that has ``target`` tokens, or the last."""
        stop = start + 1
        while stop < end and self._ends[stop] - self._ends[start] < target:
            stop += 1
        return stop

    def _elsewhere(self, document: int, rng: random.Random) -> tuple[int, int]:
        """A sentence of another document, and that document's end."""
        other = rng.randrange(len(self.documents) - 1)
        begin, end = self.documents[other + (other >= document)]
        return rng.randrange(begin, end), end


def _truncate(a: tuple[int, int], b: tuple[int, int], room: int, rng: random.Random):
    """Takes tokens from the front or the back of the longer part until both fit."""
    (a0, a1), (b0, b1) = a, b
    while a1 - a0 + b1 - b0 > room:
        front = rng.random() < 0.5
        if a1 - a0 > b1 - b0:
            a0, a1 = (a0 + 1, a1) if front else (a0, a1 - 1)
        else:
            b0, b1 = (b0 + 1, b1) if front else (b0, b1 - 1)
    return (a0, a1), (b0, b1)


def assemble(corpus: Corpus, pair: SentencePair, cls_id: int, sep_id: int) -> tuple[Tensor, Tensor]:
    """[CLS] a [SEP] b [SEP]: tokens (T,) int64, and segments (T,) int64, 1 from b on."""
    flat = corpus.tokens.flat
    a, b = flat[slice(*pair.a)].long(), flat[slice(*pair.b)].long()
    cls, sep = torch.tensor([cls_id]), torch.tensor([sep_id])
    segments = torch.zeros(pair.length, dtype=torch.int64)
    segments[len(a) + 2 :] = 1
    return torch.cat([cls, a, sep, b, sep]), segments


def mask_tokens(
    tokens: Tensor,
    special: Tensor,
    mask_id: int,
    first_word: int,
    vocab_size: int,
    seed: tuple[int, ...],
    rate: float = 0.15,
) -> tuple[Tensor, Tensor]:
    """Chooses ``rate`` of the tokens, at least one; of these 80 % become [MASK], 10 % another word.

    Args:
        tokens: (T,) int64. special: (T,) bool, tokens that are never chosen.
        first_word, vocab_size: the range from which other words are drawn.
        seed: what the draws follow from.

    Returns:
        The tokens to read (T,), and the labels (T,): the token where it was chosen, else IGNORED.
    """
    rng = generator(*seed)
    candidates = (~special).nonzero()[:, 0]
    count = max(1, round(rate * len(candidates)))
    chosen = candidates[torch.randperm(len(candidates), generator=rng)[:count]]
    labels = torch.full_like(tokens, IGNORED)
    labels[chosen] = tokens[chosen]
    fate = torch.rand(len(chosen), generator=rng)
    words = torch.randint(first_word, vocab_size, (len(chosen),), generator=rng)
    read = tokens.clone()
    kept = torch.where(fate < 0.9, words, tokens[chosen])
    read[chosen] = torch.where(fate < 0.8, torch.full_like(words, mask_id), kept)
    return read, labels
