"""Configurations: dataclasses whose fields are checked and go to and from JSON."""

import dataclasses
import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(kw_only=True)
class Config:
    """What every model has: a vocabulary and its special tokens.

    Raises:
        TypeError: a field has a value of another type.
        ValueError: a value is none of the choices or out of range. Both name the field.
    """

    vocab_size: int
    pad_id: int = 0
    unk_id: int = 1
    bos_id: int = 2
    eos_id: int = 3

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            _check(field.name, getattr(self, field.name), hints[field.name])

    def replace(self, **changes: Any) -> Any:
        """A copy with other values of some fields.

        Raises:
            ValueError: for a field that there is not.
        """
        check_names(type(self), changes)
        return dataclasses.replace(self, **changes)


@dataclass(kw_only=True)
class AttentionConfig(Config):
    """What the models made of attention layers share.

    Args:
        hidden_size: width d of a token's vector; num_heads divides it.
        ffn_size: width within the feed-forward layers.
        activation: of the feed-forward layers; "gelu_tanh" is gelu by its tanh formula.
        dropout: of embeddings and of what each part of a layer adds.
        attention_dropout: of attention weights; activation_dropout: within the feed-forward layer.
        norm_first: layer-norm before each part and after the last layer (arXiv 2002.04745, figure
            1b), else after each part's sum (figure 1a).
        norm_eps: of the layer-norms.
        positions: "sinusoidal" (arXiv 1706.03762), "learned", or "rotary" (arXiv 2104.09864).
        max_length: tokens of the longest sequence.
    """

    hidden_size: int = 256
    num_heads: int = 4
    ffn_size: int = 1024
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "relu"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    norm_first: bool = True
    norm_eps: float = 1e-5
    positions: Literal["sinusoidal", "learned", "rotary"] = "sinusoidal"
    max_length: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads should divide hidden_size {self.hidden_size}, got {self.num_heads}"
            )
        whole, name = self.hidden_size, "hidden_size"
        if self.positions == "rotary":
            whole, name = self.hidden_size // self.num_heads, "hidden_size / num_heads"
        if self.positions != "learned" and whole % 2:
            raise ValueError(f"{name} should be even with {self.positions} positions, got {whole}")


def check_names(kind: type[Config], names: Any) -> None:
    """ValueError for names that are no fields of this configuration."""
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(
            f"{kind.__name__} has no field {', '.join(unknown)}; it has {', '.join(known)}"
        )


def _check(name: str, value: Any, hint: Any) -> None:
    if not _fits(value, hint):
        choices = _choices(hint)
        if isinstance(value, str) and choices:
            wanted = ", ".join(map(repr, choices))
            raise ValueError(f"{name} should be one of {wanted}, got {value!r}")
        wanted = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)
        raise TypeError(f"{name} should be of type {wanted}, got {value!r}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if name.endswith("dropout"):
        if not 0 <= value < 1:
            raise ValueError(f"{name} should be in range [0, 1), got {value}")
    elif name.endswith("_id"):
        if value < 0:
            raise ValueError(f"{name} should not be negative, got {value}")
    elif value <= 0:
        raise ValueError(f"{name} should be greater than zero, got {value}")


def _choices(hint: Any) -> list[Any]:
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [choice for part in get_args(hint) for choice in _choices(part)]


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)
