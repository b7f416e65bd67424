"""Loads fastseq._C, the CPU kernels in C++, and remembers why they are missing where they are."""

import functools
import json
import warnings
from pathlib import Path
from types import ModuleType


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    try:
        import torch  # noqa: F401 (brings the libraries that the extension links to)

        from . import _C
    except ImportError as error:
        return None, _build_error() or f"fastseq._C cannot be imported: {error}"
    return _C, None


def _build_error() -> str | None:
    """What the build recorded, if it failed or was skipped."""
    try:
        outcome = json.loads((Path(__file__).parent / "_build.json").read_text())
    except (OSError, ValueError):
        return "fastseq._C has not been built (pip install --no-build-isolation -e .)"
    error = outcome.get("error")
    return f"fastseq._C was not built: {error}" if error else None


def load() -> bool:
    """Registers the CPU kernels with PyTorch. False, not an exception, where they are missing."""
    return _load()[0] is not None


def available() -> bool:
    """Whether the CPU kernels are there."""
    return load()


def reason() -> str | None:
    """Why the CPU kernels are missing, or None."""
    return _load()[1]


def warn_if_missing() -> None:
    """One warning for who would else wonder why nothing is faster."""
    if reason() is None:
        return
    import torch

    from . import kernels

    if not (kernels.available() and torch.cuda.device_count()):
        warnings.warn(
            "fastseq has no kernels here: its layers run torch's own code, no faster. "
            f"{reason()}. `fastseq info` shows what serves what.",
            RuntimeWarning,
            stacklevel=3,
        )


def capability() -> str | None:
    """The instruction set in use: portable, avx2, avx512 or avx512_bf16."""
    module = _load()[0]
    return module.capability() if module else None


def pairs_are_quick() -> bool:
    """Whether this CPU multiplies pairs of bfloat16 faster than float32; True where unknown."""
    module = _load()[0]
    return module.pairs_are_quick() if module else True


def onednn_is_quicker() -> bool:
    """Whether torch multiplies float32 faster by oneDNN here than by its default."""
    module = _load()[0]
    return module.onednn_is_quicker() if module else False


def built_capabilities() -> list[str]:
    """The instruction sets that the kernels were built for."""
    module = _load()[0]
    return module.built_capabilities() if module else []
