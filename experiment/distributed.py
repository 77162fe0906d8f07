"""One run on several processes, started by torchrun: every process computes its share of each minibatch.

All processes hold the same weights, latent variables and masks: gradients and batch statistics are averaged over the
global minibatch, and everything else is drawn from the same generators. A run of several processes equals that
of one process up to rounding.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


def start(device: torch.device) -> None:
    """Join the process group, if torchrun started this process."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def world() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process. Process 0 writes the run folder."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def barrier() -> None:
    """Wait for the other processes."""
    if world() > 1:
        distributed.barrier()


def share(order: Tensor, batch: int) -> tuple[Tensor, int]:
    """This process's rows of minibatches of `batch`, and how many of them a minibatch has.

    Raises:
        ValueError: the minibatches cannot be shared evenly.
    """
    if batch % world():
        raise ValueError(f"argument -train: {batch} images cannot be shared evenly by {world()} processes")
    return order.view(-1, batch)[:, rank() :: world()].flatten(), batch // world()


def replicate(net: nn.Module) -> nn.Module:
    """The network with gradients and batch statistics of the global minibatch; itself in a single process."""
    if world() == 1:
        return net
    device = next(net.parameters()).device
    if device.type == "cuda":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        return DistributedDataParallel(net, [device])
    for module in net.modules():
        if type(module) in GLOBAL:
            module.__class__ = GLOBAL[type(module)]
    return DistributedDataParallel(net)


class _Mean(torch.autograd.Function):
    """Mean over the processes, differentiable."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        distributed.all_reduce(x)
        return x / world()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone()
        distributed.all_reduce(grad)
        return grad / world()


class GlobalBatchNorm:
    """Batch norm with the statistics of the global minibatch; torch's SyncBatchNorm, but on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        dims, channels = [0, *range(2, x.ndim)], (-1, *[1] * (x.ndim - 2))
        mean = _Mean.apply(wide.mean(dims))
        centred = wide - mean.view(channels)
        variance = _Mean.apply(centred.square().mean(dims))
        with torch.no_grad():
            n = x.numel() // x.shape[1] * world()
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (n / (n - 1)), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(channels) + self.bias.view(channels)).to(x.dtype)


class GlobalBatchNorm1d(GlobalBatchNorm, nn.BatchNorm1d):
    """Of features (n, channels)."""


class GlobalBatchNorm2d(GlobalBatchNorm, nn.BatchNorm2d):
    """Of images (n, channels, height, width)."""


GLOBAL = {nn.BatchNorm1d: GlobalBatchNorm1d, nn.BatchNorm2d: GlobalBatchNorm2d}
