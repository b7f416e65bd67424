"""fastseq's kernels behind torch's own scaled_dot_product_attention."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastseq.integrations import torch_flash

if not hasattr(torch.nn.attention, "register_flash_attention_impl"):
    pytest.skip("this torch has no registry", allow_module_level=True)

# torch tells, once, that its own kernel is overridden.
pytestmark = pytest.mark.filterwarnings("ignore:Warning only once for all operators")


@pytest.fixture
def active() -> Iterator[None]:
    torch_flash.register()
    torch.nn.attention.activate_flash_attention_impl("fastseq")
    yield
    torch.nn.attention.restore_flash_attention_impl(_raise_warn=False)


def tensors() -> list[Tensor]:
    return [torch.randn(2, 3, n, 8, requires_grad=True) for n in (37, 50, 50)]


CALLS = {
    "plain": {},
    "causal-scale": {"is_causal": True, "scale": 0.2},
    "mask": {"attn_mask": torch.rand(2, 1, 37, 50) > 0.3},
    "shared-bias": {"attn_mask": torch.randn(37, 50)},
}


@pytest.mark.parametrize("name", CALLS)
def test_torchs_function_runs_our_kernel(name: str, active: None) -> None:
    inputs, call = tensors(), CALLS[name]
    with sdpa_kernel(SDPBackend.MATH):
        expected = F.scaled_dot_product_attention(*inputs, **call)
    with torch.profiler.profile() as profile, sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = F.scaled_dot_product_attention(*inputs, **call)
        upstream = torch.randn_like(out)
        grads = torch.autograd.grad(out, inputs, upstream)
    ran = {event.key for event in profile.key_averages()}
    assert {"fastseq::attention_forward", "fastseq::attention_backward"} <= ran
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(grads, torch.autograd.grad(expected, inputs, upstream))


def test_compiled_sees_the_strides_it_was_told(active: None) -> None:
    inputs = tensors()
    compiled = torch.compile(F.scaled_dot_product_attention, backend="aot_eager", fullgraph=True)
    found = []
    for function in (F.scaled_dot_product_attention, compiled):
        out = function(*inputs)
        found.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for a, b in zip(*found):
        torch.testing.assert_close(b, a)
        assert a.stride() == b.stride()


def test_off_again(active: None) -> None:
    inputs = tensors()
    assert torch.nn.attention.current_flash_attention_impl() == "fastseq"
    torch.nn.attention.restore_flash_attention_impl()
    with torch.profiler.profile() as profile:
        F.scaled_dot_product_attention(*inputs).sum().backward()
    assert not any("fastseq" in event.key for event in profile.key_averages())


def test_cuda_entries_on_the_cpu() -> None:
    """Their results, in torch's order; that they are reached needs a card."""
    q, k, v = (x.detach().requires_grad_() for x in tensors())
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    out, lse, *rest = torch_flash._forward_cuda(q.detach(), k.detach(), v.detach(), 0.0, True)
    torch.testing.assert_close(out, expected)
    assert lse.shape == q.shape[:3] and rest[2:4] == [37, 50] and len(rest) == 7
    upstream = torch.randn_like(out)
    grads = torch_flash._backward_cuda(
        upstream, q.detach(), k.detach(), v.detach(), out, lse, *rest[:4], 0.0, True, *rest[4:6]
    )
    torch.testing.assert_close(grads, torch.autograd.grad(expected, (q, k, v), upstream))
    with pytest.raises(RuntimeError, match="draws no dropout"):
        torch_flash._forward_cuda(q, k, v, 0.1)


def test_not_on_import() -> None:
    code = (
        "import torch, fastseq, fastseq.integrations.torch_flash\n"
        "assert 'fastseq' not in torch.nn.attention.list_flash_attention_impls()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
