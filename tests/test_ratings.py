"""The ratings, against hand-made cases whose answer is known."""

import numpy as np
import pytest
import scipy.linalg
import torch

import ratings
from models.judge import Judge


def test_frechet_distance_agrees_with_its_closed_form() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(400, 8)) @ rng.normal(size=(8, 8)), rng.normal(0.5, 1.3, size=(300, 8))
    mean, cov_a, cov_b = a.mean(0) - b.mean(0), np.cov(a.T), np.cov(b.T)
    expected = mean @ mean + np.trace(cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b).real)
    assert ratings.frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_is_zero_to_itself_and_grows_with_a_shift() -> None:
    features = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    assert ratings.frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert ratings.frechet_distance(features + 2, features) == pytest.approx(8 * 4, rel=1e-4)


def test_similarity_is_numpys_correlation() -> None:
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = np.corrcoef(images.flatten(1).numpy())
    np.testing.assert_allclose(ratings.similarity(images, images), expected, atol=1e-6)


@pytest.fixture
def told() -> tuple[Judge, torch.Tensor, torch.Tensor]:
    """A judge whose reading of 200 random images is taken for their labels."""
    torch.manual_seed(0)
    judge = Judge().eval()
    images = torch.rand(200, 1, 64, 64) * 2 - 1
    images = images * torch.rand(200, 1, 1, 1)
    with torch.no_grad():
        labels = judge(images).argmax(1)
    return judge, images, labels


def test_perfect_images_get_full_marks(told: tuple) -> None:
    judge, images, labels = told
    with torch.no_grad():
        rating = ratings.rate(judge, images, images, labels)
    assert rating["judge_accuracy"] == rating["judge_accuracy_worst"] == rating["retrieval"] == 1
    assert rating["correlation"] == pytest.approx(1)
    assert rating["frechet_distance"] == pytest.approx(0, abs=1e-6)


def test_one_prototype_for_all_finds_no_source_and_is_far_from_real(told: tuple) -> None:
    judge, images, labels = told
    with torch.no_grad():
        rating = ratings.rate(judge, images[:1].expand_as(images), images, labels)
    assert rating["retrieval"] == 1 / 200
    assert rating["judge_accuracy"] == pytest.approx((labels == labels[0]).double().mean().item())
    assert rating["frechet_distance"] > 0


def test_foreign_noise_is_unlike_what_was_heard(told: tuple) -> None:
    judge, images, labels = told
    noise = torch.rand(200, 1, 64, 64, generator=torch.Generator().manual_seed(9)) * 2 - 1
    with torch.no_grad():
        rating = ratings.rate(judge, noise, images, labels)
    assert abs(rating["correlation"]) < 0.01
    assert rating["retrieval"] < 0.05


def test_the_worst_digit_is_told_apart_from_the_mean(told: tuple) -> None:
    judge, images, labels = told
    wrong = labels.clone()
    wrong[labels == labels[0]] = (labels[0] + 1) % 10
    with torch.no_grad():
        rating = ratings.rate(judge, images, images, wrong)
    assert rating["judge_accuracy"] == pytest.approx((wrong == labels).double().mean().item())
    assert rating["judge_accuracy_worst"] < rating["judge_accuracy"]
