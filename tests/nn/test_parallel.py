"""DataParallel and DistributedDataParallel."""

import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

import fastseq
from tests.nn.oracle import BATCH, HIDDEN, INPUT, LAYERS, padded


@pytest.mark.parametrize("name", LAYERS)
def test_data_parallel_without_a_gpu(name: str) -> None:
    module = getattr(fastseq, name)(INPUT, HIDDEN)
    x = padded(module)
    wrapped = torch.nn.DataParallel(module, device_ids=None if torch.cuda.is_available() else [])
    torch.testing.assert_close(wrapped(x)[0], module(x)[0])


@pytest.mark.parametrize("name", [*LAYERS, "LSTMCell"])
def test_replicas(name: str) -> None:
    """What DataParallel makes on each device: a copy whose weights are plain tensors."""
    module = getattr(fastseq, name)(INPUT, HIDDEN, layer_norm=True)
    replica = module._replicate_for_data_parallel()
    for key, parameter in module._parameters.items():
        setattr(replica, key, parameter * 0.5)  # with a history, as a broadcast gives them
    expected = getattr(fastseq, name)(INPUT, HIDDEN, layer_norm=True)
    expected.load_state_dict({k: v * 0.5 for k, v in module.state_dict().items()})
    x = torch.randn(BATCH, INPUT) if name == "LSTMCell" else padded(module)
    torch.testing.assert_close(replica(x)[0], expected(x)[0])
    replica(x)[0].sum().backward()
    assert all(p.grad is not None for n, p in module.named_parameters() if "ih" in n)


def _train(rank: int, world: int, name: str, store: str, x: torch.Tensor, result: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.manual_seed(0)
    module = getattr(fastseq, name)(INPUT, HIDDEN, 2, layer_norm=True, dtype=x.dtype)
    parallel = DistributedDataParallel(module)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        mine = x[:, rank::world]
        parallel(mine)[0].pow(2).sum().div(mine.shape[1]).backward()
        optimizer.step()
    if rank == 0:
        torch.save(module.state_dict(), result)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or sys.platform == "win32", reason="needs gloo")
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_ddp_of_two_processes_equals_one(name: str) -> None:
    x = torch.randn(4, 6, INPUT, dtype=torch.float64)
    with tempfile.TemporaryDirectory() as folder:
        store, result = str(Path(folder) / "store"), str(Path(folder) / "state.pt")
        mp.spawn(_train, (2, name, store, x, result), nprocs=2)
        found = torch.load(result)
    torch.manual_seed(0)
    module = getattr(fastseq, name)(INPUT, HIDDEN, 2, layer_norm=True, dtype=x.dtype)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        module(x)[0].pow(2).sum().div(x.shape[1]).backward()
        optimizer.step()
    for key, value in module.state_dict().items():
        torch.testing.assert_close(found[key], value)
