"""BERT's pre-training: masked words and next sentences (Devlin et al., arXiv 1810.04805)."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ...data import (
    IGNORED,
    Corpus,
    Tokenizer,
    assemble,
    mask_tokens,
    pad,
    split_sentences,
    token_batches,
)
from ...models import BERTConfig, BERTForPretraining, Model
from .base import Batch, Examples, Shuffle, cross_entropy, perplexity
from .language_model import TextTask

_VALIDATION = (0, 0)  # what the pairs and masks of validation follow from


class MaskedPairs(Examples):
    """Sentence pairs, cut and masked anew in every epoch."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, max_length: int) -> None:
        self.corpus, self.tokenizer, self.max_length = corpus, tokenizer, max_length
        self.pairs = corpus.pairs(max_length, *_VALIDATION)

    def __len__(self) -> int:
        return len(self.pairs)

    def batches(self, max_tokens: int, shuffle: Shuffle) -> list[list[int]]:
        self.pairs = self.corpus.pairs(self.max_length, *(shuffle or _VALIDATION))
        lengths = torch.tensor([pair.length for pair in self.pairs])
        return token_batches(lengths, max_tokens, shuffle)

    def collate(self, indices: list[int], shuffle: Shuffle) -> Batch:
        t = self.tokenizer
        read, labels, kinds = [], [], []
        for i in indices:
            tokens, segments = assemble(self.corpus, self.pairs[i], t.cls_id, t.sep_id)
            special = (tokens == t.cls_id) | (tokens == t.sep_id)
            seed = (*(shuffle or _VALIDATION), i)
            masked, label = mask_tokens(tokens, special, t.mask_id, 5, len(t), seed)
            read.append(masked)
            labels.append(label)
            kinds.append(segments)
        tokens, lengths = pad(read, t.pad_id)
        label = pad(labels, IGNORED)[0]
        chosen = label != IGNORED  # (B, T)
        inputs = {
            "tokens": tokens,
            "lengths": lengths,
            "segments": pad(kinds, 0)[0],
            "masked_positions": chosen,
        }
        follows = torch.tensor([0 if self.pairs[i].follows else 1 for i in indices])
        return Batch(inputs, {"words": label[chosen], "next": follows}, int(lengths.sum()))


class MaskedLanguageModel(TextTask):
    """BERT on text."""

    archs: ClassVar[tuple[str, ...]] = ("bert",)
    terms: ClassVar[tuple[str, ...]] = ("masked_words", "next_sentence")

    def load(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.train, self.valid = (
            MaskedPairs(self._corpus(split), tokenizer, self.settings.data.max_length)
            for split in self.split_documents()
        )

    def _corpus(self, split: list[list[str]]) -> Corpus:
        sentences = [[s for paragraph in d for s in split_sentences(paragraph)] for d in split]
        encoded = iter(self.tokenizer.encode_batch([s for d in sentences for s in d]))
        return Corpus([[next(encoded) for _ in d] for d in sentences])

    def build(self) -> Model:
        fixed = {
            **self.special_ids(),
            "mask_id": self.tokenizer.mask_id,
            "max_length": self.settings.data.max_length,
        }
        return BERTForPretraining(self.configure(BERTConfig, fixed))

    def losses(
        self, outputs: tuple[Tensor, Tensor], batch: Batch, smoothing: float = 0.0
    ) -> Tensor:
        words = cross_entropy(outputs[0], batch.labels["words"], smoothing)
        return torch.stack([words, cross_entropy(outputs[1], batch.labels["next"])])

    def counts(self, batch: Batch) -> Tensor:
        return torch.tensor([len(batch.labels["words"]), len(batch.labels["next"])])

    def observe(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> list[Any]:
        words = outputs[0].argmax(-1) == batch.labels["words"]
        following = outputs[1].argmax(-1) == batch.labels["next"]
        return [(int(x.sum()), len(x)) for x in (words, following)]

    def scores(self, losses: dict[str, float], observed: list[Any]) -> dict[str, float]:
        def accuracy(which: int) -> float:
            pairs = observed[which::2]
            return 100 * sum(hits for hits, _ in pairs) / max(1, sum(count for _, count in pairs))

        return {
            **losses,
            "perplexity": perplexity(losses["masked_words"]),
            "word_accuracy": accuracy(0),
            "next_accuracy": accuracy(1),
        }

    @property
    def criterion(self) -> tuple[str, int]:
        return "masked_words", -1
