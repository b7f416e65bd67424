"""RNN, LSTM, GRU against torch's: values and gradients of every constructor and call form."""

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Module

import fastseq
from tests.nn.oracle import (
    BATCH,
    DTYPES,
    HIDDEN,
    INPUT,
    LAYERS,
    STEPS,
    assert_as_exact,
    packed,
    padded,
    pair,
    results,
    states,
)

CONFIGS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"batch_first": True},
    {"bidirectional": True},
    {"num_layers": 3},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
]
OWN: dict[str, list[dict[str, Any]]] = {
    "RNN": [
        {"nonlinearity": "relu"},
        {"nonlinearity": "relu", "num_layers": 2, "bidirectional": True},
    ],
    "LSTM": [
        {"proj_size": 4},
        {"proj_size": 1, "num_layers": 2, "bidirectional": True, "batch_first": True},
        {"proj_size": 3, "bias": False},
    ],
    "GRU": [],
}
CASES = [
    pytest.param(name, config, id=f"{name}-{'-'.join(map(str, config.values()))}")
    for name in LAYERS
    for config in CONFIGS + OWN[name]
]
FORMS = {
    "dense": lambda name, m: (padded(m),),
    "hx": lambda name, m: (padded(m), states(name, m)),
    "unbatched": lambda name, m: (torch.randn(STEPS, INPUT),),
    "unbatched-hx": lambda name, m: (torch.randn(STEPS, INPUT), states(name, m, None)),
    "sorted": lambda name, m: (packed(m, ordered=True),),
    "sorted-hx": lambda name, m: (packed(m, ordered=True), states(name, m)),
    "unsorted-hx": lambda name, m: (packed(m, ordered=False), states(name, m)),
    "strided-hx": lambda name, m: (
        torch.randn(INPUT, *padded(m).shape[:2]).permute(1, 2, 0),
        _strided(states(name, m)),
    ),
    "no-sequences": lambda name, m: (padded(m, batch=0),),
    "one-step": lambda name, m: (padded(m, steps=1), states(name, m)),
    "one-sequence": lambda name, m: (padded(m, batch=1),),
}


def _strided(hx: Any) -> Any:
    if isinstance(hx, tuple):
        return tuple(map(_strided, hx))
    return hx.transpose(0, 2).contiguous().transpose(0, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "config"), CASES)
def test_values_and_gradients(
    name: str, config: dict[str, Any], form: str, dtype: torch.dtype
) -> None:
    ours, theirs = pair(name, INPUT, HIDDEN, **config)
    assert_as_exact(ours, theirs, FORMS[form](name, ours), dtype)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("hidden", "steps", "batch"), [(1, 3, 2), (64, 5, 33), (130, 12, 3)])
def test_sizes(name: str, hidden: int, steps: int, batch: int) -> None:
    ours, theirs = pair(name, 17, hidden, bidirectional=True)
    assert_as_exact(ours, theirs, (padded(ours, steps, batch),), torch.float32)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("form", ["dense", "unsorted-hx"])
def test_dropout_draws_torchs_masks(name: str, form: str) -> None:
    ours, theirs = pair(name, INPUT, HIDDEN, 3, dropout=0.5, bidirectional=True, batch_first=True)
    arguments = FORMS[form](name, ours)
    assert_as_exact(ours, theirs, arguments, torch.float64)
    trained = results(ours, arguments, torch.float64)[0]
    ours.eval(), theirs.eval()
    assert_as_exact(ours, theirs, arguments, torch.float64)
    assert not torch.allclose(trained, results(ours, arguments, torch.float64)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_without_gradients(name: str) -> None:
    """Inference skips what backward needs; the numbers stay."""
    ours, _ = pair(name, INPUT, HIDDEN, 2, bidirectional=True)
    x = padded(ours)
    with_graph = ours(x)[0]
    with torch.no_grad():
        assert torch.equal(ours(x)[0], with_graph)
    with torch.inference_mode():
        assert torch.equal(ours(x)[0], with_graph)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("frozen", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0", "all"])
def test_frozen_parameters(name: str, frozen: str) -> None:
    """Gradients flow to the input past frozen parameters, and to the others."""
    modules = pair(name, INPUT, HIDDEN)
    x = padded(modules[0])
    grads = []
    for module in modules:
        for parameter_name, parameter in module.named_parameters():
            parameter.requires_grad_(frozen not in ("all", parameter_name))
        leaf = x.clone().requires_grad_()
        module(leaf)[0].sum().backward()
        grads.append([leaf.grad, *(p.grad for p in module.parameters())])
    for a, b in zip(*grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_and_flags(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(LAYERS))
    config = {
        "num_layers": data.draw(st.integers(1, 3)),
        "bias": data.draw(st.booleans()),
        "batch_first": data.draw(st.booleans()),
        "bidirectional": data.draw(st.booleans()),
    }
    hidden = data.draw(st.integers(2, 40))
    if name == "LSTM":
        config["proj_size"] = data.draw(st.integers(0, hidden - 1))
    ours, theirs = pair(name, data.draw(st.integers(1, 20)), hidden, **config)
    steps, batch = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 18))
    arguments = [padded(ours, steps, batch)]
    if data.draw(st.booleans()):
        lengths = data.draw(st.lists(st.integers(1, steps), min_size=batch, max_size=batch))
        arguments[0] = torch.nn.utils.rnn.pack_padded_sequence(
            arguments[0], torch.tensor(lengths), ours.batch_first, enforce_sorted=False
        )
    if data.draw(st.booleans()):
        arguments.append(states(name, ours, batch))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    assert_as_exact(ours, theirs, arguments, dtype)


@pytest.mark.parametrize("name", LAYERS)
def test_same_bits_on_any_number_of_threads(name: str) -> None:
    ours, _ = pair(name, INPUT, 70, bidirectional=True)
    arguments = (padded(ours, 20, 17),)
    first = results(ours, arguments, torch.float32)[:2]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for a, b in zip(first, results(ours, arguments, torch.float32)):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", LAYERS)
def test_is_torchs_module(name: str) -> None:
    ours, theirs = pair(name, INPUT, HIDDEN, 2, bidirectional=True)
    assert isinstance(ours, getattr(torch.nn, name))
    assert repr(ours) == repr(theirs)
    assert set(vars(ours)) >= set(vars(theirs))
    assert ours.mode == theirs.mode and ours._flat_weights_names == theirs._flat_weights_names
    for ours_list, their_list in zip(ours.all_weights, theirs.all_weights, strict=True):
        assert all(map(torch.equal, ours_list, their_list))
    assert getattr(fastseq, name) is getattr(fastseq.nn, name)
    assert inspect.signature(type(ours).forward).parameters.keys() >= {"input", "hx"}


@pytest.mark.parametrize("name", LAYERS)
def test_positional_arguments(name: str) -> None:
    """Every argument in its place, as torch orders them."""
    own = ["relu"] if name == "RNN" else []
    last = [4] if name == "LSTM" else []
    args = (3, 6, 2, *own, False, True, 0.25, True, *last)
    ours, theirs = pair(name, *args)
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    meta = type(ours)(*args, device="meta", dtype=torch.float64)
    assert all(p.is_meta and p.dtype == torch.float64 for p in meta.parameters())


def test_module_on_the_meta_device() -> None:
    for name in LAYERS:
        module: Module = getattr(fastseq, name)(INPUT, HIDDEN, 2, bidirectional=True, device="meta")
        output, _ = module(torch.randn(STEPS, BATCH, INPUT, device="meta"))
        assert output.is_meta and output.shape == (STEPS, BATCH, 2 * HIDDEN)
