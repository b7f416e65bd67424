"""What tasks on a BERT encoder share: a trained one to start from, or a new one."""

from typing import Any, TypeVar

from ...models import BERTConfig, Model
from ..config import ConfigError
from .base import Task

Kind = TypeVar("Kind", bound=Model)


def build_encoder(task: Task, kind: type[Kind], **head: Any) -> Kind:
    """A model of class ``kind`` with fields ``head``, its encoder from ``init_encoder`` if given.

    Raises:
        ConfigError: the trained encoder does not fit the settings.
    """
    settings = task.settings
    if settings.init_encoder is not None:
        return load_encoder(task, kind, **settings.model, **head)
    fixed = {**task.special_ids(), "mask_id": task.tokenizer.mask_id, **head}
    fixed["max_length"] = settings.data.max_length
    return kind(task.configure(BERTConfig, fixed))


def load_encoder(task: Task, kind: type[Kind], **changes: Any) -> Kind:
    """The BERT in ``init_encoder``, as a ``kind``.

    Raises:
        ConfigError: it does not fit the settings. FileNotFoundError, CheckpointError: it is none.
    """
    folder, limit = str(task.settings.init_encoder), task.settings.data.max_length
    try:
        model = kind.from_pretrained(folder, **changes)
    except TypeError as error:
        raise ConfigError(f"[model]: {error}") from None
    config = model.config
    if config.max_length < limit:
        raise ConfigError(
            f"data.max_length should be at most {config.max_length} with this init_encoder, "
            f"got {limit}"
        )
    if len(task.tokenizer) > config.vocab_size:
        raise ConfigError(
            f"init_encoder {folder} has {config.vocab_size} tokens, the tokenizer "
            f"{len(task.tokenizer)}"
        )
    return model
