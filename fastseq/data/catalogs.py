"""Pairs from message catalogs: what gettext's .mo files on a machine say in two languages."""

import gettext
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from .files import DataError
from .pairs import Pair


def find_catalogs(roots: Iterable[str | Path], language: str) -> list[Path]:
    """The .mo files of a language under ``roots``: below a folder that is named by the language
    (``fr``), then by it and a country (``fr_CA``).

    Raises:
        DataError: a root is not a folder.
    """
    found: dict[Path, bool] = {}
    for root in map(Path, roots):
        if not root.is_dir():
            raise DataError(root, None, "not a folder")
        for path in sorted(root.rglob("*.mo")):
            folders = path.relative_to(root.parent).parts[:-1]
            if any(f == language or f.startswith(f"{language}_") for f in folders):
                found[path] = language in folders
    return sorted(found, key=lambda path: not found[path])


def read_catalog(path: str | Path) -> Iterator[Pair]:
    """The messages of a .mo file and their translations. Of plurals, the first form.

    Raises:
        DataError: the file is no catalog, or a damaged one.
    """
    try:
        with open(path, "rb") as file:
            catalog = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    except (OSError, UnicodeDecodeError, struct.error, LookupError, ValueError) as error:
        raise DataError(path, None, f"not a message catalog: {error}") from None
    for key, translation in catalog.items():
        message, form = key if isinstance(key, tuple) else (key, 0)
        if message and translation and form == 0:
            yield message.rpartition("\x04")[2], translation  # what precedes is a context


def harvest_catalogs(catalogs: Iterable[Path]) -> tuple[list[Pair], list[DataError]]:
    """Pairs of all catalogs, and the complaints about those that cannot be read."""
    pairs: list[Pair] = []
    errors = []
    for path in catalogs:
        try:
            pairs += read_catalog(path)
        except DataError as error:
            errors.append(error)
    return pairs, errors
