"""Convergence of stochastic approximation on a conjugate model with a known answer.

    python sa_convergence.py

The slab alone (delta = 1: rho = 1, kappa_0 = 0, kappa_1 = 1/v1) is a conjugate linear regression,

    y | beta ~ N(X beta, sigma^2 I),   beta ~ N(0, sigma^2 v1 I),   sigma^2 ~ InvGamma(nu/2, nu lambda/2),

whose latent variable theta = sigma^2 has the fixed point of Eq. (7) in closed form. With
m = (X'X + I/v1)^-1 X'y and E[I + J | sigma^2] = |y - X m|^2 + |m|^2 / v1 + p sigma^2,

    theta* = (|y - X m|^2 + |m|^2 / v1 + nu lambda) / (N + nu).

An SGLD step of size eps sigma^2 samples with p sigma^2 / (1 - eps/2) in place of p sigma^2, which
moves the fixed point of the chain as it is run to theta*_eps, also in closed form; theta*_0 = theta*.

Two claims of Deng et al. (NeurIPS 2019) are measured over many independent chains:
the L2 theorem, E|theta_k - theta*_eps|^2 <= const omega_k, by the slope of the two in log-log scale;
and its corollary, weak convergence of beta_k to pi(beta, theta*) = N(m, theta* (X'X + I/v1)^-1) as
the sampler's step eps -> 0 and k grows, by the Wasserstein-1 distance.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm, wasserstein_distance
from torch import Tensor

from experiment import options
from experiment.ending import conclude
from experiment.progress import progress
from experiment.run import Run
from figures.sa_convergence import draw
from sampler.noise import stream
from sampler.schedules import RobbinsMonro
from sampler.sgmcmc import sgld, sgld_noise_scale
from sampler.spike_slab import average, penalty_sums, potential_grad, sigma_regression

OBSERVATIONS, WEIGHTS = 20, 10
V1, NU, LAMDA = 10.0, 1.0, 1.0
POINTS = 60  # iterations at which the chains are measured, evenly spaced in log k


class Conjugate:
    """The model with orthogonal columns, X'X = c I with c + 1/v1 = 1: every coordinate mixes alike."""

    def __init__(self, seed: int):
        rng = np.random.default_rng([seed, 0xC0])
        q, _ = np.linalg.qr(rng.standard_normal((OBSERVATIONS, WEIGHTS)))
        x = q * np.sqrt(1 - 1 / V1)
        y = x @ rng.normal(0, 2, WEIGHTS) + rng.standard_normal(OBSERVATIONS)
        self.x, self.y = torch.tensor(x), torch.tensor(y)
        self.mean = self.x.T @ self.y
        residual = (self.y - self.x @ self.mean).square().sum()
        self.energy = float(residual + self.mean.square().sum() / V1 + NU * LAMDA)
        self.theta = self.fixed_point(0.0)

    def fixed_point(self, lr: float) -> float:
        """theta*_eps of chains with step eps = lr sigma^2."""
        return self.energy / (OBSERVATIONS + WEIGHTS + NU - WEIGHTS / (1 - lr / 2))


def chains(model: Conjugate, lr: float, omega, iterations: int, count: int, generator, bar) -> tuple[Tensor, ...]:
    """`count` chains from sigma^2 = 4 theta*; k (point), theta (point, count), beta (point, count, p)."""
    kappa0, kappa1 = torch.zeros(count, WEIGHTS, dtype=torch.float64), torch.full((count, WEIGHTS), 1 / V1).double()
    beta, sigma2 = torch.zeros_like(kappa0), torch.full((count, 1), 4 * model.theta, dtype=torch.float64)
    points = np.unique(np.geomspace(1, iterations, POINTS).astype(int))
    thetas, betas = [], []
    for k in range(1, iterations + 1):
        sigma = sigma2.sqrt()
        grad = -(model.y - beta @ model.x.T) @ model.x / sigma2 + potential_grad(beta, kappa0, kappa1, sigma)
        # the step is in units of sigma^2, so that the discretisation is the same along the way
        step = lr * sigma2
        noise = torch.randn(beta.shape, generator=generator, dtype=torch.float64) * sgld_noise_scale(step, 1.0)
        beta = sgld(beta, grad, noise, step)
        residual = (model.y - beta @ model.x.T).square().sum(-1, keepdim=True)
        new = sigma_regression(*penalty_sums(beta, kappa0, kappa1, 1), residual, OBSERVATIONS, WEIGHTS, NU, LAMDA)
        sigma2 = average(sigma2, new * new, omega(k))
        if k in points:
            thetas.append(sigma2[:, 0].clone())
            betas.append(beta.clone())
        bar.update()
    return torch.tensor(points), torch.stack(thetas), torch.stack(betas)


def distance(beta: Tensor, model: Conjugate) -> float:
    """Wasserstein-1 distance of beta (chain, p) from pi(beta, theta*), in posterior standard deviations.

    All coordinates are independent N(m_j, theta*), so that they are pooled.
    """
    standard = ((beta - model.mean) / model.theta**0.5).flatten().numpy()
    return float(wasserstein_distance(standard, norm.ppf((np.arange(len(standard)) + 0.5) / len(standard))))


def slope(omega: np.ndarray, error: np.ndarray, rng: np.random.Generator, draws: int = 500) -> tuple[float, float]:
    """Least-squares slope of log mean error^2 against log omega_k, and its standard error.

    error: theta_k - theta*_eps (point, chain). The standard error resamples whole chains.
    """

    def fit(columns) -> float:
        return float(np.polyfit(np.log(omega), np.log(np.square(error[:, columns]).mean(1)), 1)[0])

    count = error.shape[1]
    spread = [fit(rng.integers(0, count, count)) for _ in range(draws)]
    return fit(np.arange(count)), float(np.std(spread))


def parse(argv: list[str] | None = None):
    parser = options.Parser(description="L2 rate of the latent variables and weak convergence of the samples.")
    parser.add_argument("-iterations", type=options.count, default=20_000, help="iterations of every chain")
    parser.add_argument("-count", type=options.count, default=2000, help="independent chains")
    parser.add_argument("-lr", type=options.positive, nargs="+", default=[0.4, 0.2, 0.1, 0.05],
                        help="step sizes, in units of sigma^2; the smallest measures the L2 rate")  # fmt: skip
    options.add_adaptation_options(parser, dc=1.0, da=10.0, dalpha=0.7)
    options.add_run_options(parser, several_seeds=False)
    return parser, parser.parse_args(argv)


def main() -> int:
    parser, args = parse()
    with parser.checked():
        omega = RobbinsMonro(args.dc, args.da, args.dalpha)
        ignore = ("out", "resume", "save_every")
        run = Run("sa_convergence", parser.changed(args, ignore) or "default", vars(args))
    if args.resume and run.finished:
        draw(run.folder)
        print((run.folder / "summary.json").read_text(), end="")
        return conclude(run, "", done="finished before")
    torch.set_num_threads(1)  # tensors this small gain nothing from a second thread
    model, rows, errors = Conjugate(args.seed), [], {}
    if args.resume and (saved := run.load()):
        errors, _, rows = saved
    steps = sorted(args.lr, reverse=True)
    bar = progress(len(steps) * args.iterations, len(errors) * args.iterations, "it", "chains")
    for lr in steps[len(errors) :]:
        with torch.no_grad():
            k, theta, beta = chains(model, lr, omega, args.iterations, args.count, stream(args.seed, f"lr {lr}"), bar)
        error = errors[str(lr)] = theta - model.fixed_point(lr)
        rows += [
            {
                "lr": lr,
                "iteration": iteration,
                "omega": omega(iteration),
                "mse": float(error[i].square().mean()),
                "bias": float(theta[i].mean() - model.theta),
                "wasserstein": distance(beta[i], model),
            }
            for i, iteration in enumerate(k.tolist())
        ]
        run.save(errors, {}, rows)
    bar.close()
    table = pd.DataFrame(rows)
    smallest = table[table["lr"] == steps[-1]]
    late = (smallest["iteration"] >= args.iterations / 20).to_numpy()
    error = errors[str(steps[-1])].numpy()[late]
    fitted, se = slope(smallest["omega"].to_numpy()[late], error, np.random.default_rng(args.seed))
    summary = {
        "theta_star": model.theta,
        "slope": fitted,
        "slope_se": se,
        "slope_from_iteration": int(smallest["iteration"][late].min()),
        "wasserstein_last": {str(lr): group["wasserstein"].iloc[-1] for lr, group in table.groupby("lr")},
        "seconds": run.seconds,
    }
    run.finish(table, summary)
    draw(run.folder)
    print(json.dumps(summary, indent=1))
    return conclude(run, "", figure="sa_convergence")


if __name__ == "__main__":
    options.run_script(main)
