"""torch's own test inputs for these modules, run on ours with torch's names patched."""

from typing import Any

import pytest
import torch
from torch.testing._internal.common_modules import (
    ModuleErrorEnum,
    ModuleInfo,
    freeze_rng_state,
    module_db,
)

import fastseq
from tests.nn.oracle import tensors

NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
INFOS = [info for info in module_db if info.module_cls.__name__ in NAMES]


def build(info: ModuleInfo, constructor: Any, **kwargs: Any) -> torch.nn.Module:
    """As torch's tests do, by torch's class."""
    with fastseq.patch_torch():
        module = info.module_cls(*constructor.args, **{**constructor.kwargs, **kwargs})
    assert type(module).__module__.startswith("fastseq.")
    return module


def test_all_six_are_in_the_database() -> None:
    assert sorted(info.module_cls.__name__ for info in INFOS) == sorted(NAMES)


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.module_cls.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [False, True])
def test_forward(info: ModuleInfo, dtype: torch.dtype, training: bool) -> None:
    """Each input gives torch's result, and agrees with torch's reference function."""
    inputs = info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=True, training=training
    )
    assert len(inputs) >= 2
    for sample in inputs:
        module = build(info, sample.constructor_input, dtype=dtype).train(training)
        constructor = sample.constructor_input
        theirs = info.module_cls(*constructor.args, **{**constructor.kwargs, "dtype": dtype})
        theirs.load_state_dict(module.state_dict())
        args, kwargs = sample.forward_input.args, sample.forward_input.kwargs
        with freeze_rng_state():
            found = module(*args, **kwargs)
        with freeze_rng_state():
            expected = theirs.train(training)(*args, **kwargs)
        torch.testing.assert_close(found, expected)
        if sample.reference_fn is not None:
            torch.testing.assert_close(found, sample.reference_fn(module, *args, **kwargs))
        grads = [
            torch.autograd.grad(sum(t.sum() for t in tensors(y)), list(m.parameters()))
            for m, y in ((module, found), (theirs, expected))
        ]
        # torch's inputs go up to 9 and its gradients here to 10.
        tolerance = {} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-4}
        torch.testing.assert_close(grads[0], grads[1], **tolerance)


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.module_cls.__name__)
def test_derivatives(info: ModuleInfo) -> None:
    for sample in info.module_inputs_func(
        info, device="cpu", dtype=torch.float64, requires_grad=True, training=True
    ):
        module = build(info, sample.constructor_input, dtype=torch.float64)
        args = sample.forward_input.args
        assert torch.autograd.gradcheck(
            lambda *_, m=module, a=args: tuple(tensors(m(*a))),
            (*tensors(args), *module.parameters()),
            fast_mode=True,
        )


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.module_cls.__name__)
def test_errors(info: ModuleInfo) -> None:
    samples = info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
    )
    assert samples
    for sample in samples:
        module_input = sample.module_error_input
        constructor, call = module_input.constructor_input, module_input.forward_input
        if sample.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(sample.error_type, match=sample.error_regex):
                build(info, constructor)
        else:
            module = build(info, constructor)
            with pytest.raises(sample.error_type, match=sample.error_regex):
                module(*call.args, **call.kwargs)
