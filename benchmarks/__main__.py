"""Run the benchmarks and put their rows in results/benchmarks.csv.

    python -m benchmarks                          # all of them, a quarter of an hour on two cores
    python -m benchmarks -only uci scaling_p      # some; the rows of the others stay
    python -m benchmarks -quick 1 -out rows.csv   # does everything run? The numbers mean nothing

Every one has a module, whose `main` runs in a process of its own.
"""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path

from experiment import options

from .fresh import fresh, preload, run_module
from .record import RESULTS, Bench

NAMES = (
    *("lr_simulation", "uci", "posterior_cnn", "bayes_cnn", "sbp_cnn", "em_cnn"),  # the scripts
    *("latent_update", "pruning", "memory"),  # their parts
    *("scaling_p", "scaling_depth", "scaling_chains"),
)


def parse(argv: list[str] | None = None):
    parser = options.Parser(description="Time the programs against plain loops.")
    parser.prog = "benchmarks"
    parser.add_argument("-only", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME", help="some of them")
    parser.add_argument("-quick", type=options.switch, default=0, help="1: smallest sizes, one round; needs -out")
    parser.add_argument("-out", type=Path, default=RESULTS, metavar="FILE", help="CSV that the rows are put in")
    args = parser.parse_args(argv)
    if args.quick and args.out == RESULTS:
        parser.error("argument -quick: needs -out FILE, since its numbers are no measurements")
    if args.out.is_dir() or not args.out.absolute().parent.is_dir():
        parser.error(f"argument -out: {args.out} is no file in a folder that exists")
    return args


def main() -> int:
    args = parse()
    bench, failed = Bench(args.out, bool(args.quick)), []
    modules = {name: f"benchmarks.{name}" for name in args.only}
    preload(modules.values())
    for name, module in modules.items():
        began = time.monotonic()
        try:
            fresh(run_module, module, bench)
        except Exception:  # the others are worth their time
            traceback.print_exc()
            failed.append(name)
        print(f"{name}: {time.monotonic() - began:.0f} s\n", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    options.run_script(main)
