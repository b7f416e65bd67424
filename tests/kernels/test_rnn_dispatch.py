"""Which recurrent kernel serves what; no Triton, no GPU."""

import subprocess
import sys

import pytest

from fastseq import kernels
from fastseq.kernels import rnn_dispatch
from fastseq.kernels.device import Limits
from fastseq.kernels.rnn_dispatch import (
    Problem,
    choose,
    persistent_config,
    refuse,
    sequence_config,
    step_config,
)

H100 = Limits(132, 227 * 1024)
A100 = Limits(108, 163 * 1024)


def problem(
    hidden: int,
    mode: str = "LSTM",
    batch: int = 16,
    directions: int = 1,
    itemsize: int = 2,
    width: int = 0,
    row_wide: bool = False,
    tf32: bool = False,
) -> Problem:
    return Problem(mode, hidden, width or hidden, batch, directions, itemsize, row_wide, tf32)


@pytest.fixture(autouse=True)
def compiled_by_the_latest_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rnn_dispatch, "triton_version", lambda: (3, 9))
    for name in ("FASTSEQ_RNN_KERNEL", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("case", "limits", "kernel"),
    [
        (problem(128), H100, "sequence"),
        (problem(129), H100, "persistent"),
        (problem(1024), H100, "persistent"),
        (problem(1024), A100, "persistent"),
        (problem(1024, "GRU"), H100, "persistent"),
        (problem(1024, directions=2), H100, "persistent"),
        (problem(4096), H100, "step"),
        (problem(256, row_wide=True), H100, "step"),
        (problem(64, row_wide=True, width=32), H100, "sequence"),
        (problem(64, itemsize=8), H100, "step"),
        (problem(64, itemsize=4), H100, "persistent"),
        (problem(64, "GRU", itemsize=4), H100, "sequence"),
        (problem(64, itemsize=4, tf32=True), H100, "sequence"),
        (problem(1024, itemsize=4), H100, "step"),
        (problem(1024, itemsize=4, tf32=True), H100, "persistent"),
    ],
)
def test_choice(case: Problem, limits: Limits, kernel: str, backward: bool) -> None:
    assert choose(case, limits, backward) == kernel


@pytest.mark.parametrize("limits", [H100, A100, Limits(304, 64 * 1024, 64)])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("mode", ["RNN_TANH", "GRU", "LSTM"])
def test_persistent_grid_is_co_resident_and_fits(limits: Limits, itemsize: int, mode: str) -> None:
    served = 0
    for hidden in range(1, 2500, 13):
        for directions in (1, 2):
            for backward in (False, True):
                case = problem(hidden, mode, directions=directions, itemsize=itemsize)
                config = persistent_config(case, limits, backward)
                if config is None:
                    continue
                served += 1
                assert -(-hidden // config.BN) * directions <= limits.multiprocessors
                assert config.num_warps == config.KS
                assert hidden <= config.KS * config.KC * config.CHUNKS
                gates = case.gates if backward else case.padded_gates
                inner = config.KS * config.KC * config.CHUNKS
                assert gates * inner * config.BN * itemsize < limits.shared
    assert served


def test_tiles_hold_the_layer() -> None:
    for hidden in (1, 17, 100, 128):
        config = sequence_config(problem(hidden), H100)
        assert config is not None and hidden <= config.BH and hidden <= config.BP
    assert step_config(problem(512, batch=1)).BM == 1
    assert step_config(problem(512, batch=3)).BM == 4
    assert step_config(problem(512, batch=5)).BM == 16
    assert step_config(problem(512, batch=500)).BM == 64


def test_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSEQ_RNN_KERNEL", "step")
    assert choose(problem(128), H100, False) == "step"
    monkeypatch.setenv("FASTSEQ_RNN_KERNEL", "persistent")
    assert choose(problem(128), H100, False) == "persistent"
    with pytest.raises(RuntimeError, match="cannot serve"):
        choose(problem(128, row_wide=True), H100, False)
    monkeypatch.setenv("FASTSEQ_RNN_KERNEL", "fastest")
    with pytest.raises(ValueError, match="must be one of"):
        choose(problem(128), H100, False)


@pytest.mark.parametrize(
    ("version", "served"),
    [((), True), ((3, 6), True), ((3, 8), True), ((3, 9), False), ((3, 10), False)],
)
@pytest.mark.parametrize("backward", [False, True])
def test_compiler_that_aborts_is_not_asked(
    version: tuple[int, ...], served: bool, backward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take the process along, so not even where the kernel is asked for."""
    monkeypatch.setattr(rnn_dispatch, "triton_version", lambda: version)
    aborting = problem(64, itemsize=4)
    assert choose(aborting, H100, backward) == ("sequence" if served else "persistent")
    for compiles in (problem(64), problem(64, "GRU", itemsize=4)):
        assert choose(compiles, H100, backward) == "sequence"
    monkeypatch.setenv("FASTSEQ_RNN_KERNEL", "sequence")
    if served:
        assert choose(aborting, H100, backward) == "sequence"
    else:
        with pytest.raises(RuntimeError, match=r"cannot serve.*compiler aborts"):
            choose(aborting, H100, backward)
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert choose(aborting, H100, backward) == "sequence"


def test_refused_kernel_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rnn_dispatch, "_refused", {})
    case = problem(512)
    with pytest.warns(RuntimeWarning, match="too many blocks"):
        refuse(case, H100, False, "too many blocks")
    assert choose(case, H100, backward=False) == "step"
    assert choose(case, H100, backward=True) == "persistent"
    assert choose(case, A100, backward=False) == "persistent"
    assert choose(problem(512, batch=8), H100, backward=False) == "persistent"
    monkeypatch.setenv("FASTSEQ_RNN_KERNEL", "persistent")
    for ask in (lambda: choose(case, H100, False), lambda: refuse(case, H100, True, "too many")):
        with pytest.raises(RuntimeError, match=r"cannot serve.*too many"):
            ask()


@pytest.mark.parametrize(
    ("package", "version", "found"),
    [("triton", "3.6.0", (3, 6)), ("pytorch-triton-rocm", "3.10.1+git1a2b", (3, 10))],
)
def test_triton_version(
    package: str, version: str, found: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(name: str) -> str:
        if name != package:
            raise kernels.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(kernels, "version", installed)
    assert kernels.triton_version.__wrapped__() == found
    monkeypatch.setattr(kernels, "version", lambda _: installed("nothing"))
    assert kernels.triton_version.__wrapped__() == ()


def test_imports_without_triton() -> None:
    code = (
        "import sys, importlib.machinery as m\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'triton': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, No())\n"
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda n, p=None: None if n == 'triton' else real(n, p)\n"
        "from fastseq import kernels\n"
        "assert not kernels.available()\n"
        "print(kernels.reason())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not installed" in done.stdout
