"""The epoch loop: checkpoints, resume, divergence; and what restores a network, an optimizer and randomness."""

import pytest
import torch
from torch import nn

from experiment.run import Run, RunError
from experiment.training import (
    load_network,
    load_optimizer_state,
    optimizer_state,
    random_state,
    set_random_state,
    train,
)
from sampler import SGHMC, FlatNoise
from sampler.noise import stream

NEVER = 1e9
CPU = torch.device("cpu")


def opened(folder, *, resume: int = 0, save_every: float = NEVER) -> Run:
    return Run("script", "name", {"out": str(folder), "resume": resume, "save_every": save_every})


class Chaotic:
    """A number that never repeats: any epoch left out, or done twice, shows.

    diverges: the epoch in which it does.  killed: the epoch before which the process stops.
    """

    name = "chaotic"

    def __init__(self, *, diverges: int = 0, killed: int = 0):
        self.x, self.epochs = torch.tensor(0.3, dtype=torch.float64), 0
        self.diverges, self.killed = diverges, killed
        self.evaluated: list[int] = []

    def epoch(self) -> None:
        if self.epochs + 1 == self.killed:
            raise KeyboardInterrupt
        self.x, self.epochs = 3.9 * self.x * (1 - self.x), self.epochs + 1

    def evaluate(self, epoch: int) -> list[dict] | None:
        self.evaluated.append(epoch)
        if epoch == self.diverges:
            return None
        return [{"epoch": epoch, "chain": chain, "x": self.x.item() + chain} for chain in (0, 1)]

    def status(self, rows: list[dict]) -> str:
        assert [row["chain"] for row in rows] == [0, 1]
        return f"x {rows[-1]['x']:.3f}"

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"x": self.x, "epochs": torch.tensor(self.epochs)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.x, self.epochs = state["x"], int(state["epochs"])


def checkpoint(folder) -> tuple[int, float, list[dict]]:
    """Epochs done, x, metrics."""
    tensors, state, metrics = opened(folder, resume=1).load()
    assert state["done"] == int(tensors["epochs"])
    return state["done"], tensors["x"].item(), metrics


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[int, float, list[dict]]:
    """The checkpoint after eight epochs."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert train(Chaotic(), opened(folder), 8, resume=False)
    return checkpoint(folder)


def test_all_epochs_are_trained_and_evaluated(tmp_path, uninterrupted, capsys):
    experiment = Chaotic()
    assert train(experiment, opened(tmp_path), 8, resume=False) is True
    assert experiment.evaluated == list(range(1, 9))
    done, x, metrics = uninterrupted
    assert checkpoint(tmp_path) == uninterrupted
    assert done == 8 and x == experiment.x.item()
    assert [(row["epoch"], row["chain"]) for row in metrics] == [(e, c) for e in range(1, 9) for c in (0, 1)]
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 17
    assert "chaotic" in capsys.readouterr().err


@pytest.mark.parametrize("save_every, saved", [(0.0, [1, 2, 3, 4, 5]), (NEVER, [5])])
def test_checkpoints_are_written_when_due_and_at_the_end(tmp_path, monkeypatch, save_every, saved):
    run, found = opened(tmp_path, save_every=save_every), []
    save = run.save

    def recorded(tensors, state, metrics):
        found.append((state["done"], int(tensors["epochs"]), len(metrics)))
        save(tensors, state, metrics)

    monkeypatch.setattr(run, "save", recorded)
    train(Chaotic(), run, 5, resume=False)
    assert found == [(done, done, 2 * done) for done in saved]


def test_a_finished_part_goes_on(tmp_path, uninterrupted):
    train(Chaotic(), opened(tmp_path), 3, resume=False)
    experiment = Chaotic()
    assert train(experiment, opened(tmp_path, resume=1), 8, resume=True)
    assert experiment.evaluated == [4, 5, 6, 7, 8]
    assert checkpoint(tmp_path) == uninterrupted


@pytest.mark.parametrize("killed", range(1, 9))
def test_a_killed_run_goes_on(tmp_path, uninterrupted, killed):
    with pytest.raises(KeyboardInterrupt):
        train(Chaotic(killed=killed), opened(tmp_path, save_every=0.0), 8, resume=False)
    experiment = Chaotic()
    assert train(experiment, opened(tmp_path, resume=1, save_every=0.0), 8, resume=True)
    assert experiment.evaluated == list(range(killed, 9))
    assert checkpoint(tmp_path) == uninterrupted


def test_a_complete_run_trains_no_further(tmp_path, uninterrupted):
    train(Chaotic(), opened(tmp_path), 8, resume=False)
    experiment = Chaotic()
    assert train(experiment, opened(tmp_path, resume=1), 8, resume=True)
    assert experiment.evaluated == [] and experiment.x.item() == uninterrupted[1]
    assert checkpoint(tmp_path) == uninterrupted


def test_without_resume_it_starts_again(tmp_path, uninterrupted):
    train(Chaotic(), opened(tmp_path), 3, resume=False)
    experiment = Chaotic()
    assert train(experiment, opened(tmp_path, resume=1), 8, resume=False)
    assert experiment.evaluated == list(range(1, 9)) and checkpoint(tmp_path) == uninterrupted


@pytest.mark.parametrize("save_every, kept", [(0.0, 4), (NEVER, None)])
def test_a_diverged_run_keeps_its_last_good_checkpoint(tmp_path, uninterrupted, save_every, kept):
    experiment = Chaotic(diverges=5)
    assert train(experiment, opened(tmp_path, save_every=save_every), 8, resume=False) is False
    assert experiment.evaluated == [1, 2, 3, 4, 5]
    if kept is None:
        assert opened(tmp_path, resume=1).load() is None
    else:
        done, _, metrics = checkpoint(tmp_path)
        assert done == kept and metrics == uninterrupted[2][: 2 * kept]


class Rare(Chaotic):
    """Advances by five iterations, and has rows after every tenth."""

    def evaluate(self, done: int) -> list[dict] | None:
        rows = super().evaluate(done)
        return rows if rows is None or done % 10 == 0 else []


@pytest.mark.parametrize("killed", [None, 1, 4, 7])
def test_iterations_go_by_strides_and_rows_may_be_rare(tmp_path, killed):
    if killed:
        with pytest.raises(KeyboardInterrupt):
            train(Rare(killed=killed), opened(tmp_path, save_every=0.0), 35, False, stride=5, unit="iteration")
    experiment = Rare()
    assert train(experiment, opened(tmp_path, resume=1), 35, True, stride=5, unit="iteration")
    assert experiment.epochs == 7 and experiment.evaluated == list(range(5 * (killed or 1), 36, 5))
    tensors, state, metrics = opened(tmp_path, resume=1).load()
    assert state["done"] == 35 and tensors["x"] == experiment.x
    assert [(row["epoch"], row["chain"]) for row in metrics] == [(e, c) for e in (10, 20, 30) for c in (0, 1)]


@pytest.mark.parametrize(
    "error",
    [
        KeyError("net.fc1.weight"),
        RuntimeError("sizes\n  do not\n  match"),
        ValueError("other shape"),
        TypeError("None"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_checkpoint_that_does_not_fit_is_one_line(tmp_path, error):
    train(Chaotic(), opened(tmp_path), 2, resume=False)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    experiment = Chaotic()

    def refuse(state):
        raise error

    experiment.load_state_dict = refuse
    with pytest.raises(RunError) as raised:
        train(experiment, opened(tmp_path, resume=1), 8, resume=True)
    message = str(raised.value)
    assert "\n" not in message and str(tmp_path) in message and str(error).splitlines()[0] in message
    assert experiment.evaluated == [] and (tmp_path / "checkpoint.safetensors").read_bytes() == before


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 2))


def test_a_network_is_loaded_with_its_buffers():
    net, other = network(0), network(1)
    other.train()(torch.randn(10, 3))
    load_network(net, other.state_dict())
    for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"4.weight": None}, "4.weight is only in the network: another model"),
        ({"1.running_mean": None, "4.bias": None}, "1.running_mean is only in the network: another model"),
        ({"5.weight": torch.ones(2)}, "5.weight is only in the checkpoint: another model"),
        ({"0.extra": torch.ones(2), "4.bias": None}, "0.extra is only in the checkpoint: another model"),
        ({"0.weight": torch.ones(4, 7)}, r"0.weight has shape \(4, 7\), the network here \(4, 3\)"),
        ({"4.weight": torch.ones(2, 5), "4.bias": None}, "4.bias is only in the network"),
        ({"4.bias": torch.ones(1)}, r"4.bias has shape \(1,\), the network here \(2,\)"),
        ({"1.num_batches_tracked": torch.ones(1, dtype=torch.int64)}, r"shape \(1,\), the network here \(\)"),
    ],
)
def test_the_first_difference_of_another_network_is_named(change, message):
    net = network()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    state = {name: torch.zeros_like(x) for name, x in before.items()} | change
    with pytest.raises(ValueError, match=f"^{message}" if message[0].isdigit() else message) as error:
        load_network(net, {name: x for name, x in state.items() if x is not None})
    assert "\n" not in str(error.value)
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())


class Trainee:
    """A network with dropout, an optimizer, and two generators."""

    def __init__(self, kind: str, seed: int):
        self.net = network(seed)
        self.generators = {name: stream(seed, name) for name in ("order", "noise")}
        if kind == "sghmc":
            noise = FlatNoise(self.generators["noise"])
            self.optimizer = SGHMC(self.net.parameters(), lr=1e-3, momentum=0.9, invT=100.0, noise=noise)
        else:
            self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01, amsgrad=kind == "amsgrad")

    def steps(self, n: int) -> None:
        for _ in range(n):
            x = torch.randn(8, 3, generator=self.generators["order"])
            self.optimizer.zero_grad()
            self.net(x).square().sum().backward()
            self.optimizer.step()

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        parts = {
            "net": self.net.state_dict(),
            "optimizer": optimizer_state(self.net, self.optimizer),
            "random": random_state(self.generators, CPU),
        }
        return {name: {key: x.detach().clone() for key, x in part.items()} for name, part in parts.items()}

    def load(self, state: dict[str, dict[str, torch.Tensor]]) -> None:
        load_network(self.net, state["net"])
        load_optimizer_state(self.net, self.optimizer, state["optimizer"])
        set_random_state(self.generators, CPU, state["random"])


@pytest.mark.parametrize("kind", ["sghmc", "adam", "amsgrad"])
@pytest.mark.parametrize("before", [0, 1, 5])
def test_training_continues_bit_for_bit(kind, before):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        whole = Trainee(kind, 1)
        whole.steps(before)
        state = whole.state()
        whole.steps(7)
        other = Trainee(kind, 2)
        other.steps(2 if before else 0)  # a state from before the first step cannot undo steps of the optimizer
        other.load(state)
        other.steps(7)
    for name, part in whole.state().items():
        found = other.state()[name]
        assert found.keys() == part.keys() and len(part) > 0
        assert all(torch.equal(x, found[key]) for key, x in part.items())


@pytest.mark.parametrize(
    "kind, keys", [("sghmc", {"velocity"}), ("adam", {"step", "exp_avg", "exp_avg_sq"})], ids=["sghmc", "adam"]
)
def test_the_state_of_an_optimizer_goes_by_the_names_of_the_parameters(kind, keys):
    trainee = Trainee(kind, 0)
    assert optimizer_state(trainee.net, trainee.optimizer) == {}
    trainee.steps(1)
    names = {f"{name}.{key}" for name, _ in trainee.net.named_parameters() for key in keys}
    assert optimizer_state(trainee.net, trainee.optimizer).keys() == names


def test_random_states_come_back():
    generators = {"a": stream(0, "a"), "b": stream(0, "b")}

    def draws() -> list[torch.Tensor]:
        return [torch.rand(5, generator=g) for g in generators.values()] + [torch.rand(5)]

    with torch.random.fork_rng():
        draws()
        state = random_state(generators, CPU)
        assert state.keys() == {"a", "b", "global"}
        first = draws()
        assert not any(torch.equal(x, y) for x, y in zip(first, draws(), strict=True))
        joint = torch.stack([state["a"], state["b"], state["global"]])  # rows of another storage, as from a file
        set_random_state(generators, CPU, dict(zip("ab", joint[:2], strict=True)) | {"global": joint[2]})
        assert all(torch.equal(x, y) for x, y in zip(first, draws(), strict=True))
