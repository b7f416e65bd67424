"""Settings: files, flags over them, and errors that name file and key."""

import pytest

from fastseq.training import ConfigError, load_settings
from fastseq.training.config import flatten, parse_value


def test_flags_go_over_the_file_and_the_file_over_the_task(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'arch = "lstm-attention"\n[data]\ntrain = ["a.tsv"]\ncolumns = [2, 1]\n'
        '[model]\nattention = "dot"\n[train]\nlr = 1\nsteps = 7\n'
    )
    settings = load_settings("translate", file, {"train.steps": 9, "model.dropout": 0.5})
    assert settings.arch == "lstm-attention"
    assert settings.out == "runs/translate-lstm-attention"
    assert settings.data.train == ["a.tsv"]
    assert settings.data.columns == [2, 1]
    assert settings.model == {"attention": "dot", "dropout": 0.5}
    assert (settings.train.lr, settings.train.steps) == (1, 9)
    assert settings.train.label_smoothing == 0.1  # the task's
    assert flatten(settings)["model.attention"] == "dot"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[train]\nlrr = 1", "unknown key 'train.lrr'; did you mean train.lr?"),
        ("[training]\nlr = 1", "unknown key 'training.lr'; did you mean train"),
        ("[foo]\nlr = 1", "unknown key 'foo.lr'; there is: task, arch"),
        ("[train]\nlr = true", "train.lr should be float, got True"),
        ("[train]\nsteps = 1.5", "train.steps should be int, got 1.5"),
        ("[data]\ntrain = 'x'", r"data.train should be list\[str\], got 'x'"),
        ("train = 3", "train is a table"),
        ("arch = 'cnn'", "arch should be one of rnn, lstm"),
        ("task = 'lm'", "task is 'lm', but 'translate' was asked for"),
        ("[train", "not TOML"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, content, message):
    file = tmp_path / "run.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=rf"run.toml: {message}"):
        load_settings("translate", file)


def test_mistakes_elsewhere_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"flag: unknown key 'trian.lr'"):
        load_settings("translate", None, {"trian.lr": 1})
    with pytest.raises(ConfigError, match=r"absent.toml: cannot be read"):
        load_settings("translate", tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="task should be one of translate, lm"):
        load_settings("translation")


def test_values_of_flags():
    values = [parse_value(text) for text in ("3e-4", "true", "[1, 2]", '"a b"', "dot")]
    assert values == [3e-4, True, [1, 2], "a b", "dot"]
