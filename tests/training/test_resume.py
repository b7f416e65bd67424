"""A run that is killed goes on to the same numbers, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fastseq.training import ConfigError
from fastseq.training.checkpoint import read_state
from tests.training.runs import ENCODER, SMALL, TRANSFORMER, arguments, log, run

FLAGS = {
    **SMALL,
    **TRANSFORMER,
    "train.validate_every": 9,
    "train.save_every": 4,
    "train.samples": 3,
    "train.accumulate": 2,
}


def command(out: Path, pairs: dict[str, Any]) -> list[str]:
    head = [sys.executable, "-m", "fastseq.cli", "train", "translate", "--steps", "26"]
    return [*head, "--out", str(out), *arguments({**FLAGS, **pairs})]


def lines(out: Path) -> int:
    path = out / "log.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def test_killed_at_any_moment_it_goes_on_bit_for_bit(tmp_path, pairs):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole, pairs), env=env, check=True, capture_output=True)
    for more in (6, 8):
        at = lines(killed) + more
        with subprocess.Popen(
            command(killed, pairs), env=env, stdout=subprocess.DEVNULL
        ) as process:
            while lines(killed) < at and process.poll() is None:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    subprocess.run(command(killed, pairs), env=env, check=True, capture_output=True)
    assert len(log(whole)) == 26
    for kind in ("train", "valid"):
        assert log(killed, kind) == log(whole, kind)
    for name in ("last", "best"):
        weights = [(out / name / "model.safetensors").read_bytes() for out in (whole, killed)]
        assert weights[0] == weights[1]


def test_a_terminated_run_saves_first(tmp_path, pairs):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command(tmp_path, pairs), env=env, stdout=subprocess.PIPE, text=True
    ) as process:
        while lines(tmp_path) < 2 and process.poll() is None:
            time.sleep(0.002)
        process.terminate()
        screen, _ = process.communicate()
    assert process.returncode == 0
    assert "the same command goes on" in screen
    step = log(tmp_path)[-1]["step"]
    assert (tmp_path / "last").resolve().name == f"step-{step}"


def test_masks_and_epochs_go_on_too(tmp_path):
    text = tmp_path / "text.txt"
    words = [f"Word{i % 17} goes to town{i % 5}. Then it sleeps {i % 3} times." for i in range(120)]
    text.write_text("\n\n".join(words))
    flags = {**ENCODER, "data.train": [str(text)], "data.max_length": 32, "train.log_every": 2}
    flags |= {"train.save_every": 3, "train.schedule": "constant"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run("mlm", whole, flags, steps=14)
    for steps in (3, 9, 14):  # ends within windows of the log, and in other epochs
        run("mlm", parts, flags, steps=steps)
    assert log(parts) == log(whole)
    assert len(log(whole)) == 7
    assert read_state(whole / "last")["position"]["epoch"] > 1


def test_another_setting_is_another_run(tmp_path, pairs):
    flags = {**pairs, **TRANSFORMER}
    run("translate", tmp_path, flags, steps=1)
    with pytest.raises(ConfigError, match=r"holds a run with train.lr = 0.001, now it is 0.1"):
        run("translate", tmp_path, flags, steps=2, lr=0.1)
    _, screen = run("translate", tmp_path, flags, steps=1)
    assert "at its end" in screen
