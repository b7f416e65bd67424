"""Where no kernel can be loaded, plain layers are torch's own, and it is said."""

import subprocess
import sys

import pytest

BEGIN = """
import sys, warnings
sys.modules["fastseq._C"] = None  # an extension that cannot be imported
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import fastseq
    import fastseq.nn
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
torch.manual_seed(0)

def runs(operator, call, *args, **kwargs):
    "The results, and that torch's own operator made them."
    with torch.profiler.profile() as profile:
        out = call(*args, **kwargs)
    names = {event.name for event in profile.events()}
    assert operator in names, names
    ours = {name for name in names if name.startswith("fastseq::")}
    assert ours <= {"fastseq::packing"}, ours
    return out
"""

WARNS = """
[warning] = [w for w in caught if "fastseq" in str(w.message)]
assert "no kernels here" in str(warning.message) and "fastseq info" in str(warning.message)
assert "fastseq._C cannot be imported" in str(warning.message)
assert warning.category is RuntimeWarning
"""

LAYERS = """
lengths = torch.tensor([5, 2, 7])
for kind in ("LSTM", "GRU", "RNN"):
    theirs = getattr(torch.nn, kind)(3, 4, 2, bidirectional=True, batch_first=True)
    ours = getattr(fastseq, kind)(3, 4, 2, bidirectional=True, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 7, 3)
    operator = {"LSTM": "aten::lstm", "GRU": "aten::gru", "RNN": "aten::rnn_tanh"}[kind]
    for args in ((x,), (x[0],), (pack_padded_sequence(x, lengths, True, False),)):
        torch.testing.assert_close(runs(operator, ours, *args), theirs(*args), rtol=0, atol=0)
    out, last = runs(operator, ours, x, lengths=lengths)
    packed, expected_last = theirs(pack_padded_sequence(x, lengths, True, False))
    expected = pad_packed_sequence(packed, True)[0]
    torch.testing.assert_close((out, last), (expected, expected_last), rtol=0, atol=0)
    found = torch.autograd.grad(out.sum(), [*ours.parameters()])
    wanted = torch.autograd.grad(expected.sum(), [*theirs.parameters()])
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    runs(operator + "_cell", getattr(fastseq, kind + "Cell")(3, 4), x[0])
"""

ATTENTION = """
x = torch.randn(3, 40, 64)
padding = torch.arange(40) >= torch.tensor([[40], [20], [30]])
theirs = torch.nn.MultiheadAttention(64, 2, batch_first=True)
ours = fastseq.MultiheadAttention(64, 2, batch_first=True)
ours.load_state_dict(theirs.state_dict())
found = runs("aten::bmm", ours, x, x, x, key_padding_mask=padding)
torch.testing.assert_close(found, theirs(x, x, x, key_padding_mask=padding), rtol=0, atol=0)
layer = torch.nn.TransformerEncoderLayer(64, 2, 32, batch_first=True)
theirs = torch.nn.TransformerEncoder(layer, 2).eval()
ours = fastseq.TransformerEncoder(fastseq.TransformerEncoderLayer(64, 2, 32, batch_first=True), 2)
ours.eval().load_state_dict(theirs.state_dict())
with torch.no_grad():
    found = runs("aten::_transformer_encoder_layer_fwd", ours, x, src_key_padding_mask=padding)
    expected = theirs(x, src_key_padding_mask=padding)
torch.testing.assert_close(found, expected, rtol=0, atol=0)
q = torch.randn(1, 2, 300, 64)
attend = fastseq.scaled_dot_product_attention
found = runs("aten::scaled_dot_product_attention", attend, q, q, q, is_causal=True)
"""

OPTIONS = """
x = torch.randn(7, 3, 3)
layer = fastseq.GRU(3, 4, layer_norm=True)
assert layer(x)[0].shape == (7, 3, 4)
assert fastseq.LSTMCell(3, 4, layer_norm=True)(x[0])[0].shape == (3, 4)
out = fastseq.flash_attn_func(*(torch.randn(1, 5, 2, 8) for _ in range(3)), window_size=(2, 0))
assert out.isfinite().all()
compiled = torch.compile(fastseq.LSTM(3, 4), backend="eager", fullgraph=True)
assert compiled(x)[0].shape == (7, 3, 4)
"""


@pytest.mark.parametrize("script", [WARNS, LAYERS, ATTENTION, OPTIONS])
def test_without_kernels(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", BEGIN + script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_nothing_is_said_where_kernels_are() -> None:
    command = [sys.executable, "-W", "error", "-c", "import fastseq"]
    assert subprocess.run(command, capture_output=True).returncode == 0
