"""Large-p-small-n linear regression: SGLD-SA, SGLD-EM and SGLD (Deng et al., NeurIPS 2019).

    python lr_simulation.py                      # the paper's Table 1: 12 chains, 500,000 iterations
    python lr_simulation.py -seeds 10            # the same over ten simulated data sets
    python lr_simulation.py -c sa -v0 0.1 -sd 1  # one cell

All cells (method, v0, sigma_0) of all data sets run as one tensor program. The cells of one data
set start from the same beta and share the noise of every step (common random numbers), so that
the methods differ in nothing else.
"""

from __future__ import annotations

import itertools
import resource
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from data.simulation import LinearData, minibatches, simulate
from experiment import device, options, report
from experiment.compiled import Step
from experiment.diagnostics import convergence
from experiment.draws import close_draws, open_draws, write_draws
from experiment.ending import conclude, diverged_rows, smaller_step
from experiment.run import Diverged, Run, joined, part
from experiment.training import train
from figures.lr_simulation import draw
from sampler import ChainNoise
from sampler import spike_slab as ssgl
from sampler.noise import generator_states, set_generator_states, stream
from sampler.schedules import RobbinsMonro, adaptation, polynomial_decay
from sampler.sgmcmc import sgld, sgld_noise_scale

METHODS = ("sa", "em", "sgld")
BETA0_SD = 0.1  # beta_0 ~ N(0, 0.1^2)
GRADIENT_SD = 0.01  # of the Gaussian noise on the gradient
TRACED = ("beta1", "beta2", "beta3", "sigma")
COMPILE_FROM = 50_000  # iterations that repay the compiler's 10 to 20 seconds


class Chains(NamedTuple):
    """State of every chain; a group is one data set and replicate, its cells are the settings."""

    beta: Tensor  # (group, cell, p)
    residual: Tensor  # (group, cell, n), y - X beta
    rho: Tensor  # (group, cell, p)
    kappa0: Tensor  # (group, cell, p)
    kappa1: Tensor  # (group, cell, p)
    delta: Tensor  # (group, cell, 1)
    sigma2: Tensor  # (group, cell, 1)
    finite: Tensor  # (group, cell, 1), iterations before the first non-finite one


def iteration(chains, x, y, noise, lr, omega, *, observations, v0, v1, a, b, nu, lamda) -> Chains:
    """One SGLD step and one update of the latent variables, Eq. (1), (5), (6), (8), (7)."""
    beta, residual, rho, kappa0, kappa1, delta, sigma2, finite = chains
    sigma, weight = sigma2.sqrt(), observations / y.shape[-1]

    likelihood_grad = torch.bmm(residual * (-weight / sigma2), x)
    grad = likelihood_grad + ssgl.potential_grad(beta, kappa0, kappa1, sigma)
    beta = sgld(beta, grad, noise, lr)
    residual = torch.baddbmm(y, beta, x.mT, alpha=-1)

    rho = ssgl.average(rho, ssgl.inclusion_probability(beta, delta, v0, v1, sigma), omega)
    new_kappa0, new_kappa1 = ssgl.penalties(rho, v0, v1)
    kappa0, kappa1 = ssgl.average(kappa0, new_kappa0, omega), ssgl.average(kappa1, new_kappa1, omega)
    delta = ssgl.average(delta, ssgl.inclusion_rate(ssgl.layer_sum(rho, 2), rho.shape[-1], a, b), omega)
    l1, l2 = ssgl.penalty_sums(beta, kappa0, kappa1, 2)
    squares = weight * residual.square().sum(-1, keepdim=True)
    new_sigma = ssgl.sigma_regression(l1, l2, squares, observations, beta.shape[-1], nu, lamda)
    sigma2 = ssgl.average(sigma2, new_sigma * new_sigma, omega)
    return Chains(beta, residual, rho, kappa0, kappa1, delta, sigma2, finite + (sigma2 < torch.inf))


def iterations(chains, x, y, noise, lr, omega, *, minibatch, **prior) -> Chains:
    """len(lr) iterations. noise (group, step, 1, p), omega (step, 1, cell, 1).

    x (group, n, p), y (group, 1, n); with minibatches one of each per step: (group, step, n, p).
    """
    for k, schedule in enumerate(zip(noise.unbind(1), lr.unbind(), omega.unbind(), strict=True)):
        x_k, y_k = (x[:, k], y[:, k]) if minibatch else (x, y)
        if minibatch:
            chains = chains._replace(residual=torch.baddbmm(y_k, chains.beta, x_k.mT, alpha=-1))
        chains = iteration(chains, x_k, y_k, *schedule, **prior)
    return chains


class Simulation:
    """The chains with everything that a checkpoint must hold."""

    def __init__(self, args, cells: list[tuple], data: list[LinearData]):
        seeds = range(args.seed, args.seed + args.seeds)
        groups = list(itertools.product(range(args.seeds), range(args.chains)))
        self.name, self.args, self.cells, self.groups = "sampling", args, cells, groups
        self.noise = ChainNoise([stream(seeds[s], "noise", chain) for s, chain in groups])
        self.batches = [stream(seeds[s], "batch", chain) for s, chain in groups]

        def tensor(values) -> Tensor:
            return torch.as_tensor(np.array(values), dtype=torch.float32)

        self.x = tensor([data[s].x for s, _ in groups])  # (group, n, p)
        self.y = tensor([data[s].y for s, _ in groups])[:, None]  # (group, 1, n)
        self.x_test = tensor([data[s].x_test for s, _ in groups])
        self.y_test = tensor([data[s].y_test for s, _ in groups])[:, None]

        sa = RobbinsMonro(args.dc, args.da, args.dalpha, cap=0.1)
        self.schedules = [adaptation(method, sa) for method, _, _ in cells]
        prior = {name: getattr(args, name) for name in ("v1", "a", "nu", "lamda")}
        self.step = Step(
            iterations,
            args.compile == "1" or (args.compile == "auto" and args.iterations >= COMPILE_FROM),
            minibatch=args.batch is not None,
            observations=args.n,
            v0=tensor([[[v0] for _, v0, _ in cells]]),
            b=args.b if args.b is not None else args.p,
            **prior,
        )
        shape = (len(groups), len(cells))
        start = torch.stack([torch.randn(1, args.p, generator=stream(seeds[s], "init", c)) for s, c in groups])
        beta = (BETA0_SD * start).expand(*shape, args.p).contiguous()
        sigma2 = tensor([[[sd**2] for _, _, sd in cells]]).expand(*shape, 1).contiguous()
        half, one = torch.full_like(beta, 0.5), torch.ones_like(beta)
        self.chains = Chains(
            beta, self.y - beta @ self.x.mT, half, one, one.clone(), torch.full_like(sigma2, 0.5), sigma2,
            torch.zeros_like(sigma2, dtype=torch.int64),
        )  # fmt: skip
        self.iterations, self.kept = 0, 0
        self.sum_beta = torch.zeros_like(beta, dtype=torch.float64)
        self.sum_rho = torch.zeros_like(self.sum_beta)
        self.trace = torch.zeros(*shape, args.iterations // args.thin - args.burn, len(TRACED))
        self.draws: np.ndarray | None = None  # (group, cell, draw, p) on disk, where all draws are kept

    def epoch(self) -> None:
        """`thin` iterations, and one draw if the burn-in is over."""
        args, done = self.args, self.iterations
        self.iterations += args.thin
        k = torch.arange(done + 1, done + args.thin + 1, dtype=torch.float64)
        lr = polynomial_decay(args.lr, args.decay, k)
        scale = sgld_noise_scale(lr, args.invT, GRADIENT_SD)
        omega = torch.stack([schedule(k) for schedule in self.schedules], dim=-1)[:, None, :, None]
        lr, scale, omega = lr.float(), scale.float()[:, None], omega.float()
        size = max(u for u in (5, 4, 2, 1) if args.thin % u == 0)  # steps per compiled call
        for i in range(0, args.thin, size):
            now = slice(i, i + size)
            noise = (self.noise.draw(size, args.p) * scale[now])[:, :, None]
            x, y = self.x, self.y
            if args.batch is not None:
                x, y = minibatches(x, y, self.batches, size, args.batch)
            self.chains = self.step(self.chains, x, y, noise, lr[now], omega[now])
        if self.iterations > args.burn * args.thin:
            self.sum_beta += self.chains.beta
            self.sum_rho += self.chains.rho
            self.trace[:, :, self.kept, :3] = self.chains.beta[..., :3]
            self.trace[:, :, self.kept, 3] = self.chains.sigma2[..., 0].sqrt()
            if self.draws is not None:
                self.draws[:, :, self.kept] = self.chains.beta
            self.kept += 1

    def evaluate(self, done: int) -> list[dict] | None:
        """A metrics row per cell, about a hundred times a run: means over the groups, of the current draw."""
        if not (self.chains.finite == done).any():
            return None
        if done % (max(1, self.args.iterations // self.args.thin // 100) * self.args.thin):
            return []
        mse = (self.y_test - self.chains.beta @ self.x_test.mT).square().mean(-1).mean(0)
        sigma = self.chains.sigma2[..., 0].sqrt().mean(0)
        return [
            {"iteration": done, "method": c, "v0": v0, "sd": sd, "mse": float(mse[i]), "sigma": float(sigma[i])}
            for i, (c, v0, sd) in enumerate(self.cells)
        ]

    @staticmethod
    def status(rows: list[dict]) -> str:
        means = pd.DataFrame(rows).groupby("method", sort=False)["mse"].mean()
        return "MSE " + " ".join(f"{method} {mse:.2f}" for method, mse in means.items())

    def state_dict(self) -> dict[str, Tensor]:
        if self.draws is not None:
            self.draws.flush()
        own = {"sum_beta": self.sum_beta, "sum_rho": self.sum_rho, "trace": self.trace[:, :, : self.kept]}
        own |= {"batches": generator_states(self.batches), "iterations": torch.tensor(self.iterations)}
        return joined({"chains": self.chains._asdict(), "noise": self.noise.state_dict(), "own": own})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.chains = Chains(**part("chains", state))
        self.noise.load_state_dict(part("noise", state))
        own = part("own", state)
        self.sum_beta, self.sum_rho, self.kept = own["sum_beta"], own["sum_rho"], own["trace"].shape[2]
        self.trace[:, :, : self.kept], self.iterations = own["trace"], int(own["iterations"])
        set_generator_states(self.batches, own["batches"])


def parse(argv: list[str] | None = None):
    parser = options.Parser(description="Large-p-small-n linear regression by SGLD-SA, SGLD-EM and SGLD.")
    parser.add_argument("-c", nargs="+", choices=METHODS, default=list(METHODS), help="methods (omega_k)")
    parser.add_argument("-v0", type=options.positive, nargs="+", default=[0.01, 0.1], help="scale of the spike")
    options.add_prior_options(parser, v1=10.0, a=1.0, b=None, sd=[1.0, 2.0])
    options.add_adaptation_options(parser, dc=1000.0, da=100.0, dalpha=0.7)
    parser.add_argument("-n", type=options.count, default=100, help="observations")
    parser.add_argument("-p", type=options.at_least_three, default=1000, help="coefficients")
    parser.add_argument("-corr", type=options.correlation, default=0.6, help="correlation of neighbouring columns")
    parser.add_argument("-lr", type=options.positive, default=0.001, help="step size, eps_k = lr k^-decay")
    parser.add_argument("-decay", type=options.non_negative, default=1 / 3, help="decay exponent of the step size")
    parser.add_argument("-invT", type=options.positive, default=1.0, help="inverse temperature tau")
    parser.add_argument("-iterations", type=options.count, default=500_000, help="SGLD steps")
    parser.add_argument("-thin", type=options.count, default=100, help="iterations between kept draws")
    parser.add_argument("-burn", type=options.whole, default=1000, help="kept draws to drop")
    parser.add_argument("-batch", type=options.count, default=None, help="minibatch size; default all observations")
    parser.add_argument("-chains", type=options.count, default=1, help="independent chains of each cell")
    parser.add_argument("-save_draws", type=options.switch, default=0, help="1 keeps all draws as draws.nc (NetCDF)")
    parser.add_argument("-compile", choices=("auto", "0", "1"), default="auto", help="torch.compile; auto: long runs")
    options.add_run_options(parser)
    args = parser.parse_args(argv)
    if args.iterations % args.thin:
        parser.error(f"argument -iterations: {args.iterations} is not a multiple of -thin {args.thin}")
    if args.burn + 4 > args.iterations // args.thin:
        parser.error(f"argument -burn: {args.burn} leaves fewer than 4 of {args.iterations // args.thin} kept draws")
    if args.batch is not None and args.batch > args.n:
        parser.error(f"argument -batch: {args.batch} is more than the {args.n} rows of -n")
    for name in ("c", "v0", "sd"):
        if len(set(getattr(args, name))) < len(getattr(args, name)):
            parser.error(f"argument -{name}: a value is given twice")
    return parser, args


def results(simulation: Simulation, data: list[LinearData]) -> tuple[pd.DataFrame, list[dict], dict[str, Tensor]]:
    """Table rows (one per cell and data set), diagnostics per row, tensors for the figure."""
    args, cells = simulation.args, simulation.cells

    def by_seed(x: Tensor) -> Tensor:  # (group, ...) -> (seed, chain, ...)
        return x.unflatten(0, (args.seeds, args.chains))

    mean_beta, mean_rho = by_seed(simulation.sum_beta / simulation.kept), by_seed(simulation.sum_rho / simulation.kept)
    trace, finite = by_seed(simulation.trace), by_seed(simulation.chains.finite[..., 0])
    rows, diagnostics = [], []
    for (s, d), (i, (method, v0, sd)) in itertools.product(enumerate(data), enumerate(cells)):
        row = {"method": method, "v0": v0, "sd": sd, "seed": args.seed + s}
        if (finite[s, :, i] < args.iterations).any():
            rows.append(row)
            diagnostics.append(row | {"diverged_at": int(finite[s, :, i].min()) + 1})
            continue
        error = d.x_test @ mean_beta[s, :, i].mean(0).numpy() - d.y_test
        draws = trace[s, :, i].double().numpy()  # (chain, draw, traced)
        found = mean_beta[s, :, i, :3].numpy() > d.beta[:3] / 2  # (chain, 3)
        rows.append(
            row
            | {"mae": np.abs(error).mean(), "mse": np.square(error).mean()}
            | {name: draws[..., j].mean() for j, name in enumerate(TRACED)}
            | {"selected": np.nan if method == "sgld" else int((mean_rho[s, :, i].mean(0) > 0.5).sum())}
        )
        shares = {f"found_beta{j + 1}": found[:, j].mean() for j in range(3)}
        diagnostics.append(row | convergence(draws, TRACED) | shares)
    columns = ["method", "v0", "sd", "seed", "mae", "mse", *TRACED[:3], "sigma", "selected"]
    tensors = {
        "trace": trace,
        "mean_beta": mean_beta.mean(1),
        "beta": torch.tensor(np.array([d.beta for d in data])),
        **{name: torch.tensor(np.array([getattr(d, name) for d in data])) for name in ("x", "y", "x_test", "y_test")},
    }
    return pd.DataFrame(rows).reindex(columns=columns), diagnostics, tensors


def show(table: pd.DataFrame) -> None:
    """Print the table beside the published numbers, and the paired differences."""
    by, metrics = ["method", "v0", "sd"], ["mae", "mse", *TRACED, "selected"]
    ours, paper = report.over_seeds(table, by, metrics), report.published("table1")
    printed = report.formatted(ours, by, metrics, digits=2)
    for label, rows in paper.groupby("source", sort=False):
        printed[label] = report.beside(ours, by, rows, lambda row, _: f"{row.mae:.2f} / {row.mse:.2f}")
    print(printed.to_string(index=False))
    print("mean +- sd over n data sets; the published columns are MAE / MSE; * quoted from memory, unconfirmed")
    report.print_differences(differences(table))


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """SA minus the other methods, paired by data set."""
    return report.paired_differences(table, "sa", ["v0", "sd"], ["mae", "mse"])


def main() -> int:
    parser, args = parse()
    device.prepare()  # rho falls below 1e-38 all the time, and denormals cost a third of the speed
    cells = list(itertools.product(args.c, args.v0, args.sd))
    with parser.checked():
        data = [simulate(args.seed + s, args.n, args.p, args.corr) for s in range(args.seeds)]
        simulation = Simulation(args, cells, data)
        name = parser.changed(args, ignore=("out", "resume", "save_every")) or "default"
        run = Run("lr_simulation", name, vars(args))
    if args.resume and run.finished:
        if not (run.folder / "figures" / "lr_simulation.png").exists():
            draw(run.folder)
        show(table := pd.read_csv(run.folder / "table.csv"))
        return conclude(run, diverged_rows(table, "mse"), done="finished before")
    if args.save_draws:
        simulation.draws = open_draws(run.folder, (*simulation.trace.shape[:3], args.p), bool(args.resume))
    torch.set_grad_enabled(False)
    if not train(simulation, run, args.iterations, bool(args.resume), stride=args.thin, unit="it"):
        first_bad = int(simulation.chains.finite.max()) + 1
        raise Diverged(f"all chains are non-finite from iteration {first_bad} on; {smaller_step(args.lr / 10)}")

    table, diagnostics, tensors = results(simulation, data)
    run.store("posterior", tensors)
    if args.save_draws:
        names, seeds = [f"{c} v0={v0} sd={sd}" for c, v0, sd in cells], range(args.seed, args.seed + args.seeds)
        write_draws(run.folder, seeds, names, beta=simulation.draws, sigma=simulation.trace[..., 3].numpy())
    diverged = [row for row in diagnostics if "diverged_at" in row]
    found = [f"found_beta{j}" for j in (1, 2, 3)]
    by = ["method", "v0", "sd"]
    shares = pd.DataFrame(diagnostics).reindex(columns=[*by, *found]).groupby(by, sort=False)
    summary = {
        "found": shares[found].mean().reset_index().to_dict("records"),
        "differences": differences(table).to_dict("records"),
        "cells": diagnostics,
        "diverged": len(diverged),
        "chains": simulation.trace.shape[0] * len(cells),
        "iterations": args.iterations,
        "compiled": simulation.step.compiled,
        "seconds": run.seconds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    run.finish(table, summary)
    if args.save_draws:
        close_draws(run.folder)
    draw(run.folder)
    show(table)
    how = ""
    if diverged:
        first = "({method}, v0 {v0}, sd {sd}) at iteration {diverged_at}".format(**diverged[0])
        how = f"{len(diverged)} of {len(table)} cells, the first {first}; {smaller_step(args.lr / 10)}"
    return conclude(run, how, figure="lr_simulation")


if __name__ == "__main__":
    options.run_script(main)
