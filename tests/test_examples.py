"""Every example runs, for two updates on a part of its data."""

import importlib
import runpy
from itertools import islice
from pathlib import Path

import pytest

from fastseq import data
from fastseq.training.tasks import sequence

EXAMPLES = Path(__file__).parents[1] / "examples"
# What each prints at its end, whatever the machine.
LAST = {
    "01_swap_lstm": "training step, torch's time over ours",
    "02_lengths_and_noise": "zoneout, recurrent dropout: ",
    "03_rnn_seq2seq": "chrF of sources of 8 and more words",
    "04_lstm_gru": "gru: perplexity",
    "05_attention": "chrF of sources of 8 and more words",
    "06_transformer": "beam 4: ",
    "07_gpt": "by the tokens' frequencies",
    "08_bert": "from scratch: ",
}


def test_all_examples_are_tried():
    assert {path.stem for path in EXAMPLES.glob("[0-9]*.py")} == LAST.keys()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict[str, Path]:
    """Parts of the sample, by the names under which the package has them."""
    folder = tmp_path_factory.mktemp("sample")
    paths = {}
    for name, count in (("SAMPLE_TRAIN", 1000), ("SAMPLE_VALID", 80)):
        rows = islice(data.read_tsv(getattr(data, name), [1, 2]), count)
        paths[name] = folder / f"{name}.tsv"
        data.write_pairs([row.fields for row in rows], paths[name])
    return paths


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """Modules with docstrings, instead of the standard library's."""
    folder = tmp_path_factory.mktemp("library")
    for i in range(100):
        text = f"Return the {i} words of a line. They are in the order in which they were read."
        (folder / f"module{i}.py").write_text(f'"""{text}\n\n{text}"""\n')
    return folder


@pytest.mark.parametrize("name", LAST)
def test_example_runs(name, tmp_path, monkeypatch, capsys, small, library):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    helpers = importlib.import_module("helpers")
    monkeypatch.setattr(helpers, "LIBRARY", library)
    for constant, path in small.items():
        for module in (data, sequence, helpers):
            if hasattr(module, constant):
                monkeypatch.setattr(module, constant, path)
    monkeypatch.setattr("sys.argv", [name, "--steps", "2"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert LAST[name] in capsys.readouterr().out
