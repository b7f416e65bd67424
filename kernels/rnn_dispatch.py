"""Which kernel serves a recurrent layer, and with which tiles.

Knows sizes, device limits and Triton's version only; no tensor.
"""

import itertools
import os
import warnings
from dataclasses import dataclass

from . import triton_version
from .device import Limits, power_of_two

GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "GRU": 3, "LSTM": 4}
KERNELS = ("step", "sequence", "persistent")
# float32 products but for TF32's are unrolled multiply-adds: beyond this their code takes minutes
# to compile.
_PERSISTENT_MAX_HIDDEN_FP32 = 512
_SLICES = (128, 64, 32, 16)  # of K, for each warp


@dataclass(frozen=True)
class Problem:
    mode: str
    hidden: int
    width: int  # of h: hidden, or that of the projection
    batch: int
    directions: int
    itemsize: int
    row_wide: bool  # layer norm or a projection: a step then needs whole rows
    tf32: bool = False  # float32 products on tensor cores

    @property
    def gates(self) -> int:
        return GATES[self.mode]

    @property
    def padded_gates(self) -> int:
        """Gates of a unit side by side in one tile: a power of two."""
        return 4 if self.gates > 1 else 1


@dataclass(frozen=True)
class Step:
    BM: int
    BN: int
    BK: int
    num_warps: int


@dataclass(frozen=True)
class Sequence:
    BM: int
    BH: int
    BP: int
    num_warps: int


@dataclass(frozen=True)
class Persistent:
    BM: int
    BN: int
    KS: int
    KC: int
    CHUNKS: int
    AHEAD: bool  # backward: loads the next gate's operand during this one's product
    num_warps: int


def step_config(p: Problem) -> Step:
    """Small batches multiply and reduce (BM < 16), larger ones use tensor cores."""
    if p.itemsize == 8:
        return Step(BM=4, BN=16, BK=32, num_warps=4)
    rows = power_of_two(p.batch) if p.batch <= 4 else min(power_of_two(p.batch, 16), 64)
    if p.itemsize == 4:
        return Step(BM=min(rows, 32), BN=32, BK=32, num_warps=4)
    return Step(BM=rows, BN=32, BK=64, num_warps=8 if rows > 32 else 4)


def rows_config(width: int) -> tuple[int, int, int]:
    """(BM, BN, warps) of the kernels that hold whole rows."""
    columns = power_of_two(width, 16)
    rows = max(1, 1024 // columns)
    return min(rows, 4), columns, 4 if columns <= 1024 else 8


def sequence_config(p: Problem, limits: Limits) -> Sequence | None:
    if p.itemsize == 8:
        return None
    # Tiles narrower than 32 are held several times over: the layer then spills.
    columns, width = power_of_two(p.hidden, 32), power_of_two(p.width, 32)
    tiles = p.gates + (p.width != p.hidden)
    weights = tiles * columns * width * p.itemsize
    operands = 16 * max(columns, width) * p.itemsize * 4
    # Registers: float32 tiles take twice as many, and a wavefront's twice as many lanes share them.
    largest = 2048 // limits.warp if p.itemsize == 4 else 256
    if max(columns, width) > largest or weights + operands > limits.shared:
        return None
    wide = columns * p.itemsize > (64 if p.row_wide else 128)
    return Sequence(BM=16, BH=columns, BP=width, num_warps=8 if wide else 4)


def persistent_config(p: Problem, limits: Limits, backward: bool) -> Persistent | None:
    """Resident weights of BN units; None if they do not fit or the grid is not co-resident."""
    if p.row_wide or p.itemsize == 8:
        return None
    if p.itemsize == 4 and not p.tf32 and p.hidden > _PERSISTENT_MAX_HIDDEN_FP32:
        return None
    gates = p.gates if backward else p.padded_gates
    # As many units as give each thread one element, and a warp for each slice of K.
    for units in (16, 8):
        warps = 16 * units // limits.warp
        if warps < 4 or -(-p.hidden // units) * p.directions > limits.multiprocessors:
            continue
        options = []
        for ahead, kc in itertools.product((True, False) if backward else (False,), _SLICES):
            width = -(-p.hidden // (warps * kc)) * warps * kc
            weights = gates * units * width * p.itemsize
            operand = 16 * width * p.itemsize * (2 if ahead else 1)
            sums = warps * 16 * units * (1 if backward else gates) * 4
            if weights + max(operand, sums) <= limits.shared:
                chunks = width // (warps * kc)
                config = Persistent(16, units, warps, kc, chunks, ahead, warps)
                options.append(((width, chunks, not ahead), config))
        if options:
            return min(options, key=lambda option: option[0])[1]
    return None


def _aborts(p: Problem) -> bool:
    """Whether the compiler, of Triton 3.9, dies of the sequence kernel, and the process with it.

    An assertion in its LLVM's SLP vectorizer. Triton 3.6 to 3.8 compile the same; the interpreter
    compiles nothing.
    """
    unrolled = p.mode == "LSTM" and p.itemsize == 4 and not p.tf32
    return unrolled and triton_version() >= (3, 9) and os.environ.get("TRITON_INTERPRET") != "1"


# Why a device would not launch the persistent kernel.
_refused: dict[tuple[Problem, Limits, bool], str] = {}


def obstacle(kernel: str, p: Problem, limits: Limits, backward: bool) -> str | None:
    """Why the kernel cannot serve; None if it can."""
    if kernel == "sequence":
        if sequence_config(p, limits) is None:
            return f"not these sizes and features within {limits}"
        return "this Triton's compiler aborts on it" if _aborts(p) else None
    if kernel == "persistent":
        if persistent_config(p, limits, backward) is None:
            return f"not these sizes and features within {limits}"
        return _refused.get((p, limits, backward))
    return None


class CannotServe(RuntimeError):
    """The kernel that was asked for does not serve the problem."""


def choose(p: Problem, limits: Limits, backward: bool) -> str:
    """The kernel's name; FASTSEQ_RNN_KERNEL asks for one."""
    wanted = os.environ.get("FASTSEQ_RNN_KERNEL", "")
    if wanted and wanted not in KERNELS:
        raise ValueError(f"FASTSEQ_RNN_KERNEL must be one of {', '.join(KERNELS)}; got {wanted!r}")
    if not wanted:
        preferred = ("sequence", "persistent", "step")
        return next(name for name in preferred if obstacle(name, p, limits, backward) is None)
    if why := obstacle(wanted, p, limits, backward):
        raise CannotServe(f"FASTSEQ_RNN_KERNEL={wanted}, which cannot serve {p}: {why}")
    return wanted


def refuse(p: Problem, limits: Limits, backward: bool, why: str) -> None:
    """Has ``choose`` leave out the persistent kernel, which the device would not launch.

    Raises:
        RuntimeError: if FASTSEQ_RNN_KERNEL asks for it.
    """
    _refused[p, limits, backward] = why
    choose(p, limits, backward)
    warnings.warn(f"a slower kernel runs this recurrent layer: {why}", RuntimeWarning, stacklevel=2)
