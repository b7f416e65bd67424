"""Triton kernels and their launchers. Importing this needs neither Triton nor a GPU."""

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from torch import Tensor

_MINIMUM = (3, 6)


@lru_cache
def triton_version() -> tuple[int, ...]:
    """Major and minor of the installed Triton, whatever its package's name; empty if unknown."""
    for package in ("triton", "pytorch-triton", "triton-rocm", "pytorch-triton-rocm"):
        try:
            return tuple(int(part) for part in version(package).split(".")[:2])
        except PackageNotFoundError:
            continue
    return ()


@lru_cache
def reason() -> str | None:
    """Why the Triton kernels cannot be used at all; None if they can."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    found = triton_version()
    if found and found < _MINIMUM:
        return f"Triton {'.'.join(map(str, found))} is older than {'.'.join(map(str, _MINIMUM))}"
    return None


def available() -> bool:
    """Whether Triton is installed and recent enough; a device is the dispatcher's business."""
    return reason() is None


def rnn_scan(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``fastseq::rnn_scan`` on CUDA; Triton is imported on the first call."""
    from .rnn import rnn_scan

    return rnn_scan(*args, **kwargs)


def rnn_scan_backward(
    *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``fastseq::rnn_scan_backward`` on CUDA; Triton is imported on the first call."""
    from .rnn import rnn_scan_backward

    return rnn_scan_backward(*args, **kwargs)


def dropout_mask(*args: Any) -> Tensor:
    """``fastseq::dropout_mask`` on CUDA; Triton is imported on the first call."""
    from .dropout import dropout_mask

    return dropout_mask(*args)


def attention_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """``fastseq::attention_forward`` on CUDA; Triton is imported on the first call."""
    from .attention import attention_forward

    return attention_forward(*args)


def attention_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``fastseq::attention_backward`` on CUDA; Triton is imported on the first call."""
    from .attention import attention_backward

    return attention_backward(*args)


def attention_weights(*args: Any) -> Tensor:
    """``fastseq::attention_weights`` on CUDA; Triton is imported on the first call."""
    from .attention import attention_weights

    return attention_weights(*args)


def attention_decode(*args: Any) -> tuple[Tensor, Tensor]:
    """``fastseq::attention_decode`` on CUDA; Triton is imported on the first call."""
    from .attention import attention_decode

    return attention_decode(*args)


def additive_attention_forward(*args: Any) -> tuple[Tensor, Tensor]:
    """``fastseq::additive_attention_forward`` on CUDA; Triton is imported on the first call."""
    from .additive import additive_attention_forward

    return additive_attention_forward(*args)


def additive_attention_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``fastseq::additive_attention_backward`` on CUDA; Triton is imported on the first call."""
    from .additive import additive_attention_backward

    return additive_attention_backward(*args)
