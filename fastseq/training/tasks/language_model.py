"""Language modelling: the next token of running text."""

from collections.abc import Iterator
from typing import ClassVar

import torch

from ...data import Blocks, Tokenizer, pad, read_documents, token_batches
from ...models import GPT, GPTConfig, Model
from ..config import ConfigError
from .base import Batch, Examples, Shuffle, Task


class BlockExamples(Examples):
    """Blocks of a text; an epoch cuts it anew."""

    def __init__(self, blocks: Blocks, pad_id: int) -> None:
        self.blocks, self.pad_id = blocks, pad_id
        self.starts = blocks.starts()

    def __len__(self) -> int:
        return len(self.starts)

    def batches(self, max_tokens: int, shuffle: Shuffle) -> list[list[int]]:
        self.starts = self.blocks.starts(shuffle)
        return token_batches(self.blocks.lengths(self.starts), max_tokens, shuffle)

    def collate(self, indices: list[int], shuffle: Shuffle) -> Batch:
        pieces = [self.blocks.block(int(self.starts[i])) for i in indices]
        tokens, lengths = pad([piece[0] for piece in pieces], self.pad_id)
        labels = torch.cat([piece[1] for piece in pieces])  # rows
        return Batch({"tokens": tokens, "lengths": lengths}, {"tokens": labels}, len(labels))


class TextTask(Task):
    """What is learned from running text: plain files, or one column of tab-separated ones."""

    def texts(self) -> Iterator[str]:
        for document in self._documents(self.settings.data.train):
            yield from document

    def _documents(self, files: list[str]) -> Iterator[list[str]]:
        columns = self.settings.data.columns
        if len(columns) > 1:
            raise ConfigError(f"data.columns should be one or none, got {columns}")
        for file in files:
            name, _, column = file.rpartition(":")
            if name and column.isdecimal():
                yield from read_documents(name, int(column))
            else:
                yield from read_documents(file, *columns)

    def split_documents(self) -> tuple[list[list[str]], list[list[str]]]:
        """Documents, lists of paragraphs, for training and for validation.

        Raises:
            DataError: there is none for one of them.
        """
        train, valid = self.split(self._documents, "\n".join)
        for split, documents in (("train", train), ("valid", valid)):
            if not documents:
                raise self.nothing_for(split, "text")
        return train, valid


class LanguageModel(TextTask):
    """GPT on text."""

    archs: ClassVar[tuple[str, ...]] = ("gpt",)

    def load(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.train, self.valid = (
            BlockExamples(self._blocks(split), tokenizer.pad_id) for split in self.split_documents()
        )

    def _blocks(self, split: list[list[str]]) -> Blocks:
        tokenizer = self.tokenizer
        encoded = tokenizer.encode_batch(["\n".join(document) for document in split])
        return Blocks(encoded, self.settings.data.max_length, tokenizer.bos_id, tokenizer.eos_id)

    def build(self) -> Model:
        fixed = {**self.special_ids(), "max_length": self.settings.data.max_length}
        return GPT(self.configure(GPTConfig, fixed))
