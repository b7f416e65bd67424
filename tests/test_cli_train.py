"""The commands train and corpus, as a user calls them."""

import pytest
from typer.testing import CliRunner

from fastseq.cli import app
from fastseq.data import SAMPLE_TRAIN, read_tsv
from fastseq.training.checkpoint import read_state
from tests.data.test_harvest import catalog

runner = CliRunner()


def call(*arguments: object):
    return runner.invoke(app, [str(argument) for argument in arguments])


def test_train_reads_file_and_flags(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(
        'arch = "gru"\n[model]\nhidden_size = 16\nembedding_size = 16\n'
        "[tokenizer]\nvocab_size = 300\n[train]\nsteps = 9\nsamples = 0\nlog_every = 1\n"
    )
    done = call(
        "train", "translate", "--config", config, "--out", tmp_path / "run", "--steps", 2,
        "--batch-tokens", 300, "--device", "cpu", "--set", "model.num_layers=1",
        "--column", 2, "--column", 1,
        "--valid", SAMPLE_TRAIN.with_name("en-fr.valid.tsv.xz"),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "Seq2Seq (gru)" in done.output
    assert "step 2/2" in done.output
    state = read_state((tmp_path / "run" / "best").resolve())
    assert state["settings"]["data.columns"] == [2, 1]
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["translation"], "task should be one of translate"),
        (["translate", "--set", "train.lrr=1"], "unknown key 'train.lrr'; did you mean train.lr?"),
        (["translate", "--set", "lr"], "--set should be KEY=VALUE, got 'lr'"),
        (["translate", "--data", "absent.tsv"], "absent.tsv: No such file"),
        (["classify", "--data", "x", "--init-encoder", "absent"], "absent: no such file"),
        (["lm"], "lm needs data.train (--data)"),
    ],
)
def test_mistakes_end_with_their_message(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = call("train", *arguments)
    assert done.exit_code == 1
    assert done.output.splitlines()[-1].startswith("fastseq: ")
    assert message in done.output


def test_catalogs_become_a_corpus(tmp_path):
    folder = tmp_path / "locale" / "fr" / "LC_MESSAGES"
    folder.mkdir(parents=True)
    messages = {f"message {i}": f"le message {i}" for i in range(200)}
    (folder / "app.mo").write_bytes(catalog(messages))
    (folder / "bad.mo").write_bytes(b"junk")
    out = tmp_path / "out"
    done = call("corpus", "gettext", tmp_path / "locale", "--out", out, "--valid-fraction", 0.2)
    assert done.exit_code == 0, done.output
    assert "bad.mo: not a message catalog" in done.output
    train, valid = (
        [row.fields for row in read_tsv(out / f"{name}.tsv.xz", [1, 2])]
        for name in ("train", "valid")
    )
    assert dict(train) | dict(valid) == messages
    assert 20 < len(valid) < 60
    for arguments, message in (
        ([tmp_path / "locale", "--language", "de"], "no .mo file below a folder 'de'"),
        ([tmp_path / "absent"], "not a folder"),
        ([tmp_path / "locale", "--valid-fraction", 2], "valid-fraction"),
    ):
        done = call("corpus", "gettext", *arguments, "--out", out)
        assert done.exit_code != 0
        assert message in done.output


def test_without_apt_the_reason_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    done = call("corpus", "debian", "--out", tmp_path)
    assert done.exit_code == 1
    assert "apt-get is not on this machine" in done.output
