"""Sequence to sequence: translation and summarization."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...data import (
    SAMPLE_TRAIN,
    SAMPLE_VALID,
    Row,
    Sequences,
    Tokenizer,
    pad_rows,
    token_batches,
)
from ...models import BERT, Model, Seq2Seq, Seq2SeqConfig, Transformer, TransformerConfig
from ..config import ConfigError, Settings
from ..metrics import bleu, chrf, rouge_l
from .base import Batch, Examples, Shuffle, Task
from .encoder import load_encoder

_CELLS = ("rnn", "lstm", "gru")


class Pairs(Examples):
    """Sources as encoders read them, and targets with begin and end."""

    def __init__(self, task: "SequenceTask", rows: list[Row], split: str) -> None:
        tokenizer, limit = task.tokenizer, task.settings.data.max_length
        sources = tokenizer.encode_source_batch([row.fields[0] for row in rows])
        targets = tokenizer.encode_batch([row.fields[1] for row in rows])
        fits = [len(s) <= limit and len(t) < limit for s, t in zip(sources, targets)]
        kept = task.keep(split, rows, fits)
        self.texts = [rows[i].fields for i in kept]
        self.sources = Sequences(sources[i] for i in kept)
        ends = tokenizer.bos_id, tokenizer.eos_id
        self.targets = Sequences([ends[0], *targets[i], ends[1]] for i in kept)
        self.pad_id = tokenizer.pad_id
        rate = task.settings.train.teacher_forcing
        self.extra: dict[str, Any] = {} if rate == 1 else {"teacher_forcing": rate}

    def __len__(self) -> int:
        return len(self.sources)

    def batches(self, max_tokens: int, shuffle: Shuffle) -> list[list[int]]:
        return token_batches(self.sources.lengths + self.targets.lengths - 1, max_tokens, shuffle)

    def collate(self, indices: list[int], shuffle: Shuffle) -> Batch:
        source, source_lengths = self.sources.rows(indices)
        target, target_lengths = self.targets.rows(indices, skip_last=1)
        inputs = {
            "source": pad_rows(source, source_lengths, self.pad_id),
            "source_lengths": source_lengths,
            "target": pad_rows(target, target_lengths, self.pad_id),
            "target_lengths": target_lengths,
        }
        labels, _ = self.targets.rows(indices, skip_first=1)
        if shuffle is not None:
            inputs |= self.extra
        return Batch(inputs, {"tokens": labels}, len(source) + len(target))


class SequenceTask(Task):
    """From one text to another, by a recurrent encoder-decoder or a Transformer."""

    archs: ClassVar[tuple[str, ...]] = (*_CELLS, *(f"{c}-attention" for c in _CELLS), "transformer")
    train: Pairs
    valid: Pairs

    def texts(self) -> Iterator[str]:
        for row in self.rows(self.settings.data.train):
            yield from row.fields

    def load(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        train, valid = self.split(self.rows, lambda row: row.fields[0])
        self.train, self.valid = Pairs(self, train, "train"), Pairs(self, valid, "valid")

    def build(self) -> Model:
        settings = self.settings
        ids: dict[str, Any] = self.special_ids()
        if settings.arch == "transformer":
            if settings.init_encoder:
                return self._from_bert()
            fixed = {**ids, "max_length": settings.data.max_length}
            return Transformer(self.configure(TransformerConfig, fixed))
        if settings.init_encoder:
            raise ConfigError(f"init_encoder needs arch transformer, got {settings.arch}")
        cell, _, attention = settings.arch.partition("-")
        fixed = {**ids, "cell": cell}
        if not attention:
            fixed["attention"] = None
        return Seq2Seq(self.configure(Seq2SeqConfig, fixed))

    def _from_bert(self) -> Model:
        """A Transformer that starts from a trained BERT."""
        bert = load_encoder(self, BERT)
        try:
            return Transformer.from_bert(bert, **self.settings.model)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"[model]: {error}") from None

    @torch.no_grad()
    def write(self, model: Model, rank: int, world: int) -> list[Any]:
        count = min(self.settings.train.samples, len(self.valid))
        if not count:
            return []
        from ...generation import generate

        batches = token_batches(self.valid.sources.lengths[:count], 4096)
        device = next(model.parameters()).device
        written: list[Any] = []
        for indices in batches[rank::world]:
            rows, lengths = self.valid.sources.rows(indices)
            best = generate(
                model,
                pad_rows(rows, lengths, self.tokenizer.pad_id).to(device),
                lengths.to(device),
                max_new_tokens=self._room(lengths),
                beam_size=self.settings.train.beam_size,
            )
            texts = self.tokenizer.decode_batch([hypotheses[0].tokens for hypotheses in best])
            written += zip(indices, texts)
        return written

    def _room(self, lengths: Tensor) -> int:
        """How long an output may get: a translation is seldom twice as long as its source."""
        return min(self.settings.data.max_length - 1, 2 * int(lengths.max()) + 10)

    def judge(self, written: list[Any]) -> tuple[dict[str, float], list[str]]:
        if not written:
            return {}, []
        written = sorted(written)
        pairs = [(text, self.valid.texts[i][1]) for i, text in written]
        hypotheses, references = zip(*pairs)
        shown = [
            f"{self.valid.texts[i][0]}\n  = {self.valid.texts[i][1]}\n  > {text}"
            for i, text in written[:: max(1, len(written) // 3)][:3]
        ]
        return self.compare(hypotheses, references), shown

    def compare(self, hypotheses, references) -> dict[str, float]:
        """Scores of texts against references."""
        return {"bleu": bleu(hypotheses, references), "chrf": chrf(hypotheses, references)}

    @property
    def criterion(self) -> tuple[str, int]:
        return ("bleu", 1) if self.settings.train.samples else ("loss", -1)


class Translate(SequenceTask):
    """Translation; without data, of the sample that is shipped."""

    def __init__(self, settings: Settings) -> None:
        if not settings.data.train:
            settings.data.train = [str(SAMPLE_TRAIN)]
            settings.data.valid = settings.data.valid or [str(SAMPLE_VALID)]
        super().__init__(settings)


class Summarize(SequenceTask):
    """A short text for a long one."""

    def compare(self, hypotheses, references) -> dict[str, float]:
        return {"rouge_l": rouge_l(hypotheses, references), "chrf": chrf(hypotheses, references)}

    def _room(self, lengths: Tensor) -> int:
        return min(self.settings.data.max_length - 1, int(lengths.max()))

    @property
    def criterion(self) -> tuple[str, int]:
        return ("rouge_l", 1) if self.settings.train.samples else ("loss", -1)
