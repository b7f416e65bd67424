"""A cooperative launch that the device refuses: another kernel runs, on tensors nobody touched."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq import kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason=str(kernels.reason()))

from triton.runtime.errors import OutOfResources  # noqa: E402

from fastseq.kernels import rnn, rnn_cases, rnn_dispatch  # noqa: E402
from fastseq.kernels.launch import Launch  # noqa: E402

REFUSAL = "Triton Error [CUDA]: too many blocks in cooperative launch"
FAILURES = [RuntimeError(REFUSAL), OutOfResources(300, 227, "shared memory")]


class Device:
    """Takes launches but those of the persistent kernels, which meet ``failure``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failure: Exception | None = None
        self.launches: list[Launch] = []
        monkeypatch.setattr(Launch, "__call__", lambda launch, grid, s=0: self.take(launch))
        monkeypatch.setattr(rnn_dispatch, "_refused", {})
        monkeypatch.delenv("FASTSEQ_RNN_KERNEL", raising=False)

    def take(self, launch: Launch) -> None:
        self.launches.append(launch)
        if "persistent" in launch.kernel.__name__ and self.failure is not None:
            raise self.failure

    def run(self, backward: bool) -> list[Launch]:
        """The launches of one pass over a layer that the persistent kernel serves."""
        case = rnn_cases.Case("persistent", "LSTM", "float32", "plain", 3, 17, 200)
        tensors, options = rnn_cases.arguments(case, "cpu")
        self.launches = []
        if not backward:
            rnn.rnn_scan(**tensors, **options, save=True)
            return self.launches
        gates, cells = tensors["gates"], tensors["gates"][:, :, 0].clone()
        output = cells.flatten(1)
        given = (output, tensors["h0"], tensors["c0"], gates, cells, gates, output, None)
        names = ("batch_sizes", "h0", "c0", "w_hh", "w_hr", "ln_gates", "ln_cell", "h_mask")
        rnn.rnn_scan_backward(*given, *(tensors[name] for name in names), **options)
        return self.launches


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def _names(launches: list[Launch]) -> list[str]:
    return [launch.kernel.__name__.split("_")[-1] for launch in launches]


def _same(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor):
        return torch.equal(x.nan_to_num(7), y.nan_to_num(7))
    return x == y


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_step_kernel_takes_over(
    backward: bool, failure: Exception, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _names(device.run(backward)) == ["persistent"]
    device.failure = failure
    with pytest.warns(RuntimeWarning, match="slower kernel"):
        refused, *instead = device.run(backward)
    assert _names([refused, *instead]) == ["persistent"] + ["step"] * (4 if backward else 3)
    with warnings.catch_warnings():  # remembered: neither tried nor told again
        warnings.simplefilter("error")
        assert _names(device.run(backward)) == _names(instead)
    monkeypatch.setenv("FASTSEQ_RNN_KERNEL", "step")
    for launch, asked in zip(instead, device.run(backward), strict=True):
        assert launch.options == asked.options
        assert all(_same(x, y) for x, y in zip(launch.arguments, asked.arguments, strict=True))


def test_kernel_that_was_asked_for_is_not_replaced(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTSEQ_RNN_KERNEL", "persistent")
    device.failure = FAILURES[0]
    for backward in (False, True, False):
        with pytest.raises(RuntimeError, match=rf"FASTSEQ_RNN_KERNEL=persistent.*{REFUSAL[-20:]}"):
            device.run(backward)


def test_other_failures_are_the_users(device: Device) -> None:
    device.failure = RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        device.run(backward=False)
