"""Accuracy is what scikit-learn says it is."""

import numpy as np
import pytest
import torch
import torchvision
from sklearn.metrics import accuracy_score, top_k_accuracy_score
from torch import nn

from ldnq import runtime
from ldnq.config import RuntimeConfig
from ldnq.datasets import datasets
from ldnq.errors import LdnqError, NetworkError
from ldnq.evaluation import Accuracy, evaluate
from ldnq.preprocessing import Preprocessing

UNITS = Preprocessing(8, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))


@pytest.fixture(scope="module")
def fabric():
    return runtime.start(RuntimeConfig(device="cpu"))


class Table(nn.Module):
    """A network that looks its outputs up: an image's first pixels say which row is its own."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows[(x[:, 0, 0, 0] + 256 * x[:, 1, 0, 0]).round().long()]


def numbered(n: int) -> torch.Tensor:
    images = torch.zeros(n, 3, 8, 8, dtype=torch.uint8)
    images[:, 0] = (torch.arange(n) % 256).view(n, 1, 1)
    images[:, 1] = (torch.arange(n) // 256).view(n, 1, 1)
    return images


def measure(rows, labels, fabric, classes, batch_size=100, **options) -> Accuracy:
    rows, labels = torch.as_tensor(rows), torch.as_tensor(labels)
    batches = zip(numbered(len(labels)).split(batch_size), labels.split(batch_size))
    return evaluate(Table(rows), batches, UNITS, fabric, classes, **options)


@pytest.mark.parametrize("classes", [2, 5, 6, 10, 100])
def test_accuracy_is_that_of_scikit_learn(fabric, classes):
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 731)
    scores = rng.normal(size=(731, classes)).astype(np.float32)
    scores[np.arange(731), labels] += 1
    found = measure(scores, labels, fabric, classes)
    assert found.top1 == pytest.approx(100 * accuracy_score(labels, scores.argmax(1)), abs=1e-4)
    if classes > 5:
        expected = 100 * top_k_accuracy_score(labels, scores, k=5, labels=np.arange(classes))
        assert found.top5 == pytest.approx(expected, abs=1e-4)
    else:
        assert found.top5 == 100
    assert (found.samples, found.num_classes) == (731, classes)


def test_accuracy_by_hand(fabric):
    scores = [[6.0, 5, 4, 3, 2, 1, 0]] * 4
    # The label is the likeliest, the second, the fifth and the sixth.
    found = measure(scores, [0, 1, 4, 5], fabric, 7)
    assert (found.top1, found.top5, found.samples) == (25, 75, 4)


def test_predictions_are_the_likeliest_classes_and_their_softmax(fabric):
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 10, 64), rng.normal(size=(64, 10)).astype(np.float32)
    found = measure(scores, labels, fabric, 10, 7).predictions
    assert np.array_equal(found.labels, labels)
    assert np.array_equal(found.classes, scores.argmax(1))
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert found.confidences.numpy() == pytest.approx(shares.max(1), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 64], ids=lambda size: f"batches-of-{size}")
def test_the_batches_do_not_matter(fabric, batch_size):
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 10, 64), rng.normal(size=(64, 10)).astype(np.float32)
    assert measure(scores, labels, fabric, 10, batch_size) == measure(scores, labels, fabric, 10)


def test_classes_that_never_occur_do_not_count(fabric):
    found = measure([[3.0, 2, 1], [3.0, 2, 1], [1.0, 2, 3]], [0, 0, 0], fabric, 3)
    assert found.top1 == pytest.approx(200 / 3)


def test_images_are_normalized_before_the_network_sees_them(fabric):
    class Recording(nn.Module):
        def forward(self, x):
            self.seen = x
            return torch.zeros(len(x), 2)

    module, preprocessing = Recording(), Preprocessing(8)
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    evaluate(module, [(images, torch.zeros(3, dtype=torch.long))], preprocessing, fabric, 2)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    torch.testing.assert_close(module.seen, (images / 255 - mean) / std, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_network_is_measured_in_eval_mode_and_left_as_it_was(fabric, training):
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 3)).train(training)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    batches = [(torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8), torch.arange(20) % 3)]
    results = {evaluate(module, batches, Preprocessing(8), fabric, 3) for _ in range(3)}
    assert len(results) == 1
    assert module.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_of_an_imagenet_network_only_the_classes_of_the_dataset_compete(fabric):
    subset = datasets.get("imagenette").class_subset
    scores = torch.zeros(3, 1000)
    scores[:, 1] = 9  # a class that the dataset does not have
    for row, winner in enumerate((0, 4, 9)):
        scores[row, subset[winner]] = 5
    found = measure(scores, [0, 4, 8], fabric, 10, class_subset=subset)
    assert found.top1 == pytest.approx(200 / 3)
    assert found.num_classes == 10


def test_a_network_of_ten_outputs_needs_no_choice(fabric):
    subset = datasets.get("imagenette").class_subset
    assert measure(torch.eye(10), torch.arange(10), fabric, 10, class_subset=subset).top1 == 100


def test_the_classes_of_imagenette_are_those_of_imagenet():
    names = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert [names[index] for index in datasets.get("imagenette").class_subset] == [
        "tench", "English springer", "cassette player", "chain saw", "church", "French horn", "garbage truck",
        "gas pump", "golf ball", "parachute",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("outputs", "options"),
    [((4, 7), {}), ((4, 1000), {}), ((4, 9), {"class_subset": tuple(range(10))}), ((4, 10, 2, 2), {})],
    ids=["seven-outputs", "imagenet-without-a-choice", "nine-outputs", "a-map"],
)
def test_outputs_that_do_not_fit_the_classes_are_refused(fabric, outputs, options):
    with pytest.raises(NetworkError, match=r"each of the dataset's 10 classes, found outputs of shape .*--num-classes"):
        measure(torch.zeros(outputs), [0, 1, 2, 3], fabric, 10, **options)


@pytest.mark.parametrize("kind", [tuple, list, dict])
def test_a_network_that_gives_more_than_a_tensor_is_refused(fabric, kind):
    class Several(nn.Module):
        def forward(self, x):
            return kind([("logits", x.mean((2, 3))), ("features", x)])

    with pytest.raises(NetworkError) as error:
        evaluate(Several(), [(numbered(2), torch.zeros(2, dtype=torch.long))], UNITS, fabric, 3)
    assert "\n" not in str(error.value)


def test_a_network_that_does_not_take_the_images_is_refused_in_one_line(fabric):
    module = nn.Sequential(nn.Flatten(), nn.Linear(5, 2))
    with pytest.raises(NetworkError, match=r"fails on a batch of shape \(2, 3, 8, 8\)") as error:
        evaluate(module, [(numbered(2), torch.zeros(2, dtype=torch.long))], UNITS, fabric, 2)
    assert "\n" not in str(error.value)


def test_a_dataset_of_one_class_is_refused_in_one_line(fabric):
    with pytest.raises(LdnqError) as error:
        measure(torch.zeros(4, 1), [0, 0, 0, 0], fabric, 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("top1", "samples", "classes", "expected"),
    [
        (10.0, 10_000, 10, True),
        (14.0, 10_000, 10, True),
        (30.0, 10_000, 10, False),
        (30.0, 10, 10, True),
        (0.1, 50_000, 1000, True),
        (10.0, 50_000, 1000, False),
        (50.0, 1_000, 2, True),
        (90.0, 1_000, 2, False),
    ],
    ids=["at", "little-above", "above", "few-images", "imagenet-at", "imagenet-above", "coin", "two-classes"],
)
def test_an_accuracy_near_chance_is_known_as_such(top1, samples, classes, expected):
    assert Accuracy(top1, 100.0, samples, classes).near_chance is expected
