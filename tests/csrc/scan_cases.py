"""Random arguments of the two scans, and their comparison with plain PyTorch in float64."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastseq.ops import rnn_scan
from fastseq.reference import rnn as reference

SCAN_RESULTS = ("output", "h_n", "c_n", "cells", "hn")
GRADIENTS = ("grad_gx", "grad_u", "grad_proj", "grad_ln_cell", "grad_h0", "grad_c0")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MODES = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")


@dataclass
class Case:
    mode: str
    dtype: torch.dtype = torch.float32
    steps: int = 4
    batch: int = 3
    hidden: int = 17
    projected: int = 0
    directions: int = 1
    packed: bool = False
    layer_norm: bool = False
    masked: bool = False
    zoneout: tuple[float, float] = (0.0, 0.0)
    training: bool = True
    special: bool = False  # with infinities and NaN
    seed: int = 0
    arguments: dict = field(init=False, repr=False)
    options: dict = field(init=False, repr=False)
    upstream: dict = field(init=False, repr=False)
    u_raw: Tensor | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            x = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
            return x.to(self.dtype)

        lstm = self.mode == "LSTM"
        gates = reference.GATES[self.mode]
        width, scale = self.projected or self.hidden, self.hidden**-0.5
        each = range(self.directions)
        sizes = None
        if self.packed:
            lengths = torch.randint(1, self.steps + 1, (self.batch,), generator=generator)
            lengths[0] = self.steps
            sizes = torch.stack([(lengths > t).sum() for t in range(self.steps)])
        rows = self.steps * self.batch if sizes is None else int(sizes.sum())
        mask = None
        if self.masked:
            kept = torch.rand(self.directions, self.batch, width, generator=generator) > 0.4
            mask = kept.to(self.dtype) / 0.6
        self.arguments = {
            "gates": random(rows, self.directions, gates, self.hidden),
            "batch_sizes": sizes,
            "h0": random(self.directions, self.batch, width),
            "c0": random(self.directions, self.batch, self.hidden) if lstm else None,
            "w_hh": [random(gates * self.hidden, width, scale=scale) for _ in each],
            "b_hh": [random(gates * self.hidden) for _ in each],
            "w_hr": [random(width, self.hidden, scale=scale) for _ in each]
            if self.projected
            else [],
            "ln_gates": [1 + random(gates * self.hidden) for _ in each] if self.layer_norm else [],
            "ln_cell": [random(2, self.hidden) for _ in each] if self.layer_norm and lstm else [],
            "h_mask": mask,
        }
        self.options = {
            "cell": self.mode,
            "ln_eps": 1e-5,
            "zoneout": list(self.zoneout),
            "seed": 123456789012345 + self.seed,
            "training": self.training,
        }
        self.upstream = {
            "grad_output": random(rows, self.directions * width),
            "grad_h_n": random(self.directions, self.batch, width),
            "grad_c_n": random(self.directions, self.batch, self.hidden) if lstm else None,
        }
        if self.layer_norm:
            self.u_raw = random(rows, self.directions, gates, self.hidden)
        if self.special:
            _spoil(*self.upstream.values())
            _spoil(*(self.arguments[name] for name in ("gates", "h0", "c0")))

    def forward(self, scan=rnn_scan.scan, wide: bool = False, save: bool = True) -> dict:
        """Results by name; with ``wide``, from arguments cast to float64."""
        arguments = {k: _copied(v, wide) for k, v in self.arguments.items()}
        results = dict(zip(SCAN_RESULTS, scan(**arguments, **self.options, save=save), strict=True))
        if save:
            results["gates"] = arguments["gates"]
        return results

    def backward(self, saved: dict, scan=rnn_scan.scan_backward, wide: bool = False) -> dict:
        names = ("batch_sizes", "h0", "c0", "w_hh", "w_hr", "ln_gates", "ln_cell", "h_mask")
        arguments = {
            **self.upstream,
            **{k: saved[k] for k in ("gates", "cells", "hn", "output")},
            "u_raw": self.u_raw,
            **{k: self.arguments[k] for k in names},
        }
        arguments = {k: _copied(v, wide) for k, v in arguments.items()}
        return dict(zip(GRADIENTS, scan(**arguments, **self.options), strict=True))


def _spoil(*tensors: Tensor | None) -> None:
    """Puts NaN and both infinities in, far apart."""
    for x in tensors:
        if x is not None:
            for i, value in enumerate((float("nan"), float("inf"), -float("inf"))):
                x.view(-1)[(i + 1) * x.numel() // 4] = value


def kinds(x: Tensor) -> Tensor:
    """0 where x is finite; another number for each infinity, and for NaN."""
    return x.double().masked_fill(x.isfinite(), 0).nan_to_num(3, 2, -2)


def _copied(x, wide: bool):
    if isinstance(x, list):
        return [_copied(y, wide) for y in x]
    if x is None:
        return None
    return x.double() if wide and x.is_floating_point() else x.clone()


def assert_close(ours: dict, plain: dict, exact: dict, dtype: torch.dtype) -> None:
    """Errors against float64 no more than twice those of plain PyTorch, plus a few ulp.

    Infinities and NaN are where plain PyTorch has them.
    """
    for name, expected in exact.items():
        assert ours[name].shape == expected.shape, name
        if expected.numel() == 0:
            continue
        assert torch.equal(kinds(ours[name]), kinds(plain[name])), name
        finite = expected.isfinite()
        expected = expected.where(finite, 0)
        error, allowed = (
            (x[name].double().where(finite, 0) - expected).abs().max().item() for x in (ours, plain)
        )
        ulp = torch.finfo(dtype).eps * (1 + expected.abs().max().item())
        assert error <= 2 * allowed + 8 * ulp, (name, error, allowed, ulp)


def check(case: Case) -> None:
    """Both scans of the kernels in use against the float64 reference."""
    ours = case.forward()
    assert_close(
        ours,
        case.forward(reference.rnn_scan),
        case.forward(reference.rnn_scan, wide=True),
        case.dtype,
    )
    # Backward of all three from the same saved values: its own error only.
    assert_close(
        case.backward(ours),
        case.backward(ours, reference.rnn_scan_backward),
        case.backward(ours, reference.rnn_scan_backward, wide=True),
        case.dtype,
    )


def feature_cases(dtypes: tuple[torch.dtype, ...] = DTYPES) -> list[Case]:
    """Every mode and type with every feature, over odd sizes, dense and packed, both directions."""
    features: list[dict] = [
        {},
        {"masked": True},
        {"layer_norm": True},
        {"zoneout": (0.3, 0.2)},
        {"zoneout": (0.3, 0.2), "training": False},
        {"projected": True},
        {"projected": True, "layer_norm": True, "masked": True, "zoneout": (0.3, 0.2)},
    ]
    sizes = [(1, 1, 1), (3, 2, 5), (17, 9, 4), (37, 5, 7), (65, 3, 3), (33, 40, 2), (40, 1, 6)]
    cases = []
    for mode in MODES:
        for dtype in dtypes:
            for index, feature in enumerate(features):
                for variant in range(2):
                    turn = 2 * index + variant + len(cases) // len(features)
                    hidden, batch, steps = sizes[turn % len(sizes)]
                    given = dict(feature)
                    if given.pop("projected", False) and mode == "LSTM":
                        given["projected"] = max(1, hidden // 2)
                    cases.append(
                        Case(
                            mode=mode,
                            dtype=dtype,
                            hidden=hidden,
                            batch=batch,
                            steps=steps,
                            directions=1 + variant,
                            packed=(index + variant) % 2 == 1,
                            seed=turn,
                            **given,
                        )
                    )
    return cases


def special_cases() -> list[Case]:
    """Infinities and NaN in states, gates and gradients, in few rows (unpacked weights) and many.

    Not in 16 bits, where rounding makes a gate 0 or 1 here and not there, and 0·∞ is NaN.
    """
    options: list[dict] = [
        {"hidden": 17, "batch": 3, "steps": 4, "directions": 2, "packed": True},
        {"hidden": 33, "batch": 2, "steps": 2},
        {"hidden": 9, "batch": 20, "steps": 3, "layer_norm": True},
    ]
    return [
        Case(mode, dtype, special=True, **given)
        for mode in MODES
        for dtype in DTYPES[:2]
        for given in options
    ]
