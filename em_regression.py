"""Variable selection by EM-MCMC in sparse nonlinear regression (Ke and Fan, arXiv 2210.12957, Examples 1 to 3).

    python em_regression.py -example 1              # ten data sets in one program
    python em_regression.py -example 3 -restarts 3  # of every data set, three chains, of which the best is kept

A small ReLU network on a thousand or more variables, of which four or five matter. One run trains it by preconditioned
SGHMC and, after a warm-up, prunes the variables whose weights stay small. All chains, one or more per data set, train
as one tensor program, from which pruned variables disappear.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from data.sparse_regression import EXAMPLES, TEST, TRAIN, ChainRows, SparseData, simulate
from experiment import options, report
from experiment.ending import conclude, diverged_chains, diverged_rows
from experiment.run import Diverged, Run, joined, part
from experiment.training import load_optimizer_state, optimizer_state, train
from figures import em_selection
from model.mlp import ChainMLP
from sampler import ChainNoise, GroupSpikeSlab, PreconditionedSGHMC
from sampler.group_spike_slab import Groups, keep_large
from sampler.noise import generator_states, set_generator_states, stream
from sampler.schedules import cosine_cycle

INPUTS = Groups("input unit", (-1,))  # the weights that leave an input unit; ChainMLP stores (in, out)


@dataclass(frozen=True)
class Setting:
    """The authors' settings of an example."""

    hidden: tuple[int, ...]
    lr: float
    epochs: int
    eps1: float
    soft: float = 1e-2


SETTINGS = {
    1: Setting((5, 3), 0.01, 3000, eps1=5e-4),
    2: Setting((6, 4, 3), 0.01, 6000, eps1=5e-4),
    3: Setting((6, 4, 3), 0.1, 3000, eps1=5e-4, soft=2e-2),
}


class Chains:
    """All chains of an example, shape (chain, 1): restarts of data sets, of one seed each."""

    def __init__(self, args, data: list[SparseData]):
        self.args, self.example, self.name = args, EXAMPLES[args.example], f"example {args.example}"
        seeds = range(args.seed, args.seed + args.seeds)
        self.keys = list(itertools.product(seeds, range(args.restarts)))
        self.rows = ChainRows(data, torch.arange(args.seeds).repeat_interleave(args.restarts))
        self.observations, p = self.rows.observations, self.rows.p
        self.batches = self.observations // args.train  # per epoch; the last partial batch is dropped
        self.net = ChainMLP([stream(s, "init", r) for s, r in self.keys], 1, p, args.hidden)
        self.first, others = self.net.weight1, [x for name, x in self.net.named_parameters() if name != "weight1"]
        self.noise = ChainNoise([stream(s, "noise", r) for s, r in self.keys])
        self.order = [stream(s, "order", r) for s, r in self.keys]
        self.total = self.net.parameters_per_chain()
        with options.about("-eps0"):
            self.prior = GroupSpikeSlab(
                [getattr(self.net, name) for name in self.net.sparse_layers],
                self.total,
                groups=INPUTS,
                rule=keep_large(INPUTS),
                eps0=args.eps0,
                eps1=args.eps1,
                soft=args.soft,
                hard=args.hard,
                chain_dims=2,
            )
        with options.about("-lr, -temperature, -eta"):
            self.sampler = PreconditionedSGHMC(
                [*others, self.first],  # the weights that disappear last, as `ChainNoise.used` needs it
                args.lr,
                observations=self.observations,
                temperature=args.temperature if args.temperature is not None else 1 / math.sqrt(self.observations),
                momentum=args.momentum,
                eta=args.eta,
                decay=self.prior.decay,
                noise=self.noise,
            )
        self.iterations = 0
        self.finite = torch.zeros(len(self.keys), dtype=torch.int64)  # iterations before the first non-finite one

    def selected(self) -> Tensor:
        """Which of the variables that the chains see are not pruned, (chain, variables)."""
        return self.prior.mask.keep[0][:, 0].any(-1)

    @torch.no_grad()
    def compact(self) -> None:
        """Drop pruned variables: they need no arithmetic. Chains with fewer of them than others keep some, at zero."""
        keep = self.selected()
        left = keep.sum(1)
        index = (~keep).sort(dim=1, stable=True).indices[:, : max(1, int(left.max()))]

        def take(x: Tensor) -> Tensor:  # (chain, 1, variables, ...)
            return x.gather(2, index[:, None, :, None].expand(-1, 1, -1, x.shape[-1]))

        self.first.data, self.first.grad = take(self.first.data), None
        state = self.sampler.state[self.first]
        state.update({name: take(x) for name, x in state.items()})
        for parts in (self.prior.mask.keep, self.prior.decays):
            parts[0] = take(parts[0])
        self.rows.see(self.rows.columns.gather(1, index))
        self.count(left)

    def count(self, left: Tensor) -> None:
        """Draw noise for so many variables of every chain."""
        rest = self.total - self.rows.p * self.first.shape[-1]
        self.noise.used = [rest + n * self.first.shape[-1] for n in left.tolist()]

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Mean loss, (chain): squared error, or cross entropy in nats."""
        if self.example.classification:
            return binary_cross_entropy_with_logits(output, y, reduction="none").mean(-1)
        return (output - y).square().mean(-1)

    def epoch(self) -> None:
        """One pass through every chain's data; the EM step comes first."""
        args, total = self.args, self.args.epochs * self.batches
        if not args.dense and self.iterations >= args.warmup * self.batches:
            before = self.selected()
            self.prior.update()
            self.prior.prune()
            if not torch.equal(before, self.selected()):
                self.compact()
        order = torch.stack([torch.randperm(self.observations, generator=g) for g in self.order])  # (chain, rows)
        for rows in order[:, : self.batches * args.train].split(args.train, dim=1):
            self.iterations += 1
            self.sampler.param_groups[0]["lr"] = cosine_cycle(args.lr, total, args.cycles, self.iterations)
            x, y = self.rows.batch(rows)  # (chain, n, variables), (chain, n)
            self.sampler.zero_grad()
            loss = self.loss(self.net(x)[:, 0], y)
            loss.sum().backward()
            self.sampler.step()
            if not args.dense:
                self.prior.prune()  # what is masked stays zero
            self.finite += (self.finite == self.iterations - 1) & (loss.detach() < torch.inf)

    def alive(self) -> Tensor:
        """Chains that have been finite in every iteration so far, (chain)."""
        return self.finite == self.iterations

    @torch.no_grad()
    def scores(self) -> dict[str, Tensor]:
        """Test error, size and selection of every chain, (chain) each."""
        output, y = self.net(self.rows.x_test)[:, 0], self.rows.y_test
        if self.example.classification:
            right = ((output > 0) == (y > 0)).double().mean(-1)
            columns = {"accuracy": 100 * right, "loss": self.loss(output, y)}
        else:
            columns = {"mse": self.loss(output, y), "mse_floor": self.rows.floor}
        keep = self.selected()
        kept = sum(mask.flatten(1).sum(1) for mask in self.prior.mask.keep)
        prunable = sum(w[0].numel() for w in self.prior.layers[1:]) + self.rows.p * self.first.shape[-1]
        relevant = (keep & (self.rows.columns < self.example.relevant)).sum(1)
        return columns | {
            "sparsity": (prunable - kept) / self.total,
            "parameters_kept": self.total - prunable + kept,
            "selected": keep.sum(1),
            "false_selection_rate": (keep.sum(1) - relevant) / keep.sum(1).clamp(min=1),
            "negative_selection_rate": 1 - relevant / self.example.relevant,
            "exact": (relevant == self.example.relevant) & (keep.sum(1) == relevant),
        }

    @torch.no_grad()
    def norms(self) -> dict[str, Tensor]:
        """Mean square of the weights that leave an input: of every relevant one, the largest of the others, (chain)."""
        size = INPUTS.mean_square(self.first).flatten(1)  # (chain, variables)
        columns = {f"x{j + 1}": size.where(self.rows.columns == j, 0.0).amax(1) for j in range(self.example.relevant)}
        return columns | {"others": size.where(self.rows.columns >= self.example.relevant, 0.0).amax(1)}

    def evaluate(self, epoch: int) -> list[dict] | None:
        """A row of metrics.csv per chain, every -record epochs and at the end; None if all chains have diverged."""
        if epoch % self.args.record and epoch < self.args.epochs:
            return [] if self.alive().any() else None
        columns = self.scores()
        error = columns["loss" if self.example.classification else "mse"]
        self.finite -= (self.alive() & ~error.isfinite()).long()  # the loss before a step does not see what it does
        alive = self.alive().tolist()
        if not any(alive):
            return None
        columns |= {f"mean_square_{name}": x for name, x in self.norms().items()}
        return [
            {"epoch": epoch, "seed": seed, "restart": restart} | {name: x[i].item() for name, x in columns.items()}
            for i, (seed, restart) in enumerate(self.keys)
            if alive[i]
        ]

    def status(self, rows: list[dict]) -> str:
        error = "accuracy" if self.example.classification else "mse"
        return f"median {error} {np.median([row[error] for row in rows]):.3f}"

    @torch.no_grad()
    def bic(self) -> Tensor:
        """Bayesian information criterion on the training data, in nats x 2, (chain)."""
        n = self.observations
        x, y = self.rows.batch(torch.arange(n).expand(len(self.keys), n))
        loss = self.loss(self.net(x)[:, 0], y).double()
        misfit = 2 * n * loss if self.example.classification else n * loss.log()
        return misfit + self.scores()["parameters_kept"] * math.log(n)

    def table(self) -> pd.DataFrame:
        """One row per chain; a diverged chain's numbers are empty. chosen: the best restart by BIC."""
        columns, alive = self.scores() | {"bic": self.bic()}, self.alive()
        rows = []
        for i, (seed, restart) in enumerate(self.keys):
            numbers = {name: float(x[i]) if alive[i] else np.nan for name, x in columns.items()}
            variables = (self.rows.columns[i][self.selected()[i]] + 1).tolist() if alive[i] else []
            shown = " ".join(map(str, variables[:20])) + (" ..." if len(variables) > 20 else "")
            rows.append(
                {"example": self.args.example, "seed": seed, "restart": restart} | numbers | {"variables": shown}
            )
        table = pd.DataFrame(rows)
        best = table.groupby("seed")["bic"].transform("min")
        return table.assign(chosen=(table["bic"] == best).astype(int))

    def divergence(self) -> str:
        """What happened to diverged chains and what helps; '' where all are finite."""
        return diverged_chains(self.name, self.finite, self.alive(), self.args.lr / 10)

    def state_dict(self) -> dict[str, Tensor]:
        return joined(
            {
                "net": dict(self.net.named_parameters()),
                "optimizer": optimizer_state(self.net, self.sampler),
                "prior": self.prior.state_dict(),
                "noise": self.noise.state_dict(),
                "own": {
                    "finite": self.finite,
                    "iterations": torch.tensor(self.iterations),
                    "order": generator_states(self.order),
                    "columns": self.rows.columns.contiguous(),
                },
            }
        )

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        own = part("own", state)
        self.first.data = torch.empty_like(state["net.weight1"])  # as many variables as were left
        self.rows.see(own["columns"])
        for name in ("net", "prior", "noise"):
            getattr(self, name).load_state_dict(part(name, state))
        load_optimizer_state(self.net, self.sampler, part("optimizer", state))
        self.finite, self.iterations = own["finite"], int(own["iterations"])
        set_generator_states(self.order, own["order"])
        self.count(self.selected().sum(1))


def parse(argv: list[str] | None = None):
    parser = options.Parser(description="Variable selection by EM-MCMC on simulated data.")
    parser.add_argument("-example", type=int, choices=EXAMPLES, default=1, help="of the paper")
    parser.add_argument("-n", type=options.count, default=TRAIN, help="training rows")
    parser.add_argument("-test", type=options.count, default=TEST, help="test rows")
    parser.add_argument("-hidden", type=options.count, nargs="+", default=None, help="hidden units of every layer")
    parser.add_argument("-epochs", type=options.count, default=None, help="default 3000, example 2: 6000")
    parser.add_argument("-train", type=options.count, default=1024, help="minibatch size")
    parser.add_argument("-restarts", type=options.count, default=1, help="chains per data set; the best by BIC counts")
    parser.add_argument("-record", type=options.count, default=20, help="epochs between rows of metrics.csv")
    options.add_em_options(parser, lr="0.01, example 3: 0.1", momentum=0.1, temperature="1/sqrt N", cycles=6)
    options.add_group_options(parser, eps0=1e-2, eps1=None, soft=None, hard=1e-3, warmup=50)
    options.add_run_options(parser)
    parser.set_defaults(seeds=10)
    args = parser.parse_args(argv)
    published = asdict(SETTINGS[args.example])
    parser.fill(args, published | {"hidden": list(published["hidden"])})
    return parser, args


def show(table: pd.DataFrame) -> None:
    """Print the chosen chain of every data set, and their summary beside the authors' run."""
    chosen = table[table["chosen"] == 1]
    print(chosen.drop(columns=["chosen", "bic", "example"]).round(4).to_string(index=False))
    print(pd.Series(summary(table)).round(4).to_string())
    paper = report.published("em_regression").set_index("example").loc[table["example"].iloc[0]].dropna()
    print("the authors' run: " + ", ".join(f"{name} {value}" for name, value in paper.items() if name != "source"))


def summary(table: pd.DataFrame) -> dict[str, float]:
    """Median, best, mean and standard deviation of the test error, means of the rest, over the chosen chains."""
    chosen = table[table["chosen"] == 1]
    numbers = {}
    chosen = chosen.assign(mse_over_floor=chosen["mse"] / chosen["mse_floor"]) if "mse" in chosen else chosen
    for name in ("mse", "mse_over_floor", "accuracy", "loss"):
        if name in chosen:
            best = chosen[name].max() if name == "accuracy" else chosen[name].min()
            numbers |= {f"{name}_median": chosen[name].median(), f"{name}_best": best}
            numbers |= {name: chosen[name].mean(), f"{name}_sd": chosen[name].std()}
    means = ("sparsity", "selected", "false_selection_rate", "negative_selection_rate")
    numbers |= {name: chosen[name].mean() for name in means}
    return numbers | {"exact": chosen["exact"].sum(), "seeds": len(chosen), "diverged": int(table["bic"].isna().sum())}


def main() -> int:
    parser, args = parse()
    name = parser.folder_name(args, f"example{args.example}", ("out", "resume", "save_every", "example"), one=True)
    with parser.checked():
        options.check_warmup(args, args.epochs)
        if args.train > args.n:
            raise ValueError(f"argument -train: {args.train} is more than the {args.n} rows of -n")
        data = [simulate(args.example, s, args.n, args.test) for s in range(args.seed, args.seed + args.seeds)]
        chains = Chains(args, data)
        run = Run("em_regression", name, vars(args))
    if args.resume and run.finished:
        if not (run.folder / "figures" / "em_selection.png").exists():
            em_selection.draw([run.folder])
        show(table := pd.read_csv(run.folder / "table.csv"))
        return conclude(run, diverged_rows(table, "bic"))
    torch.set_num_threads(1)  # tensors this small gain nothing from a second thread and lose much on a busy machine
    train(chains, run, args.epochs, bool(args.resume))
    diverged = chains.divergence()
    if not chains.alive().any():
        raise Diverged(diverged)
    table = chains.table()
    run.finish(table, summary(table) | {"seconds": run.seconds})
    em_selection.draw([run.folder])
    show(pd.read_csv(run.folder / "table.csv"))
    return conclude(run, diverged)


if __name__ == "__main__":
    options.run_script(main)
