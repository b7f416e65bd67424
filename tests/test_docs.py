"""What the documents say runs: marked Python blocks, and the settings of training.md."""

import json
import re
from pathlib import Path

import pytest

from fastseq.data import SAMPLE_TRAIN, read_tsv, write_pairs
from fastseq.training import load_settings, train

DOCS = Path(__file__).parents[1] / "docs"
MARKED = re.compile(r"<!-- run -->\n```python\n(.*?)```", re.DOTALL)
SETTINGS = re.compile(r"```toml\n(# fastseq train (\w+) .*?)```", re.DOTALL)
SETTINGS_OF = {task: text for text, task in SETTINGS.findall((DOCS / "training.md").read_text())}


def test_nothing_is_installed_by_a_name_of_others():
    """``fastseq`` on the package index is another project."""
    root = DOCS.parent
    texts = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("fastseq/**/*.py")]
    assert len(texts) > 100
    assert not [p for p in texts if re.search(r"pip install [\"']?fastseq", p.read_text())]


@pytest.mark.parametrize("name", ["models", "tutorial"])
def test_marked_blocks_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = MARKED.findall((DOCS / f"{name}.md").read_text())
    assert blocks
    names: dict = {}
    for number, block in enumerate(blocks):  # one after another, as a reader would
        exec(compile(block, f"{name}.md, block {number}", "exec"), names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The files that training.md's settings name, of a few lines each, and a trained encoder."""
    folder = tmp_path_factory.mktemp("training")
    pairs = [row.fields for row in read_tsv(SAMPLE_TRAIN, [1, 2])][:60]
    english = [source for source, _ in pairs]
    (folder / "corpus").mkdir()
    for name in ("corpus/train.tsv.xz", "corpus/valid.tsv.xz", "pairs.tsv", "summaries.tsv"):
        write_pairs(pairs, folder / name)
    documents = ("\n".join(english[i : i + 4]) for i in range(0, 60, 4))
    (folder / "text.txt").write_text("\n\n".join(documents))
    rated = [(f"{i % 5 - 2}.5", text) for i, text in enumerate(english)]
    write_pairs(rated, folder / "labelled.tsv")
    paragraphs = [
        {
            "context": text,
            "qas": [{"id": text, "question": "What?", "answers": [{"text": text[:1],
                     "answer_start": 0}]}],
        }
        for text in english
    ]  # fmt: skip
    (folder / "squad.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return folder


# mlm is first: others start from its encoder.
@pytest.mark.parametrize("task", ["mlm", "translate", "lm", "classify", "qa", "summarize"])
def test_settings_of_each_task_train(task, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / f"{task}.toml").write_text(SETTINGS_OF[task])
    quick = {
        "train.steps": 1,
        "train.batch_tokens": 200,
        "train.samples": 2,
        "train.device": "cpu",
        "tokenizer.vocab_size": 500,
        "data.valid_fraction": 0.3,
    }
    scores = train(load_settings(task, f"{task}.toml", quick))
    assert scores["loss" if task != "mlm" else "masked_words"] > 0
    assert (folder / "runs" / task / "best" / "model.safetensors").is_file()


def test_every_task_has_its_settings():
    from fastseq.training import TASKS

    assert SETTINGS_OF.keys() == TASKS.keys()
