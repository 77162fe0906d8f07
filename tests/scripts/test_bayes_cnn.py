"""bayes_cnn.py as a user runs it, in small: on the digits, on folders of images, with a ResNet of depth 8."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy import stats
from scipy.special import expit
from torch.nn.functional import cross_entropy

import bayes_cnn
from data import images
from data.image_sets import ImageData, MemoryImages
from experiment.compressed import load_compressed
from model.resnet import ResNet
from sampler.noise import stream

SCRIPT = "bayes_cnn.py"
RELEASED_DENSE = ("-lr", "2e-6", "-invT", "20000", "-save", "1", "-prune", "0")
RELEASED_SPARSE = ("-lr", "2e-9", "-invT", "1000", "-anneal", "1.005", "-v0", "0.005", "-v1", "1e-5")
RELEASED_SPARSE += ("-sparse", "0.9", "-c", "sa", "-prune", "1")
TINY = ("-data", "digits", "-depth", 8, "-sn", 2, "-train", 100)  # 14 iterations an epoch
QUICK = ("-cut", 0.01, "-gap", 0.5)  # at the target after few iterations
STILL = ("-lr", 1e-30, "-invT", 1e30)  # steps that no float32 number feels
SCORES = ["accuracy", "nll", "ece", "brier"]
AVERAGED, BEST, STARTED = ([f"{name}_{of}" for name in SCORES] for of in ("averaged", "best_sample", "dense"))
KEY = ["data", "model", "aug", "method", "target", "pruning", "seed"]
NUMBERS = [*SCORES, *AVERAGED, *BEST, "samples", "sparsity", "density", "parameters_kept"]
METRICS = ["epoch", "iterations", "samples", "lr", *SCORES, "temperature_kinetic", "temperature_claimed", "sparsity"]
METRICS += [f"{name}_{q}" for name in ("rho", "kappa0", "kappa1") for q in ("q05", "q50", "q95")] + ["delta", "sigma"]
FILES = {"args.json", "command.sh", "environment.json", "metrics.csv", "checkpoint.safetensors", "table.csv"}
FILES |= {"summary.json", "predictions.safetensors", "model.safetensors"}
EXPORTED = {"network.safetensors", "network.onnx", "layers.csv"}
DIGITS = ResNet(8, (1, 8, 8), 10)
PARAMETERS = sum(p.numel() for p in DIGITS.parameters())
PRUNABLE = {name: p.numel() for name, p in DIGITS.named_parameters() if name in DIGITS.sparse_layers}
SMALL_VALUES = {
    "-data": "digits", "-data_dir": "nowhere", "-size": 9, "-workers": 0, "-depth": 8, "-prune": 1, "-c": "em",
    "-aug": 0, "-invT": 50, "-anneal": 1.01, "-lr": 1e-8, "-milestones": 5, "-momentum": 0.8, "-wdecay": 0.001,
    "-N": 1000, "-sn": 2, "-scale_to": 40, "-average": 1, "-train": 200, "-test": 99, "-val": 0.2, "-v1": 5,
    "-a": 1.5, "-b": 4, "-nu": 2, "-lamda": 0.5, "-sd": 3, "-v0": 0.2, "-theta": 0.3, "-fix_scale": 1, "-dc": 0.5,
    "-da": 10, "-dalpha": 0.8, "-sparse": 0.4, "-cut": 0.5, "-gap": 3, "-pruning": "rho", "-preset": 0.3,
    "-device": "cpu", "-amp": 1, "-compile": 0, "-seed": 4, "-seeds": 2, "-resume": 1, "-save_every": 0, "-save": 0,
    "-tensorboard": 1, "-half": 1,
}  # fmt: skip


def text(flags) -> str:
    return " ".join(map(str, flags))


@pytest.fixture(scope="module")
def dense(shared_run):
    return shared_run("resnet_dense", SCRIPT, *RELEASED_DENSE, *TINY)


@pytest.fixture(scope="module")
def sparse(shared_run, dense):
    return shared_run("resnet_sparse", SCRIPT, *RELEASED_SPARSE, *TINY, *QUICK, "-pretrained", dense.folder)


@pytest.fixture
def run(in_process, tmp_path):
    """run(*flags, name): a run of the script that must succeed; name=None: in its default folder."""

    def start(*flags, name: str | None = "run"):
        result = in_process(bayes_cnn, *flags, out=tmp_path / name if name else None)
        assert result.code == 0, result.stderr
        return result

    return start


@pytest.fixture
def untrained(tmp_path):
    """untrained(shape, classes): the file of a network to start from, with weights of ordinary size."""

    def make(shape=(1, 8, 8), classes: int = 10) -> Path:
        torch.manual_seed(3)
        path = tmp_path / "untrained.safetensors"
        save_file(ResNet(8, shape, classes).state_dict(), path)
        return path

    return make


@pytest.fixture
def from_untrained(run, untrained):
    """from_untrained(*flags, name): a sparse run on the digits that starts from such a network."""
    path = untrained()

    def start(*flags, name: str = "run"):
        return run(*TINY, "-prune", 1, "-pretrained", path, *flags, name=name)

    return start


@pytest.fixture
def few(run, untrained, pictures):
    """few(*flags, name): a sparse run of 3 iterations an epoch on 60 grey pictures of two classes."""
    flags = ("-data", "folder", "-data_dir", pictures(), "-depth", 8, "-sn", 2, "-train", 20)
    flags = (*flags, "-prune", 1, "-pretrained", untrained((1, 12, 12), 2))

    def start(*more, name: str = "run"):
        return run(*flags, *more, name=name)

    return start


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def contents(folder) -> dict[str, bytes]:
    return {name: (Path(folder) / name).read_bytes() for name in files(folder)}


def metrics(result) -> pd.DataFrame:
    return pd.read_csv(result / "metrics.csv")


def weights(result) -> dict[str, torch.Tensor]:
    return load_file(result / "model.safetensors")


def parameters(result) -> dict[str, torch.Tensor]:
    """Without the running statistics of batch norm."""
    return {name: w for name, w in weights(result).items() if name in dict(DIGITS.named_parameters())}


def checkpoint(result, part: str) -> dict[str, torch.Tensor]:
    tensors = load_file(result / "checkpoint.safetensors")
    return {name.removeprefix(part): x for name, x in tensors.items() if name.startswith(part)}


def same_weights(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def digits(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised digits."""
    data = getattr(images.load("digits"), part)
    return (data.x.float() / 255 - 0.3) / 0.38, data.y


def accuracy(net: torch.nn.Module) -> float:
    x, y = digits("test")
    with torch.no_grad():
        return 100 * (net.eval()(x).argmax(-1) == y).double().mean().item()


def pruned(target: float, cut: float, gap: float, iterations: int, layers=PRUNABLE, total=PARAMETERS) -> float:
    """Zeros / all parameters after so many iterations, by the specification."""
    whole = math.floor(1000 * target * total / sum(layers.values()) + 1e-9) / 1000
    fraction = whole * (1 - cut ** ((iterations + 1) / gap))  # the counter is one ahead
    return sum(math.floor(fraction * p) for p in layers.values()) / total


def test_the_two_commands_of_the_release(run, tmp_path):
    run(*RELEASED_DENSE, *TINY, name=None)
    runs = tmp_path / "empty/runs/bayes_cnn"
    dense = runs / "dense_digits_resnet8_seed1"
    assert list(runs.iterdir()) == [dense] and files(dense) == FILES
    run(*RELEASED_SPARSE, *TINY, name=None)
    (sparse,) = set(runs.iterdir()) - {dense}
    assert sparse.name.startswith("sa_0.9_digits_resnet8_seed1") and files(sparse) == FILES
    start, end = (pd.read_csv(folder / "table.csv") for folder in (dense, sparse))
    assert (start["method"].item(), start["target"].item()) == ("dense", 0)
    assert (end["method"].item(), end["target"].item()) == ("sa", 0.9)
    for name in SCORES:
        assert end[f"{name}_dense"].item() == pytest.approx(start[name].item(), rel=1e-6)


def test_a_run_is_a_folder(dense, sparse):
    for result in (dense, sparse):
        assert result.code == 0, result.stderr
        assert files(result.folder) == FILES
        assert "Warning" not in result.stderr and "Traceback" not in result.stderr
        assert (result / "command.sh").read_text().startswith("python bayes_cnn.py -lr 2e-")
        assert result.folder in result.stdout
    args = json.loads((sparse / "args.json").read_text())
    assert (args["c"], args["v0"], args["v1"], args["sparse"]) == ("sa", 0.005, 1e-5, 0.9)


def test_the_table(dense, sparse):
    for result, started in ((dense, []), (sparse, STARTED)):
        assert (result / "table.csv").read_text().splitlines()[0].split(",") == KEY + NUMBERS + started
        (row,) = result.table.to_dict("records")
        assert (row["data"], row["model"], row["aug"], row["seed"]) == ("digits", "resnet8", 1, 1)
        assert 5 < row["accuracy"] <= 100 and 0 < row["nll"] < 5 and 0 < row["ece"] < 1 and 0 < row["brier"] < 2
        assert np.isnan([row[name] for name in (*AVERAGED, *BEST)]).all() and row["samples"] == 0
        zeros = sum(int((w == 0).sum()) for name, w in weights(result).items() if name in PRUNABLE)
        assert row["sparsity"] == zeros / PARAMETERS and row["density"] == 1 - row["sparsity"]
        assert row["parameters_kept"] == PARAMETERS - zeros
    assert dense.table["sparsity"].item() == 0 and sparse.table["sparsity"].item() > 0.89


def test_the_summary_has_plain_names(dense, sparse):
    for result, started in ((dense, []), (sparse, STARTED)):
        summary, row = result.summary, result.table.iloc[0]
        assert summary.keys() == {*NUMBERS, *started, "seeds", "evaluated_on", "device", "seconds"}
        for name in (*SCORES, *started, "sparsity", "density", "parameters_kept"):
            assert summary[name] == pytest.approx(row[name])
        assert summary["accuracy_averaged"] is None
        assert (summary["seeds"], summary["evaluated_on"]) == (1, "test") and 0 < summary["seconds"] < 300


def test_progress_is_recorded(dense, sparse):
    for result in (dense, sparse):
        table = metrics(result)
        assert set(table) == set(METRICS)
        assert table["epoch"].tolist() == [1, 2] and table["iterations"].tolist() == [14, 28]
        for name in (*SCORES, "sparsity"):
            assert table[name].iloc[-1] == result.table[name].item()


def test_the_saved_network_has_the_accuracy_of_the_table(dense, sparse):
    for result in (dense, sparse):
        DIGITS.load_state_dict(weights(result))
        assert accuracy(DIGITS) == pytest.approx(result.table["accuracy"].item())


@pytest.mark.parametrize(
    "flags, learnt",
    [(("-prune", 0), 90), (("-prune", 1, "-sparse", 0.5, "-v0", 0.1, "-v1", 5e-4), 80)],
    ids=["dense", "sparse"],
)
def test_a_network_learns(run, untrained, flags, learnt):
    """Chance is 10%."""
    steps = ("-lr", 1e-4, "-sn", 4, "-train", 50, "-aug", 0)
    assert run(*TINY, *steps, *flags, "-pretrained", untrained()).table["accuracy"].item() > learnt


PUBLISHED = [(0.3, 0.5, 1e-3), (0.5, 0.1, 5e-4), (0.7, 0.1, 5e-5), (0.9, 0.005, 1e-5)]


@pytest.mark.parametrize("row", PUBLISHED, ids=str)
def test_a_preset_is_a_published_row(row):
    _, args = bayes_cnn.parse(["-prune", "1", "-preset", str(row[0])])
    assert (args.sparse, args.v0, args.v1) == row
    for i, (name, value) in enumerate((("sparse", 0.6), ("v0", 0.7), ("v1", 0.8))):
        _, args = bayes_cnn.parse(["-prune", "1", "-preset", str(row[0]), f"-{name}", str(value)])
        assert (args.sparse, args.v0, args.v1) == (*row[:i], value, *row[i + 1 :])


def test_the_defaults_are_the_released_commands():
    for prune, command in enumerate((RELEASED_DENSE, RELEASED_SPARSE)):
        parser, args = bayes_cnn.parse(["-prune", str(prune)])
        _, asked = bayes_cnn.parse(list(command))
        assert vars(args) == vars(asked) and not parser.changed(asked, ("prune",))
    assert (args.data, args.depth, args.train, args.sn, args.milestones) == ("cifar10", 20, 1000, 1000, [700, 900])
    assert (args.a, args.b, args.nu, args.lamda, args.sd, args.theta) == (2.7e5, 2.7e5, 1000, 1000, 1, 0.5)
    assert (args.dc, args.da, args.dalpha, args.cut, args.gap) == (0.02, 1000, 0.75, 0.99, 50)
    assert (args.momentum, args.wdecay, args.aug, args.pruning) == (0.9, 5e-4, 1, "weight")


@pytest.mark.parametrize("flag, device", [((), "auto"), (("-gpu", "0"), "cuda:0"), (("-gpu", "3"), "cuda:3")], ids=str)
def test_gpu_is_short_for_a_device(flag, device):
    assert bayes_cnn.parse([*flag])[1].device == device


def test_the_flags_of_the_release_have_names_here():
    parser, _ = bayes_cnn.parse([])
    known = {action.option_strings[0] for action in parser._actions}
    released = "-dc -da -dalpha -wdecay -momentum -nu -lamda -a -b -theta -sd -N -cut -gap -depth -sn -train -test -aug"
    released += " -seed -gpu -lr -invT -anneal -v0 -v1 -sparse -c -save -prune -data"
    assert known >= set(released.split())


def test_every_flag_is_accepted(run, untrained, tmp_path):
    parser, _ = bayes_cnn.parse([])
    flags = {action.option_strings[0] for action in parser._actions} - {"-h", "-out", "-pretrained", "-gpu", "-export"}
    assert flags == set(SMALL_VALUES)
    for flag, value in SMALL_VALUES.items():
        assert parser.get_default(flag[1:]) != value or flag == "-compile", f"{flag} has its default"
    result = run(*itertools.chain(*SMALL_VALUES.items()), "-pretrained", untrained())
    args = json.loads((result / "args.json").read_text())
    elsewhere = {"data_dir", "device", "workers", "resume", "save_every", "tensorboard", "half"}
    assert args.keys() - {"pretrained"} == {flag[1:] for flag in SMALL_VALUES} - elsewhere
    for flag, value in SMALL_VALUES.items():
        assert args.get(flag[1:], value) in (value, [value]), flag
    assert result.table["seed"].tolist() == [4, 5] and not (tmp_path / "empty/nowhere").exists()
    found = {name for name in files(result.folder) if "tensorboard" not in name}
    own, each = FILES - {"metrics.csv", "checkpoint.safetensors", "predictions.safetensors"}, FILES
    assert found == {name for name in own if "model" not in name} | {
        f"seed{seed}/{name}" for seed in (4, 5) for name in each - {"model.safetensors"}
    }
    assert {name.split("/")[0] for name in files(result.folder) if "tensorboard" in name} == {"seed4", "seed5"}


@pytest.mark.parametrize(
    "more, ignored, felt",
    [
        (("-momentum", 0.8), ("-c", "em", "-sparse", 0.5, "-v0", 0.3, "-sd", 7), ("-momentum", 0.9)),
        (("-wdecay", 0.2), ("-c", "sghmc", "-pruning", "unit", "-theta", 0.2), ("-wdecay", 0)),
        (("-N", 3000), ("-dc", 1, "-a", 2), ("-N", 1437)),
    ],
    ids=text,
)
def test_a_cold_dense_run_is_gradient_descent_with_weight_decay(run, more, ignored, felt):
    """torch.optim.SGD with the decay wdecay N of every parameter, whatever the flags of the sparse run say.

    Where rounding moves a unit over the kink of a ReLU the gradients differ by a little, so the difference is
    measured against what another value of the flag makes.
    """
    flags = (*TINY, "-sn", 1, "-milestones", "-aug", 0, "-prune", 0, "-wdecay", 0.1, "-lr", 2e-6, "-seed", 7)
    result = weights(run(*flags, "-invT", 1e30, *more, *ignored))
    other = weights(run(*flags, "-invT", 1e30, *more, *felt, name="felt"))
    asked = {"-momentum": 0.9, "-wdecay": 0.1, "-N": 1437} | dict([more])
    (x, y), n = digits("train"), asked["-N"]
    net = ResNet(8, (1, 8, 8), 10).to(memory_format=torch.channels_last)  # other formats round otherwise
    net.load_state_dict(weights(run(*flags, *STILL, name="start")))
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    decay = asked["-wdecay"] * n
    optimizer = torch.optim.SGD(net.parameters(), lr=2e-6, momentum=asked["-momentum"], weight_decay=decay)
    order = torch.randperm(1437, generator=stream(7, "order"))[:1400]
    for rows in order.split(100):
        optimizer.zero_grad()
        (n * cross_entropy(net(x[rows].contiguous(memory_format=torch.channels_last)), y[rows])).backward()
        optimizer.step()
    for name in ("fc.weight", "conv1.weight", *PRUNABLE):
        error, change = ((result[name] - w).norm() for w in (net.state_dict()[name], other[name]))
        assert error < 0.05 * change, name


def test_a_dense_run_is_noisy(run):
    """Its velocities have the temperature that it claims; the steps are so small that no gradient is felt."""
    flags = (*TINY, "-prune", 0, "-lr", 1e-12, "-milestones")
    for invT in (1e-3, 10):
        table = metrics(run(*flags, "-invT", invT * 1e-3, name=f"{invT}"))
        assert table["temperature_claimed"].to_numpy() == pytest.approx(1e3 / invT)
        assert table["temperature_kinetic"].iloc[-1] == pytest.approx(1e3 / invT, rel=0.1)


def gradient(result, lr: float, momentum: float = 0.9) -> dict[str, torch.Tensor]:
    """grad U in the single, cold iteration of a run."""
    found = checkpoint(result, "optimizer.")
    return {name.removesuffix(".velocity"): v / -lr for name, v in found.items()}


def test_N_scales_the_likelihood_and_the_gaussian_prior_alone(run, untrained):
    """grad U(2N) - 2 grad U(N) is minus the part that does not know N: the spike and slab of the sparse layers."""
    path, lr = untrained(), 1e-9
    flags = (*TINY, "-sn", 1, "-milestones", "-train", 1437, "-aug", 0, "-prune", 1, "-c", "sghmc", "-sparse", 0)
    flags = (*flags, "-pretrained", path, "-lr", lr, "-invT", 1e30, "-wdecay", 0.5, "-sd", 0.5)
    one, two = (gradient(run(*flags, "-N", n, name=str(n)), lr) for n in (10, 20))
    for name, beta in load_file(path).items():
        if name not in one:
            continue
        left, prior = 2 * one[name] - two[name], torch.zeros_like(beta)
        if name in PRUNABLE:
            prior = 0.5 * beta.sign() / 0.5 + 0.5 * beta / 0.5**2  # kappa0 = kappa1 = wdecay
        torch.testing.assert_close(left, prior, rtol=1e-3, atol=1e-2)


def latent_variables(path: Path, iterations: int, **given) -> dict[str, np.ndarray]:
    """Eq. (5), (6), (8), (7) in float64 at weights that stay, straight from the specification."""
    f = {"c": "sa", "v0": 0.005, "v1": 1e-5, "a": 2.7e5, "b": 2.7e5, "nu": 1e3, "lamda": 1e3, "sd": 1, "theta": 0.5,
         "dc": 0.02, "da": 1000, "dalpha": 0.75, "wdecay": 5e-4, "fix_scale": 0} | given  # fmt: skip
    names = ResNet(8, (1, 12, 12), 2).sparse_layers
    betas = [load_file(path)[name].double().numpy() for name in names]
    rhos, kappas0, kappas1 = ([np.full(b.shape, value) for b in betas] for value in (0.5, f["wdecay"], f["wdecay"]))
    deltas, sigma2 = [f["theta"]] * len(betas), f["sd"] ** 2
    for k in range(1, iterations + 1):
        omega = {"sa": f["dc"] / (f["da"] + k + 1) ** f["dalpha"], "em": 1, "sghmc": 0}[f["c"]]
        for i, beta in enumerate(betas):
            log_a = stats.norm.logpdf(beta, scale=f["v1"] ** 0.5) + math.log(deltas[i])
            log_b = stats.laplace.logpdf(beta, scale=f["v0"]) + math.log(1 - deltas[i])
            rhos[i] = (1 - omega) * rhos[i] + omega * expit(log_a - log_b)
            kappas0[i] = (1 - omega) * kappas0[i] + omega * (1 - rhos[i]) / f["v0"]
            kappas1[i] = (1 - omega) * kappas1[i] + omega * rhos[i] / f["v1"]
            if not f["fix_scale"]:
                rate = (rhos[i].sum() + f["a"] - 1) / (f["a"] + f["b"] + beta.size - 2)
                deltas[i] = (1 - omega) * deltas[i] + omega * rate
        if not f["fix_scale"]:
            c_a = sum(b.size for b in betas) + f["nu"] + 2
            c_b = sum((kappa * abs(b)).sum() for kappa, b in zip(kappas0, betas, strict=True))
            c_c = sum((kappa * b**2).sum() for kappa, b in zip(kappas1, betas, strict=True)) + f["nu"] * f["lamda"]
            sigma = (c_b + math.sqrt(c_b**2 + 4 * c_a * c_c)) / (2 * c_a)
            sigma2 = (1 - omega) * sigma2 + omega * sigma**2
    found = {"delta": np.array(deltas), "sigma2": np.array(sigma2)}
    for name, values in (("rho", rhos), ("kappa0", kappas0), ("kappa1", kappas1)):
        found |= {f"{name}.{i}": value for i, value in enumerate(values)}
    return found


EASY = {"v0": 0.1, "v1": 0.01, "a": 50, "b": 80, "nu": 30, "lamda": 2, "dc": 2, "da": 3}  # omega is felt
LATENT = [
    {},
    {"c": "em"},
    {"c": "sghmc"},
    EASY,
    EASY | {"theta": 0.2},
    EASY | {"theta": 0.9, "c": "em"},
    EASY | {"sd": 3},
    EASY | {"a": 5000},
    EASY | {"b": 5000},
    EASY | {"nu": 5e4},
    EASY | {"lamda": 500},
    EASY | {"v0": 0.5},
    EASY | {"v1": 1.0},
    EASY | {"dc": 1},
    EASY | {"da": 30},
    EASY | {"dalpha": 0.5},
    EASY | {"wdecay": 0.3},
    EASY | {"fix_scale": 1, "sd": 2, "theta": 0.3},
    EASY | {"fix_scale": 1, "c": "em"},
]


@pytest.mark.parametrize("given", LATENT, ids=str)
def test_the_latent_variables_are_those_of_the_specification(few, tmp_path, given):
    """After 6 iterations at weights that stay; every case is a change of the case EASY, so every flag is felt."""
    flags = itertools.chain(*((f"-{name}", value) for name, value in given.items()))
    result = few(*flags, *STILL, "-sparse", 0)
    found, expected = checkpoint(result, "prior."), latent_variables(tmp_path / "untrained.safetensors", 6, **given)
    assert int(found.pop("k")) == 6 and found.keys() == expected.keys()
    for name, x in found.items():
        np.testing.assert_allclose(x.numpy(), expected[name], rtol=2e-4, atol=1e-6, err_msg=name)
    if given not in ({}, EASY):
        plain = latent_variables(tmp_path / "untrained.safetensors", 6, **(EASY if "dc" in given else {}))
        assert any(not np.allclose(expected[name], plain[name], rtol=1e-3) for name in plain)
    table = metrics(result)
    assert table["sigma"].iloc[-1] == pytest.approx(math.sqrt(expected["sigma2"]), rel=1e-4)
    assert table["delta"].iloc[-1] == pytest.approx(expected["delta"].mean(), rel=1e-4)


def test_the_methods_differ_in_nothing_but_omega(few):
    results = {c: few("-c", c, name=c) for c in ("sa", "em", "sghmc")}
    tables = {c: metrics(result) for c, result in results.items()}
    for a, b in itertools.combinations(results.values(), 2):
        assert not same_weights(weights(a), weights(b))
    assert (tables["sghmc"]["rho_q05"] == 0.5).all() and (tables["sghmc"]["sigma"] == 1).all()
    assert (tables["sghmc"]["kappa0_q50"] == np.float32(5e-4)).all()
    assert (tables["sa"]["rho_q50"] != 0.5).all() and (tables["em"]["rho_q50"] != tables["sa"]["rho_q50"]).all()
    for name in ("lr", "temperature_claimed", "sparsity"):
        assert tables["sa"][name].equals(tables["em"][name]) and tables["sa"][name].equals(tables["sghmc"][name])


@pytest.mark.parametrize(
    "sparse, cut, gap", [(0.9, 0.99, 50), (0.9, 0.9, 10), (0.3, 0.9, 10), (0.5, 0.5, 7), (0.9, 0.01, 0.5)]
)
@pytest.mark.parametrize("pruning", ["weight", "rho"])
def test_the_sparsity_follows_its_schedule(few, sparse, cut, gap, pruning):
    table = metrics(few("-sparse", sparse, "-cut", cut, "-gap", gap, "-pruning", pruning, "-sn", 3))
    net = ResNet(8, (1, 12, 12), 2)
    layers, total = dict(net.named_parameters()), sum(p.numel() for p in net.parameters())
    layers = {name: layers[name].numel() for name in net.sparse_layers}
    expected = [pruned(sparse, cut, gap, iterations, layers, total) for iterations in (3, 6, 9)]
    assert table["sparsity"].tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("target", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("pruning", ["weight", "rho"])
def test_the_whole_network_reaches_its_target(few, target, pruning):
    """To 0.1% of the network: S* of a layer is a multiple of 0.001."""
    result = few("-preset", target, "-pruning", pruning, *QUICK, "-sn", 5)
    assert 0 <= target - result.table["sparsity"].item() < 1e-3
    zeros = sum(int((w == 0).sum()) for name, w in weights(result).items() if name in DIGITS.sparse_layers)
    assert result.table["sparsity"].item() == zeros / (zeros + result.table["parameters_kept"].item())


def test_unit_pruning_removes_whole_filters(from_untrained):
    result = from_untrained("-pruning", "unit", "-sparse", 0.5, *QUICK)
    whole = math.floor(1000 * 0.5 * PARAMETERS / sum(PRUNABLE.values())) / 1000
    for name, w in weights(result).items():
        if name in PRUNABLE:
            norms = w.flatten(1).norm(dim=1)
            assert (norms == 0).sum() == math.floor(whole * len(w)), name
            assert ((w == 0).flatten(1).all(1) == (norms == 0)).all()
    assert result.table["pruning"].item() == "unit"


def test_pruning_by_rho_drops_the_least_probable_weights(few):
    flags = ("-sparse", 0.5, *QUICK, "-c", "em", "-v0", 0.1, "-v1", 5e-4)
    masks = {}
    for rule in ("rho", "weight"):
        result = few(*flags, "-pruning", rule, name=rule)
        keep, prior = checkpoint(result, "pruner.keep."), checkpoint(result, "prior.rho.")
        masks[rule] = keep
        ordered = [float(prior[i][~keep[i]].max()) <= float(prior[i][keep[i]].min()) for i in keep]
        assert all(ordered) == (rule == "rho"), rule
        for i, name in enumerate(DIGITS.sparse_layers):
            assert (weights(result)[name][~keep[str(i)]] == 0).all()
    assert not same_weights(masks["rho"], masks["weight"])


def test_nothing_else_is_pruned(sparse, dense):
    for name, w in parameters(sparse).items():
        if name not in PRUNABLE:
            assert ((w == 0) == (parameters(dense)[name] == 0)).all(), name


def test_a_schedule_is_squeezed_as_the_specification_says(few):
    """R = T0 / T: lr R, gap / R, A / R, C R^(1 - alpha), anneal^(1000 / epochs), milestones at 70% and 90%."""
    flags = ("-sn", 10, "-sparse", 0.5, "-v0", 0.1, "-v1", 5e-4, "-lr", 1e-13, "-anneal", 1.005, "-invT", 1000)
    short = metrics(few(*flags, "-scale_to", 50000))
    ratio = 50000 / 30
    by_hand = ("-lr", 1e-13 * ratio, "-gap", 50 / ratio, "-da", 1000 / ratio, "-dc", 0.02 * ratio**0.25)
    by_hand = (*flags, *by_hand, "-anneal", 1.005 ** (1000 / 10), "-milestones", 7, 9)
    pd.testing.assert_frame_equal(short, metrics(few(*by_hand, name="by_hand")), rtol=1e-3, atol=1e-6)
    lr = 1e-13 * ratio * np.array([1] * 7 + [0.1] * 2 + [0.01])
    assert short["lr"].to_numpy() == pytest.approx(lr)
    assert short["temperature_claimed"].to_numpy() == pytest.approx(1e-3 * 1.005 ** (-100 * np.arange(10)))
    assert 0.499 < short["sparsity"].iloc[-1] <= 0.5  # 0.99^(30 R / 50) is nothing
    assert short["rho_q50"].iloc[-1] != metrics(few(*flags, name="long"))["rho_q50"].iloc[-1]


def test_the_scale_of_a_run_of_that_length_is_no_change(few):
    same = metrics(few("-sn", 4, *STILL, name="plain")), metrics(few("-sn", 4, "-scale_to", 12, *STILL))
    columns = ["lr", "sparsity", "rho_q50", "delta", "sigma"]  # annealing counts epochs of 50 iterations
    pd.testing.assert_frame_equal(same[0][columns], same[1][columns])


@pytest.mark.parametrize(
    "epochs, flags, factors",
    [
        (10, (), [1] * 7 + [0.1] * 2 + [0.01]),
        (4, ("-milestones", 1, 3), [1, 0.1, 0.1, 0.01]),
        (3, ("-milestones",), [1, 1, 1]),
        (3, ("-milestones", 0), [0.1, 0.1, 0.1]),
    ],
    ids=str,
)
def test_the_step_size_falls_at_the_milestones(few, epochs, flags, factors):
    table = metrics(few("-sn", epochs, "-lr", 1e-9, *flags))
    assert table["lr"].to_numpy() == pytest.approx(1e-9 * np.array(factors))


@pytest.mark.parametrize("prune", [0, 1])
def test_annealing_lowers_the_temperature_of_every_epoch(few, prune):
    table = metrics(few("-prune", prune, "-sn", 3, "-anneal", 2, "-invT", 50))
    assert table["temperature_claimed"].to_numpy() == pytest.approx([1 / 50, 1 / 100, 1 / 200])


def test_the_published_annealing_is_that_of_the_sparse_run(few):
    for prune, anneal in ((0, 1), (1, 1.005)):
        claimed = metrics(few("-prune", prune, "-sn", 3, name=str(prune)))["temperature_claimed"]
        assert claimed.to_numpy() == pytest.approx([1 / (prune or 20) / 1000 / anneal**k for k in range(3)])


@pytest.mark.parametrize("milestones, shares", [((), (0.5, 0.5)), ((1,), (10 / 11, 1 / 11))], ids=["equal", "by step"])
def test_the_average_is_over_the_last_epochs_weighted_by_step_size(few, milestones, shares):
    flags = ("-milestones", *milestones)
    saved = [load_file(few("-sn", sn, *flags, name=str(sn)) / "predictions.safetensors") for sn in (1, 2)]
    result = few("-sn", 2, "-average", 2, *flags)
    expected = sum(share * each["probabilities_last"] for share, each in zip(shares, saved, strict=True))
    averaged = load_file(result / "predictions.safetensors")
    assert (saved[0]["probabilities_last"] - saved[1]["probabilities_last"]).abs().max() > 1e-3
    torch.testing.assert_close(averaged["probabilities"], expected, rtol=1e-5, atol=1e-7)
    row = result.table.iloc[0]
    right = expected.argmax(-1) == averaged["labels"]
    assert row["accuracy_averaged"] == pytest.approx(100 * right.double().mean().item())
    assert row["samples"] == 2 and metrics(result)["samples"].tolist() == [1, 2]
    assert metrics(result)["nll_averaged"].iloc[-1] == row["nll_averaged"] == result.summary["nll_averaged"]
    assert same_weights(weights(result), {**weights(few("-sn", 2, *flags, name="2"))})


def test_the_average_of_one_epoch_is_the_last_one(few):
    (row,) = few("-average", 1).table.to_dict("records")
    for name in SCORES:
        assert row[f"{name}_averaged"] == pytest.approx(row[name]) == pytest.approx(row[f"{name}_best_sample"])


def test_validation_does_not_look_at_the_test_images(from_untrained, monkeypatch):
    """The same numbers with black test images of one class, and other numbers without -val."""
    flags, load = ("-val", 0.2, *QUICK, "-average", 1), images.load
    clean = from_untrained(*flags, name="clean")

    def spoiled(*args, **kwargs) -> ImageData:
        data = load(*args, **kwargs)
        return ImageData(data.classes, data.train, MemoryImages(data.test.x * 0, data.test.y * 0))

    monkeypatch.setattr(images, "load", spoiled)
    again = from_untrained(*flags, name="again")
    for name in ("table.csv", "metrics.csv", "predictions.safetensors"):
        assert (again / name).read_bytes() == (clean / name).read_bytes(), name
    assert clean.summary["evaluated_on"] == "validation"
    assert len(load_file(clean / "predictions.safetensors")["labels"]) == math.ceil(0.2 * 1437)
    assert metrics(clean)["iterations"].tolist() == [11, 22]


def test_augmentation_changes_the_training_and_repeats(few):
    first, again = (weights(few("-aug", 1, name=name)) for name in "ab")
    assert same_weights(first, again) and same_weights(first, weights(few(name="default")))
    plain = few("-aug", 0, name="plain")
    assert not same_weights(first, weights(plain)) and plain.table["aug"].item() == 0


def test_another_seed_is_another_run(few):
    assert not same_weights(weights(few("-seed", 2, name="2")), weights(few("-seed", 3, name="3")))


def test_the_minibatch_of_the_evaluation_changes_nothing(few):
    one, other = few("-test", 1000, name="one"), few("-test", 5, name="other")
    assert same_weights(weights(one), weights(other))
    assert one.table["nll"].item() == pytest.approx(other.table["nll"].item(), rel=1e-5)


def test_several_seeds_start_from_their_own_dense_networks(run, tmp_path):
    """A sparse run of two seeds, of one alone, and of both from two dense runs give the same rows."""
    dense = run(*TINY, "-seed", 2, "-seeds", 2, "-aug", 0, name=None)
    flags = (*TINY, "-prune", 1, "-aug", 0, *QUICK)
    both = run(*flags, "-seed", 2, "-seeds", 2, name="both")
    runs = tmp_path / "empty/runs/bayes_cnn"
    (folder,) = runs.iterdir()
    assert folder.name == "dense_digits_resnet8_seed2_seeds2" and str(folder.name) in dense.stdout
    started = pd.read_csv(folder / "table.csv")
    for seed in (2, 3):
        alone = run(*flags, "-seed", seed, name=f"alone{seed}")
        for name in ("table.csv", "metrics.csv", "model.safetensors", "predictions.safetensors"):
            assert (both / f"seed{seed}" / name).read_bytes() == (alone / name).read_bytes(), name
        assert alone.table["nll_dense"].item() == pytest.approx(started["nll"][started["seed"] == seed].item())
    assert started["nll"].nunique() == 2 and both.table["seed"].tolist() == [2, 3]
    assert both.summary["accuracy"] == pytest.approx(both.table["accuracy"].mean()) and both.summary["seeds"] == 2
    assert f"+- {both.table['nll'].std():.4f}" in both.stdout


def test_a_seed_that_has_no_dense_network_is_named(run, refused, tmp_path):
    run(*TINY, name=None)
    message = refused(bayes_cnn, *TINY, "-prune", 1, "-seeds", 2)
    assert "dense_digits_resnet8_seed2" in message and "-seed 2" in message


def test_another_network_is_started_from_on_request(run, dense, tmp_path):
    """A folder, a safetensors file and a state_dict of PyTorch are the same."""
    torch.save(weights(dense), tmp_path / "weights.pt")
    found = [
        run(*RELEASED_SPARSE, *TINY, *QUICK, "-pretrained", path, name=f"run{i}")
        for i, path in enumerate((dense.folder, dense / "model.safetensors", tmp_path / "weights.pt"))
    ]
    for other in found[1:]:
        assert same_weights(weights(found[0]), weights(other))
        assert (found[0] / "table.csv").read_bytes() == (other / "table.csv").read_bytes()


def test_a_dense_run_may_start_from_a_network_too(run, dense):
    result = run(*TINY, *STILL, "-pretrained", dense.folder)
    assert same_weights(parameters(result), parameters(dense))
    assert result.table["nll_dense"].item() == pytest.approx(dense.table["nll"].item(), rel=1e-6)


def test_a_default_folder_of_a_network_from_elsewhere_is_one_folder(run, untrained, tmp_path):
    run(*TINY, "-sn", 1, "-prune", 1, "-pretrained", untrained(), name=None)
    (folder,) = (tmp_path / "empty/runs/bayes_cnn").iterdir()
    assert (folder / "summary.json").exists()


def test_the_network_is_not_kept_on_request(few):
    assert files(few("-save", 0).folder) == FILES - {"model.safetensors"}


def test_a_finished_run_prints_its_table_and_stays(few):
    first = few()
    before = contents(first.folder)
    again = few("-resume", 1)
    assert contents(first.folder) == before and again.stderr == ""
    assert again.stdout == first.stdout


def test_the_published_accuracy_stands_beside_ours(capsys):
    row = dict.fromkeys(NUMBERS, 0.5) | dict(zip(KEY, ("cifar10", "resnet20", 1, "sa", 0.9, "weight", 1), strict=True))
    bayes_cnn.show(pd.DataFrame([row, row | {"seed": 2}]), annealed=True)
    assert "91.68" in capsys.readouterr().out
    bayes_cnn.show(pd.DataFrame([row | {"target": 0.8}]), annealed=True)
    assert "91.68" not in capsys.readouterr().out


def colour_tree(root: Path) -> Path:
    """cifar10/{train,test}/<class>/*.png with small colour images."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 30), ("test", 8)):
        for level, name in enumerate(("cat", "dog"), 1):
            folder = root / "cifar10" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(80 * level, size=(12, 12, 3), dtype=np.uint8)).save(
                    folder / f"{i:03d}.png"
                )
    return root


@pytest.mark.parametrize("kind", ["cifar10", "mnist", "fmnist", "folder", "scaled"])
def test_kinds_of_images(run, idx_files, pictures, tmp_path, kind):
    places = {
        "cifar10": lambda: ("cifar10", colour_tree(tmp_path / "colour"), 2, 3),
        "mnist": lambda: ("mnist", idx_files, 10, 1),
        "fmnist": lambda: ("fmnist", idx_files, 10, 1),
        "folder": lambda: ("folder", pictures(), 2, 1),
        "scaled": lambda: ("folder", pictures(), 2, 1),
    }
    data, folder, classes, channels = places[kind]()
    size = ("-size", 9) if kind == "scaled" else ()
    flags = ("-data", data, "-data_dir", folder, *size, "-depth", 8, "-sn", 1, "-train", 30)
    run(*flags, name=None)
    result = run(*flags, "-prune", 1, "-average", 1)
    assert result.table["data"].item() == data
    assert load_file(result / "predictions.safetensors")["probabilities"].shape[1] == classes
    assert weights(result)["conv1.weight"].shape[1] == channels


def test_images_of_a_folder_are_learnt(run, pictures):
    """Brightness tells them apart; chance is 50%."""
    flags = ("-data", "folder", "-data_dir", pictures(), "-depth", 8, "-sn", 8, "-train", 20, "-lr", 1e-3)
    assert run(*flags).table["accuracy"].item() > 80


def test_depth_is_that_of_the_network(few, run, pictures, tmp_path):
    flags = ("-data", "folder", "-data_dir", tmp_path / "pictures", "-sn", 1, "-train", 30)
    for depth in (14, 44):
        result = run(*flags, "-depth", depth, name=str(depth))
        expected = ResNet(depth, (1, 12, 12), 2)
        assert weights(result).keys() == expected.state_dict().keys()
        assert result.table["model"].item() == f"resnet{depth}"
        assert result.table["parameters_kept"].item() == sum(p.numel() for p in expected.parameters())


def test_a_finished_run_is_exported(sparse, dense, run, tmp_path):
    """Its files stay, and the compact network is the same one in fewer bytes."""
    before, out = contents(sparse.folder), tmp_path / "exported"
    flags = (*RELEASED_SPARSE, *TINY, *QUICK, "-pretrained", dense.folder)
    result = run(*flags, "-resume", 1, "-export", out, name=sparse.folder)
    assert contents(sparse.folder) == before and files(out) == EXPORTED
    net = load_compressed(out / "network.safetensors")
    assert same_weights(net.state_dict(), weights(sparse)) and not net.training
    assert accuracy(net) == pytest.approx(sparse.table["accuracy"].item())
    assert (out / "network.safetensors").stat().st_size < 0.3 * (sparse / "model.safetensors").stat().st_size
    layers = pd.read_csv(out / "layers.csv").set_index("layer")
    for name, size in PRUNABLE.items():
        assert layers.loc[name, "parameters"] == size
        assert layers.loc[name, "kept"] == int((weights(sparse)[name] != 0).sum())
    assert str(out) in result.stdout and "layer1.0.conv1.weight" in result.stdout


@pytest.mark.slow
def test_several_seeds_are_exported_in_half_precision(few, tmp_path):
    out = tmp_path / "exported"
    result = few("-sparse", 0.5, *QUICK, "-seeds", 2, "-export", out, "-half", 1)
    assert files(out) == {f"seed{seed}/{name}" for seed in (1, 2) for name in EXPORTED}
    for seed in (1, 2):
        state, half = (
            load_file(result / f"seed{seed}/model.safetensors"),
            load_compressed(out / f"seed{seed}/network.safetensors").state_dict(),
        )
        assert same_weights(
            half, {name: w.half().to(w.dtype) if w.is_floating_point() else w for name, w in state.items()}
        )
