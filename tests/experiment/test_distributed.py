"""Several processes that share each minibatch compute what one process computes on the whole of it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy

from data.augment import RECIPES, Recipe
from experiment import distributed
from experiment.distributed import GLOBAL

EVERYTHING = Recipe(3, 20.0, True, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), (0.1, 0.2, 0.3))
RECIPES_OF_ALL = RECIPES | {"raw": Recipe(), "everything": EVERYTHING}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def of_several(monkeypatch):
    """of_several(rank, world): this process thinks that it is one of several."""

    def pretend(rank: int, world: int) -> None:
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world", lambda: world)

    return pretend


def test_a_process_alone_is_the_whole(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    distributed.start(torch.device("cpu"))
    distributed.barrier()
    net, order = nn.BatchNorm2d(3), torch.randperm(12, generator=seeded())
    assert (distributed.rank(), distributed.world()) == (0, 1)
    rows, size = distributed.share(order, 4)
    assert torch.equal(rows, order) and size == 4
    assert distributed.replicate(net) is net and type(net) is nn.BatchNorm2d


@pytest.mark.parametrize("world", [2, 3, 6])
def test_the_shares_are_the_minibatches(of_several, world):
    order, minibatches = torch.randperm(24, generator=seeded()), []
    for rank in range(world):
        of_several(rank, world)
        rows, size = distributed.share(order, 12)
        assert size == 12 // world
        minibatches.append(rows.split(size))
    for i, whole in enumerate(order.split(12)):
        assert sorted(torch.cat([parts[i] for parts in minibatches]).tolist()) == sorted(whole.tolist())
        for rank, parts in enumerate(minibatches):  # as Recipe.augment counts them
            assert torch.equal(parts[i], whole[rank::world])


def test_a_minibatch_that_cannot_be_shared_is_refused(of_several):
    of_several(1, 2)
    with pytest.raises(ValueError, match="argument -train: 5 images cannot be shared evenly by 2 processes"):
        distributed.share(torch.arange(10), 5)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("name", RECIPES_OF_ALL)
def test_augmented_shares_are_shares_of_the_augmented_whole(name, world):
    recipe = RECIPES_OF_ALL[name]
    channels = max(len(recipe.mean), len(recipe.erase))
    x = torch.randint(256, (24, channels, 10, 12), dtype=torch.uint8, generator=seeded(1))
    generator = seeded()
    whole = recipe.augment(x, generator)
    for rank in range(world):
        own = seeded()
        assert torch.equal(recipe.augment(x[rank::world], own, rank, world), whole[rank::world])
        assert torch.equal(own.get_state(), generator.get_state())  # every process stays in step


def test_the_images_of_a_minibatch_are_augmented_differently():
    """Else the test above could not see a share that gets the random numbers of another one."""
    for recipe in (RECIPES["cifar10"], RECIPES["digits"]):
        x = torch.arange(120).view(1, 1, 10, 12).expand(8, len(recipe.mean), 10, 12).to(torch.uint8)
        augmented = recipe.augment(x, seeded())
        assert len(augmented.flatten(1).unique(dim=0)) > 4


CASES = {  # momentum, memory format
    "default": (0.1, torch.contiguous_format),
    "channels last": (0.3, torch.channels_last),
}


def batch_and_norm(case: str) -> tuple[torch.Tensor, torch.Tensor, nn.BatchNorm2d]:
    """Images far from 0 and unlike one another, the gradient of a loss, and a batch norm with a history."""
    momentum, memory = CASES[case]
    x = torch.randn(8, 3, 5, 6, generator=seeded()) * torch.arange(1, 9).view(-1, 1, 1, 1) + 20
    norm = nn.BatchNorm2d(3, momentum=momentum)
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        values.data.uniform_(0.5, 2, generator=seeded(2))
    return x.contiguous(memory_format=memory), torch.randn(x.shape, generator=seeded(3)), norm


def normalised(norm: nn.BatchNorm2d, x: torch.Tensor, grad: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output, input gradient, own gradients and running statistics, and the output in evaluation mode."""
    x = x.requires_grad_()
    output = norm(x)
    output.backward(grad)
    own = {name: p.grad for name, p in norm.named_parameters()} | dict(norm.named_buffers())
    own = {name: value.clone() for name, value in own.items()}
    return {"output": output.detach(), "input": x.grad, "evaluated": norm.eval()(x).detach(), **own}


def small_network() -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(120), nn.Linear(120, 5))


def trained(net: nn.Module, forward, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Weights and buffers after a few steps on minibatches, and the outputs of the network."""
    x, y = torch.randn(24, 3, 5, 6, generator=seeded()), torch.randint(5, (24,), generator=seeded(1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for rows in torch.arange(24).split(8):
        rows = rows[rank::world]
        optimizer.zero_grad()
        cross_entropy(forward(x[rows]), y[rows]).backward()
        optimizer.step()
    net.eval()
    return {**net.state_dict(), "outputs": net(x).detach()}


def worker(folder: Path, rank: int, world: int) -> None:
    """What one of several processes computes from its shares."""
    distributed.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world
    )
    assert (distributed.rank(), distributed.world()) == (rank, world)
    for case in CASES:
        x, grad, norm = batch_and_norm(case)
        norm.__class__ = GLOBAL[nn.BatchNorm2d]
        memory = CASES[case][1]
        found = normalised(norm, x[rank::world].clone(memory_format=memory), grad[rank::world])
        save_file({name: value.contiguous() for name, value in found.items()}, folder / f"{case}{rank}")
    net = small_network()
    save_file(trained(net, distributed.replicate(net), rank, world), folder / f"trained{rank}")
    distributed.barrier()
    distributed.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What the workers of two processes wrote."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, __file__, str(folder)]
    workers = [subprocess.Popen([*command, str(rank), "2"], stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    try:
        errors = [process.communicate(timeout=120)[1] for process in workers]
    finally:
        for process in workers:
            process.kill()
    assert [process.returncode for process in workers] == [0, 0], errors
    return lambda name: [load_file(folder / f"{name}{rank}") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_global_batch_norm_is_batch_norm_of_the_whole_minibatch(two_processes, case):
    x, grad, norm = batch_and_norm(case)
    whole = normalised(norm, x, grad)
    alone = normalised(batch_and_norm(case)[2], x[::2].detach().clone(), grad[::2])
    shares = two_processes(case)
    for rank, share in enumerate(shares):
        for name in ("output", "input", "evaluated"):
            torch.testing.assert_close(share[name], whole[name][rank::2], rtol=1e-4, atol=1e-4)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(share[name], whole[name], rtol=1e-5, atol=1e-6)
    for name in ("weight", "bias"):
        torch.testing.assert_close(shares[0][name] + shares[1][name], whole[name], rtol=1e-4, atol=1e-4)
    assert (alone["output"] - whole["output"][::2]).abs().max() > 0.05
    assert (alone["running_var"] - whole["running_var"]).abs().max() > 0.05


@pytest.mark.slow
def test_a_replicated_network_is_trained_as_one(two_processes):
    net = small_network()
    whole = trained(net, net, 0, 1)
    first, second = two_processes("trained")
    for name, value in whole.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(first[name], second[name]), name
    net = small_network()
    assert (trained(net, net, 0, 2)["outputs"] - whole["outputs"]).abs().max() > 0.05


if __name__ == "__main__":
    worker(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
