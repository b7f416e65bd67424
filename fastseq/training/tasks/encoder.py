"""What tasks on a BERT encoder share: a trained one to start from, or a new one."""

from typing import Any, TypeVar

from ...data import Tokenizer
from ...models import BERTConfig
from ..config import ConfigError
from .base import Task

Kind = TypeVar("Kind")


def build_encoder(task: Task, kind: type[Kind], **head: Any) -> Kind:
    """A model of class ``kind`` with fields ``head``, its encoder from ``init_encoder`` if given.

    Raises:
        ConfigError: the trained encoder does not fit the settings.
    """
    settings = task.settings
    limit = settings.data.max_length
    if settings.init_encoder is None:
        fixed = {
            **task.special_ids(), "mask_id": task.tokenizer.mask_id, "max_length": limit, **head
        }  # fmt: skip
        return kind(task.configure(BERTConfig, fixed))  # type: ignore[call-arg]
    try:
        model = kind.from_pretrained(settings.init_encoder, **settings.model, **head)  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"init_encoder {settings.init_encoder}: {error}") from None
    if model.config.max_length < limit:
        raise ConfigError(
            f"data.max_length should be at most {model.config.max_length} with this init_encoder, "
            f"got {limit}"
        )
    check_vocabulary(settings.init_encoder, model.config.vocab_size, task.tokenizer)
    return model


def check_vocabulary(folder: str, vocab_size: int, tokenizer: Tokenizer) -> None:
    """ConfigError where a tokenizer has tokens that a model does not know."""
    if len(tokenizer) > vocab_size:
        raise ConfigError(
            f"init_encoder {folder} has {vocab_size} tokens, the tokenizer {len(tokenizer)}"
        )
