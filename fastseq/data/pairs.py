"""Sentence pairs for translation: cleaned, without duplicates, split by their source side."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .._replacing import replacing
from .files import open_binary

Pair = tuple[str, str]

_SPACES = re.compile(r"\s+")
_LETTER = re.compile(r"[^\W\d_]")
_TAG = re.compile(r"<[^<>]*>")
_STOPS = ".,:;!?…"
_KEYED_WORD = re.compile(r"([^\W_]*)[_&]([^\W\d_][^\W_]*\W*)")  # _Open, E_xit, &File...


class Split(NamedTuple):
    train: list[Pair]
    valid: list[Pair]


def squeeze(text: str) -> str:
    """NFC, one space where there was any white space, none at the ends."""
    return _SPACES.sub(" ", unicodedata.normalize("NFC", text)).strip()


def clean_pair(source: str, target: str) -> Pair | None:
    """The pair as text to learn from, or None where there is nothing to learn.

    White space is squeezed and marks of menu keys (``_Open``, ``&Open``) go; placeholders stay.
    Left out are pairs that are equal, have no word, are mostly mark-up, or whose lengths are
    too unlike to be translations.
    """
    source, target = squeeze(source), squeeze(target)
    source, target = _without_accelerator(source, target), _without_accelerator(target, source)
    if source == target or not (_LETTER.search(source) and _LETTER.search(target)):
        return None
    if any(2 * len(_TAG.sub("", text)) < len(text) for text in (source, target)):
        return None
    short, long = sorted((len(source), len(target)))
    return None if long > 3 * short + 20 else (source, target)


def _without_accelerator(text: str, other: str) -> str:
    """``text`` without its one menu key; a word that the other side has too is a name."""
    if text.count("_") + text.count("&") != 1:
        return text
    names = {word.rstrip(_STOPS) for word in other.split()}
    for word in text.split():
        if _KEYED_WORD.fullmatch(word) and word.rstrip(_STOPS) not in names:
            return text.replace(word, _KEYED_WORD.sub(r"\1\2", word))
    return text


def clean_pairs(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """The clean ones of ``pairs``, each once."""
    seen = set()
    for source, target in pairs:
        pair = clean_pair(source, target)
        if pair is not None and pair not in seen:
            seen.add(pair)
            yield pair


def held_out(text: str, fraction: float) -> bool:
    """Whether a text belongs to the ``fraction`` that is kept for validation.

    It depends on the text alone, by a hash of it without regard to case and spaces, so that the
    same source side is never in training and validation, whatever file it comes from.
    """
    digest = hashlib.sha256(squeeze(text).casefold().encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def split_pairs(pairs: Iterable[Pair], valid_fraction: float) -> Split:
    """Pairs for training and for validation, by ``held_out`` of the source side."""
    split = Split([], [])
    for pair in pairs:
        split[held_out(pair[0], valid_fraction)].append(pair)
    return split


def write_pairs(pairs: Iterable[Pair], path: str | Path) -> None:
    """Writes a tab-separated file, packed if the name ends in .xz or .gz, or leaves all as it was.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as temporary, open_binary(temporary, "wb") as file:
        for source, target in pairs:
            file.write(f"{source}\t{target}\n".encode())
