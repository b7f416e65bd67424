"""A trained model with its tokenizer, as every task uses it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from ..data import Tokenizer
from ..models import CheckpointError, Model, load

Self = TypeVar("Self", bound="Trained")


class TextError(ValueError):
    """A text that the model cannot read: ``texts[index]``, and the reason."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"texts[{index}]: {reason}")
        self.index, self.reason = index, reason


class Trained:
    """A model, its tokenizer, and one task that they do together.

    Args:
        model: of one of ``kinds``; it is put into evaluation mode.
        tokenizer: the one it was trained with.

    Raises:
        CheckpointError: the model is for another task, or has fewer words than the tokenizer.
    """

    kinds: ClassVar[tuple[type[Model], ...]]

    def __init__(self, model: Model, tokenizer: Tokenizer) -> None:
        if not isinstance(model, self.kinds):
            wanted = " or ".join(kind.__name__ for kind in self.kinds)
            raise CheckpointError(
                f"{type(self).__name__} needs a {wanted}, got a {type(model).__name__}"
            )
        config: Any = model.config
        words = getattr(config, "source_vocab_size", None) or config.vocab_size
        if len(tokenizer) > words:
            raise CheckpointError(
                f"the tokenizer has {len(tokenizer)} tokens, the model {words}: not its own"
            )
        self.model, self.tokenizer = model.eval(), tokenizer
        self.config: Any = config
        self.device = next(model.parameters()).device
        self.max_length: int | None = getattr(config, "max_length", None)

    @classmethod
    def open(
        cls: type[Self],
        directory: str | Path,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> Self:
        """The model in a directory with config.json, model.safetensors and tokenizer.json, or the
        best one of the run in it.

        Args:
            device: where it works; the CPU by default.
            options: those of the class, and dtype, that of its parameters.

        Raises:
            FileNotFoundError, CheckpointError, DataError: a file is missing, damaged, or of a model
                for another task; the message names the file.
        """
        directory = model_directory(directory)
        options = cls._options(directory, torch.device(device or "cpu"), options)
        model = load(directory, device, options.pop("dtype", None))
        tokenizer = Tokenizer.load(directory)
        try:
            return cls(model, tokenizer, **options)
        except CheckpointError as error:
            raise CheckpointError(f"{directory}: {error}") from None

    @classmethod
    def _options(
        cls, directory: Path, device: torch.device, options: dict[str, Any]
    ) -> dict[str, Any]:
        """The options, and what follows from directory and device."""
        return options

    def unknown(self, texts: Sequence[str]) -> list[int]:
        """Indices of the texts of which the tokenizer does not know every character."""
        token = self.config.unk_id
        return [i for i, ids in enumerate(self.tokenizer.encode_batch(texts)) if token in ids]

    def _fitting(
        self, encoded: list[list[int]], truncate: bool, keep_end: bool = False
    ) -> list[list[int]]:
        """Each within the model's ``max_length``.

        Args:
            truncate: cut longer ones, which else are errors; their last token, the end, stays.
            keep_end: cut at the beginning.
        """
        limit = self.max_length
        if limit is None or max(map(len, encoded), default=0) <= limit:
            return encoded
        if not truncate:
            index = next(i for i, ids in enumerate(encoded) if len(ids) > limit)
            raise TextError(
                index,
                f"{len(encoded[index])} tokens, the model reads at most {limit}; truncate cuts",
            )
        if keep_end:
            return [ids[-limit:] for ids in encoded]
        return [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in encoded]


def model_directory(path: str | Path) -> Path:
    """``path``; or of a run's folder the best checkpoint, or the last where none is scored yet."""
    path = Path(path)
    if not (path / "config.json").exists():
        for name in ("best", "last"):
            if (path / name).is_dir():
                return path / name
    return path


def check_texts(texts: Sequence[str]) -> None:
    """Raises TypeError for what is no list of str, TextError for what is no Unicode."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"texts should be a list of str, got {texts!r:.60}")
    for i, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextError(i, f"not Unicode: {error.reason} at {error.start}") from None


def like_lengths(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches of ``batch_size`` indices, of like lengths together; nothing of length 0."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: lengths[i])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
