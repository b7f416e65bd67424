"""Float32 products are as exact as torch's settings say, whichever interface made them; no GPU."""

import json
import subprocess
import sys

import pytest
import torch

from fastseq.kernels import precision
from fastseq.kernels.device import Limits, assume

# Settings of torch.backends, and what attention and recurrent layers then use.
EXPECTED = {
    "": ("tf32x3", "tf32"),
    "cuda.matmul.allow_tf32 = True": ("tf32", "tf32"),
    "cuda.matmul.allow_tf32 = False": ("tf32x3", "tf32"),
    "cudnn.allow_tf32 = True": ("tf32x3", "tf32"),
    "cudnn.allow_tf32 = False": ("tf32x3", "ieee"),
    "cuda.matmul.fp32_precision = 'tf32'": ("tf32", "tf32"),
    "cuda.matmul.fp32_precision = 'ieee'": ("tf32x3", "tf32"),
    "cudnn.rnn.fp32_precision = 'tf32'": ("tf32x3", "tf32"),
    "cudnn.rnn.fp32_precision = 'ieee'": ("tf32x3", "ieee"),
    "fp32_precision = 'tf32'": ("tf32", "tf32"),
    "cudnn.rnn.fp32_precision = 'none'; fp32_precision = 'ieee'": ("tf32x3", "ieee"),
    "cudnn.rnn.fp32_precision = 'none'; cudnn.fp32_precision = 'ieee'": ("tf32x3", "ieee"),
    # One interface after the other: allow_tf32 could not be read any more.
    "cudnn.rnn.fp32_precision = 'ieee'; fp32_precision = 'tf32'": ("tf32", "ieee"),
    "cudnn.allow_tf32 = False; cudnn.rnn.fp32_precision = 'tf32'": ("tf32x3", "tf32"),
    "cuda.matmul.allow_tf32 = True; cuda.matmul.fp32_precision = 'ieee'": ("tf32x3", "tf32"),
}
# Settings cannot be taken back, so each is made in a child of a process that made none.
SCRIPT = """
import json, os, sys, torch
from fastseq.kernels import precision
x = torch.zeros(1)
for setting in json.loads(sys.argv[1]):
    if os.fork() == 0:
        for line in filter(None, setting.split("; ")):
            exec("torch.backends." + line)
        print(json.dumps([setting, precision.of_attention(x), precision.of_rnn(x)]), flush=True)
        os._exit(0)
    os.wait()
"""


def test_torch_settings() -> None:
    expected = EXPECTED
    if not hasattr(torch.backends.cudnn.rnn, "fp32_precision"):  # hidden by a module, in torch 2.10
        expected = {s: precisions for s, precisions in EXPECTED.items() if "rnn" not in s}
    command = [sys.executable, "-c", SCRIPT, json.dumps(list(expected))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {setting: (a, r) for setting, a, r in map(json.loads, done.stdout.splitlines())}
    assert found == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_have_one_precision(dtype: torch.dtype) -> None:
    x = torch.zeros(1, dtype=dtype)
    assert precision.of_attention(x) == precision.of_rnn(x) == "ieee"


def test_amd() -> None:
    before = precision.limits_of(torch.device("cpu"))
    assume(Limits(304, 64 * 1024, 64))
    try:
        x = torch.zeros(1)
        assert precision.of_attention(x) == precision.of_rnn(x) == "ieee"
    finally:
        assume(before)
