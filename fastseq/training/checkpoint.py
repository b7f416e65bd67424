"""Checkpoints of a run: whole or not there, whenever the process is killed or the disk is full.

A run's folder has ``checkpoints/step-N/`` and the links ``last`` and ``best`` to two of them. A
checkpoint is written under another name, synchronised and renamed; then the links are replaced, and
what no link names is removed.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module
from torch.optim import Optimizer

from ..models import CheckpointError
from .distributed import Ranks

STATE_FILE = "training.pt"
SHARDS = "shards"


class SaveError(OSError):
    """A checkpoint could not be written. The last one is untouched."""


class Checkpoints:
    """Those of the run in the folder ``out``."""

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        self.folder = self.out / "checkpoints"

    @property
    def last(self) -> Path | None:
        """The newest, or None."""
        return self._linked("last")

    @property
    def best(self) -> Path | None:
        """The one of the best score, or None."""
        return self._linked("best")

    def _linked(self, name: str) -> Path | None:
        link = self.out / name
        return link.resolve() if link.exists() else None

    @contextmanager
    def saving(self, step: int, best: bool, ranks: Ranks) -> Iterator[Path]:
        """An empty folder, into which every process writes its part. When all have, it becomes the
        last checkpoint, and the best one if ``best``.

        Raises:
            SaveError: something could not be written; the checkpoints are as they were.
        """
        temporary = self.folder / ".writing"
        try:
            if ranks.main:
                if temporary.exists():
                    shutil.rmtree(temporary)
                temporary.mkdir(parents=True)
            ranks.wait()
            yield temporary
            ranks.wait()
            if ranks.main:
                self._finish(temporary, step, best)
        # torch and safetensors wrap what the operating system said in RuntimeErrors of theirs.
        except (OSError, RuntimeError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            kept = f"; {self.last} is whole" if self.last else ""
            raise SaveError(
                f"{self.out}: the checkpoint cannot be written: {error}{kept}"
            ) from error
        ranks.wait()

    def _finish(self, temporary: Path, step: int, best: bool) -> None:
        _synchronize(*temporary.rglob("*"), temporary)
        target, again = self.folder / f"step-{step}", 1
        while target.exists():  # from before the run was last killed, and maybe linked
            target, again = self.folder / f"step-{step}.{again}", again + 1
        temporary.rename(target)
        _synchronize(self.folder)
        for name in ("best", "last") if best else ("last",):
            self._link(name, target)
        _synchronize(self.out)
        kept = {self.last, self.best}
        for path in self.folder.glob("step-*"):
            if path.resolve() not in kept:
                shutil.rmtree(path)

    def _link(self, name: str, target: Path) -> None:
        temporary = self.out / f".{name}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.relative_to(self.out), target_is_directory=True)
        temporary.replace(self.out / name)


def _synchronize(*paths: Path) -> None:
    """Waits until files, and folders' lists of files, are on the disk."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Numbers, texts and tensors, as ``training.pt``."""
    torch.save(state, folder / STATE_FILE)


def read_state(folder: Path) -> dict[str, Any]:
    """What ``write_state`` wrote. Nothing but tensors and plain values is loaded.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = folder / STATE_FILE
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's, zipfile's and torch's
        raise CheckpointError(f"{path}: not a training state: {error}") from None


def write_shards(folder: Path, model: Module, optimizer: Optimizer) -> None:
    """This process's part of a sharded model and its optimizer, by torch.distributed.checkpoint."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder / SHARDS)


def read_shards(folder: Path, model: Module, optimizer: Optimizer) -> None:
    """Puts into model and optimizer what ``write_shards`` wrote, by however many processes."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    weights, moments = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": weights, "optimizer": moments}
    dcp.load(state, checkpoint_id=folder / SHARDS)
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
