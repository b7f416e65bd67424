"""What is installed here, and which backend serves which operator."""

import importlib.metadata
import os
import platform
from typing import Any

import torch

from . import _extension, kernels
from .ops import beam, decoder  # noqa: F401 (define operators that only generation calls)

OPERATORS = (
    "rnn_scan",
    "rnn_scan_backward",
    "rnn_cell",
    "rnn_cell_backward",
    "dropout_mask",
    "attention_forward",
    "attention_backward",
    "attention_weights",
    "attention_decode",
    "additive_attention_forward",
    "additive_attention_backward",
    "decoder_step",
    "beam_step",
)
DEVICES = {"cpu": "CPU", "cuda": "CUDA"}  # dispatch keys


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _why_no_triton() -> str | None:
    if (reason := kernels.reason()) or torch.cuda.is_available():
        return reason
    return "no GPU that PyTorch can use"


def _serving(operator: str, device: str) -> str:
    """The backend that a call on this device reaches."""
    key = DEVICES[device]
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"fastseq::{operator}", key):
        return "PyTorch"
    return "C++" if device == "cpu" else "Triton"


def config() -> dict[str, Any]:
    """Versions, processor, GPUs, backends or why one is missing, and who serves which operator."""
    from . import __version__

    cuda = torch.cuda.is_available()
    return {
        "versions": {
            "fastseq": __version__,
            "torch": torch.__version__,
            "triton": _version("triton"),
            "python": platform.python_version(),
        },
        "cpu": {
            "threads": torch.get_num_threads(),
            "torch's kernels": torch.backends.cpu.get_cpu_capability(),
            "fastseq's kernels": _extension.capability(),
            "built for": ", ".join(_extension.built_capabilities()) or None,
            "FASTSEQ_CPU_CAPABILITY": os.environ.get("FASTSEQ_CPU_CAPABILITY"),
        },
        "gpu": {
            f"cuda:{i}": torch.cuda.get_device_name(i)
            for i in range(torch.cuda.device_count() if cuda else 0)
        },
        "backends": {
            "C++": {"available": _extension.available(), "reason": _extension.reason()},
            "Triton": {"available": _why_no_triton() is None, "reason": _why_no_triton()},
            "PyTorch": {"available": True, "reason": None},
        },
        "operators": {
            operator: {device: _serving(operator, device) for device in DEVICES}
            for operator in OPERATORS
        },
    }


def show_config() -> None:
    """Print ``config()``."""
    found = config()
    for title in ("versions", "cpu", "gpu"):
        rows = {name: value for name, value in found[title].items() if value is not None}
        _section(title, {name: str(value) for name, value in rows.items()} or {"": "none"})
    _section(
        "backends",
        {
            name: "available" if state["available"] else f"missing: {state['reason']}"
            for name, state in found["backends"].items()
        },
    )
    _section(
        "operators",
        {
            operator: ", ".join(f"{device}: {backend}" for device, backend in served.items())
            for operator, served in found["operators"].items()
        },
    )


def _section(title: str, rows: dict[str, str]) -> None:
    print(title)
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}".rstrip())
