"""Every example runs, for a few updates."""

import runpy
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("name", LAST)
def test_example_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr("sys.argv", [name, "--steps", "2"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert LAST[name] in capsys.readouterr().out
