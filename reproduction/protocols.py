"""The cells of every table.

full: the papers' settings, as far as they are published, for a GPU where there are images.
cpu: what two cores can do; the committed results. Linear and UCI regression and variable selection are the full ones.
quick: every experiment small but the VGG-like network, which needs larger images than those of data that needs no
    download; five minutes on two cores in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

from .cells import Cell

PROTOCOLS = ("full", "cpu", "quick")


def cell(table: str, name: str, line: str, result: str = "summary.json", **keys) -> Cell:
    """The cell of a command line without `python`."""
    return Cell(table, name, tuple(line.split()), keys, result)


def table1(protocol: str, seeds: int | None, _) -> Iterator[Cell]:
    make = partial(cell, "table1")
    if protocol == "quick":
        small = f"-n 50 -p 200 -iterations 20000 -burn 50 -compile 0 -seeds {seeds or 2}"
        yield make("all", f"lr_simulation.py {small}")
        return
    seeds = seeds or 10
    for c in ("sa", "em", "sgld"):
        yield make(f"{c}_seeds{seeds}", f"lr_simulation.py -c {c} -seeds {seeds}", method=c)
    line = f"lr_simulation.py -c sa -dc 10 -da 1000 -seeds {seeds}"
    yield make(f"sa_decreasing_seeds{seeds}", line, method="sa")
    yield make("one_data_set", "lr_simulation.py")  # of the figure


def uci(protocol: str, seeds: int | None, _) -> Iterator[Cell]:
    def make(data: str, c: str, flags: str, name: str) -> Cell:
        line = f"uci_run.py -data {data} -c {c} -seeds {n} {flags}"
        return cell("uci", f"{data}_{c}_{name}_seeds{n}", line, data=data, method=c)

    methods, n = ("sa", "em", "sghmc"), seeds or (2 if protocol == "quick" else 20)
    if protocol == "quick":
        for c in methods:
            yield make("diabetes", c, "-sn 40 -burn 20", "annealed")
        return
    for data, c in product(("boston", "yacht", "energy-efficiency", "wine", "concrete"), methods):
        yield make(data, c, "-anneal 1", "plain")
        yield make(data, c, "", "annealed")
    for data, c in product(("power-plant", "diabetes"), methods):
        yield make(data, c, "", "annealed")
    for c in methods:  # as released; half of the chains diverge
        yield make("concrete", c, "-anneal 1 -lr 1e-5", "released_lr")
    n *= 5
    for c in methods:
        yield make("boston", c, "", "annealed")


TOLD_FROM = {"mnist": "fmnist", "fmnist": "mnist"}  # and the data set that each is told from
IMAGE_METHODS = ("sa", "sghmc", "dropout", "vanilla")
REDUCED = "-train 128 -thin 468 -amp 1"


def table2(protocol: str, seeds: int | None, _) -> Iterator[Cell]:
    def make(data: str, c: str, seed: int, name: str, flags: str) -> Cell:
        keep = " -save_samples 1" if c in ("sa", "sghmc") else ""
        line = f"posterior_cnn.py -data {data} -c {c} -seed {seed} {flags}{keep}"
        return cell("table2", f"{data}_{c}_{name}_{seed}", line, data=data, method=c, seed=seed)

    if protocol == "quick":
        for c in IMAGE_METHODS:
            yield make("digits", c, 1, "raw", "-train 64 -thin 22 -sn 20")
        return
    for seed, data, c in product(range(1, 1 + (seeds or {"full": 3, "cpu": 2}[protocol])), TOLD_FROM, IMAGE_METHODS):
        if protocol == "full":
            yield make(data, c, seed, "raw", "")
            yield make(data, c, seed, "augmented", "-aug 1")
        else:
            yield make(data, c, seed, "raw", f"{REDUCED} -sn 12 -burn 4")
    if protocol == "cpu":
        for c in ("sa", "dropout"):
            yield make("fmnist", c, 1, "raw36", f"{REDUCED} -sn 36 -burn 12")
    for seed, data, c in product(range(1, 1 + (seeds or {"full": 3, "cpu": 2}[protocol])), TOLD_FROM, IMAGE_METHODS):
        name = f"{data}_{c}_raw_{seed}"
        line = f"posterior_cnn.py -evaluate @{name} -ood {TOLD_FROM[data]}"
        yield cell("table2", f"{name}_ood", line, "ood.csv", data=data, method=c, seed=seed)


def figure2(protocol: str, _, __) -> Iterator[Cell]:
    flags = {
        "full": "-attack 1",
        "cpu": "-attack 1 -attack_images 2000 -pgd_images 200 -pgd_steps 10",
        "quick": "-attack 1 -attack_images 100 -pgd_images 20 -pgd_steps 5",
    }[protocol]
    for data, c in product(("digits",) if protocol == "quick" else TOLD_FROM, IMAGE_METHODS):
        line = f"posterior_cnn.py -evaluate @table2/{data}_{c}_raw_1 {flags}"
        yield cell("figure2", f"{data}_{c}", line, "attack.csv", data=data, method=c)
    if protocol == "cpu":
        line = "posterior_cnn.py -evaluate @table2/fmnist_dropout_raw36_1 -attack 1 -attack_images 2000 -pgd_images 0"
        yield cell("figure2", "fmnist_dropout_36", line, "attack.csv", data="fmnist", method="dropout")


def table3(protocol: str, seeds: int | None, checkpoint: str | None) -> Iterator[Cell]:
    def make(name: str, flags: str, **keys) -> Cell:
        return cell("table3", name, f"bayes_cnn.py {flags}", **keys)

    start = f" -pretrained {checkpoint}" if checkpoint else ""
    if protocol == "quick":
        small = "-data digits -depth 8 -train 100"
        yield make("dense", f"{small} -prune 0 -lr 1e-5 -sn 20", method="dense", data="digits")
        for c in ("sa", "em", "sghmc"):
            flags = f"{small} -prune 1 -pretrained @dense -c {c} -sn 10 -scale_to 50000 -lr 1e-7"
            yield make(f"{c}_0.9", flags, method=c, data="digits", sparsity=0.9)
        return
    if protocol == "full":
        for seed in range(1, 1 + (seeds or 3)):
            yield make(f"dense_{seed}", f"-lr 2e-6 -invT 20000 -prune 0 -seed {seed}{start}", method="dense", seed=seed)
            for s, c in product((0.3, 0.5, 0.7, 0.9), ("sa", "em", "sghmc")):
                flags = f"-prune 1 -pretrained @dense_{seed} -preset {s} -c {c} -seed {seed}"
                yield make(f"{c}_{s}_{seed}", flags, method=c, sparsity=s, seed=seed)
                if c == "sa":
                    yield make(f"{c}_{s}_{seed}_plain", f"{flags} -anneal 1", method=c, sparsity=s, seed=seed)
        return
    # the published schedules squeezed into 25 or 30 epochs
    yield make("dense", f"-lr 2e-7 -invT 20000 -prune 0 -sn 20 -train 125 -amp 1{start}", method="dense")
    fine = "-prune 1 -pretrained @dense -train 125 -amp 1 -scale_to 50000"
    for c in ("sa", "em", "sghmc"):
        yield make(f"{c}_0.9", f"{fine} -c {c} -sn 30", method=c, sparsity=0.9)
    for c in ("sa", "em"):
        flags = f"{fine} -c {c} -sn 25 -milestones 10 18 -average 5"
        yield make(f"{c}_0.9_early", flags, method=c, sparsity=0.9)
    for name, milestones in (("late", "7 9"), ("early", "4 7")):
        flags = f"{fine} -c sa -sn 10 -val 0.1 -milestones {milestones}"
        yield make(f"validation_{name}", flags, method="sa", sparsity=0.9)
    for what in ("weight", "unit", "rho"):
        flags = f"{fine} -pruning {what} -sn 4 -milestones 2 3"
        yield make(f"{what}_0.9", flags, method="sa", sparsity=0.9)
    for what in ("weight", "unit"):
        flags = f"{fine} -pruning {what} -preset 0.5 -sn 2 -milestones 1"
        yield make(f"{what}_0.5", flags, method="sa", sparsity=0.5)


def sbp_mnist(protocol: str, seeds: int | None, _) -> Iterator[Cell]:
    def make(name: str, model: str, c: str, flags: str, data: str = "mnist", **keys) -> Cell:
        line = f"sbp_cnn.py -data {data} -model {model} -c {c} {flags}"
        return cell("sbp-mnist", name, line, data=data, model=model, method=c, **keys)

    if protocol == "quick":
        small = "-train 64 -sn 30"
        yield make("fc_dense", "lenet-fc", "dense", "-train 64 -sn 5", "digits")
        for c, flags in (
            ("sbp", "-noise_lr 30 -kl_weight 0.3 -threshold_sweep 10"),
            ("ssl", ""),
            ("sparsevd", "-warmup 20"),
        ):
            yield make(f"fc_{c}", "lenet-fc", c, f"-pretrained @fc_dense {small} {flags}", "digits")
        return
    if protocol == "full":
        for seed, model in product(range(1, 1 + (seeds or 3)), ("lenet-fc", "lenet5")):
            yield make(f"{model}_dense_{seed}", model, "dense", f"-seed {seed}", seed=seed)
            for c in ("sbp", "sparsevd", "ssl"):
                flags = f"-pretrained @{model}_dense_{seed} -seed {seed}"
                sweep = " -threshold_sweep 40" if c == "sbp" else ""
                yield make(f"{model}_{c}_{seed}", model, c, flags + sweep, seed=seed)
        return
    tuned = "-noise_lr 10 -kl_weight 5"
    for seed in range(1, 1 + (seeds or 5)):  # at the published schedule
        start = f"-pretrained @fc_dense_{seed} -seed {seed}"
        yield make(f"fc_dense_{seed}", "lenet-fc", "dense", f"-sn 60 -seed {seed}", seed=seed)
        yield make(f"fc_sbp_{seed}", "lenet-fc", "sbp", f"{start} -sn 200 -threshold_sweep 40", seed=seed)
        if seed <= (seeds or 3):
            flags = f"{start} {tuned} -threshold_sweep 40 -sn 60"
            yield make(f"fc_sbp_tuned_{seed}", "lenet-fc", "sbp", flags, seed=seed)
        if seed <= (seeds or 1):
            yield make(f"fc_ssl_{seed}", "lenet-fc", "ssl", f"{start} -sn 60", seed=seed)
            yield make(f"fc_sparsevd_{seed}", "lenet-fc", "sparsevd", f"{start} -sn 10", seed=seed)
    cost = "-noise_lr 10 -warmup 2 -kl_layers 100 40"  # the KL weighed by what a unit costs
    l5 = "-pretrained @l5_dense"
    yield make("l5_dense", "lenet5", "dense", "-sn 30")
    for seed in range(1, 1 + (seeds or 3)):
        flags = f"{l5} {cost} -sn 25 -threshold_sweep 40 -seed {seed}"
        yield make(f"l5_cost_{seed}", "lenet5", "sbp", flags, seed=seed)
    yield make("l5_sbpa_1", "lenet5", "sbpa", f"{l5} -sn 30 -noise_lr 10 -threshold_sweep 40")
    yield make("l5_ssl_1", "lenet5", "ssl", f"{l5} -sn 15")
    yield make("l5_sparsevd_1", "lenet5", "sparsevd", f"{l5} -sn 12")
    yield make("random_fc_dense", "lenet-fc", "dense", "-sn 30", "mnist-random")
    flags = "-pretrained @random_fc_dense -sn 30 -noise_lr 10 -allow_empty 1"
    yield make("random_fc_sbp_1", "lenet-fc", "sbp", flags, "mnist-random")
    # on held-out training images
    yield make("val_fc_dense", "lenet-fc", "dense", "-val 0.1 -sn 30")
    for name, flags in (("noise10", "-noise_lr 10"), ("noise10_kl5", tuned)):
        line = f"-val 0.1 -pretrained @val_fc_dense -sn 40 {flags}"
        yield make(f"val_fc_sbp_{name}", "lenet-fc", "sbp", line)
    yield make("val_l5_dense", "lenet5", "dense", "-val 0.1 -sn 12")
    line = f"-val 0.1 -pretrained @val_l5_dense {cost} -sn 20 -decay 12 -threshold_sweep 20"
    yield make("val_l5_cost", "lenet5", "sbp", line)


def sbp_vgg(protocol: str, seeds: int | None, _) -> Iterator[Cell]:
    def make(name: str, c: str, flags: str, **keys) -> Cell:
        line = f"sbp_cnn.py -data cifar10 -model vgglike -c {c} {flags}"
        return cell("sbp-vgg", name, line, model="vgglike", data="cifar10", method=c, **keys)

    if protocol == "full":
        for seed in range(1, 1 + (seeds or 1)):
            yield make(f"dense_{seed}", "dense", f"-seed {seed}", seed=seed)
            for c in ("sbp", "sbpa", "sparsevd", "ssl"):
                yield make(f"{c}_{seed}", c, f"-pretrained @dense_{seed} -seed {seed}", seed=seed)
    if protocol == "cpu":
        yield make("dense", "dense", "-scale 0.25 -sn 16")
        short = "-scale 0.25 -pretrained @dense -lr 1e-4 -sn 8 -threshold_sweep 20"
        yield make("sbp", "sbp", short)
        for c in ("sbp", "sbpa"):
            yield make(f"{c}_noise100", c, f"{short} -noise_lr 100")


def em_regression(protocol: str, seeds: int | None, _) -> Iterator[Cell]:
    if protocol == "quick":
        line = f"em_regression.py -example 1 -seeds {seeds or 2} -epochs 300 -warmup 20"
        yield cell("em-regression", "example1", line)
        return
    for example in (1, 2, 3):
        restarts = " -restarts 3" if example == 3 else ""
        several = f" -seeds {seeds}" if seeds else ""
        name = f"example{example}" + (f"_seeds{seeds}" if seeds else "")
        yield cell("em-regression", name, f"em_regression.py -example {example}{restarts}{several}")


def em_images(protocol: str, seeds: int | None, _) -> Iterator[Cell]:
    def make(name: str, data: str, model: str, flags: str, **keys) -> Cell:
        line = f"em_cnn.py -data {data} -model {model} {flags}"
        return cell("em-images", name, line, data=data, model=model, **keys)

    if protocol == "quick":
        small = "-train 32 -sn 12 -cycles 2 -samples_per_cycle 2"
        yield make("sgd", "digits", "resnet20", f"{small} -c sgd", method="sgd")
        yield make("dense", "digits", "resnet20", f"{small} -dense 1", method="em")
        pruning = "-rule square -eps0 1e-2 -soft 4e-3 -hard 3e-4"
        yield make("sparse", "digits", "resnet20", f"{small} {pruning}", method="em")
    if protocol == "full":
        models = ("resnet18", "resnet34", "preact_resnet18", "wrn28-10", "densenet")
        for seed, data, model in product(range(1, 1 + (seeds or 1)), ("cifar10", "cifar100"), models):
            for name, flags, c in (("sparse", "", "em"), ("dense", "-dense 1", "em"), ("sgd", "-c sgd", "sgd")):
                yield make(f"{data}_{model}_{name}_{seed}", data, model, f"-seed {seed} {flags}", method=c, seed=seed)
    if protocol == "cpu":
        short = "-sn 4 -cycles 2 -samples_per_cycle 1"
        yield make("fmnist_dense", "fmnist", "resnet20", f"{short} -dense 1", method="em")
        yield make("fmnist_sgd", "fmnist", "resnet20", f"{short} -c sgd", method="sgd")
        thresholds = {
            "fmnist_sparse": "-eps0 1e-2 -soft 4e-3 -hard 3e-4",
            "fmnist_sparse_2": "-eps0 2e-2 -soft 4e-3 -hard 3e-4",
            "fmnist_sparse_4": "-eps0 2e-2 -soft 6e-3 -hard 4e-4",
            "fmnist_sparse_3": "-eps0 2e-2 -soft 1e-2 -hard 1e-3",
        }
        for name, flags in thresholds.items():
            yield make(name, "fmnist", "resnet20", f"{short} -rule square -warmup 1 {flags}", method="em")


def convergence(protocol: str, _, __) -> Iterator[Cell]:
    small = " -iterations 1000 -count 200" if protocol == "quick" else ""
    yield cell("convergence", "default", f"sa_convergence.py{small}", method="sa")


TABLES: dict[str, Callable[[str, int | None, str | None], Iterator[Cell]]] = {
    "table1": table1,
    "uci": uci,
    "table2": table2,
    "figure2": figure2,
    "table3": table3,
    "sbp-mnist": sbp_mnist,
    "sbp-vgg": sbp_vgg,
    "em-regression": em_regression,
    "em-images": em_images,
    "convergence": convergence,
}


def cells(
    tables: list[str],
    protocol: str,
    seeds: int | None = None,
    checkpoint: str | None = None,
    wanted: Callable[[Cell], bool] = lambda _: True,
) -> list[Cell]:
    """The wanted cells of some tables, with those that they need before them."""
    every = {each.id: each for name in TABLES for each in TABLES[name](protocol, seeds, checkpoint)}
    chosen: dict[str, Cell] = {}

    def add(each: Cell) -> None:
        for name in each.before:
            add(every[name])
        chosen.setdefault(each.id, each)

    for each in every.values():
        if each.table in tables and wanted(each):
            add(each)
    return list(chosen.values())
