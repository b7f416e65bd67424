"""Which of transformers' models call an attention implementation, and by whose conventions."""

import functools
import inspect
import warnings
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn
from transformers import AttentionInterface, PreTrainedModel

#: Configurations of models that keep the conventions of "sdpa", see ``implementation_for``.
keeps_sdpa_conventions: set[type] = set()


def implementation_for(model: PreTrainedModel, name: str, additive: str) -> str:
    """The implementation that ``model`` gets when ``name`` is asked for.

    Models that transformers runs with "sdpa" know bool masks, and None where a layer's
    ``is_causal`` says it all. The others were only ever run with "eager", where a mask is added and
    None means all keys: they get ``additive``, be it that they call our function or compute
    attention themselves.

    Warns:
        UserWarning: once for a class that has attention and calls no implementation.

    Raises:
        ValueError: if the model takes its attention from a table without our implementation.
    """
    chosen = name if model._supports_sdpa else additive
    # Models of one configuration object are one model: what wraps it, and it.
    kinds: set[Any] = {
        type(m) for m in model.modules() if getattr(m, "config", None) is model.config
    }
    reads = [_reads(kind) for kind in kinds if issubclass(kind, PreTrainedModel)]
    for table in (r for r in reads if isinstance(r, dict) and chosen not in r):
        raise ValueError(
            f"{type(model).__name__} has an attention class for each implementation, and none for "
            f'attn_implementation="{name}"; it is served by {", ".join(map(repr, table))}'
        )
    if "own" in reads and "interface" not in reads:
        _warn_of_own_attention(type(model).__name__, name)
    if model._supports_sdpa:
        keeps_sdpa_conventions.add(type(model.config))
    return chosen


@functools.cache
def _warn_of_own_attention(kind: str, name: str) -> None:
    warnings.warn(
        f"{kind} computes attention by code of its own, whatever the implementation: "
        f'attn_implementation="{name}" makes it no faster',
        stacklevel=2,
    )


@functools.cache
def _reads(kind: type) -> Any:
    """How the code of a class comes to attention.

    Returns:
        "interface", if any of it calls an implementation; "own", if there is attention and none of
        it does; a dictionary from implementations to classes, if it chooses by one; or None.
    """
    found = None
    for thing in _used_by(kind):
        if isinstance(thing, dict):
            return thing
        if isinstance(thing, AttentionInterface):
            found = "interface"
        elif isinstance(thing, type) and "attention" in thing.__name__.lower():
            found = found or "own"
    return found


def _used_by(kind: type) -> Iterator[Any]:
    """The layers' classes, attention interfaces and tables that the code of a class leads to.

    Other models are left out: each answers for itself. Read from compiled code, so that no source
    is needed.
    """
    seen: set[int] = set()
    todo: list[Any] = [kind]
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, FunctionType):
            function = inspect.unwrap(thing)
            named = (function.__globals__.get(name) for name in _names(function.__code__))
            todo += [x for x in named if _matters(x)]
            continue
        yield thing
        if isinstance(thing, type) and not thing.__module__.startswith("torch."):
            todo += _functions(thing)


def _matters(thing: Any) -> bool:
    if isinstance(thing, type):
        return issubclass(thing, nn.Module) and not issubclass(thing, PreTrainedModel)
    if isinstance(thing, dict):
        return "eager" in thing
    return isinstance(thing, (FunctionType, AttentionInterface))


def _functions(kind: type) -> Iterator[FunctionType]:
    """Those of a module's class and its bases that build or run it."""
    for base in kind.__mro__:
        if not issubclass(base, nn.Module) or base in PreTrainedModel.__mro__:
            continue
        for name, member in vars(base).items():
            member = getattr(member, "fget", getattr(member, "__func__", member))
            # _init_weights names classes to ask what it was given.
            if isinstance(member, FunctionType) and name != "_init_weights":
                yield member


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
