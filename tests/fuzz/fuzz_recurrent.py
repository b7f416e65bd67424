"""Recurrent layers and cells in random forms against torch's in float64, or the reference's.

err(ours) ≤ 2·err(torch, same dtype) + a few ulp, of outputs, states and every gradient; infinities
and NaN where torch has them.
"""

import copy
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastseq
from fastseq.ops.rnn import _differentiable_layer, rnn_layer
from fastseq.reference.rnn import GATES
from tests.csrc.scan_cases import kinds
from tests.nn.oracle import tensors

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
# One, odd, whole vectors, and large enough for packed weights, pairs of panels and full tiles.
SIZES = st.sampled_from([1, 2, 3, 5, 8, 16, 17, 31, 33, 48, 65, 96, 130])
BATCHES = st.sampled_from([1, 1, 2, 3, 6, 7, 9, 16, 33, 50])
SPECIAL = st.sampled_from([0.0, 0.0, 0.0, float("nan"), float("inf"), -float("inf")])


def assert_as_exact(found: list, plain: list, exact: list, dtype: torch.dtype) -> None:
    for i, (x, y, z) in enumerate(zip(found, plain, exact, strict=True)):
        assert (x is None) == (y is None) and (x is None or x.shape == y.shape), i
        if x is None or not x.numel():
            continue
        assert x.dtype == y.dtype == dtype, i
        assert torch.equal(kinds(x), kinds(y)), f"result {i}: infinities or NaN"
        finite = y.isfinite() & z.isfinite()
        mine, theirs = ((a.double() - z).where(finite, 0).abs().max().item() for a in (x, y))
        # Activations, of size 1, are what rounding starts from, however small the result.
        size = 1 + z.where(finite, 0).abs().max().item()
        ulps = 64 if dtype == torch.float64 else 8
        few = ulps * torch.finfo(dtype).eps * size
        assert mine <= 2 * theirs + few, f"result {i}: ours {mine:.2e}, torch {theirs:.2e}"


def spread(x: Tensor, form: str) -> Tensor:
    """The same numbers with other strides."""
    if form == "transposed" and x.dim() > 1:
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if form == "every other":
        return torch.stack([x, x], -1)[..., 0]
    return x


def leaf(x: Tensor, dtype: torch.dtype, form: str, learns: bool) -> Tensor:
    return spread(x.detach().to(dtype), form).requires_grad_(learns)


class Sizes:
    """What a layer's case is made of."""

    def __init__(self, data: st.DataObject) -> None:
        draw = data.draw
        self.hidden, self.inputs = draw(SIZES, "hidden_size"), draw(SIZES, "input_size")
        self.batch, self.steps = draw(BATCHES, "batch"), draw(st.integers(1, 6), "steps")
        self.strides = draw(st.sampled_from(["plain", "transposed", "every other"]), "strides")
        self.dtype = draw(DTYPES, "dtype")
        self.seed = draw(st.integers(0, 2**31), "seed")
        self.learns = draw(st.lists(st.booleans(), min_size=3, max_size=3), "inputs that learn")
        self.frozen = draw(st.sampled_from(["none", "weights", "biases", "all", "hh"]), "frozen")
        self.special = draw(SPECIAL, "special value")
        if self.dtype.itemsize == 2:  # rounding makes gates 0 or 1 here and not there
            self.special = 0.0

    def freeze(self, module: Module) -> None:
        words = {"none": "?", "weights": "weight", "biases": "bias", "all": "", "hh": "_hh"}
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(words[self.frozen] not in name)

    def prepared(
        self, module: Module, dtype: torch.dtype, inputs: list[Tensor], states: bool
    ) -> tuple[Module, list[Tensor], Any]:
        """A copy of the module and leaves of the inputs in this dtype, and the states to give."""
        module = copy.deepcopy(module).to(dtype)
        self.freeze(module)
        leaves = [
            leaf(x.to(self.dtype), dtype, self.strides, learns)
            for x, learns in zip(inputs, self.learns)
        ]
        h, *c = leaves[1:]
        return module, leaves, ((h, *c) if c else h) if states else None

    def spoil(self, *given: Tensor) -> None:
        if self.special:
            target = given[self.seed % len(given)]
            target.view(-1)[self.seed % target.numel()] = self.special


def gradients(outputs: list[Tensor], wanted: list[Tensor], dtype: torch.dtype) -> list:
    if not any(y.requires_grad for y in outputs):
        return []
    generator = torch.Generator().manual_seed(2)
    pairs = [(y, torch.randn(y.shape, generator=generator).to(dtype)) for y in outputs]
    pairs = [(y, g) for y, g in pairs if y.requires_grad]
    learning = [x for x in wanted if x.requires_grad]
    return list(
        torch.autograd.grad(
            [y for y, _ in pairs], learning, [g for _, g in pairs], materialize_grads=True
        )
    )


def is_kinked(config: dict[str, Any], dtype: torch.dtype) -> bool:
    """Whether gradients jump where rounding moves a unit to the other side of a relu's kink."""
    return config.get("nonlinearity") == "relu" and dtype.itemsize == 2


@given(st.data())
def test_layers(data: st.DataObject) -> None:
    draw, sizes = data.draw, Sizes(data)
    name = draw(st.sampled_from(["LSTM", "GRU", "RNN"]), "layer")
    form = draw(st.sampled_from(["dense", "unbatched", "packed", "lengths"]), "form")
    states = draw(st.booleans(), "states")
    config: dict[str, Any] = {
        "num_layers": draw(st.integers(1, 2), "layers"),
        "bidirectional": draw(st.booleans(), "bidirectional"),
        "batch_first": draw(st.booleans(), "batch_first"),
        "bias": draw(st.booleans(), "bias"),
    }
    if name == "LSTM" and sizes.hidden > 1 and draw(st.booleans(), "projected"):
        config["proj_size"] = draw(st.integers(1, sizes.hidden - 1), "proj_size")
    if name == "RNN":
        config["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]), "nonlinearity")

    torch.manual_seed(sizes.seed)
    theirs = getattr(torch.nn, name)(sizes.inputs, sizes.hidden, **config)
    ours = getattr(fastseq.nn, name)(sizes.inputs, sizes.hidden, **config)
    ours.load_state_dict(theirs.state_dict())
    batch = 1 if form == "unbatched" else sizes.batch
    count = config["num_layers"] * (2 if config["bidirectional"] else 1)
    lengths = torch.randint(1, sizes.steps + 1, (batch,))
    lead = (batch, sizes.steps) if config["batch_first"] else (sizes.steps, batch)
    x = torch.randn(*lead, sizes.inputs)
    hx = [torch.randn(count, batch, config.get("proj_size") or sizes.hidden)]
    if name == "LSTM":
        hx.append(torch.randn(count, batch, sizes.hidden))
    if form == "unbatched":
        x, hx = x.squeeze(int(not config["batch_first"])), [h[:, 0] for h in hx]
    if form in ("dense", "unbatched"):
        sizes.spoil(x, *(hx if states else []))

    def run(module: Module, dtype: torch.dtype, with_lengths: bool) -> list:
        module, leaves, start = sizes.prepared(module, dtype, [x, *hx], states)
        if form in ("packed", "lengths") and not with_lengths:
            packed = pack_padded_sequence(
                leaves[0], lengths, config["batch_first"], enforce_sorted=False
            )
            y, final = module(packed, start)
            padded, _ = pad_packed_sequence(y, config["batch_first"], total_length=sizes.steps)
            outputs = [padded, *tensors(final)]
        else:
            options = {"lengths": lengths} if with_lengths else {}
            outputs = tensors(module(leaves[0], start, **options))
        wanted = [*(leaves if states else leaves[:1]), *module.parameters()]
        rest = [] if is_kinked(config, dtype) else gradients(outputs, wanted, dtype)
        return [*outputs, *rest]

    rounded = theirs.to(sizes.dtype)
    ours = ours.to(sizes.dtype)
    exact = run(rounded.double(), torch.float64, False)
    plain = run(rounded.to(sizes.dtype), sizes.dtype, False)
    found = run(ours, sizes.dtype, form == "lengths")
    assert_as_exact(found, plain, exact[: len(found)], sizes.dtype)


@given(st.data())
def test_cells(data: st.DataObject) -> None:
    draw, sizes = data.draw, Sizes(data)
    name = draw(st.sampled_from(["LSTMCell", "GRUCell", "RNNCell"]), "cell")
    config: dict[str, Any] = {"bias": draw(st.booleans(), "bias")}
    if name == "RNNCell":
        config["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]), "nonlinearity")
    unbatched = draw(st.booleans(), "unbatched")
    states = draw(st.booleans(), "states")
    torch.manual_seed(sizes.seed)
    theirs = getattr(torch.nn, name)(sizes.inputs, sizes.hidden, **config)
    ours = getattr(fastseq.nn, name)(sizes.inputs, sizes.hidden, **config)
    ours.load_state_dict(theirs.state_dict())
    lead = () if unbatched else (sizes.batch,)
    x, hx = torch.randn(*lead, sizes.inputs), [torch.randn(*lead, sizes.hidden) for _ in range(2)]
    hx = hx if name == "LSTMCell" else hx[:1]
    sizes.spoil(x, *(hx if states else []))

    def run(module: Module, dtype: torch.dtype) -> list:
        module, leaves, start = sizes.prepared(module, dtype, [x, *hx], states)
        outputs = tensors(module(leaves[0], start))
        wanted = [*(leaves if states else leaves[:1]), *module.parameters()]
        rest = [] if is_kinked(config, dtype) else gradients(outputs, wanted, dtype)
        return [*outputs, *rest]

    exact = run(copy.deepcopy(theirs).to(sizes.dtype).double(), torch.float64)
    plain, found = run(theirs, sizes.dtype), run(ours, sizes.dtype)
    assert_as_exact(found, plain, exact[: len(found)], sizes.dtype)


@given(st.data())
def test_options(data: st.DataObject) -> None:
    """Layer-norm, zoneout, recurrent dropout, recomputation: against plain PyTorch, one seed."""
    draw, sizes = data.draw, Sizes(data)
    mode = draw(st.sampled_from(list(GATES)), "mode")
    directions = draw(st.integers(1, 2), "directions")
    bias = draw(st.booleans(), "bias")
    # Of few units the spread may be next to none, and what divides by it has no digits.
    norm = draw(st.booleans(), "layer_norm") and sizes.hidden >= 16
    lstm, rows = mode == "LSTM", sizes.steps * sizes.batch
    width = sizes.hidden
    if lstm and width > 1 and draw(st.booleans(), "projected"):
        width = draw(st.integers(1, sizes.hidden - 1), "proj_size")
    zoneout = draw(st.sampled_from([(0.0, 0.0), (0.3, 0.0), (0.0, 0.4), (0.3, 0.2)]), "zoneout")
    if not lstm:
        zoneout = (zoneout[0], 0.0)
    options: dict[str, Any] = {
        "zoneout": list(zoneout),
        "recurrent_dropout": draw(st.sampled_from([0.0, 0.5]), "recurrent_dropout"),
        "training": draw(st.booleans(), "training"),
        "recompute": draw(st.booleans(), "recompute"),
    }
    generator = torch.Generator().manual_seed(sizes.seed)
    batch_sizes = None
    if draw(st.booleans(), "packed"):
        lengths = torch.randint(1, sizes.steps + 1, (sizes.batch,), generator=generator)
        lengths[0] = sizes.steps
        batch_sizes = (lengths[:, None] > torch.arange(sizes.steps)).sum(0)
        rows = int(batch_sizes.sum())
    gates, scale = GATES[mode] * sizes.hidden, sizes.hidden**-0.5

    def each(count: int, *shape: int, by: float = 1.0) -> list[Tensor]:
        return [torch.randn(*shape, generator=generator) * by for _ in range(count * directions)]

    norms = [gates, gates] + ([sizes.hidden] * 2 if lstm else [])
    lists = [
        each(1, gates, sizes.inputs, by=sizes.inputs**-0.5),
        each(1, gates, width, by=scale),
        each(int(bias), gates),
        each(int(bias), gates),
        each(int(width != sizes.hidden), width, sizes.hidden, by=scale),
        [torch.randn(n, generator=generator) for _ in range(directions) for n in norms if norm],
    ]
    start = [torch.randn(rows, sizes.inputs, generator=generator)]
    start += each(1, directions, sizes.batch, width)[:1]
    start += each(1, directions, sizes.batch, sizes.hidden)[:1] if lstm else []
    sizes.spoil(*start)

    def run(plain: bool, dtype: torch.dtype) -> list:
        leaves = [
            leaf(t.to(sizes.dtype), dtype, sizes.strides, learns)
            for t, learns in zip(start, sizes.learns)
        ]
        own = [
            [leaf(w.to(sizes.dtype), dtype, "plain", sizes.frozen != "all") for w in part]
            for part in lists
        ]
        tensors_ = (leaves[0], batch_sizes, leaves[1], leaves[2] if lstm else None, *own)
        seed = torch.tensor(sizes.seed)
        if plain:
            outputs = _differentiable_layer(*tensors_, seed, mode, *options.values())
        else:
            outputs = rnn_layer(*tensors_, mode=mode, seed=seed, **options)
        results = [y for y in outputs if y is not None]
        wanted = [*leaves, *(w for part in own for w in part)]
        kinked = mode == "RNN_RELU" and dtype.itemsize == 2
        return [*results, *([] if kinked else gradients(results, wanted, dtype))]

    found, plain = run(False, sizes.dtype), run(True, sizes.dtype)
    exact = run(True, torch.float64)
    assert_as_exact(found, plain, exact[: len(found)], sizes.dtype)
