"""Which of a kernel's tiles is launched; no GPU."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastseq import kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason=str(kernels.reason()))

from fastseq.kernels import launch  # noqa: E402
from fastseq.kernels.attention_dispatch import Tile  # noqa: E402

TILES = (Tile(32, 64, 4, 2), Tile(16, 32, 8, 1))


class Kernel:
    """Records launches."""

    arg_names = ("q", "n", "BM", "BN")

    def __init__(self) -> None:
        self.launches: list[Any] = []

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: self.launches.append((grid, args, kwargs))


def _launch(cuda: bool, tiles: tuple[Tile, ...] = TILES, n: int = 100) -> Kernel:
    kernel = Kernel()
    values = {"q": SimpleNamespace(is_cuda=cuda), "n": n, "unused": 1}
    launch.launch_fastest(kernel, values, tiles, lambda t: -(-n // t["BM"]), ("n", "other"))
    return kernel


@pytest.mark.parametrize(
    ("cuda", "deterministic", "tiles"),
    [(False, False, TILES), (True, True, TILES), (True, False, TILES[:1])],
)
def test_first_where_nothing_is_timed(
    cuda: bool, deterministic: bool, tiles: tuple[Tile, ...]
) -> None:
    torch.use_deterministic_algorithms(deterministic)
    try:
        ((grid, args, kwargs),) = _launch(cuda, tiles).launches
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)  # as conftest.py has it
    assert grid == (4,) and args[1:] == (100, 32, 64)
    assert kwargs == {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}


def test_nothing_to_do_launches_nothing() -> None:
    assert _launch(False, n=0).launches == []


def test_on_a_device_the_tuner_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned, seen = Kernel(), []
    monkeypatch.setattr(launch, "_tuned", lambda *args: seen.append(args) or tuned)
    torch.use_deterministic_algorithms(False)
    try:
        kernel = _launch(True)
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)
    assert seen == [(kernel, TILES, ("n",))] and kernel.launches == []
    ((grid, args, kwargs),) = tuned.launches
    assert not args and kwargs["n"] == 100 and set(kwargs) == {"q", "n", "enable_fp_fusion"}
    assert [grid({"BM": tile.BM}) for tile in TILES] == [(4,), (7,)]


def test_tuner_keeps_its_choices_on_disk() -> None:
    from triton import knobs

    from fastseq.kernels import attention, flash_forward

    kernel = flash_forward.attention_forward
    keys = tuple(name for name in attention._TUNED_BY if name in kernel.arg_names)
    assert {"sizes", "D", "MASK"} <= set(keys)
    tuner = launch._tuned(kernel, TILES, keys)
    assert tuner.cache_results != knobs.runtime.interpret and tuner.keys == list(keys)
    assert [(c.kwargs, c.num_warps, c.num_stages) for c in tuner.configs] == [
        ({"BM": 32, "BN": 64, "TMA": False}, 4, 2),
        ({"BM": 16, "BN": 32, "TMA": False}, 8, 1),
    ]
    assert launch._tuned(kernel, TILES, keys) is tuner


def test_a_kernel_has_one_name_whatever_ran_before() -> None:
    code = """
import sys
from fastseq.kernels import flash_backward, flash_decode, flash_forward, flash_tile, launch
kernels = [flash_forward.attention_forward, flash_decode.attention_decode,
           flash_backward.attention_backward_keys, flash_backward.attention_backward_queries]
order = [kernels, kernels[::-1], [flash_tile.scores, *kernels]][int(sys.argv[1])]
for kernel in order:
    launch.settle_key(kernel)
print(*(kernel.cache_key for kernel in kernels))
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    names = set()
    for order in "012":
        command = [sys.executable, "-c", code, order]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        names.add(done.stdout)
    assert len(names) == 1 and len(names.pop().split()) == 4
