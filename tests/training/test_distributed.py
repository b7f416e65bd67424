"""Two processes learn what one learns."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.runs import SMALL, TRANSFORMER, arguments, log

FLAGS = {
    **SMALL,
    **TRANSFORMER,
    "model.dropout": 0.0,
    "train.validate_every": 4,
    "train.samples": 5,
}


def train(out: Path, pairs: dict[str, Any], processes: int, steps: int, **more: Any) -> None:
    head = [sys.executable]
    if processes > 1:
        head += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    program = ["-m", "fastseq.cli", "train", "translate", "--steps", str(steps), "--out", str(out)]
    flags = {**FLAGS, **pairs, **{f"train.{key}": value for key, value in more.items()}}
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*head, *program, *arguments(flags)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory, pairs):
    out = tmp_path_factory.mktemp("alone")
    train(out, pairs, 1, 8)
    return out


def losses(out: Path, kind: str) -> list[float]:
    return [entry["loss"] for entry in log(out, kind)]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_learn_the_same_and_any_number_goes_on(tmp_path, pairs, alone, strategy):
    train(tmp_path, pairs, 2, 4, strategy=strategy)
    assert (tmp_path / "last" / "shards").is_dir() == (strategy == "fsdp")
    train(tmp_path, pairs, 1, 8, strategy=strategy)
    assert len(losses(tmp_path, "train")) == 8
    for kind in ("train", "valid"):
        assert losses(tmp_path, kind) == pytest.approx(losses(alone, kind), rel=1e-5)
    assert [len(entry["samples"]) for entry in log(tmp_path, "valid")] == [3, 3]


def test_parts_of_an_update_change_nothing(tmp_path, pairs, alone):
    train(tmp_path, pairs, 1, 8, accumulate=3)
    assert losses(tmp_path, "train") == pytest.approx(losses(alone, "train"), rel=1e-5)
