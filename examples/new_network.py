"""A network of your own: it names its sparse layers, and the prior, the sampler and the pruner need no more.

    python -m examples.new_network

On the digits that ship with scikit-learn: first dense, then 80% of all parameters pruned while it samples on.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data import images
from data.augment import RAW
from experiment.classification import scores
from experiment.evaluation import member, predict
from sampler import SGHMC, FlatNoise, MagnitudePruner, SSGLPrior
from sampler.noise import stream
from sampler.schedules import RobbinsMonro


class Residual(nn.Module):
    """Two layers, the second around a shortcut, and a linear layer on top."""

    sparse_layers = ("first.weight", "second.weight")  # names of parameters, as in named_parameters()

    def __init__(self, shape: tuple[int, int, int], classes: int, hidden: int = 128):
        super().__init__()
        self.first = nn.Linear(shape[0] * shape[1] * shape[2], hidden)
        self.second = nn.Linear(hidden, hidden)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, channels, height, width) -> logits (n, classes)."""
        x = F.relu(self.first(x.flatten(1)))
        return self.fc(x + F.relu(self.second(x)))


torch.manual_seed(1)
data = images.load("digits")
net, N, order = Residual(data.shape, len(data.classes)), len(data.train), stream(1, "order")
params = dict(net.named_parameters())
sparse, total = [params[name] for name in net.sparse_layers], sum(p.numel() for p in params.values())
rest = [p for name, p in params.items() if name not in net.sparse_layers]
ssgl = {"v0": 1.0, "v1": 10.0, "a": 1, "b": 1, "nu": 1000, "lamda": 1000, "sigma": 1.0, "kappa0": 1e-4, "kappa1": 1e-4}
prior = SSGLPrior(sparse, **ssgl, omega=RobbinsMonro(1, 100, 0.7), gaussian=rest, precision=5e-4 * N)
sampler = SGHMC(net.parameters(), lr=0.2 / N, invT=1000.0, noise=FlatNoise(stream(1, "noise")))

for name, sparsity in (("dense", 0.0), ("pruned", 0.8)):
    pruner = MagnitudePruner(sparse, total, sparsity, gap=0.5)
    for _ in range(20):
        for x, y in data.train.batches(torch.randperm(N, generator=order), 64):
            net.zero_grad()
            (N * F.cross_entropy(net(RAW.augment(x, None)), y)).backward()
            prior.add_grad()
            sampler.step()
            prior.update()
            pruner.step()
    accuracy = scores(predict(member(net, RAW), data.test).exp(), data.test.y)["accuracy"]
    print(f"{name}: accuracy {accuracy:.1f}%, sparsity {float(pruner.mask.sparsity):.3f}")
