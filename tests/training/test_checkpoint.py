"""Checkpoints are whole or not there."""

import resource
from contextlib import contextmanager

import pytest
import torch

from fastseq.models import CheckpointError
from fastseq.training import Checkpoints, SaveError
from fastseq.training.checkpoint import read_state, write_state
from fastseq.training.distributed import Ranks
from tests.training.runs import TRANSFORMER, log, run

ONE = Ranks(0, 1, torch.device("cpu"))


def save(checkpoints: Checkpoints, step: int, best: bool = False) -> None:
    with checkpoints.saving(step, best, ONE) as folder:
        write_state(folder, {"step": step, "tensor": torch.arange(3)})


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_last_and_best_stay_and_others_go(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.last is None
    for step, best in ((1, True), (2, True), (3, False), (4, False)):
        save(checkpoints, step, best)
    assert names(checkpoints) == ["step-2", "step-4"]
    assert read_state(checkpoints.last)["step"] == 4
    assert read_state(checkpoints.best)["step"] == 2
    assert (tmp_path / "best" / "training.pt").is_file()


def test_a_step_that_is_there_already_is_written_beside_it(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 5, best=True)
    save(checkpoints, 5)
    assert names(checkpoints) == ["step-5", "step-5.1"]
    assert checkpoints.last.name == "step-5.1"


def test_what_a_killed_process_left_is_cleared(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    for name in (".writing", "step-2"):  # killed while writing; before the links were replaced
        (checkpoints.folder / name).mkdir()
        (checkpoints.folder / name / "half").write_text("x")
    assert read_state(checkpoints.last)["step"] == 1
    save(checkpoints, 2)
    assert read_state(checkpoints.last)["step"] == 2
    assert names(checkpoints) == ["step-2.1"]


@pytest.mark.parametrize("error", [OSError("full"), RuntimeError("PytorchStreamWriter failed")])
def test_a_failure_leaves_the_last_one(tmp_path, error):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, best=True)
    message = r"cannot be written: .*step-1 is whole"
    with pytest.raises(SaveError, match=message), checkpoints.saving(2, True, ONE) as folder:
        (folder / "half").write_text("x")
        raise error
    assert names(checkpoints) == ["step-1"]
    assert checkpoints.last == checkpoints.best


@contextmanager
def files_up_to(size: int):
    """The operating system refuses to write files any larger, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_run_whose_disk_is_full_says_so_and_goes_on_later(tmp_path, pairs):
    flags = {**pairs, **TRANSFORMER, "train.save_every": 4}
    whole, full = tmp_path / "whole", tmp_path / "full"
    run("translate", whole, flags, steps=8, validate_every=4)
    run("translate", full, flags, steps=4)
    size = (full / "last" / "model.safetensors").stat().st_size
    for limit in (size // 2, size + 4096):  # the weights do not fit; the optimizer's state does not
        with files_up_to(limit), pytest.raises(SaveError, match="step-4 is whole"):
            run("translate", full, flags, steps=8)
        assert read_state(Checkpoints(full).last)["position"]["step"] == 4
    run("translate", full, flags, steps=8)
    assert log(full) == log(whole)
    assert log(full, "valid") == log(whole, "valid")


def test_damaged_states_are_told(tmp_path):
    (tmp_path / "training.pt").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"training.pt: not a training state"):
        read_state(tmp_path)


def test_nothing_but_plain_values_is_loaded(tmp_path):
    torch.save({"hook": print}, tmp_path / "training.pt")
    with pytest.raises(CheckpointError, match="not a training state"):
        read_state(tmp_path)
