"""The command line, as a user calls it."""

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import fastseq
from fastseq.cli import app
from fastseq.config import config

runner = CliRunner()


def test_info_names_versions_and_the_backend_of_every_operator():
    result = runner.invoke(app, ["info"])
    assert result.exit_code == 0, result.output
    assert torch.__version__ in result.output
    for operator in config()["operators"]:
        assert operator in result.output


def test_show_config_prints_the_same(capsys):
    fastseq.show_config()
    assert fastseq.__version__ in capsys.readouterr().out


def test_a_missing_backend_is_explained():
    backends = config()["backends"]
    assert {"C++", "Triton", "PyTorch"} == set(backends)
    for state in backends.values():
        assert state["available"] or state["reason"]


def test_operators_are_served_by_what_is_registered():
    served = config()["operators"]["rnn_scan"]
    registered = torch._C._dispatch_has_kernel_for_dispatch_key("fastseq::rnn_scan", "CPU")
    assert served["cpu"] == ("C++" if registered else "PyTorch")


def test_bench_writes_its_results(tmp_path):
    result = runner.invoke(
        app,
        [
            "bench",
            "rnn",
            "--out",
            str(tmp_path),
            "--quick",
            "--device",
            "cpu",
            "--filter",
            "LSTMCell B1",
        ],
    )
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "rnn.json").read_text())
    assert [e["case"] for e in found["results"]] == ["LSTMCell B1 H256 infer"]
    assert found["results"][0]["parity"]["passed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "poetry"], "unknown suite 'poetry'"),
        (["bench", "rnn", "--filter", "no such case"], "no case"),
    ],
)
def test_bad_arguments_are_told(arguments, message, tmp_path):
    result = runner.invoke(app, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_module_runs_as_a_program():
    result = subprocess.run(
        [sys.executable, "-m", "fastseq.cli", "--help"], capture_output=True, text=True, check=True
    )
    assert "bench" in result.stdout
