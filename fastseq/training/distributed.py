"""The processes of a run: one, or those that torchrun starts."""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """This process among ``world`` ones, and its device."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def start(cls, device: str = "") -> "Ranks":
        """Joins the others if torchrun started this process: by NCCL on GPUs, else by gloo.

        Args:
            device: "cpu", "cuda", "cuda:1" …; "" takes a GPU if there is one. Under torchrun each
                process of a machine takes its own.
        """
        kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        world = int(os.environ.get("WORLD_SIZE", 1))
        if world == 1:
            return cls(0, 1, kind)
        if kind.type == "cuda":
            kind = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(kind)
        dist.init_process_group("nccl" if kind.type == "cuda" else "gloo")
        return cls(dist.get_rank(), world, kind)

    @property
    def main(self) -> bool:
        """Whether this one writes files and speaks."""
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """``x``, summed over the processes in place."""
        if self.world > 1:
            dist.all_reduce(x)
        return x

    def any(self, flag: bool) -> bool:
        """Whether one of the processes says so."""
        if self.world == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)))

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes, one process's after another's."""
        if self.world == 1:
            return items
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()

    def stop(self) -> None:
        """Leaves the others."""
        if self.world > 1:
            dist.destroy_process_group()


def shared(model: Module, ranks: Ranks, strategy: str) -> Module:
    """The module to call in training, whose gradients are means over the processes.

    Args:
        strategy: "ddp", each process has the whole model; "fsdp", each has its shard of every
            layer (fully_shard), gathered where it is needed.
    """
    if ranks.world == 1:
        return model
    if strategy == "fsdp":
        mesh = init_device_mesh(ranks.device.type, (ranks.world,))
        for part in [p for m in model.modules() if isinstance(m, torch.nn.ModuleList) for p in m]:
            fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model
    return DistributedDataParallel(model, [ranks.device] if ranks.device.type == "cuda" else None)


def synchronize_gradients(module: Module, wanted: bool) -> None:
    """Whether the next backward pass exchanges gradients: of parts of an update, only the last."""
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = wanted
    elif isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(wanted)


def whole_state(model: Module) -> dict[str, Any]:
    """The parameters of a sharded model, gathered in every process."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
