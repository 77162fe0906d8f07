"""The metrics against torchmetrics, scikit-learn, direct evaluation, and cases worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from experiment.classification import (
    BINS,
    accuracy,
    brier,
    detection,
    ece,
    entropy,
    mutual_information,
    nll,
    reliability,
    scores,
)

IMAGES = 3000


def predictions(kind: str, classes: int, n: int = IMAGES) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (n, classes), float64, and labels that follow them partly."""
    rng = np.random.default_rng([classes, len(kind)])
    if kind == "uniform":
        p = np.full((n, classes), 1 / classes)
    else:
        logits = rng.normal(0, {"vague": 0.3, "usual": 2.0, "confident": 15.0}[kind], (n, classes))
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p = 0.999 * p / p.sum(-1, keepdims=True) + 0.001 / classes
    labels = np.where(rng.random(n) < 0.6, p.argmax(-1), rng.integers(0, classes, n))
    return torch.tensor(p), torch.tensor(labels)


every_kind = pytest.mark.parametrize(
    "p, y",
    [
        pytest.param(*predictions(kind, classes), id=f"{kind}-{classes}")
        for kind in ("uniform", "vague", "usual", "confident")
        for classes in (2, 10)
    ],
)


@every_kind
def test_metrics_agree_with_the_libraries(p, y):
    from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

    classes = p.shape[-1]
    library = MulticlassAccuracy(classes, average="micro")(p, y)
    assert accuracy(p, y) == pytest.approx(100 * float(library), abs=1e-4)
    library = MulticlassCalibrationError(classes, n_bins=15, norm="l1")(p, y)
    assert ece(p, y) == pytest.approx(float(library), abs=2e-5)  # the library sums in float32
    assert nll(p, y) == pytest.approx(log_loss(y, p, labels=range(classes)), rel=1e-12)
    assert brier(p, y) == pytest.approx(np.square(p.numpy() - np.eye(classes)[y]).sum(-1).mean(), rel=1e-12)


@every_kind
def test_the_calibration_error_is_its_definition(p, y):
    confidence, correct = p.max(-1).values.numpy(), (p.argmax(-1) == y).numpy()
    expected = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    assert ece(p, y) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("kind", ["usual", "confident"])
def test_brier_of_two_classes_is_twice_the_binary_one(kind):
    p, y = predictions(kind, 2)
    assert brier(p, y) == pytest.approx(2 * brier_score_loss(y, p[:, 1]), rel=1e-12)


@pytest.mark.parametrize("kind", ["usual", "confident"])
def test_float32_probabilities_give_nearly_the_same(kind):
    p, y = predictions(kind, 10)
    for name, value in scores(p.float(), y).items():
        assert value == pytest.approx(scores(p, y)[name], rel=1e-5)


def test_metrics_by_hand():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.3, 0.3, 0.4], [0.0, 0.0, 1.0]], dtype=torch.float64)
    y = torch.tensor([0, 2, 1, 2])
    found = scores(p, y)
    assert list(found) == ["accuracy", "nll", "ece", "brier"]
    assert found["accuracy"] == 50
    assert found["nll"] == pytest.approx(-(math.log(0.7) + math.log(0.4) + math.log(0.3) + 0) / 4)
    assert found["brier"] == pytest.approx((0.14 + 0.62 + 0.74 + 0) / 4)
    assert found["ece"] == pytest.approx((0.3 + 0.5 + 0.4 + 0) / 4)  # every image in a bin of its own


def test_calibrated_predictions_have_a_small_error_and_others_not():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(5, 0.5), 50_000)
    y = torch.tensor((rng.random((len(p), 1)) > p.cumsum(-1)).sum(-1).clip(max=4))
    p = torch.tensor(p)
    assert ece(p, y) < 0.01
    for power in (0.5, 3.0):  # less and more confident than right
        distorted = p**power
        assert ece(distorted / distorted.sum(-1, keepdim=True), y) > 0.08


@pytest.mark.parametrize("k", range(1, BINS + 1))
def test_a_confidence_on_an_edge_is_in_the_bin_below(k):
    def bin_of(confidence: float) -> int:
        p = torch.full((4, 31), (1 - confidence) / 30, dtype=torch.float64)
        p[:, 3] = confidence
        share, mean, correct = reliability(p, torch.tensor([3, 3, 3, 0]))
        assert share.sum() == 1 and share.max() == 1
        i = int(share.argmax())
        assert mean[i].item() == pytest.approx(confidence, rel=1e-12) and correct[i] == 0.75
        return i + 1

    assert bin_of(k / BINS) == k
    assert bin_of(k / BINS - 1e-9) == k
    if k < BINS:
        assert bin_of(k / BINS + 1e-9) == k + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_predictions(dtype):
    p, y = torch.eye(3, dtype=dtype), torch.arange(3)
    assert scores(p, y) == {"accuracy": 100, "nll": 0, "ece": 0, "brier": 0}
    wrong = scores(p, y.roll(1))
    assert (wrong["accuracy"], wrong["ece"], wrong["brier"]) == (0, 1, 2)
    assert 600 < wrong["nll"] < 800


def test_one_impossible_label_leaves_the_likelihood_finite():
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    once = nll(p, torch.tensor([1, 0]))
    assert once == pytest.approx((-math.log(np.finfo(float).tiny) + math.log(2)) / 2)


def test_a_float32_probability_below_the_normal_numbers_counts_as_it_is():
    p = torch.tensor([[1.0, 1e-30]])
    assert nll(p, torch.tensor([1])) == pytest.approx(30 * math.log(10), rel=1e-6)


@st.composite
def batches(draw) -> tuple[torch.Tensor, torch.Tensor]:
    n, classes = draw(st.integers(1, 30)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    logits = rng.normal(0, draw(st.sampled_from([0.0, 0.5, 3.0, 100.0])), (n, classes))
    return torch.tensor(logits).softmax(-1), torch.tensor(rng.integers(0, classes, n))


@given(batches())
@settings(max_examples=150, deadline=None)
def test_metrics_are_in_their_ranges(batch):
    p, y = batch
    found = scores(p, y)
    assert 0 <= found["accuracy"] <= 100 and found["nll"] >= 0
    assert 0 <= found["ece"] <= 1 + 1e-12 and 0 <= found["brier"] <= 2 + 1e-12
    # the bins cannot hide the difference of the overall means
    assert found["ece"] >= abs(float(p.max(-1).values.mean()) - found["accuracy"] / 100) - 1e-12


@given(batches(), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_the_order_of_the_images_does_not_matter(batch, seed):
    p, y = batch
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    for name, value in scores(p[order], y[order]).items():
        assert value == pytest.approx(scores(p, y)[name], rel=1e-9, abs=1e-12)


def test_the_entropy_of_known_distributions():
    p = torch.tensor([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0]], dtype=torch.float64)
    np.testing.assert_allclose(entropy(p), [math.log(4), 0, math.log(2)], rtol=1e-15)


@given(batches())
@settings(max_examples=100, deadline=None)
def test_the_entropy_is_between_zero_and_the_uniform_one(batch):
    p, _ = batch
    assert entropy(p).min() >= 0 and entropy(p).max() <= math.log(p.shape[-1]) + 1e-12


@given(st.integers(1, 8), st.integers(2, 6), st.sampled_from([0.1, 2.0, 100.0]), st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_mutual_information_is_between_zero_and_the_entropy(samples, classes, sd, seed):
    members = torch.tensor(np.random.default_rng(seed).normal(0, sd, (samples, 20, classes))).softmax(-1)
    mean = members.mean(0)
    information = mutual_information(mean, entropy(members).mean(0))
    assert information.min() >= 0
    assert (information <= entropy(mean) + 1e-12).all() and information.max() <= math.log(classes) + 1e-12
    if samples == 1:
        assert information.max() < 1e-12


def test_mutual_information_of_members_that_agree_and_that_contradict_each_other():
    certain = torch.eye(2, dtype=torch.float64)  # member i is certain of class i
    np.testing.assert_allclose(mutual_information(certain.mean(0), entropy(certain).mean(0)), math.log(2))
    unsure = torch.full((2, 2), 0.5, dtype=torch.float64)
    assert mutual_information(unsure.mean(0), entropy(unsure).mean(0)) == 0


def test_rounding_does_not_make_the_information_negative():
    p = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    assert mutual_information(p, entropy(p) + 1e-15).item() == 0


def test_detection_by_hand():
    outside = np.arange(1.0, 21)  # 95% of these are the 19 from 2 upwards
    inside = np.array([0, 0.5, 1, 1.5, 1.9, 1.99, 2, 2.5, 15, 30])
    found = detection(inside, outside)
    assert found["fpr95"] == 0.4
    above = (outside[:, None] > inside).mean() + 0.5 * (outside[:, None] == inside).mean()
    assert found["auroc"] == pytest.approx(above, rel=1e-12)


@pytest.mark.parametrize(
    "inside, outside, auroc, fpr95",
    [
        ([0, 1, 2], [3, 4], 1, 0),
        ([3, 4], [0, 1, 2], 0, 1),
        ([1, 1, 1], [1, 1], 0.5, 1),
        (range(100), range(100), 0.5, 0.95),
    ],
    ids=["apart", "the wrong way", "all equal", "the same distribution"],
)
def test_detection_at_its_limits(inside, outside, auroc, fpr95):
    assert detection(np.array(inside), np.array(outside)) == {"auroc": auroc, "fpr95": fpr95}


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.lists(st.integers(0, 9), min_size=1, max_size=60))
@settings(max_examples=150, deadline=None)
def test_detection_is_its_definition_also_with_ties(inside, outside):
    inside, outside = np.array(inside, float), np.array(outside, float)
    found = detection(inside, outside)
    label = np.repeat([0, 1], [len(inside), len(outside)])
    assert found["auroc"] == pytest.approx(roc_auc_score(label, np.concatenate([inside, outside])), rel=1e-12)
    detects = [t for t in range(10) if 100 * (outside >= t).sum() >= 95 * len(outside)]
    assert found["fpr95"] == pytest.approx((inside >= max(detects)).mean(), rel=1e-12)
