"""Pairs from Debian: descriptions of packages and their translations, as apt keeps them."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .pairs import Pair, squeeze

_STANZA = re.compile(
    r"^Description-md5: (?P<md5>\w{32})\nDescription-(?P<language>\w+): (?P<title>.*)\n"
    r"(?P<body>(?: .*\n)*)",
    re.MULTILINE,
)


class AptError(RuntimeError):
    """apt is not here, or has not the translations that are asked for."""


def translation_texts(language: str, apt_options: tuple[str, ...] = ()) -> list[str]:
    """What apt has of ``Translation-LANGUAGE``, unpacked.

    Raises:
        AptError: there is no apt, or it has no such file; the message says what to run.
    """
    if shutil.which("apt-get") is None:
        raise AptError("apt-get is not on this machine: Debian's descriptions come through it")
    options = [argument for option in apt_options for argument in ("-o", option)]
    languages = ["-o", f"Acquire::Languages={language}"]
    listed = _run(
        ["apt-get", "indextargets", *options, *languages, "--format", "$(FILENAME)"]
        + ["Created-By: Translations", f"Language: {language}"]
    )
    files = [name for name in dict.fromkeys(listed.split()) if Path(name).exists()]
    if not files:
        raise AptError(
            f"apt has no descriptions in {language!r} here; name all languages that are needed, "
            "such as: apt-get update -o Acquire::Languages=en,fr"
        )
    return [_run(["/usr/lib/apt/apt-helper", *options, "cat-file", name]) for name in files]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise AptError(f"{command[0]} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode("utf-8", errors="strict")


def parse_descriptions(text: str) -> dict[str, list[str]]:
    """By the md5 of the English description: title and paragraphs.

    A paragraph that is set line by line (a list, a table) is cut at its lines.
    """
    return {
        m["md5"]: [squeeze(m["title"]), *_paragraphs(m["body"])] for m in _STANZA.finditer(text)
    }


def _paragraphs(body: str) -> Iterator[str]:
    """Debian's long descriptions: a lone dot parts paragraphs, two spaces mark verbatim lines."""
    for block in re.split(r"^ \.[ \t]*\n", body, flags=re.MULTILINE):
        verbatim = re.search(r"^  ", block, re.MULTILINE)
        for piece in block.splitlines() if verbatim else [block]:
            if piece := squeeze(piece):
                yield piece


def join_descriptions(english: dict[str, list[str]], other: dict[str, list[str]]) -> Iterator[Pair]:
    """Pairs of titles and paragraphs of the descriptions that both have.

    Where the numbers of paragraphs differ only the titles are a pair. Paragraphs that translators
    left open are marked ``<trans>`` and left out.
    """
    for md5, pieces in english.items():
        translated = other.get(md5)
        if translated is None:
            continue
        if len(translated) != len(pieces):
            pieces, translated = pieces[:1], translated[:1]
        for pair in zip(pieces, translated):
            if "<trans>" not in pair[1]:
                yield pair


def harvest_debian(language: str, apt_options: tuple[str, ...] = ()) -> list[Pair]:
    """English paragraphs of package descriptions with their translations, from apt's lists.

    Raises:
        AptError: as ``translation_texts``.
    """
    english, other = (
        parse_descriptions("\n".join(translation_texts(name, apt_options)))
        for name in ("en", language)
    )
    return list(join_descriptions(english, other))
