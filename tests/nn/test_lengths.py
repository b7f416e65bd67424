"""lengths=: padded input as if packed, without packing it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastseq
from tests.nn.oracle import BATCH, HIDDEN, INPUT, LAYERS, LENGTHS, STEPS, padded, pair, states

SHORTER = [3, 6, 1, 5, 3]  # the last step is nobody's
FULL = [STEPS] * BATCH


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [LENGTHS, SHORTER, FULL], ids=["mixed", "shorter", "full"])
@pytest.mark.parametrize("hx", [False, True])
def test_as_torch_packed(name: str, batch_first: bool, lengths: list[int], hx: bool) -> None:
    """Outputs, states and gradients are those of packing by hand with torch's module."""
    ours, theirs = pair(
        name, INPUT, HIDDEN, 2, bidirectional=True, batch_first=batch_first, dtype=torch.float64
    )
    x = padded(ours).double()
    # What padding holds must not matter, and not a number would show.
    time = torch.arange(STEPS)[:, None] < torch.tensor(lengths)
    real = (time.t() if batch_first else time)[..., None]
    start: Any = None
    if hx:
        start = states(name, ours)
        start = tuple(s.double() for s in start) if name == "LSTM" else start.double()

    leaf = x.clone().requires_grad_()
    packed = pack_padded_sequence(leaf, torch.tensor(lengths), batch_first, enforce_sorted=False)
    packed_output, expected_states = theirs(packed, start)
    expected, _ = pad_packed_sequence(packed_output, batch_first, total_length=STEPS)
    expected.pow(2).sum().backward()

    poisoned = torch.where(real, x, float("nan")).requires_grad_()
    output, final_states = ours(poisoned, start, lengths=lengths)
    output.pow(2).sum().backward()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(final_states, expected_states)
    torch.testing.assert_close(poisoned.grad, leaf.grad)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert (output[~real.expand_as(output)] == 0).all()


@pytest.mark.parametrize(
    "lengths",
    [
        tuple(LENGTHS),
        torch.tensor(LENGTHS),
        torch.tensor(LENGTHS, dtype=torch.int32),
        torch.tensor(LENGTHS, dtype=torch.uint8),
        torch.tensor(LENGTHS, dtype=torch.float64),
        [n + 0.5 for n in LENGTHS],
        np.array(LENGTHS),
        [np.int64(n) for n in LENGTHS],
        [torch.tensor(n) for n in LENGTHS],
    ],
    ids=["tuple", "int64", "int32", "uint8", "float", "rounded", "array", "numpy", "scalars"],
)
def test_kinds_of_lengths(lengths: Any) -> None:
    module = fastseq.GRU(INPUT, HIDDEN)
    x = padded(module)
    # Whatever torch makes integers of: it cuts off what is behind the point.
    taken = pack_padded_sequence(x, lengths, enforce_sorted=False)
    assert torch.equal(taken.batch_sizes, pack_padded_sequence(x, LENGTHS, False, False)[1])
    assert torch.equal(module(x, lengths=lengths)[0], module(x, lengths=LENGTHS)[0])


@pytest.mark.parametrize("lengths", [[True] * BATCH, torch.ones(BATCH, dtype=torch.bool)])
def test_truth_values_as_lengths_are_ones(lengths: Any) -> None:
    """As to torch's packing; a mask of two dimensions is refused by both."""
    module = fastseq.GRU(INPUT, HIDDEN)
    x = padded(module)
    assert pack_padded_sequence(x, lengths).batch_sizes.tolist() == [BATCH]
    assert torch.equal(module(x, lengths=lengths)[0], module(x, lengths=[1] * BATCH)[0])
    with pytest.raises(RuntimeError, match="should be a 1D CPU int64 tensor"):
        module(x, lengths=torch.ones(BATCH, STEPS, dtype=torch.bool))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("sizes", [[3, 2, 0], [3, 0, 0], [0]], ids=str)
def test_packed_steps_that_nobody_has(name: str, sizes: list[int]) -> None:
    """batch_sizes may end in zeros: torch computes."""
    found = []
    for module in pair(name, INPUT, HIDDEN, 2, bidirectional=True, dtype=torch.float64):
        torch.manual_seed(0)
        data = torch.randn(sum(sizes), INPUT, dtype=torch.float64, requires_grad=True)
        packed, state = module(PackedSequence(data, torch.tensor(sizes)))
        assert packed.batch_sizes.tolist() == sizes
        ends = state if name == "LSTM" else (state,)
        total = packed.data.sum() + sum(end.pow(2).sum() for end in ends)
        grads = torch.autograd.grad(total, [data, *module.parameters()])
        found.append([packed.data, *ends, *grads])
    torch.testing.assert_close(*found)


def test_unbatched_and_empty() -> None:
    module = fastseq.LSTM(INPUT, HIDDEN, batch_first=True)
    x = torch.randn(STEPS, INPUT)
    output, (h, c) = module(x, lengths=[4])
    expected, (h4, c4) = module(x[:4])
    torch.testing.assert_close(output[:4], expected)
    torch.testing.assert_close((h, c), (h4, c4))
    assert output.shape == (STEPS, HIDDEN) and (output[4:] == 0).all()
    output, (h, c) = module(torch.randn(0, STEPS, INPUT), lengths=[])
    assert output.shape == (0, STEPS, HIDDEN) and h.shape == (1, 0, HIDDEN)


@pytest.mark.parametrize("name", LAYERS)
def test_a_sequence_alone_gives_the_same(name: str) -> None:
    """With every option on: a batch of lengths is its sequences one by one."""
    options = {"layer_norm": True, "zoneout": 0.3, "recurrent_dropout": 0.4}
    module = getattr(fastseq, name)(INPUT, HIDDEN, bidirectional=True, **options).double().eval()
    x = padded(module).double()
    output, final = module(x, lengths=LENGTHS)
    for b, length in enumerate(LENGTHS):
        alone, end = module(x[:length, b])
        torch.testing.assert_close(output[:length, b], alone)
        pairs = zip(final, end, strict=True) if name == "LSTM" else [(final, end)]
        for s, e in pairs:
            torch.testing.assert_close(s[:, b], e)


def test_lengths_second_derivative() -> None:
    module = fastseq.GRU(2, 3).double()
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor) -> Tensor:
        return module(x, lengths=[2, 3])[0]

    assert torch.autograd.gradcheck(call, (x,))
    assert torch.autograd.gradgradcheck(call, (x,))
