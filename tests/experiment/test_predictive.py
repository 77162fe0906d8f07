"""The running sums against the mixture itself, by scipy."""

import weakref

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import entropy, norm

from experiment.predictive import CategoricalMixturePredictive, GaussianMixturePredictive

SAMPLES, GROUPS, CELLS, ROWS = 6, 2, 3, 40


@pytest.fixture(scope="module")
def draws():
    """Targets (group, 1, row), predictions (sample, group, cell, row), variances (sample, group, cell)."""
    rng = np.random.default_rng(0)
    y = rng.normal(0, 2, (GROUPS, 1, ROWS))
    return y, rng.normal(0, 1, (SAMPLES, GROUPS, CELLS, ROWS)), rng.uniform(0.1, 4, (SAMPLES, GROUPS, CELLS))


def filled(y, predictions, variances) -> GaussianMixturePredictive:
    predictive = GaussianMixturePredictive(torch.tensor(y), predictions.shape[1:])
    for prediction, variance in zip(predictions, variances, strict=True):
        predictive.update(torch.tensor(prediction), torch.tensor(variance))
    return predictive


def test_nll_is_that_of_the_mixture(draws):
    y, predictions, variances = draws
    density = norm.pdf(y, predictions, np.sqrt(variances)[..., None]).mean(0)
    np.testing.assert_allclose(filled(*draws).nll(), -np.log(density).mean(-1), rtol=1e-12)


def test_rmse_is_that_of_the_mean(draws):
    y, predictions, _ = draws
    expected = np.sqrt(np.square(predictions.mean(0) - y).mean(-1))
    np.testing.assert_allclose(filled(*draws).rmse(), expected, rtol=1e-12)


@pytest.mark.parametrize("level", [0.95, 0.5])
def test_coverage_counts_targets_between_the_quantiles(draws, level):
    y, predictions, variances = draws
    covered = np.zeros(predictions.shape[1:])
    for g, c, i in np.ndindex(covered.shape):
        mean, sd = predictions[:, g, c, i], np.sqrt(variances[:, g, c])

        def quantile(q, mean=mean, sd=sd):
            return brentq(lambda t: norm.cdf(t, mean, sd).mean() - q, -60, 60, xtol=1e-12)

        covered[g, c, i] = quantile((1 - level) / 2) <= y[g, 0, i] <= quantile((1 + level) / 2)
    assert 0 < covered.mean() < 1
    assert np.array_equal(filled(*draws).coverage(level).numpy(), covered.mean(-1))


def test_targets_from_the_mixture_are_covered_at_the_level():
    rng = np.random.default_rng(1)
    n = 20_000
    predictions, variances = rng.normal(0, 3, (SAMPLES, 1, n)), rng.uniform(0.1, 2, (SAMPLES, 1))
    which = rng.integers(0, SAMPLES, n)
    y = predictions[which, 0, np.arange(n)] + np.sqrt(variances[which, 0]) * rng.standard_normal(n)
    coverage = filled(y[None], predictions, variances).coverage().item()
    assert abs(coverage - 0.95) / np.sqrt(0.95 * 0.05 / n) < 5


def test_one_sample_is_its_own_average(draws):
    y, predictions, variances = draws
    predictive = filled(y, predictions[:1], variances[:1])
    sd = np.sqrt(variances[0])[..., None]
    np.testing.assert_allclose(predictive.rmse(), np.sqrt(np.square(predictions[0] - y).mean(-1)), rtol=1e-12)
    np.testing.assert_allclose(predictive.nll(), -norm.logpdf(y, predictions[0], sd).mean(-1), rtol=1e-12)
    inside = np.abs(y - predictions[0]) <= norm.ppf(0.975) * sd
    np.testing.assert_allclose(predictive.coverage(), inside.mean(-1))


def test_the_same_sample_many_times_changes_nothing(draws):
    y, predictions, variances = draws
    once = filled(y, predictions[:1], variances[:1])
    often = filled(y, predictions[[0] * 50], variances[[0] * 50])
    for name in ("rmse", "nll", "coverage"):
        torch.testing.assert_close(getattr(often, name)(), getattr(once, name)())


def test_a_target_far_outside_has_a_finite_nll():
    predictive = GaussianMixturePredictive(torch.tensor([[1e4]]), (1, 1))
    for _ in range(3):
        predictive.update(torch.zeros(1, 1), torch.ones(1))
    assert predictive.nll().item() == pytest.approx(0.5e8 + 0.5 * np.log(2 * np.pi), rel=1e-12)


def test_chains_do_not_mix(draws):
    y, predictions, variances = draws
    alone = filled(y[1], predictions[:, 1, 2:], variances[:, 1, 2:])
    together = filled(*draws)
    for name in ("rmse", "nll", "coverage"):
        assert torch.equal(getattr(together, name)()[1, 2], getattr(alone, name)()[0])


def test_float32_predictions_are_summed_in_float64(draws):
    predictive = GaussianMixturePredictive(torch.zeros(1, 1), (1, 1))
    for _ in range(3):
        predictive.update(torch.full((1, 1), 1 + 2**-20), torch.ones(1))
    assert predictive.sum_prediction.dtype == torch.float64
    assert predictive.rmse().item() == 1 + 2**-20


def test_a_restored_state_goes_on_exactly(draws):
    y, predictions, variances = draws
    first = filled(y, predictions[:4], variances[:4])
    copy = GaussianMixturePredictive(torch.tensor(y), predictions.shape[1:])
    copy.load_state_dict({name: x.clone() for name, x in first.state_dict().items()})
    for prediction, variance in zip(predictions[4:], variances[4:], strict=True):
        copy.update(torch.tensor(prediction), torch.tensor(variance))
    whole = filled(*draws)
    for name in ("rmse", "nll", "coverage"):
        assert torch.equal(getattr(copy, name)(), getattr(whole, name)())


CLASSES = 4
WEIGHTS = [0.1, 0.25, 1.0, 0.7, 3.0, 0.3]


@pytest.fixture(scope="module")
def log_probabilities() -> torch.Tensor:
    """(sample, input, class), from unsure to certain."""
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 1, (SAMPLES, ROWS, CLASSES)) * rng.choice([0.1, 1, 10, 1000], (SAMPLES, ROWS, 1))
    return torch.tensor(logits).log_softmax(-1)


def mixed(samples, weights=None) -> CategoricalMixturePredictive:
    predictive = CategoricalMixturePredictive(*samples.shape[1:])
    for i, sample in enumerate(samples):
        predictive.update(sample, **({} if weights is None else {"weight": weights[i]}))
    return predictive


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_class_probabilities_are_weighted_means(log_probabilities, weights):
    p = np.exp(log_probabilities.numpy())
    predictive = mixed(log_probabilities, weights)
    assert predictive.samples == SAMPLES
    np.testing.assert_allclose(predictive.probabilities(), np.average(p, axis=0, weights=weights), rtol=1e-13)
    expected = np.average(entropy(p, axis=-1), axis=0, weights=weights)
    np.testing.assert_allclose(predictive.mean_entropy(), expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(predictive.probabilities().sum(-1), 1, rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight", [1.0, 0.5, 0.03 / 60000])
def test_one_sample_of_a_classifier_is_its_own_average(log_probabilities, dtype, weight):
    sample = log_probabilities[0].to(dtype)
    predictive = mixed(sample[None], [weight])
    assert predictive.probabilities().dtype == predictive.mean_entropy().dtype == torch.float64
    torch.testing.assert_close(predictive.probabilities(), sample.double().exp(), rtol=1e-15, atol=0)
    expected = entropy(sample.double().exp().numpy(), axis=-1)
    # probabilities do not add up to one exactly, and scipy normalises them
    tolerance = 10 * torch.finfo(dtype).eps
    np.testing.assert_allclose(predictive.mean_entropy(), expected, rtol=tolerance, atol=tolerance)


def test_impossible_classes_have_no_entropy():
    predictive = mixed(torch.tensor([[[0.0, -torch.inf]], [[-torch.inf, 0.0]]]))
    assert predictive.probabilities().tolist() == [[0.5, 0.5]] and predictive.mean_entropy().tolist() == [0]


def test_a_weight_of_two_is_the_sample_twice(log_probabilities):
    a = mixed(log_probabilities[:2], [2.0, 1.0])
    b = mixed(log_probabilities[[0, 1, 0]])
    torch.testing.assert_close(a.probabilities(), b.probabilities(), rtol=1e-14, atol=0)
    torch.testing.assert_close(a.mean_entropy(), b.mean_entropy(), rtol=1e-14, atol=1e-300)


def test_only_ratios_of_weights_matter(log_probabilities):
    a, b = mixed(log_probabilities, WEIGHTS), mixed(log_probabilities, [w * 1e-7 for w in WEIGHTS])
    torch.testing.assert_close(a.probabilities(), b.probabilities(), rtol=1e-13, atol=0)


def test_the_order_of_the_samples_does_not_matter(log_probabilities):
    order = [3, 0, 5, 1, 4, 2]
    a, b = mixed(log_probabilities, WEIGHTS), mixed(log_probabilities[order], [WEIGHTS[i] for i in order])
    torch.testing.assert_close(a.probabilities(), b.probabilities(), rtol=1e-14, atol=0)
    torch.testing.assert_close(a.mean_entropy(), b.mean_entropy(), rtol=1e-13, atol=1e-300)


def test_samples_are_not_kept(log_probabilities):
    def size() -> int:
        return sum(x.nbytes for x in predictive.state_dict().values())

    predictive = CategoricalMixturePredictive(ROWS, CLASSES)
    before = size()
    samples = [sample.clone() for sample in log_probabilities] * 5
    for sample in samples:
        predictive.update(sample)
    gone = [weakref.ref(sample) for sample in samples]
    del samples, sample
    assert size() == before and all(reference() is None for reference in gone)


def test_a_restored_average_goes_on_exactly(log_probabilities):
    first = mixed(log_probabilities[:4], WEIGHTS)
    state = {name: x.clone() for name, x in first.state_dict().items()}
    copy = CategoricalMixturePredictive(ROWS, CLASSES)
    copy.load_state_dict(state)
    for sample, weight in zip(log_probabilities[4:], WEIGHTS[4:], strict=True):
        copy.update(sample, weight)
    whole = mixed(log_probabilities, WEIGHTS)
    assert (copy.samples, copy.sum_weight) == (whole.samples, whole.sum_weight)
    assert torch.equal(copy.probabilities(), whole.probabilities())
    assert torch.equal(copy.mean_entropy(), whole.mean_entropy())
    assert all(torch.equal(x, state[name]) for name, x in first.state_dict().items())
    assert torch.equal(state["sum_probabilities"], first.sum_probabilities)  # the state itself did not go on
