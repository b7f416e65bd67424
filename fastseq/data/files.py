"""Readers of text: tab-separated columns and plain text, as they are or packed by xz or gzip.

Every error is a :class:`DataError` that names the file and the line.
"""

import gzip
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

_OPENERS = {".xz": lzma.open, ".gz": gzip.open}
# Where a sentence ends and another begins, in European typography.
_SENTENCE_END = re.compile(r"(?:(?<=[.!?…])|(?<=[.!?…][\"'”»)]))\s+(?=[\"'“«(]*[A-ZÀ-Þ])")


class DataError(ValueError):
    """A data file that cannot be used; the message begins with ``file:line:``."""

    def __init__(self, path: str | Path, line: int | None, message: str) -> None:
        super().__init__(f"{path}:{line}: {message}" if line else f"{path}: {message}")


class Row(NamedTuple):
    """The chosen columns of a line, and where it stands, for later complaints."""

    fields: tuple[str, ...]
    path: Path
    line: int


def open_binary(path: Path, mode: str = "rb") -> BinaryIO:
    """Opens a file, through xz or gzip if its name ends so."""
    return _OPENERS.get(path.suffix, open)(path, mode)  # type: ignore[operator]


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file with their numbers from 1, without line ends.

    Raises:
        DataError: the file is not there, is not UTF-8, or its packing is damaged.
    """
    path, number = Path(path), 0
    try:
        with open_binary(path) as file:
            for number, raw in enumerate(file, 1):
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                yield number, text.rstrip("\r\n")
    except UnicodeDecodeError as error:
        reason = f"not UTF-8: byte {error.object[error.start]:#04x} at position {error.start}"
        raise DataError(path, number, reason) from None
    except (lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise DataError(path, number + 1, f"damaged {path.suffix} file: {error}") from None
    except OSError as error:
        raise DataError(path, None, error.strerror or str(error)) from None


def read_tsv(path: str | Path, columns: Sequence[int]) -> Iterator[Row]:
    """The given columns, counted from 1, of every line of a tab-separated file.

    Raises:
        DataError: as ``read_lines``; a line is empty, a chosen column of it is, or it has not as
            many columns as the first.
    """
    path, width = Path(path), 0
    for number, text in read_lines(path):
        if not text.strip():
            raise DataError(path, number, "the line is empty")
        cells = text.split("\t")
        if not width:
            width = len(cells)
            if width < max(columns):
                raise DataError(path, number, f"no column {max(columns)}: the line has {width}")
        if len(cells) != width:
            raise DataError(path, number, f"{len(cells)} columns, where the first line has {width}")
        fields = tuple(cells[c - 1].strip() for c in columns)
        if "" in fields:
            raise DataError(path, number, f"column {columns[fields.index('')]} is empty")
        yield Row(fields, path, number)


def read_documents(path: str | Path, column: int | None = None) -> Iterator[list[str]]:
    """Documents as lists of paragraphs.

    With ``column`` (from 1) the file is tab-separated and each line's column a document. Without,
    a line is a paragraph and empty lines stand between documents.
    """
    if column is not None:
        for row in read_tsv(path, [column]):
            yield [row.fields[0]]
        return
    document: list[str] = []
    for _, text in read_lines(path):
        if text := text.strip():
            document.append(text)
        elif document:
            yield document
            document = []
    if document:
        yield document


def split_sentences(paragraph: str) -> list[str]:
    """Sentences of a paragraph, cut after a full stop, a question or an exclamation mark that a
    capital follows."""
    return [s for s in _SENTENCE_END.split(paragraph) if s]
