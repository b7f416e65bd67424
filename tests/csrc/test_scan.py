"""The C++ scans against plain PyTorch in float64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastseq import _extension
from fastseq.ops import rnn_scan
from fastseq.reference import rnn as reference
from tests.csrc.scan_cases import DTYPES, MODES, Case, check, feature_cases, special_cases

pytestmark = pytest.mark.skipif(not _extension.load(), reason=str(_extension.reason()))
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", feature_cases(), ids=str)
def test_parity(case: Case) -> None:
    torch.set_num_threads(1 + case.seed % 3)
    check(case)


@pytest.mark.parametrize("case", special_cases(), ids=str)
def test_infinities_and_nan(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("hidden", "batch", "steps"), [(1, 9, 7), (8, 1, 1), (31, 4, 2), (128, 1, 5), (70, 50, 3)]
)
@pytest.mark.parametrize("packed", [False, True])
def test_sizes(mode: str, dtype: torch.dtype, hidden: int, batch: int, steps: int, packed: bool):
    torch.set_num_threads(2)
    check(Case(mode, dtype, steps, batch, hidden, directions=2, packed=packed, seed=hidden))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("hidden", "batch", "extra"),
    [(96, 1, {}), (64, 33, {}), (300, 7, {"layer_norm": True, "zoneout": (0.2, 0.2)})],
)
def test_same_bits_on_any_number_of_threads(mode, dtype, hidden, batch, extra):
    case = Case(mode, dtype, 6, batch, hidden, directions=2, packed=True, **extra)
    results = []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        forward = case.forward()
        results.append({**forward, **case.backward(forward)})
    for other in results[1:]:
        for name, expected in results[0].items():
            assert torch.equal(other[name], expected), name


@pytest.mark.parametrize("mode", MODES)
def test_without_saving_results_are_the_same(mode: str) -> None:
    case = Case(mode, steps=5, batch=4, hidden=37)
    saved, lean = case.forward(), case.forward(save=False)
    for name in ("output", "h_n", "c_n"):
        assert torch.equal(saved[name], lean[name])
    assert lean["cells"].numel() == lean["hn"].numel() == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_extreme_and_tiny_pre_activations(mode: str, dtype: torch.dtype) -> None:
    """Saturated gates, infinities, and values so small that 1 - 2/(e^2x + 1) would cancel."""
    values = [0.0, -0.0, 1e-30, -1e-8, 3e-4, 0.6249, 0.6251, 9.0, -30.0, 100.0, -1e4, 1e30]
    values += [float("inf"), -float("inf")]
    case = Case(mode, dtype, steps=1, batch=len(values), hidden=8)
    gates = torch.tensor(values, dtype=dtype)[:, None, None, None]
    case.arguments["gates"] = gates.expand(case.arguments["gates"].shape).contiguous()
    case.arguments["w_hh"] = [torch.zeros_like(w) for w in case.arguments["w_hh"]]
    case.arguments["b_hh"] = [torch.zeros_like(b) for b in case.arguments["b_hh"]]
    case.arguments["h0"].zero_()
    ours, exact = case.forward(), case.forward(reference.rnn_scan, wide=True)
    torch.testing.assert_close(
        ours["gates"].double(), exact["gates"], rtol=4 * torch.finfo(dtype).eps, atol=1e-37
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_goes_where_it_must_and_no_further(mode: str, dtype: torch.dtype) -> None:
    case = Case(mode, dtype, steps=3, batch=4, hidden=19)
    case.arguments["gates"].view(3, 4, -1, 19)[1, 2] = float("nan")
    output = case.forward()["output"].view(3, 4, 19)
    assert output[1:, 2].isnan().all()
    assert not output[0].isnan().any()
    assert not output[:, [0, 1, 3]].isnan().any()


def test_empty_batch_and_no_steps() -> None:
    for batch, steps in ((0, 0), (0, 3), (2, 0)):
        case = Case("LSTM", steps=steps, batch=batch, hidden=5)
        results = case.forward()
        assert torch.equal(results["h_n"], case.arguments["h0"])
        assert torch.equal(results["c_n"], case.arguments["c0"])
        gradients = case.backward(results)
        assert torch.equal(gradients["grad_h0"], case.upstream["grad_h_n"])
        assert torch.equal(gradients["grad_c0"], case.upstream["grad_c_n"])


def test_arguments_need_not_be_contiguous() -> None:
    case = Case("LSTM", steps=3, batch=4, hidden=21)
    expected = case.forward()
    case.arguments["w_hh"] = [w.t().contiguous().t() for w in case.arguments["w_hh"]]
    case.arguments["h0"] = case.arguments["h0"].transpose(1, 2).contiguous().transpose(1, 2)
    arguments = dict(case.arguments, gates=case.arguments["gates"].clone())
    output = rnn_scan.scan(**arguments, **case.options, save=True)[0]
    assert torch.equal(output, expected["output"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gates": torch.zeros(12, 1, 3, 17)}, "LSTM has 4 gates"),
        ({"h0": torch.zeros(1, 3, 17, dtype=torch.float64)}, "h0 must be"),
        ({"c0": None}, "c0"),
        ({"w_hh": [torch.zeros(68, 16)]}, "w_hh must have shape"),
        ({"batch_sizes": torch.tensor([3, 4, 3, 2])}, "not increase"),
        ({"batch_sizes": torch.tensor([3, 3, 3])}, "sum"),
        ({"b_hh": [torch.zeros(51)]}, "b_hh"),
        ({"gates": torch.zeros(12, 1, 4, 17, dtype=torch.int32)}, "does not take"),
    ],
)
def test_wrong_arguments_are_refused(change: dict, message: str) -> None:
    case = Case("LSTM")
    with pytest.raises(RuntimeError, match=message):
        rnn_scan.scan(**{**case.arguments, **change}, **case.options, save=False)


def _run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


FORWARD = "from tests.csrc.scan_cases import Case; Case('LSTM').forward()"
CHECK_ALL = """
import torch
from tests.csrc.scan_cases import check, feature_cases, special_cases
from fastseq import _extension
assert _extension.capability() == "{}"
for case in feature_cases()[::7] + special_cases()[::2]:
    torch.set_num_threads(1 + case.seed % 3)
    check(case)
"""


@pytest.mark.parametrize("name", ["portable", "avx2", "avx512", "avx512_bf16"])
def test_every_instruction_set_that_can_be_forced(name: str) -> None:
    from fastseq import _C

    if name not in _C.built_capabilities():
        pytest.skip("not built on this architecture")
    if name in _C.usable_capabilities():
        done = _run(CHECK_ALL.format(name), FASTSEQ_CPU_CAPABILITY=name)
        assert done.returncode == 0, done.stderr
    else:
        done = _run(
            "from tests.csrc.scan_cases import *; Case('LSTM').forward()",
            FASTSEQ_CPU_CAPABILITY=name,
        )
        assert f"FASTSEQ_CPU_CAPABILITY={name}: this processor lacks it" in done.stderr


def test_unknown_instruction_set_is_named() -> None:
    done = _run(
        "from tests.csrc.scan_cases import *; Case('LSTM').forward()", FASTSEQ_CPU_CAPABILITY="sse9"
    )
    assert "FASTSEQ_CPU_CAPABILITY=sse9 is unknown; choose among portable" in done.stderr


def test_one_openmp_runtime_in_the_process() -> None:
    done = _run(
        FORWARD + "\n"
        "lines = open('/proc/self/maps').read().split()\n"
        "print(len({x for x in lines if 'libgomp' in x or 'libomp' in x or 'libiomp' in x}))"
    )
    assert done.stdout.strip() == "1", done.stderr


def test_philox_is_the_reference_s() -> None:
    from fastseq import _C
    from fastseq.reference.philox import philox

    for seed, counter in ((0, 0), (123456789012345, 7), (2**63 - 1, 2**40 + 3)):
        words = philox(seed, torch.tensor(counter))
        assert _C.philox(seed, counter) == [int(words[0]), int(words[1])]
