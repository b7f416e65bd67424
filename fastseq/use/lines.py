"""Lines of text to work on: from arguments, files, or standard input as it comes."""

import os
import select
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ..data import DataError
from ..data.files import read_lines

STDIN = "<standard input>"


class Line(NamedTuple):
    """A text, and where it stands."""

    text: str
    path: str
    number: int

    def wrong(self, reason: str) -> DataError:
        """What is wrong with it, as an error that says where it stands."""
        return DataError(self.path, self.number, reason)


def pools(texts: Sequence[str], files: Sequence[Path], most: int) -> Iterator[list[Line]]:
    """Lines in lists of at most ``most``: of ``texts`` and ``files``, or of standard input.

    From standard input a list has what is there without waiting, so that a line which is typed is
    worked on at once. The file ``-`` is standard input.

    Raises:
        DataError: a file cannot be read, or is not UTF-8.
    """
    if texts:
        yield from _cut((Line(text, "<argument>", i) for i, text in enumerate(texts, 1)), most)
    for file in files or ([] if texts else [Path("-")]):
        if str(file) == "-":
            yield from _standard_input(most)
        else:
            yield from _cut((Line(text, str(file), n) for n, text in read_lines(file)), most)


def _cut(lines: Iterable[Line], most: int) -> Iterator[list[Line]]:
    lines = iter(lines)
    while pool := list(islice(lines, most)):
        yield pool


def _standard_input(most: int) -> Iterator[list[Line]]:
    number = 0
    for raw in _waiting(most):
        pool = []
        for line in raw:
            number += 1
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise DataError(STDIN, number, f"not UTF-8: byte {byte:#04x}") from None
            pool.append(Line(text.rstrip("\r"), STDIN, number))
        yield pool


def _waiting(most: int) -> Iterator[list[bytes]]:
    """Lines of standard input, without ends, in lists of what is there."""
    handle = sys.stdin.fileno()
    lines: list[bytes] = []
    rest, open_ = b"", True
    while open_:
        block = os.read(handle, 1 << 16)
        open_ = bool(block)
        *whole, rest = (rest + block).split(b"\n")
        lines += whole
        if not open_ and rest:
            lines.append(rest)
        while len(lines) >= most:
            yield lines[:most]
            lines = lines[most:]
        if lines and not (open_ and select.select([handle], [], [], 0)[0]):
            yield lines
            lines = []
