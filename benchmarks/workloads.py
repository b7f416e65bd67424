"""Turns a case into things to run: ours, what it is compared with, and the float64 oracle."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastseq
from fastseq.reference.philox import dropout_mask, philox, threshold

from . import loops
from .cases_rnn import Case
from .suite import Results, Workload

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
SEED = 20260
REAL_BATCHES = 4


def build(case: Case, device: torch.device) -> Workload:
    torch.manual_seed(SEED)
    if case.kind == "cell":
        return _cell(case, device)
    return _loop(case, device) if case.baseline == "loop" else _layer(case, device)


# ---- sizes --------------------------------------------------------------------------------------


def real_lengths() -> list[tuple[int, int]]:
    """Token counts of English-French sentence pairs."""
    text = (Path(__file__).parent / "data" / "en_fr_lengths.tsv").read_text()
    return [(int(e), int(f)) for e, f in (line.split("\t") for line in text.splitlines())]


def _batches_of_lengths(case: Case) -> list[list[int]]:
    """Lengths of each sequence of each batch, in the order in which they come, not sorted."""
    if case.lengths == "real":
        english = [pair[0] for pair in real_lengths()]
        return [english[i * case.batch : (i + 1) * case.batch] for i in range(REAL_BATCHES)]
    if case.lengths == "random":
        # About 61 % of a dense batch.
        lengths = torch.randint(case.length // 4, case.length + 1, (case.batch,))
        lengths[0] = case.length
        return [lengths.tolist()]
    return [[case.length] * case.batch]


def _workload_sizes(case: Case, rows: int) -> dict:
    """Operations, least bytes, and the matrix products of the same operations."""
    gates, directions = GATES[case.mode], 1 + case.bidirectional
    width = case.proj_size or case.hidden
    gemms, weights, activations = [], 0, 0
    for layer in range(case.layers):
        inputs = case.inputs if layer == 0 else width * directions
        for _ in range(directions):
            gemms.append((rows, inputs + width, gates * case.hidden))
            weights += (inputs + width) * gates * case.hidden
            if case.proj_size:
                gemms.append((rows, case.hidden, width))
                weights += case.hidden * width
        activations += rows * directions * gates * case.hidden
    ends = rows * (case.inputs + width * directions)
    passes = 3 if case.train else 1
    elements = (2 * (weights + ends + activations)) if case.train else weights + ends
    return {
        "flops": passes * sum(2.0 * m * k * n for m, k, n in gemms),
        "bytes": float(elements * case.dtype.itemsize),
        "gemms": gemms * passes,
    }


# ---- layers that torch has ----------------------------------------------------------------------


def _options(case: Case) -> dict:
    options = {"num_layers": case.layers, "bidirectional": case.bidirectional}
    if case.proj_size:
        options["proj_size"] = case.proj_size
    return options


def _ours(case: Case, like: nn.Module | None, device: torch.device) -> nn.Module:
    extras = {}
    if case.layer_norm:
        extras["layer_norm"] = True
    if case.zoneout:
        extras["zoneout"] = case.zoneout
    if case.recurrent_dropout:
        extras["recurrent_dropout"] = case.recurrent_dropout
    if case.recompute:
        extras["recompute"] = True
    module = getattr(fastseq, case.mode)(case.inputs, case.hidden, **_options(case), **extras)
    if like is not None:
        module.load_state_dict(like.state_dict())
    return module.to(device, case.dtype).train(case.train)


def _inputs(case: Case, device: torch.device) -> list[Tensor | PackedSequence]:
    made: list[Tensor | PackedSequence] = []
    for lengths in _batches_of_lengths(case):
        x = torch.randn(max(lengths), len(lengths), case.inputs, device=device).to(case.dtype)
        if case.lengths:
            made.append(pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False))
        else:
            made.append(x)
    return made


def _data(x: Tensor | PackedSequence) -> Tensor:
    return x.data if isinstance(x, PackedSequence) else x


def _like(x: Tensor | PackedSequence, data: Tensor) -> Tensor | PackedSequence:
    return x._replace(data=data) if isinstance(x, PackedSequence) else data


def _states(state: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
    return dict(zip(("h_n", "c_n"), state if isinstance(state, tuple) else (state,)))


def step(
    forward: Callable[[Tensor | PackedSequence], tuple],
    parameters: Mapping[str, Tensor],
    inputs: list[Tensor | PackedSequence],
    upstream: list[Tensor],
    train: bool,
) -> Results:
    """Forward, and in training the gradients of inputs and parameters, of one batch after the
    other.
    """
    results: Results = {}
    for k, x in enumerate(inputs):
        if not train:
            with torch.no_grad():
                output, state = forward(x)
        else:
            leaf = _data(x).detach().requires_grad_()
            output, state = forward(_like(x, leaf))
            wanted = {"input": leaf, **parameters}
            grads = torch.autograd.grad(_data(output), list(wanted.values()), upstream[k])
            results |= {f"{k}.grad {n}": g for n, g in zip(wanted, grads)}
        results[f"{k}.output"] = _data(output)
        results |= {f"{k}.{n}": s for n, s in _states(state).items()}
    return results


def _layer(case: Case, device: torch.device) -> Workload:
    theirs = getattr(nn, case.mode)(case.inputs, case.hidden, **_options(case))
    theirs = theirs.to(device, case.dtype).train(case.train)
    ours = _ours(case, theirs, device)
    exact = copy.deepcopy(theirs).double()
    inputs = _inputs(case, device)
    rows = sum(len(_data(x)) if case.lengths else x.shape[0] * x.shape[1] for x in inputs)
    width = (case.proj_size or case.hidden) * (1 + case.bidirectional)
    shapes = [(*_data(x).shape[:-1], width) for x in inputs]
    upstream = [torch.randn(shape, device=device).to(case.dtype) for shape in shapes]

    def run(module: nn.Module, widen: bool = False) -> Results:
        xs, gs = inputs, upstream
        if widen:
            xs, gs = [_like(x, _data(x).double()) for x in xs], [g.double() for g in gs]
        return step(module, dict(module.named_parameters()), xs, gs, case.train)

    def results() -> tuple[Results, Results, Results]:
        # cuDNN knows float64 too, but it is what is compared. A thousand steps of torch's own cells
        # take tenths of a second on a card.
        with torch.backends.cudnn.flags(enabled=False):
            oracle = run(exact, widen=True)
        return run(ours), run(theirs), oracle

    return Workload(
        {"fastseq": lambda: run(ours), "torch": lambda: run(theirs)},
        results,
        **_workload_sizes(case, rows),
        facts={"rows": rows},
    )


# ---- layers that torch lacks, against a loop ----------------------------------------------------


def loop_weights(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of our one-layer module by the names of the loop."""
    names = {
        "w_ih": "weight_ih_l0",
        "w_hh": "weight_hh_l0",
        "b_ih": "bias_ih_l0",
        "b_hh": "bias_hh_l0",
        "ln_ih": "weight_ln_ih_l0",
        "ln_hh": "weight_ln_hh_l0",
        "ln_cell_weight": "weight_ln_cell_l0",
        "ln_cell_bias": "bias_ln_cell_l0",
    }
    parameters = dict(module.named_parameters())
    return {short: parameters[name] for short, name in names.items() if name in parameters}


def _zoned_by_seed(case: Case, seed: int) -> Callable[[int, int, Tensor], Tensor]:
    """The kernels' own random choices: a counter for every time step, sequence and unit."""

    def zoned(t: int, which: int, like: Tensor) -> Tensor:
        batch = torch.arange(like.shape[0], device=like.device)[:, None]
        units = torch.arange(like.shape[1], device=like.device)
        words = philox(seed, (t * case.batch + batch) * case.hidden + units)
        return words[which] < threshold(case.zoneout)

    return zoned


def _loop(case: Case, device: torch.device) -> Workload:
    ours = _ours(case, None, device)
    parameters = loop_weights(ours)
    exact = {name: p.detach().double().requires_grad_() for name, p in parameters.items()}
    inputs = _inputs(case, device)
    rows = case.length * case.batch
    shape = case.length, case.batch, case.hidden
    upstream = [torch.randn(shape, device=device).to(case.dtype)]

    def run_loop(
        weights: Mapping[str, Tensor], widen: bool = False, seed: int | None = None
    ) -> Results:
        xs = [x.double() for x in inputs] if widen else inputs
        gs = [g.double() for g in upstream] if widen else upstream
        fixed: dict = {}
        if seed is not None:
            like = xs[0].new_empty(1, case.batch, case.hidden)
            fixed["zoned"] = _zoned_by_seed(case, seed)
            if case.recurrent_dropout and case.train:
                fixed["mask"] = dropout_mask(seed, like, case.recurrent_dropout)[0]

        def forward(x: Tensor) -> tuple[Tensor, Tensor]:
            return loops.run(
                case.mode,
                x,
                weights,
                zoneout=case.zoneout,
                recurrent_dropout=case.recurrent_dropout,
                training=case.train,
                **fixed,
            )

        return step(forward, weights, xs, gs, case.train)

    def run_ours() -> Results:
        def forward(x: Tensor) -> tuple[Tensor, Tensor]:
            output, state = ours(x)
            return output, (state[0] if isinstance(state, tuple) else state)[0]

        return step(forward, parameters, inputs, upstream, case.train)

    def results() -> tuple[Results, Results, Results]:
        torch.manual_seed(SEED)
        seed = int(torch.randint(2**62, (), dtype=torch.int64))  # as the layer is going to draw it
        torch.manual_seed(SEED)
        mine = run_ours()
        return mine, run_loop(parameters, seed=seed), run_loop(exact, widen=True, seed=seed)

    return Workload(
        {"fastseq": run_ours, "loop": lambda: run_loop(parameters)},
        results,
        **_workload_sizes(case, rows),
        facts={"rows": rows},
    )


# ---- cells --------------------------------------------------------------------------------------


def _cell(case: Case, device: torch.device) -> Workload:
    theirs = getattr(nn, case.mode + "Cell")(case.inputs, case.hidden).to(device, case.dtype)
    ours = getattr(fastseq, case.mode + "Cell")(case.inputs, case.hidden)
    ours.load_state_dict(theirs.state_dict())
    ours = ours.to(device, case.dtype)
    exact = copy.deepcopy(theirs).double()
    x = torch.randn(case.batch, case.inputs, device=device).to(case.dtype)
    h, c, grad = (
        torch.randn(case.batch, case.hidden, device=device).to(case.dtype) for _ in range(3)
    )

    def run(module: nn.Module, widen: bool = False) -> Results:
        state = (h, c) if case.mode == "LSTM" else h
        inputs, upstream = [x], [grad]
        if widen:
            state = tuple(s.double() for s in state) if isinstance(state, tuple) else h.double()
            inputs, upstream = [x.double()], [grad.double()]

        def forward(given: Tensor) -> tuple:
            new = module(given, state)
            return (new[0] if isinstance(new, tuple) else new), new

        return step(forward, dict(module.named_parameters()), inputs, upstream, case.train)

    return Workload(
        {"fastseq": lambda: run(ours), "torch": lambda: run(theirs)},
        lambda: (run(ours), run(theirs), run(exact, widen=True)),
        **_workload_sizes(case, case.batch),
        facts={"rows": case.batch},
    )
