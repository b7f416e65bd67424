"""The recurrent suite, as data: what ``fastseq bench rnn`` and ``bench_rnn.py`` both run."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from .harness import fast_on_cpu

Mode = Literal["LSTM", "GRU", "RNN"]


@dataclass(frozen=True)
class Case:
    """One comparison. ``input_size`` defaults to ``hidden``; ``lengths``: "real" or "random"."""

    group: str
    mode: Mode
    batch: int
    hidden: int
    length: int = 1
    train: bool = False
    dtype: torch.dtype = torch.float32
    kind: Literal["layer", "cell", "model"] = "layer"
    input_size: int = 0
    layers: int = 1
    bidirectional: bool = False
    proj_size: int = 0
    lengths: str = ""
    layer_norm: bool = False
    zoneout: float = 0.0
    recurrent_dropout: float = 0.0
    recompute: bool = False
    quick: bool = False  # also in the short suite
    telling: bool = False  # of the few that say most, which come first on a card
    compile: bool = False  # torch.compile is expected to finish on it

    @property
    def inputs(self) -> int:
        return self.input_size or self.hidden

    @property
    def baseline(self) -> str:
        """What users run today: torch's layer, or a loop over time for what torch lacks."""
        beyond = self.layer_norm or self.zoneout or self.recurrent_dropout
        return "loop" if beyond else "torch"

    @property
    def peers(self) -> tuple[str, ...]:
        return ("torch.compile",) if self.compile else ()

    @property
    def name(self) -> str:
        if self.kind == "model":
            return "g2p_en (GRU encoder and decoder), patched, real words"
        shape = [f"B{self.batch}", f"H{self.hidden}"]
        if self.input_size:
            shape.append(f"I{self.input_size}")
        if self.proj_size:
            shape.append(f"P{self.proj_size}")
        if self.length > 1 and self.lengths != "real":
            shape.append(f"T{self.length}")
        extras = [
            f"{self.layers} layers" if self.layers > 1 else "",
            "bidirectional" if self.bidirectional else "",
            f"{self.lengths} lengths" if self.lengths else "",
            "layer norm" if self.layer_norm else "",
            f"zoneout {self.zoneout}" if self.zoneout else "",
            f"recurrent dropout {self.recurrent_dropout}" if self.recurrent_dropout else "",
            "recompute" if self.recompute else "",
            str(self.dtype).removeprefix("torch.") if self.dtype != torch.float32 else "",
            "train" if self.train else "infer",
        ]
        kind = "Cell" if self.kind == "cell" else ""
        return " ".join([self.mode + kind, *shape, *filter(None, extras)])


MODEL = Case("real model", "GRU", batch=128, hidden=256, kind="model", quick=True)

_SHAPES = [
    (1, 128, 128),
    (1, 512, 64),
    (8, 256, 128),
    (32, 256, 128),
    (32, 512, 64),
    (32, 1024, 32),
    (128, 128, 64),
]
_QUICK = {(1, 128, 128), (32, 256, 128)}


def cpu_suite() -> Iterator[Case]:
    """Everything timed on a CPU, small and odd sizes too."""
    modes: tuple[Mode, ...] = ("LSTM", "GRU", "RNN")
    for mode in modes:
        for train in (False, True):
            group = f"{mode} {'training' if train else 'inference'}"
            for batch, hidden, length in _SHAPES:
                quick = (batch, hidden, length) in _QUICK and mode != "RNN"
                yield Case(group, mode, batch, hidden, length, train, quick=quick)
    for mode in modes:
        yield Case("small and odd", mode, 1, 16, 5)
        yield Case("small and odd", mode, 3, 37, 11, input_size=5, train=True)
    yield Case("small and odd", "LSTM", 5, 100, 300, input_size=13)
    yield Case("small and odd", "GRU", 17, 200, 50, input_size=80, train=True)
    for mode in modes[:2]:
        for train in (False, True):
            yield Case(
                "stacked and bidirectional", mode, 32, 256, 64, train, layers=2, bidirectional=True
            )
        yield Case("stacked and bidirectional", mode, 1, 256, 64, layers=2, bidirectional=True)
        yield Case("stacked and bidirectional", mode, 1, 256, 64, layers=4)
    for mode in modes[:2]:
        for train in (False, True):
            yield Case("packed sequences", mode, 32, 256, 128, train, lengths="random")
            yield Case(
                "real sentences",
                mode,
                32,
                256,
                128,
                train,
                lengths="real",
                bidirectional=True,
                quick=mode == "LSTM" and train,
            )
    for train in (False, True):
        yield Case("projection", "LSTM", 32, 512, 64, train, proj_size=128)
    for dtype in (torch.bfloat16,):
        fast = fast_on_cpu(dtype)
        shape = (32, 512, 64) if fast else (8, 256, 32)
        group = "bfloat16" if fast else "bfloat16 on a CPU without it"
        for mode in modes[:2]:
            for train in (False, True):
                yield Case(group, mode, *shape, train, dtype)
    for mode in modes[:2]:
        for train in (False, True):
            yield Case(
                "beyond torch, against a loop",
                mode,
                32,
                256,
                64,
                train,
                layer_norm=True,
                quick=mode == "LSTM",
            )
        yield Case("beyond torch, against a loop", mode, 32, 256, 64, True, zoneout=0.1)
        yield Case("beyond torch, against a loop", mode, 32, 256, 64, True, recurrent_dropout=0.3)
    yield Case("beyond torch, against a loop", "LSTM", 1, 128, 128, layer_norm=True)
    yield Case("recompute", "LSTM", 32, 256, 128, True, recompute=True)
    yield Case("recompute", "GRU", 32, 256, 128, True, recompute=True)
    for mode in modes:
        for batch in (1, 32):
            yield Case("cells", mode, batch, 256, kind="cell", quick=mode == "LSTM", compile=True)
    yield Case("cells", "LSTM", 32, 256, kind="cell", train=True, compile=True)
    yield MODEL


def cuda_suite() -> Iterator[Case]:
    """The same kinds of work in sizes for a GPU, against cuDNN, those that tell most first: it may
    be stopped at any time.
    """
    telling = [replace(case, telling=True) for case in _telling()]
    yield from telling
    known = {case.name for case in telling}
    yield from (case for case in _more() if case.name not in known)


def _dense(mode: Mode, dtype: torch.dtype, train: bool, *shape: int, quick: bool = False) -> Case:
    return Case(
        f"{mode} {str(dtype).removeprefix('torch.')}", mode, *shape, train, dtype, quick=quick
    )


def _telling() -> Iterator[Case]:
    half, brain, single = torch.float16, torch.bfloat16, torch.float32
    train = True
    # The shape that papers on fused recurrences time: cuDNN at its weak and at its strongest type.
    yield _dense("LSTM", brain, train, 16, 768, 1024, quick=True)
    yield _dense("LSTM", half, train, 16, 768, 1024)
    yield _dense("GRU", brain, train, 16, 768, 1024, quick=True)
    yield _dense("LSTM", half, not train, 16, 768, 1024)
    # What cuDNN computes direction by direction, or step by step.
    yield Case(
        "stacked and bidirectional", "LSTM", 32, 512, 128, train, brain, layers=2,
        bidirectional=True,
    )  # fmt: skip
    yield Case("packed sequences", "LSTM", 32, 512, 256, train, brain, lengths="random")
    # One sequence: nothing but latency.
    yield _dense("LSTM", brain, not train, 1, 512, 512)
    yield _dense("GRU", half, not train, 1, 512, 512)
    # Batches that are products of some size.
    yield _dense("LSTM", brain, train, 64, 1024, 256)
    yield _dense("LSTM", brain, train, 256, 512, 128)
    yield _dense("GRU", half, train, 64, 1024, 256)
    # float32: cuDNN rounds to TF32, unless told not to.
    yield _dense("LSTM", single, train, 64, 512, 128)
    yield Case(
        "real sentences", "GRU", 128, 512, 128, train, brain, lengths="real", bidirectional=True
    )
    # All weights within one program; and too many for the card's shared memory.
    yield Case("small", "LSTM", 16, 128, 256, train, brain)
    yield _dense("LSTM", half, train, 16, 1536, 256)
    yield Case("projection", "LSTM", 32, 1024, 128, train, brain, proj_size=256)
    yield Case("beyond torch, against a loop", "LSTM", 32, 512, 64, train, brain, layer_norm=True)
    yield _dense("RNN", brain, train, 16, 768, 1024)
    yield _dense("GRU", single, not train, 16, 256, 512)
    yield Case("stacked and bidirectional", "GRU", 1, 512, 256, not train, half, layers=4)


def _more() -> Iterator[Case]:
    half, brain, single = torch.float16, torch.bfloat16, torch.float32
    modes: tuple[Mode, ...] = ("LSTM", "GRU")
    shapes = ((16, 768, 1024), (1, 512, 512), (64, 1024, 256), (256, 512, 128))
    for dtype in (brain, half, single):
        for mode in modes:
            for train in (False, True):
                for shape in shapes:
                    quick = dtype == brain and shape == shapes[0]
                    yield _dense(mode, dtype, train, *shape, quick=quick)
    for train in (False, True):
        yield _dense("RNN", brain, train, 16, 768, 1024)
        for mode in modes:
            for dtype in (brain, single):
                yield Case("small", mode, 16, 128, 256, train, dtype)
            yield Case("odd sizes", mode, 17, 333, 101, train, brain, input_size=77)
            yield Case(
                "stacked and bidirectional",
                mode,
                32,
                512,
                128,
                train,
                brain,
                layers=2,
                bidirectional=True,
            )
            yield Case(
                "stacked and bidirectional",
                mode,
                32,
                512,
                128,
                train,
                half,
                layers=2,
                bidirectional=True,
            )
            yield Case("packed sequences", mode, 32, 512, 256, train, brain, lengths="random")
            yield Case(
                "real sentences",
                mode,
                128,
                512,
                128,
                train,
                brain,
                lengths="real",
                bidirectional=True,
            )
            yield Case(
                "beyond torch, against a loop", mode, 32, 512, 64, train, brain, layer_norm=True
            )
        yield Case("projection", "LSTM", 32, 1024, 128, train, brain, proj_size=256)
    for mode in modes:
        yield Case("beyond torch, against a loop", mode, 32, 512, 64, True, brain, zoneout=0.1)
        yield Case(
            "beyond torch, against a loop", mode, 32, 512, 64, True, brain, recurrent_dropout=0.3
        )
        yield Case("recompute", mode, 32, 512, 128, True, brain, recompute=True)
        yield Case("cells", mode, 32, 512, kind="cell", dtype=brain)
    yield MODEL


def cases(device: torch.device) -> list[Case]:
    """The cases for a device."""
    return list(cuda_suite() if device.type == "cuda" else cpu_suite())
