"""What all image scripts refuse alike: values out of range, unusable data and folders, another run's folder.

What only one of them refuses, and what it says when a chain diverges, is in its own test_<script>_refused.py.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from dataclasses import dataclass

import pytest
import torch

from experiment.run import NOT_IDENTITY

# what is allowed, and what is not
WRONG = {
    "a number > 0": (0, -1, "nan", "inf", "x"),
    "a number >= 0": (-1, "nan", "inf", "x"),
    "a number >= 1": (0.9, -1, "nan", "inf", "x"),
    "a number in [0, 1)": (1, -0.1, "nan", "x"),
    "a number in (0, 1)": (0, 1, "nan", "x"),
    "a number in (0, 1]": (0, 1.1, "nan", "x"),
    "a whole number >= 1": (0, -1, 1.5, "nan", "x"),
    "a whole number >= 0": (-1, 1.5, "x"),
    "a whole number in [0, 2^32)": (-1, 2**32, "x"),
    "0 or 1": (2, -1, "yes"),
}
NUMBERS = {  # the flags of all four scripts
    "a number > 0": "-lr",
    "a number >= 0": "-save_every",
    "a number in [0, 1)": "-val",
    "a whole number >= 1": "-size -sn -train -test -seeds",
    "a whole number >= 0": "-workers",
    "a whole number in [0, 2^32)": "-seed",
    "0 or 1": "-aug -amp -compile -resume -save -tensorboard",
}
BAD = [  # of all four, on 1437 digits of 8 x 8
    (("-data", "imagenet"), ("-data", "imagenet", "mnist", "cifar10")),
    (("-data", "folder"), ("-data folder", "-data_dir")),
    (("-data", "cifar10", "-data_dir", "/dev/null"), ("cifar-10-python.tar.gz", "/dev/null")),
    (("-device", "tpu"), ("-device", "tpu", "cuda:N")),
    (("-device", "meta"), ("-device", "meta", "cuda:N")),
    (("-device", "cuda:99"), ("-device", "cuda:99")),
    (("-train", 1438), ("-train", "1438", "1437")),
    (("-train", 144, "-val", 0.9), ("-train", "144", "143")),
    (("-val", 0.001), ("stratified", "1437")),
    (("-val", 0.999), ("stratified", "1437")),
    (("-unknown", 1), ("-unknown",)),
    (("-see", 1), ("-see",)),  # no abbreviations
    (("-n", 1), ("-n",)),
    (("stray",), ("stray",)),
]


@dataclass(frozen=True)
class Script:
    """What one script has beside that.

    tiny: flags of a small run.  numbers, bad: as above.  others: flags of another run, and what is said of them in
    the folder of the tiny one.  alone: bad flags, and the start of the message.  choices: flags with types and choices.
    """

    tiny: tuple
    numbers: dict[str, str]
    bad: list[tuple[tuple, tuple]]
    others: list[tuple[tuple, str]]
    alone: tuple[tuple, str]
    choices: frozenset[str] = frozenset()
    export: bool = True


SCRIPTS = {
    "bayes_cnn": Script(
        tiny=("-data", "digits", "-depth", 8, "-sn", 2, "-train", 100),
        numbers={
            "a number > 0": "-invT -v0 -v1 -nu -lamda -sd -dc -gap -N",
            "a number >= 0": "-wdecay -da",
            "a number >= 1": "-anneal -a -b",
            "a number in [0, 1)": "-momentum -sparse",
            "a number in (0, 1)": "-cut -theta",
            "a number in (0, 1]": "-dalpha",
            "a whole number >= 1": "-depth -scale_to",
            "a whole number >= 0": "-average -gpu",
            "0 or 1": "-fix_scale -prune -half",
        },
        bad=[
            (("-c", "adam"), ("-c", "adam", "sghmc")),
            (("-pruning", "layer"), ("-pruning", "layer", "unit")),
            (("-preset", 0.8), ("-preset", "0.8", "0.9")),
            (("-preset", "x"), ("-preset", "x")),
            (("-milestones", 1, -1), ("-milestones", "-1")),
            (("-milestones", 1.5), ("-milestones", "1.5", "a whole number")),
            (("-momentum", 0.9, "-lr", 10), ("-momentum", "0.9", "10")),
            (("-depth", 21), ("-depth", "21", "6 n + 2")),
            (("-depth", 2), ("-depth", "2", "6 n + 2")),
            (("-depth", 21, "-prune", 1), ("-depth", "21", "6 n + 2")),
            (("-spars", 0.5), ("-spars",)),
        ],
        others=[
            (("-train", 200), "-train 100, not 200"),
            (("-sn", 3), "holds a run with -"),
            (("-lr", 1e-6), "-lr 2e-06, not 1e-06"),
            (("-depth", 14), "-depth 8, not 14"),
            (("-N", 5), "-N None, not 5"),
            (("-milestones", 1), "-milestones "),
            (("-aug", 0), "-aug 1, not 0"),
        ],
        alone=(("-depth", 21), "argument -depth: "),
        choices=frozenset(("-preset", "-milestones")),
    ),
    "posterior_cnn": Script(
        tiny=("-data", "digits", "-sn", 3, "-burn", 1, "-train", 128, "-thin", 5),
        numbers={
            "a number > 0": "-invT -v0 -v1 -nu -lamda -sd -dc -gap",
            "a number >= 0": "-wdecay -da",
            "a number >= 1": "-anneal -a -b",
            "a number in [0, 1)": "-momentum -sparse",
            "a number in (0, 1)": "-cut",
            "a number in (0, 1]": "-dalpha",
            "a whole number >= 1": "-thin -attack_images -pgd_steps",
            "a whole number >= 0": "-burn -pgd_images",
            "0 or 1": "-fix_scale -prune -attack -save_samples",
        },
        bad=[
            (("-c", "adam"), ("-c", "adam", "sghmc")),
            (("-model", "mlp"), ("-model", "mlp", "convnet-bn")),
            (("-ood", "folder"), ("-ood", "folder", "fmnist")),
            (("-momentum", 0.9, "-lr", 10), ("-momentum", "0.9", "10")),
            (("-momentum", 0.999, "-lr", 0.01), ("-momentum", "0.999", "0.01")),
            (("-burn", 3), ("no sample", "3 of burn-in")),
            (("-burn", 4, "-thin", 1), ("no sample", "4 of burn-in")),
            (("-thin", 23), ("-thin", "no sample", "23")),
            (("-prune", 1, "-sparse", 0.5), ("-sparse", "0.5", "0.485")),
            (("-prune", 1, "-sparse", 0.5, "-c", "vanilla"), ("-sparse", "0.5", "0.485")),
            (("-aug", 1), ("9 x 9", "8 x 8")),
        ],
        others=[
            (("-train", 64), "-train 128, not 64"),
            (("-lr", 1e-6), "-lr None, not 1e-06"),
            (("-c", "em"), "-c sa, not em"),
        ],
        alone=(("-train", 1438), "argument -train: 1438 is more than the 1437 "),
        export=False,
    ),
    "sbp_cnn": Script(
        tiny=("-data", "digits", "-scale", 0.05, "-train", 128, "-sn", 3, "-dense_sn", 2, "-speed", 0),
        numbers={
            "a number > 0": "-noise_lr -scale",
            "a number >= 0": "-l2 -kl_weight -kl_layers -snr",
            "a number in [0, 1)": "-beta1",
            "a whole number >= 1": "-dense_sn",
            "a whole number >= 0": "-decay -warmup -threshold_sweep -finetune",
            "0 or 1": "-allow_empty -speed",
        },
        bad=[
            (("-data", "imagenet"), ("-data", "imagenet", "mnist-random")),
            (("-data", "digits-random"), ("-data", "digits-random", "cifar10-random")),
            (("-data", "cifar10-random", "-data_dir", "/dev/null"), ("cifar-10-python.tar.gz", "/dev/null")),
            (("-data", "mnist", "-data_dir", "/dev/null"), ("/dev/null", "MNIST")),
            (("-model", "resnet"), ("-model", "resnet", "lenet-fc", "vgglike")),
            (("-c", "vd"), ("-c", "vd", "sparsevd")),
            (("-decay", 4), ("-decay", "4", "3 epochs")),
            (("-c", "dense", "-decay", 4), ("-decay", "4", "3 epochs")),
            (("-c", "dense", "-threshold_sweep", 3), ("-threshold_sweep", "-c dense")),
            (("-c", "ssl", "-threshold_sweep", 3), ("-threshold_sweep", "-c ssl")),
            (("-c", "sparsevd", "-threshold_sweep", 1), ("-threshold_sweep", "-c sparsevd")),
            (("-model", "lenet5"), ("-model", "lenet5", "16 x 16", "8 x 8")),
            (("-model", "vgglike"), ("-model", "vgglike", "32 x 32", "8 x 8")),
            (("-kl_layers", 1, 1, 1, 1), ("-kl_layers", "4 weights", "3 layers")),
            (("-c", "ssl", "-kl_layers", 1), ("-kl_layers", "-c ssl")),
            (("-c", "sparsevd", "-snr", 2), ("-snr", "-c sparsevd")),
            (("-c", "ssl", "-noise_lr", 3), ("-noise_lr", "-c ssl")),
            (("-c", "dense", "-kl_weight", 2), ("-kl_weight", "-c dense")),
            (("-c", "dense", "-warmup", 2), ("-warmup", "-c dense")),
            (("-spee", 1), ("-spee",)),
            (("-kl", 1), ("-kl",)),
        ],
        others=[
            (("-train", 64), "-train 128, not 64"),
            (("-c", "ssl"), "-c sbp, not ssl"),
            (("-model", "lenet5", "-data", "mnist"), ""),
            (("-scale", 0.1), "-scale 0.05, not 0.1"),
            (("-snr", 2), "-snr 1.0, not 2.0"),
            (("-kl_weight", 2), "-kl_weight 1.0, not 2.0"),
            (("-kl_layers", 2, 3), "-kl_layers [], not [2.0, 3.0]"),
            (("-lr", 1e-5), "-lr 0.001, not 1e-05"),
            (("-finetune", 2), "-finetune 0, not 2"),
            (("-seeds", 2), "-seeds 1, not 2"),
            (("-dense_sn", 1), "-dense_sn 2, not 1"),
        ],
        alone=(("-decay", 4), "argument -decay: "),
    ),
    "em_cnn": Script(
        tiny=("-data", "digits", "-model", "resnet20", "-sn", 4, "-cycles", 2, "-samples_per_cycle", 1, "-train", 200),
        numbers={
            "a number > 0": "-scale -eps0 -eps1",
            "a number >= 0": "-eta -temperature -soft -hard",
            "a number in [0, 1)": "-momentum",
            "a whole number >= 1": "-samples_per_cycle -cycles",
            "a whole number >= 0": "-warmup",
            "0 or 1": "-dense -speed",
        },
        bad=[
            (("-model", "vgg16"), ("-model", "vgg16", "densenet")),
            (("-c", "adam"), ("-c", "adam", "em", "sgd")),
            (("-group", "row"), ("-group", "row", "kernel", "filter", "channel")),
            (("-rule", "norm"), ("-rule", "norm", "range", "square")),
            (("-warmup", 4), ("-warmup", "4 of 4 epochs", "the run would never prune")),
            (("-warmup", 300), ("-warmup", "300 of 4 epochs", "the run would never prune")),
            (("-sn", 5), ("-sn", "5 epochs", "no multiple of 2 cycles")),
            (("-sn", 5, "-c", "sgd"), ("-sn", "5 epochs", "no multiple of 2 cycles")),
            (("-cycles", 5), ("-cycles", "5", "4 epochs")),
            (("-samples_per_cycle", 3), ("-samples_per_cycle", "3 of a cycle of 2 epochs")),
            (("-eps0", 1e-4), ("-eps0", "0.0001", "eps1 = 0.0005")),
            (("-eps0", 1e-4, "-dense", 1), ("-eps0", "0.0001", "eps1 = 0.0005")),
            (("-temperature", 1e25), ("-temperature", "1e+25", "overflows")),
            (("-temperature", 1e200, "-dense", 1), ("-temperature", "1e+200", "overflows")),
            (("-scale", 0.5), ("-scale", "resnet20 has one width", "densenet")),
            (("-scale", 0.5, "-model", "resnet18"), ("-scale", "resnet18 has one width", "densenet")),
            (("-warm", 1), ("-warm",)),
            (("-s", 1), ("-s",)),
        ],
        others=[
            (("-train", 100), "-train 200, not 100"),
            (("-c", "sgd"), "holds a run with -"),
            (("-lr", 0.5), "-lr 1.0, not 0.5"),
            (("-warmup", 2), "-warmup 1, not 2"),
            (("-dense", 1), "-dense 0, not 1"),
            (("-hard", 0.1), "-hard 0.01, not 0.1"),
            (("-group", "filter"), "-group kernel, not filter"),
            (("-temperature", 0), "-temperature None, not 0.0"),
            (("-model", "resnet18"), "-model resnet20, not resnet18"),
        ],
        alone=(("-warmup", 4), "argument -warmup: "),
    ),
}
EXPORTING = [name for name, script in SCRIPTS.items() if script.export]
NO_SAVE = [(("-export", "there", "-save", 0), ("-export", "-save 1"))]


def text(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def numbers(name: str) -> dict[str, list[str]]:
    """All flags of a script that take numbers, by what they allow."""
    both = {allowed: [*NUMBERS.get(allowed, "").split(), *SCRIPTS[name].numbers.get(allowed, "").split()]
            for allowed in WRONG}  # fmt: skip
    return {allowed: flags for allowed, flags in both.items() if flags}


@pytest.fixture
def module(name):
    return importlib.import_module(name)


@pytest.fixture
def tiny(name, module, refused):
    """tiny(*flags): the one line with which the script refuses them, behind those of a small run."""
    return lambda *flags: refused(module, *SCRIPTS[name].tiny, *flags)


every_script = pytest.mark.parametrize("name", SCRIPTS)
exporting_scripts = pytest.mark.parametrize("name", EXPORTING)


@every_script
def test_the_range_of_every_number_is_known(name, module):
    parser, _ = module.parse([])
    checked = {action.option_strings[0] for action in parser._actions if action.type}
    assert checked - SCRIPTS[name].choices == set(itertools.chain(*numbers(name).values()))


@pytest.mark.parametrize("name, allowed", [(name, allowed) for name in SCRIPTS for allowed in numbers(name)])
def test_numbers_out_of_range_are_refused(name, tiny, allowed):
    for flag, value in itertools.product(numbers(name)[allowed], WRONG[allowed]):
        assert tiny(flag, value).endswith(f"error: argument {flag}: must be {allowed}, not '{value}'")


REFUSED = [
    (name, *case)
    for name, script in SCRIPTS.items()
    for case in itertools.chain(BAD, script.bad, NO_SAVE if script.export else ())
]


@pytest.mark.parametrize("name, flags, words", REFUSED, ids=[f"{name} {text(flags)}" for name, flags, _ in REFUSED])
def test_bad_input_is_one_line_and_writes_nothing(tiny, flags, words):
    message = tiny(*flags)
    assert all(word in message for word in words), message


@every_script
def test_bad_input_in_a_process_of_its_own(name, script, tmp_path):
    flags, start = SCRIPTS[name].alone
    result = script.run(f"{name}.py", *SCRIPTS[name].tiny, *flags, out=tmp_path / "run")
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1 and result.stderr.startswith(f"{name}.py: error: {start}")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:2"])
@every_script
def test_a_gpu_that_is_not_there_is_refused(tiny, device):
    message = tiny("-device", device)
    assert "-device" in message and "0 GPUs" in message


@every_script
def test_tensorboard_that_is_not_installed_is_refused(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "-tensorboard" in tiny("-tensorboard", 1)


@pytest.mark.parametrize("below", ["", "a/b"])
@pytest.mark.parametrize("name, flag", [(name, "-out") for name in SCRIPTS] + [(name, "-export") for name in EXPORTING])
def test_an_unwritable_folder_is_refused(tiny, tmp_path, flag, below):
    (tmp_path / "file").write_text("x")
    message = tiny(flag, tmp_path / "file" / below)
    assert flag in message and str(tmp_path / "file" / below) in message


@pytest.fixture
def begun(name, module, tmp_path):
    """The folder of a small run that was just begun."""
    folder = tmp_path / "begun"
    folder.mkdir()
    _, args = module.parse([*map(str, SCRIPTS[name].tiny)])
    (folder / "args.json").write_text(json.dumps({k: v for k, v in vars(args).items() if k not in NOT_IDENTITY}))
    return folder


OTHERS = [(name, *case) for name, script in SCRIPTS.items() for case in script.others]


@pytest.mark.parametrize("resume", [0, 1])
@pytest.mark.parametrize("name, flags, words", OTHERS, ids=[f"{name} {text(flags)}" for name, flags, _ in OTHERS])
def test_other_settings_in_the_same_folder_are_refused(tiny, begun, idx_files, flags, words, resume):
    message = tiny("-data_dir", idx_files, *flags, "-out", begun, "-resume", resume)
    assert words in message and str(begun) in message and "holds a run with -" in message


@exporting_scripts
@pytest.mark.parametrize("unusable", ["another run's", "not a folder"])
def test_the_folder_of_an_export_is_not_made_when_the_run_folder_is_refused(tiny, begun, tmp_path, unusable):
    (tmp_path / "file").write_text("x")
    out = begun if unusable == "another run's" else tmp_path / "file"
    assert str(out) in tiny("-export", tmp_path / "export/a", "-train", 50, "-out", out)
    assert not (tmp_path / "export").exists()
