"""Small trained models of every task, in folders as ``fastseq train`` leaves them."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.generation.conftest import one_thread as one_thread
from tests.training.runs import ENCODER, RECURRENT, TRANSFORMER, run

WORDS = {
    "the cat": "le chat",
    "the dog": "le chien",
    "a bird": "un oiseau",
    "my friend": "mon ami",
    "sees": "voit",
    "hears": "entend",
    "follows": "suit",
    "today": "aujourd'hui",
    "at night": "la nuit",
}


@dataclass
class Run:
    """The folder of a run, its files, and the scores of its last validation."""

    folder: Path
    train: Path
    valid: Path
    scores: dict[str, float]


def sentence(rng: random.Random) -> tuple[str, str]:
    phrases = list(WORDS.items())
    chosen = [rng.choice(phrases[:4]), rng.choice(phrases[4:7]), rng.choice(phrases[:4])]
    for _ in range(rng.randrange(4)):
        chosen.append(rng.choice(phrases[7:]))
    return tuple(" ".join(words) for words in zip(*chosen))  # type: ignore[return-value]


def _files(folder: Path, ending: str, train: str, valid: str) -> tuple[Path, Path, dict]:
    paths = folder / f"train.{ending}", folder / f"valid.{ending}"
    for path, text in zip(paths, (train, valid)):
        path.write_text(text, encoding="utf-8")
    return *paths, {"data.train": [str(paths[0])], "data.valid": [str(paths[1])]}


def _translation(folder: Path, arch: str, steps: int, sizes: dict) -> Run:
    rng = random.Random(0)
    pairs = list(dict.fromkeys(sentence(rng) for _ in range(400)))
    lines = [f"{source}\t{target}\n" for source, target in pairs]
    *files, data = _files(folder, "tsv", "".join(lines[20:]), "".join(lines[:20]))
    flags = {**data, **sizes, "arch": arch, "model.dropout": 0.0, "data.max_length": 40}
    options = {"steps": steps, "lr": 1e-2, "warmup": 20, "samples": 20}
    scores, _ = run("translate", folder / "run", flags, **options)
    return Run(folder / "run", *files, scores)


@pytest.fixture(scope="package")
def transformer(tmp_path_factory) -> Run:
    return _translation(tmp_path_factory.mktemp("transformer"), "transformer", 100, TRANSFORMER)


@pytest.fixture(scope="package")
def recurrent(tmp_path_factory) -> Run:
    sizes = {**RECURRENT, "model.hidden_size": 64}
    return _translation(tmp_path_factory.mktemp("recurrent"), "lstm-attention", 300, sizes)


@pytest.fixture(scope="package", params=["transformer", "recurrent"])
def translation(request) -> Run:
    """Both kinds of encoder-decoder."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="package")
def language(tmp_path_factory) -> Run:
    folder, rng = tmp_path_factory.mktemp("gpt"), random.Random(0)
    documents = [f"{sentence(rng)[0]}.\n{sentence(rng)[0]}." for _ in range(150)]
    texts = "\n\n".join(documents[30:]), "\n\n".join(documents[:30])
    *files, data = _files(folder, "txt", *texts)
    flags = {**data, **ENCODER, "data.max_length": 32, "model.dropout": 0.0}
    scores, _ = run("lm", folder / "run", flags, steps=40, lr=1e-2)
    return Run(folder / "run", *files, scores)


@pytest.fixture(scope="package")
def classes(tmp_path_factory) -> Run:
    folder, rng = tmp_path_factory.mktemp("classes"), random.Random(0)
    lines = []
    for i in range(240):
        score = rng.choice([-1.5, 2.5])
        lines.append(f"{score}\tFilm {i} was {'awful' if score < 0 else 'lovely'}.\n")
    *files, data = _files(folder, "tsv", "".join(lines[40:]), "".join(lines[:40]))
    flags = {**data, **ENCODER, "data.threshold": 0.0, "data.max_length": 24, "model.dropout": 0.0}
    scores, _ = run("classify", folder / "run", flags, steps=30, lr=5e-3)
    return Run(folder / "run", *files, scores)


@pytest.fixture(scope="package")
def questions(tmp_path_factory) -> Run:
    folder, rng, paragraphs = tmp_path_factory.mktemp("qa"), random.Random(0), []
    for i in range(100):
        number = rng.randrange(10, 99)
        filler = " Its windows are of glass." * (i % 4)  # some contexts take two windows
        context = f"House {i} is old.{filler} It has {number} rooms."
        answer = {"text": str(number), "answer_start": context.index(f"{number} rooms")}
        entry = {"id": str(i), "question": "How many rooms are there?", "answers": [answer]}
        paragraphs.append({"context": context, "qas": [entry]})
    texts = (json.dumps({"data": [{"paragraphs": p}]}) for p in (paragraphs[20:], paragraphs[:20]))
    *files, data = _files(folder, "json", *texts)
    flags = {**data, **ENCODER, "data.max_length": 32, "data.stride": 128, "model.dropout": 0.0}
    scores, _ = run("qa", folder / "run", flags, steps=60, lr=5e-3, warmup=20)
    return Run(folder / "run", *files, scores)
