"""What several examples need: the command line, translations with a score, and a text to read."""

import argparse
import ast
import random
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from fastseq.data import SAMPLE_VALID, Tokenizer, held_out, pad, read_tsv
from fastseq.generation import generate
from fastseq.models import Model
from fastseq.training.metrics import chrf

# Settings of a translator that a minute or two teaches something; the examples go over them.
SMALL = {
    "tokenizer.vocab_size": 4000,
    "train.batch_tokens": 2048,
    "train.lr": 4e-3,
    "train.log_every": 50,
    "train.samples": 100,
}
RECURRENT = {
    **SMALL,
    "model.num_layers": 1,
    "model.dropout": 0.1,
    "model.share_embeddings": True,
    "model.tie_embeddings": True,
    "train.schedule": "cosine",
    "train.warmup": 50,
}
LIBRARY = Path(sysconfig.get_path("stdlib"))
# Folders of the standard library without prose of its own.
NOT_READ = {"test", "tests", "idlelib", "lib2to3", "pydoc_data", "site-packages", "dist-packages"}


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
    """The topics of Python's own manual, as ``help()`` shows it, each with its paragraphs."""
    from pydoc_data.topics import topics

    for topic, text in topics.items():
        yield topic, prose(text)


def write_docstrings(folder: Path, valid_fraction: float = 0.05) -> tuple[Path, Path]:
    """English that is on every machine with Python: the docstrings of its standard library.

    Two text files, a line for a paragraph and an empty line between modules. A module is in the
    second by a hash of its text, as ``held_out`` says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    documents: dict[bool, list[str]] = {False: [], True: []}
    for path in sorted(LIBRARY.rglob("*.py")):
        if NOT_READ & set(path.relative_to(LIBRARY).parts):
            continue
        if text := "\n".join(docstrings(path)):
            documents[held_out(text, valid_fraction)].append(text)
    paths = folder / "train.txt", folder / "valid.txt"
    for path, texts in zip(paths, documents.values()):
        path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return paths


def docstrings(path: Path) -> list[str]:
    """The paragraphs of a module's docstrings."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates, and files that test errors
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return [paragraph for node in nodes for paragraph in prose(ast.get_docstring(node) or "")]


def prose(text: str) -> list[str]:
    """Paragraphs of a text that are sentences; code and tables, which are set in, are left out."""
    blocks = re.split(r"\n\s*\n", text)
    joined = [" ".join(block.split()) for block in blocks if not re.search(r"^ {3}", block, re.M)]
    return [paragraph for paragraph in joined if re.search(r"(\S+ ){8}.*[.:]$", paragraph)]
