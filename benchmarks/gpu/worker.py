"""``python -m fastseq.benchmarks.gpu.worker``: does the stages' jobs, one after the other."""

from collections.abc import Callable

import torch
import triton
from torch.nn.attention import SDPBackend

from ...kernels.processes import Answer, serve
from .. import attention_peers
from . import facts
from .stages import STAGES


class Compilations:
    """Counts what Triton compiled and what it found in its cache, of our own kernels."""

    def __init__(self) -> None:
        self.compiled: list[str] = []
        self.looked_up = 0
        triton.knobs.compilation.listener = self._heard

    def _heard(self, *, src, metadata, metadata_group, times, cache_hit) -> None:
        if not getattr(getattr(src, "fn", None), "__module__", "").startswith("fastseq"):
            return
        if cache_hit:
            self.looked_up += 1
        else:
            self.compiled.append(src.fn.__name__)

    def take(self) -> Answer:
        """Those since the last time."""
        found = {"compiled": self.compiled, "looked_up": self.looked_up}
        self.compiled, self.looked_up = [], 0
        return found


_kept: list[object] = []


def _on_paper() -> None:
    """Where the card does nothing: what must not be asked, and what must be answered."""
    from .paper_card.integers import make_real

    # cuDNN's answers are made of paper too, and torch would believe them, and die of them.
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    attention_peers.BACKENDS["SDPA cuDNN"] = SDPBackend.ERROR
    _kept.append(make_real())


def performer() -> Callable[[list[str]], Answer]:
    """Does a job [stage, name]; its answer also says what was compiled for it."""
    marked: Answer = {}
    if torch.cuda.is_available() and facts.on_paper():
        _on_paper()
        marked = {"paper": True}
    heard = Compilations()
    performers = {stage.name: stage.perform for stage in STAGES}

    def perform(job: list[str]) -> Answer:
        stage, name = job
        try:
            return performers[stage](name) | heard.take() | marked
        finally:
            heard.take()

    return perform


if __name__ == "__main__":
    serve(performer())
