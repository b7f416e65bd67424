"""Models that write: translations, summaries, and texts that go on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..data import Tokenizer, pad
from ..generation import Hypothesis, generate
from ..generation.packed import unsupported
from ..models import GPT, Model, Seq2Seq, Transformer
from .trained import Trained, check_texts, like_lengths

WEIGHTS = {"float32": None, "bfloat16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True)
class Candidate:
    """A text, its score as in ``fastseq.generation.generate``, and how many tokens were written."""

    text: str
    score: float = 0.0
    tokens: int = 0


class Writer(Trained):
    """What tasks that write have in common.

    Args:
        weights: "float32", or what the decoder's matrices are rounded to for speed: "bfloat16" or
            "int8", for a Transformer or GPT of float32 on the CPU.

    Raises:
        ValueError: ``weights`` is none of these, or the model cannot be decoded with it.
    """

    beam: ClassVar[int] = 4
    draws: ClassVar[bool] = False  # unless a search is asked for

    def __init__(self, model: Model, tokenizer: Tokenizer, weights: str = "float32") -> None:
        super().__init__(model, tokenizer)
        if weights not in WEIGHTS:
            raise ValueError(f"weights should be one of {', '.join(WEIGHTS)}, got {weights!r}")
        self.weights = WEIGHTS[weights]
        if self.weights is not None and (why := unsupported(model)):
            raise ValueError(f"weights {weights} cannot be had: {why}")

    @classmethod
    def _options(
        cls, directory: Path, device: torch.device, options: dict[str, Any]
    ) -> dict[str, Any]:
        """On another device than the CPU, bfloat16 weights are the model's own."""
        if device.type != "cpu" and options.get("weights") == "bfloat16":
            return {**options, "weights": "float32", "dtype": torch.bfloat16}
        return options

    def __call__(self, texts: Sequence[str], **options: Any) -> list[str]:
        """The best text for each; ``options`` as ``candidates``."""
        return [found[0].text for found in self.candidates(texts, **options)]

    def candidates(
        self,
        texts: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        batch_size: int = 32,
        truncate: bool = False,
        **search: Any,
    ) -> list[list[Candidate]]:
        """The candidates for each text, best first.

        Args:
            texts: what to read.
            max_new_tokens: the most that are written for one; by default what the task allows.
            batch_size: texts that are worked on together, of like lengths.
            truncate: cut texts that are longer than the model reads.
            search: arguments of ``generate``: beam_size, sample, temperature, top_k, top_p,
                num_return, length_penalty, no_repeat_ngram, generator.

        Raises:
            TextError: a text is too long, and ``truncate`` is False, or is no Unicode.
            ValueError: a number is out of range.
        """
        check_texts(texts)
        search = self._search(search)
        encoded = self._encode(texts, truncate)
        nothing = [Candidate("")] * search.get("num_return", 1)
        results = [nothing] * len(texts)
        for batch in like_lengths([len(ids) for ids in encoded], batch_size):
            ids = [encoded[i] for i in batch]
            for i, found in zip(batch, self._write(ids, max_new_tokens, search)):
                given = self._given(encoded[i])
                results[i] = [
                    Candidate(self._text(h.tokens), h.score, len(h.tokens) - given) for h in found
                ]
        return results

    def _search(self, given: dict[str, Any]) -> dict[str, Any]:
        """Arguments of ``generate``: those given, and the task's defaults."""
        sample = given.get("sample", self.draws and "beam_size" not in given)
        if not sample:
            for name in ("temperature", "top_k", "top_p"):
                if name in given:
                    raise ValueError(f"{name} needs sample=True")
            return {"beam_size": max(self.beam, given.get("num_return", 1)), **given}
        return {"sample": True, "top_p": 0.95 if self.draws else 1.0, **given}

    def _encode(self, texts: Sequence[str], truncate: bool) -> list[list[int]]:
        """Tokens of each text, none for nothing to read."""
        raise NotImplementedError

    def _write(
        self, encoded: list[list[int]], most: int | None, search: dict[str, Any]
    ) -> list[list[Hypothesis]]:
        raise NotImplementedError

    def _given(self, encoded: list[int]) -> int:
        """How many tokens of a hypothesis were not written but read."""
        return 0

    def _text(self, tokens: list[int]) -> str:
        """One line, so that lines of input and output stay side by side."""
        return " ".join(self.tokenizer.decode(tokens).splitlines())


class Translator(Writer):
    """Translation by a ``Seq2Seq`` or ``Transformer``.

    Writes at most twice as many tokens as it reads, and ten.
    """

    kinds = (Seq2Seq, Transformer)
    model: Seq2Seq | Transformer

    def _encode(self, texts: Sequence[str], truncate: bool) -> list[list[int]]:
        encoded = self.tokenizer.encode_source_batch(texts)
        blank = [not text.strip() for text in texts]
        return self._fitting([[] if b else ids for b, ids in zip(blank, encoded)], truncate)

    def _write(
        self, encoded: list[list[int]], most: int | None, search: dict[str, Any]
    ) -> list[list[Hypothesis]]:
        source, lengths = pad([torch.tensor(ids) for ids in encoded], self.config.pad_id)
        return generate(
            self.model,
            source.to(self.device),
            lengths.to(self.device),
            max_new_tokens=self._room(int(lengths.max())) if most is None else most,
            weights=self.weights,
            **search,
        )

    def _room(self, longest: int) -> int:
        room = self._usual(longest)
        return room if self.max_length is None else min(room, self.max_length - 1)

    def _usual(self, longest: int) -> int:
        return 2 * longest + 10


class Summarizer(Translator):
    """Summaries by a ``Seq2Seq`` or ``Transformer``, not longer than the text."""

    def _usual(self, longest: int) -> int:
        return longest


class TextGenerator(Writer):
    """Goes on with a text, by a ``GPT``; with nothing, it begins one.

    The texts that come back begin with those that were given. By default they are drawn from the
    best tokens of probability 0.95 together (``top_p``), and have 100 new tokens at most.
    """

    kinds = (GPT,)
    beam = 1
    draws = True
    model: GPT

    def _encode(self, texts: Sequence[str], truncate: bool) -> list[list[int]]:
        """The beginning, which the model is to go on from, is counted here as in training."""
        start = self.config.bos_id
        encoded = [[start, *ids] for ids in self.tokenizer.encode_batch(texts)]
        return self._fitting(encoded, truncate, keep_end=True)

    def _write(
        self, encoded: list[list[int]], most: int | None, search: dict[str, Any]
    ) -> list[list[Hypothesis]]:
        assert self.max_length is not None
        room = self.max_length + 1 - max(map(len, encoded))
        return generate(
            self.model,
            prefix=[ids[1:] for ids in encoded],
            max_new_tokens=min(100, room) if most is None else most,
            weights=self.weights,
            **search,
        )

    def _given(self, encoded: list[int]) -> int:
        return len(encoded) - 1

    def _text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens)
