"""Command lines: one-line errors, the flags every script has, checks of single values."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from data.files import DataError

from .run import Diverged, RunError


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose every error is one line and exit status 2."""

    def __init__(self, description: str):
        super().__init__(
            description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\n")

    def _get_option_tuples(self, option_string: str) -> list:
        """No abbreviations: allow_abbrev=False alone leaves them to flags with one dash, -n 100 for -nu."""
        return []

    @contextlib.contextmanager
    def checked(self):
        """A ValueError while settings and data are checked becomes a one-line error."""
        try:
            yield
        except ValueError as error:
            self.error(str(error))

    def changed(self, args: argparse.Namespace, ignore: tuple[str, ...]) -> str:
        """The flags that differ from their defaults, as part of a folder name: v0-0.1_seeds-3."""
        parts = []
        for name, value in vars(args).items():
            if name not in ignore and value != self.get_default(name):
                values = value if isinstance(value, list) else [value]
                parts.append(f"{name}-{'-'.join(map(str, values))}")
        return "_".join(parts)

    def folder_name(self, args: argparse.Namespace, stem: str, told: Sequence[str], *, one: bool = False) -> str:
        """Name of the default run folder: the stem, the seeds, and what else is `changed`.

        told: flags that the stem tells, or that are no part of the name.  one: say how many seeds even if it is one.
        Of -pretrained, a path, only the last part is told.
        """
        if getattr(args, "pretrained", None):
            args = argparse.Namespace(**(vars(args) | {"pretrained": Path(args.pretrained).stem}))
        seeds = f"seed{args.seed}" + (f"_seeds{args.seeds}" if args.seeds > 1 or one else "")
        return "_".join(filter(None, [stem, seeds, self.changed(args, (*told, "seed", "seeds"))]))

    def fill(self, args: argparse.Namespace, values: Mapping) -> None:
        """Give flags that were left out, and are None, their values, which become the defaults."""
        for name, value in values.items():
            if getattr(args, name) is None:
                setattr(args, name, value)
        self.set_defaults(**values)


@contextlib.contextmanager
def about(argument: str):
    """A ValueError becomes one that names the argument."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"argument {argument}: {error}") from error


def _number(kind: Callable, rule: Callable[[float], bool], allowed: str) -> Callable[[str], float]:
    def parse(text: str):
        try:
            value = kind(text)
            allowed_value = math.isfinite(value) and rule(value)
        except (ValueError, OverflowError):
            allowed_value = False
        if not allowed_value:
            raise argparse.ArgumentTypeError(f"must be {allowed}, not '{text}'")
        return value

    return parse


positive = _number(float, lambda x: x > 0, "a number > 0")
non_negative = _number(float, lambda x: x >= 0, "a number >= 0")
at_least_one = _number(float, lambda x: x >= 1, "a number >= 1")
unit = _number(float, lambda x: 0 <= x <= 1, "a number in [0, 1]")
fraction = _number(float, lambda x: 0 <= x < 1, "a number in [0, 1)")
exponent = _number(float, lambda x: 0 < x <= 1, "a number in (0, 1]")
open_unit = _number(float, lambda x: 0 < x < 1, "a number in (0, 1)")
correlation = _number(float, lambda x: -1 < x < 1, "a number in (-1, 1)")
at_least_three = _number(int, lambda x: x >= 3, "a whole number >= 3")
count = _number(int, lambda x: x >= 1, "a whole number >= 1")
whole = _number(int, lambda x: x >= 0, "a whole number >= 0")
seed = _number(int, lambda x: 0 <= x < 2**32, "a whole number in [0, 2^32)")
switch = _number(int, lambda x: x in (0, 1), "0 or 1")


def add_run_options(parser: Parser, several_seeds: bool = True) -> None:
    """-seed -seeds -out -resume -save_every."""
    group = parser.add_argument_group("run")
    group.add_argument("-seed", type=seed, default=1, help="first seed")
    if several_seeds:
        group.add_argument("-seeds", type=count, default=1, help="how many seeds, counted up from -seed")
    group.add_argument("-out", default=None, help="run folder; by default named after the flags, under runs/")
    group.add_argument("-resume", type=switch, default=0, help="1 continues the run folder's run, bit for bit")
    group.add_argument("-save_every", type=non_negative, default=10.0, help="seconds between checkpoints")


def add_image_options(
    parser: Parser, *, names: Sequence[str], data: str, aug: int | None, train: int | None = 1000
) -> None:
    """-data -data_dir -size -workers -aug -train -test -val: what goes in; None: a default that depends on others."""
    group = parser.add_argument_group("images")
    group.add_argument("-data", choices=names, default=data, help="data set")
    group.add_argument("-data_dir", default=None, help="data folder; default BSDL_DATA, else data/cache")
    group.add_argument("-size", type=count, default=None, help="-data folder: scale images to size x size")
    group.add_argument("-workers", type=whole, default=2, help="processes that read images from disk")
    group.add_argument("-aug", type=switch, default=aug, help="1: augmented, normalised training images")
    group.add_argument("-train", type=count, default=train, help="minibatch size, of all processes together")
    group.add_argument("-test", type=count, default=1000, help="minibatch size of evaluations")
    group.add_argument("-val", type=fraction, default=0.0, help="evaluate on this share of the training part")


def add_sghmc_options(parser: Parser, *, lr: str, anneal: float | None) -> argparse._ArgumentGroup:
    """-lr -momentum -wdecay -invT -anneal; lr: its default, in words."""
    group = parser.add_argument_group("sampler")
    group.add_argument("-lr", type=positive, default=None, help=f"step size; default {lr}")
    group.add_argument("-momentum", type=fraction, default=0.9, help="1 - friction")
    group.add_argument("-wdecay", type=non_negative, default=5e-4, help="Gaussian prior of precision wdecay N")
    group.add_argument("-invT", type=positive, default=None, help="inverse temperature; default published")
    published = "" if anneal is not None else "; default published"
    group.add_argument("-anneal", type=at_least_one, default=anneal, help=f"invT grows by it per epoch{published}")
    return group


def add_kept_options(parser: Parser) -> argparse._ArgumentGroup:
    """-save -tensorboard."""
    group = parser.add_argument_group("what is kept")
    group.add_argument("-save", type=switch, default=1, help="1: the last network, model.safetensors")
    group.add_argument("-tensorboard", type=switch, default=0, help="1: metrics for TensorBoard as well")
    return group


def add_pruning_options(parser: Parser, *, sparse: float | None) -> argparse._ArgumentGroup:
    """-sparse -cut -gap: the target and the schedule of magnitude pruning."""
    group = parser.add_argument_group("pruning")
    group.add_argument("-sparse", type=fraction, default=sparse, help="magnitude pruning: zeros / all parameters")
    group.add_argument("-cut", type=open_unit, default=0.99, help="s_k = S (1 - cut^(k/gap))")
    group.add_argument("-gap", type=positive, default=50.0, help="s_k = S (1 - cut^(k/gap))")
    return group


def add_device_options(parser: Parser) -> None:
    """-device -amp -compile."""
    group = parser.add_argument_group("device")
    group.add_argument("-device", default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:N")
    group.add_argument("-amp", type=switch, default=0, help="1: bfloat16 autocast of the network")
    group.add_argument("-compile", type=switch, default=0, help="1: torch.compile of the network in training")


def add_prior_options(
    parser: Parser, *, v1: float, a: float | None, b: float | None, sd, nu: float = 1.0, lamda: float = 1.0
) -> argparse._ArgumentGroup:
    """-v1 -a -b -nu -lamda -sd: what the SSGL prior is the same for all scripts."""
    group = parser.add_argument_group("spike-and-slab prior")
    group.add_argument("-v1", type=positive, default=v1, help="variance of the slab, in units of sigma^2")
    for name, value in (("-a", a), ("-b", b)):
        about_default = "" if value is not None else "; default: the number of weights p"
        text = f"Beta(a, b) prior of the inclusion rate delta{about_default}"
        group.add_argument(name, type=at_least_one, default=value, help=text)
    group.add_argument("-nu", type=positive, default=nu, help="sigma^2 ~ InvGamma(nu/2, nu lamda/2)")
    group.add_argument("-lamda", type=positive, default=lamda, help="sigma^2 ~ InvGamma(nu/2, nu lamda/2)")
    many = {"nargs": "+"} if isinstance(sd, list) else {}
    group.add_argument("-sd", type=positive, default=sd, help="sigma_0, initial value of sigma", **many)
    return group


def add_adaptation_options(parser: Parser, *, dc: float, da: float, dalpha: float) -> None:
    """-dc -da -dalpha: omega_k of stochastic approximation."""
    group = parser.add_argument_group("stochastic approximation, omega_k = dc / (da + k)^dalpha")
    group.add_argument("-dc", type=positive, default=dc, help="numerator of omega_k")
    group.add_argument("-da", type=non_negative, default=da, help="delay of omega_k, in iterations")
    group.add_argument("-dalpha", type=exponent, default=dalpha, help="decay exponent of omega_k")


def add_em_options(
    parser: Parser, *, lr: str, momentum: float | None, temperature: str, cycles: int
) -> argparse._ArgumentGroup:
    """-lr -momentum -eta -temperature -cycles: the preconditioned sampler; lr, temperature: defaults, in words."""
    group = parser.add_argument_group("sampler")
    group.add_argument("-lr", type=positive, default=None, help=f"c^2, step size at a cycle's start; default {lr}")
    group.add_argument("-momentum", type=fraction, default=momentum, help="beta0, 1 - friction")
    group.add_argument("-eta", type=non_negative, default=0.1, help="step size of rho, the preconditioner's")
    about = f"T, of the sampler's noise; default {temperature}"
    group.add_argument("-temperature", type=non_negative, default=None, help=about)
    group.add_argument("-cycles", type=count, default=cycles, help="cosine cycles of the step size")
    return group


def add_group_options(
    parser: Parser, *, eps0: float, eps1: float | None, soft: float | None, hard: float, warmup: int | None
) -> argparse._ArgumentGroup:
    """-dense -eps0 -eps1 -soft -hard -warmup: the spike-and-slab prior on groups; None: a default that depends."""
    group = parser.add_argument_group("spike-and-slab group prior")
    group.add_argument("-dense", type=switch, default=0, help="1: no EM step, no pruning")
    group.add_argument("-eps0", type=positive, default=eps0, help="weight decay of groups in the spike")
    group.add_argument("-eps1", type=positive, default=eps1, help="weight decay of all others")
    group.add_argument("-soft", type=non_negative, default=soft, help="groups of smaller mean square are in the spike")
    group.add_argument("-hard", type=non_negative, default=hard, help="threshold of pruning, for good")
    default = "" if warmup is not None else "; default a fifth of all"
    group.add_argument("-warmup", type=whole, default=warmup, help=f"epochs before the first EM step{default}")
    return group


def check_warmup(args: argparse.Namespace, epochs: int) -> None:
    """Raise ValueError where a run would never prune, or has fewer epochs than cycles."""
    if not args.dense and args.warmup >= epochs:
        raise ValueError(f"argument -warmup: {args.warmup} of {epochs} epochs; the run would never prune")
    if args.cycles > epochs:
        raise ValueError(f"argument -cycles: {args.cycles} are more than the {epochs} epochs")


def run_script(main: Callable[[], int]) -> None:
    """Run a script's main and exit: 0 done, 2 bad input, 3 diverged, 130 interrupted."""
    try:
        sys.exit(main())
    except (RunError, DataError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except Diverged as error:
        print(f"diverged: {error}", file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command with -resume 1 continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
