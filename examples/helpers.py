"""What several examples need: the command line, translations with a score, and a text to read."""

import argparse
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from fastseq.data import SAMPLE_VALID, Tokenizer, held_out, pad, read_tsv
from fastseq.generation import generate
from fastseq.models import Model
from fastseq.training.metrics import chrf


def asked_steps(description: str | None, default: int) -> int:
    """The number of updates from the command line: ``--steps``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=default, help=f"updates, default {default}")
    return parser.parse_args().steps


def translate(model: Model, tokenizer: Tokenizer, texts: Sequence[str], **options) -> list[str]:
    """Translations; ``options`` are those of ``generate``."""
    sources = [torch.tensor(tokenizer.encode_source(text)) for text in texts]
    source, lengths = pad(sources, tokenizer.pad_id)
    found = generate(model, source, lengths, max_new_tokens=60, **options)
    return tokenizer.decode_batch([hypotheses[0].tokens for hypotheses in found])


def show_translations(model: Model, tokenizer: Tokenizer, count: int = 200) -> None:
    """A few translations of the sample's validation part, and chrF by the length of the source."""
    pairs = [row.fields for row in read_tsv(SAMPLE_VALID, [1, 2])]
    random.Random(0).shuffle(pairs)
    pairs = pairs[:count]
    written = translate(model, tokenizer, [source for source, _ in pairs])
    for (source, target), text in list(zip(pairs, written))[:5]:
        print(f"  {source}\n    = {target}\n    > {text}")
    for least, most in ((1, 3), (4, 7), (8, 999)):
        chosen = [
            (text, target)
            for (source, target), text in zip(pairs, written)
            if least <= len(source.split()) <= most
        ]
        score = chrf(*zip(*chosen))
        name = f"{least} to {most}" if most < 999 else f"{least} and more"
        print(f"chrF of sources of {name} words: {score:.1f} ({len(chosen)} sentences)")


def manual() -> Iterator[tuple[str, list[str]]]:
    """English prose that is on every machine with Python: its manual, as ``help()`` shows it.

    Yields topics, each with its paragraphs; code and tables are left out.
    """
    from pydoc_data.topics import topics

    for topic, text in topics.items():
        blocks = re.split(r"\n\s*\n", text)
        prose = [" ".join(block.split()) for block in blocks if not re.search(r"^ {3}", block, re.M)]
        yield topic, [p for p in prose if p.count(" ") >= 8 and p[-1] in ".:"]


def write_manual(folder: Path, valid_fraction: float = 0.1) -> tuple[Path, Path]:
    """The manual as two text files: a line for a paragraph, an empty line between topics.

    A paragraph is in the second by a hash of its text, as ``held_out`` says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.txt", folder / "valid.txt"
    for path, wanted in zip(paths, (False, True)):
        documents = (
            [p for p in paragraphs if held_out(p, valid_fraction) == wanted]
            for _, paragraphs in manual()
        )
        path.write_text("\n\n".join("\n".join(d) for d in documents if d) + "\n", encoding="utf-8")
    return paths
