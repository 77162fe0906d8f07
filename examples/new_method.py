"""A method of your own: a new sampler, held to the density that it leaves invariant, and a new omega_k.

    python -m examples.new_method

The sampler is Leimkuhler and Matthews' (2013), whose every step adds the mean of two successive noises. On a quadratic
U of curvature k its variance is 1 / (invT k) at any stable step size; that of SGLD is 1 / (invT k (1 - lr k / 2)).
"""

import torch
from torch import Tensor, nn

from data.simulation import simulate
from sampler import SGLD, FlatNoise, SSGLPrior
from sampler.noise import stream


class LeimkuhlerMatthews(SGLD):
    """beta <- beta - lr grad U + sqrt(2 lr / invT) (z_k + z_(k-1)) / 2, with z_k ~ N(0, 1)."""

    def update(self, group: dict, params: list[Tensor], grads: list[Tensor]) -> None:
        scale = (group["lr"] / (2 * group["invT"])) ** 0.5
        for p, grad, z in zip(params, grads, self.noise(params), strict=True):
            before = self.state[p].get("noise", z)
            p.add_(grad, alpha=-group["lr"]).add_(before + z, alpha=scale)
            self.state[p]["noise"] = z


def variance(sampler: type[SGLD], lr: float, curvature: float = 1.0) -> float:
    """Variance x curvature after many steps on curvature |beta|^2 / 2: 1 if the density is exp(-U)."""
    beta = nn.Parameter(torch.zeros(100_000))
    chains = sampler([beta], lr=lr, invT=1.0, noise=FlatNoise(stream(1, "noise")))
    for _ in range(60):
        beta.grad = curvature * beta.detach()
        chains.step()
    return curvature * float(beta.detach().var())


for lr in (0.2, 1.0):
    print(f"lr {lr}: variance {variance(LeimkuhlerMatthews, lr):.2f}, SGLD {variance(SGLD, lr):.2f}, exact 1")

data = simulate(seed=1, n=200, p=200)
x, y = torch.tensor(data.x, dtype=torch.float32), torch.tensor(data.y, dtype=torch.float32)
beta = nn.Parameter(torch.zeros(200))
start = {"sigma": 1.0, "kappa0": 1.0, "kappa1": 1.0, "observations": len(y)}
omega = lambda k: 0.1 if k <= 1000 else 1 / (k - 990)  # noqa: E731, a constant first, then the average of what follows
prior = SSGLPrior([beta], v0=0.1, v1=10.0, a=1, b=200, nu=1, lamda=1, omega=omega, **start)
sampler = LeimkuhlerMatthews([beta], lr=1e-3, noise=FlatNoise(stream(1, "regression")))
mean = torch.zeros_like(beta)
for k in range(1, 5001):
    residual = y - x @ beta.detach()
    beta.grad = -x.T @ residual / prior.sigma2  # of minus the log-likelihood
    prior.add_grad()
    sampler.step()
    prior.update(residual.square().sum())
    mean += (beta.detach() - mean) / max(1, k - 2000)
for j in range(3):
    print(f"beta_{j + 1}: {float(mean[j]):.2f}, true {data.beta[j]:.2f}")
print(f"largest of the others: {float(mean[3:].abs().max()):.2f}")
