"""The metrics of imagined images, on cases whose answer is known."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy import stats

from data import load_digits
from data.resize import upsample
from evaluation.metrics import (
    accuracy_report,
    correlation,
    correlation_matrix,
    diversity,
    frechet_distance,
    mean_ci,
    rate_images,
    realism,
    retrieval,
    ssim,
)
from models.judge_cnn import CNNJudge


def test_frechet_distance_agrees_with_its_closed_form() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(400, 8)) @ rng.normal(size=(8, 8)), rng.normal(0.5, 1.3, size=(300, 8))
    mean, cov_a, cov_b = a.mean(0) - b.mean(0), np.cov(a.T), np.cov(b.T)
    expected = mean @ mean + np.trace(cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(
        expected, rel=1e-6
    )


def test_frechet_distance_of_equal_sets_is_zero_and_grows_with_a_shift() -> None:
    features = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    assert 0 <= frechet_distance(features, features) < 1e-6
    assert frechet_distance(features + 2, features) == pytest.approx(8 * 4, rel=1e-4)


def test_correlation_matrix_agrees_with_numpy() -> None:
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = np.corrcoef(images.flatten(1).numpy())
    np.testing.assert_allclose(correlation_matrix(images, images), expected, atol=1e-6)


@pytest.fixture
def labelled() -> tuple[CNNJudge, torch.Tensor, torch.Tensor]:
    """A judge, 200 random images, and the classes that the judge predicts for them."""
    torch.manual_seed(0)
    judge = CNNJudge().eval()
    images = torch.rand(200, 1, 64, 64) * 2 - 1
    images = images * torch.rand(200, 1, 1, 1)
    with torch.no_grad():
        labels = judge(images).argmax(1)
    return judge, images, labels


def test_the_heard_images_themselves_get_the_best_rating(labelled: tuple) -> None:
    judge, images, labels = labelled
    with torch.no_grad():
        rating = rate_images(judge, images, images, labels)
    assert rating["judge_accuracy"] == rating["judge_accuracy_worst"] == rating["retrieval"] == 1
    assert rating["correlation"] == pytest.approx(1)
    assert rating["frechet_distance"] == pytest.approx(0, abs=1e-6)


def test_one_prototype_for_all_is_rated_low(labelled: tuple) -> None:
    judge, images, labels = labelled
    with torch.no_grad():
        rating = rate_images(judge, images[:1].expand_as(images), images, labels)
    assert rating["retrieval"] == 1 / 200
    assert rating["judge_accuracy"] == pytest.approx((labels == labels[0]).double().mean().item())
    assert rating["frechet_distance"] > 0


def test_noise_is_rated_low(labelled: tuple) -> None:
    judge, images, labels = labelled
    noise = torch.rand(200, 1, 64, 64, generator=torch.Generator().manual_seed(9)) * 2 - 1
    with torch.no_grad():
        rating = rate_images(judge, noise, images, labels)
    assert abs(rating["correlation"]) < 0.01
    assert rating["retrieval"] < 0.05


def test_the_worst_class_has_its_own_number(labelled: tuple) -> None:
    judge, images, labels = labelled
    wrong = labels.clone()
    wrong[labels == labels[0]] = (labels[0] + 1) % 10
    with torch.no_grad():
        rating = rate_images(judge, images, images, wrong)
    assert rating["judge_accuracy"] == pytest.approx((wrong == labels).double().mean().item())
    assert rating["judge_accuracy_worst"] < rating["judge_accuracy"]


# -- what evaluate.py adds ------------------------------------------------------------------------


@pytest.fixture
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """120 random images of three classes, each class around a pattern of its own."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(120) % 3
    patterns = torch.rand(3, 1, 16, 16, generator=generator) * 2 - 1
    images = (
        0.7 * patterns[labels] + 0.3 * (torch.rand(120, 1, 16, 16, generator=generator) * 2 - 1)
    ).clamp(-1, 1)
    return images, labels


def prototypes(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean image of each class in place of its images."""
    return torch.stack([images[labels == digit].mean(0) for digit in range(3)])[labels]


def noise_like(images: torch.Tensor) -> torch.Tensor:
    return torch.rand(images.shape, generator=torch.Generator().manual_seed(5)) * 2 - 1


def test_an_accuracy_report_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 9, 9, 9, 9])
    predicted = torch.tensor([0, 0, 0, 1, 1, 1, 4, 4, 4, 4])
    report = accuracy_report(predicted, labels, 10)
    assert report["accuracy"] == 0.5
    assert report["interval"] == pytest.approx([0.2366, 0.7634], abs=1e-4)  # Wilson's, 5 of 10
    assert [
        (entry["class"], entry["accuracy"], entry["images"]) for entry in report["per_class"]
    ] == [(0, 0.75, 4), (1, 1.0, 2), (9, 0.0, 4)]
    assert report["confusion"][0][:2] == [3, 1]  # a row for the heard class
    assert report["confusion"][9][4] == 4
    assert sum(map(sum, report["confusion"])) == 10


def test_an_accuracy_report_at_its_ends(digits: tuple) -> None:
    _, labels = digits
    perfect = accuracy_report(labels, labels, 3)
    worst = accuracy_report((labels + 1) % 3, labels, 3)
    assert len(worst["confusion"]) == 3
    assert (perfect["accuracy"], worst["accuracy"]) == (1, 0)
    assert perfect["interval"][1] == pytest.approx(1) and 0.96 < perfect["interval"][0] < 1
    assert worst["interval"][0] == pytest.approx(0) and 0 < worst["interval"][1] < 0.04


def test_the_interval_of_a_mean_covers_it_in_95_percent() -> None:
    values = torch.randn(400, 100, generator=torch.Generator().manual_seed(0))
    intervals = [mean_ci(row)["interval"] for row in values]
    assert 0.92 < np.mean([low < 0 < high for low, high in intervals]) < 0.98


def test_precision_and_recall_by_hand() -> None:
    """Real points lie on a line, at 0, 1, ... 19. Ten images lie near them, and ten far away."""
    real = torch.arange(20.0)[:, None]
    near = torch.cat([torch.arange(10.0) + 0.4, 1000 + 1000 * torch.arange(10.0)])[:, None]
    rating = realism(near, real)
    assert rating["precision"] == 0.5
    # The images at 1000, 2000 and so on have their third neighbour some 3000 away, so their circles
    # reach over all real points.
    assert rating["recall"] == 1
    assert realism(near[:10], real[:10])["precision"] == 1
    assert realism(near[:10] - 100, real[:10]) == {
        "precision": 0, "recall": 0, "frechet_distance": pytest.approx(99.6**2)
    }  # fmt: skip


def test_realism_at_its_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    real, other = torch.randn(2, 300, 8, generator=generator)
    perfect = realism(real, real)
    assert perfect == {"precision": 1, "recall": 1, "frechet_distance": pytest.approx(0, abs=1e-6)}
    likewise = realism(other, real)
    assert (
        likewise["precision"] > 0.7
        and likewise["recall"] > 0.7
        and likewise["frechet_distance"] < 1
    )
    prototype = realism(real.mean(0, keepdim=True).expand(300, 8), real)
    assert (
        prototype["precision"] == 1 and prototype["recall"] < 0.01
    )  # all real, and none of the variety
    foreign = realism(other + 10, real)
    assert foreign["precision"] == foreign["recall"] == 0 and foreign["frechet_distance"] > 700


def test_correlation_and_ssim_at_their_ends(digits: tuple) -> None:
    images, _ = digits
    torch.testing.assert_close(correlation(images, images), torch.ones(120))
    torch.testing.assert_close(
        correlation(0.3 * images - 0.2, images), torch.ones(120)
    )  # up to contrast
    torch.testing.assert_close(correlation(-images, images), -torch.ones(120))
    assert correlation(torch.zeros_like(images), images).abs().max() < 1e-6
    torch.testing.assert_close(ssim(images, images), torch.ones(120))
    assert ssim(0.3 * images - 0.2, images).max() < 0.9  # contrast counts
    assert ssim(noise_like(images), images).mean() < 0.2
    torch.testing.assert_close(ssim(images[:1], images[:1]), torch.ones(1))


def slow_ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Wang et al. 2004 for `(H, W)` images in [0, 1], window by window, where the window fits."""
    offset = np.arange(11) - 5
    window = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2, values = 0.01**2, 0.03**2, []
    for row in range(one.shape[0] - 10):
        for column in range(one.shape[1] - 10):
            x, y = (image[row : row + 11, column : column + 11] for image in (one, other))
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            cov = (window * (x - mx) * (y - my)).sum()
            upper = (2 * mx * my + c1) * (2 * cov + c2)
            values.append(upper / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


def test_ssim_agrees_with_a_slow_implementation_that_leaves_out_the_border() -> None:
    heard = upsample(load_digits("handwritten", "test", Path(), "cpu").images[:3])
    imagined = (0.8 * heard.roll(2, 3) + 0.1).clamp(-1, 1)
    expected = [
        slow_ssim(*(((image[0].double().numpy() + 1) / 2) for image in pair))
        for pair in zip(imagined, heard, strict=True)
    ]
    np.testing.assert_allclose(ssim(imagined, heard).numpy(), expected, atol=2e-5)


def test_ssim_of_flat_images_is_its_closed_form() -> None:
    one, other = (
        torch.full((2, 1, 16, 16), 0.5),
        torch.full((2, 1, 16, 16), -0.25),
    )  # 0.75 and 0.375 of white
    constant = 0.01**2
    expected = (2 * 0.75 * 0.375 + constant) / (0.75**2 + 0.375**2 + constant)
    torch.testing.assert_close(ssim(one, other), torch.full((2,), expected), atol=1e-4, rtol=0)


def test_ssim_sees_a_haze_on_black_more_than_faded_ink() -> None:
    image = -torch.ones(1, 1, 64, 64)
    image[..., 20:44, 28:36] = 1
    haze, faded = image.clamp(min=-0.9), 0.7 * (image + 1) - 1  # 5 % of white; 70 % of the contrast
    assert ssim(haze, image) < 0.5 < 0.9 < ssim(faded, image)


def test_retrieval_at_its_ends(digits: tuple) -> None:
    images, labels = digits
    perfect = retrieval(images, images, labels)
    assert perfect["overall"]["accuracy"] == perfect["within_class"]["accuracy"] == 1
    assert perfect["overall"]["chance"] == 1 / 120
    assert perfect["within_class"]["chance"] == 3 / 120  # 40 in each class
    one_each = retrieval(prototypes(images, labels), images, labels)
    assert one_each["within_class"]["accuracy"] == one_each["within_class"]["chance"]
    assert one_each["overall"]["accuracy"] == 3 / 120
    noise = retrieval(noise_like(images), images, labels)
    assert noise["overall"]["accuracy"] < 0.05 and noise["within_class"]["accuracy"] < 0.1


def test_retrieval_within_the_class_searches_this_class_only() -> None:
    images = torch.eye(4).reshape(4, 1, 2, 2)
    imagined = images[[1, 1, 2, 3]]  # the first looks like the second, which is of another class
    found = retrieval(imagined + 0.1 * images, images, torch.tensor([0, 1, 0, 1]))
    assert (found["overall"]["accuracy"], found["within_class"]["accuracy"]) == (0.75, 1)


def test_diversity_at_its_ends(digits: tuple) -> None:
    images, labels = digits
    assert diversity(images, images, labels)["mean"] == pytest.approx(1)
    assert diversity(prototypes(images, labels), images, labels)["mean"] == 0
    assert diversity(0.5 * images, images, labels)["mean"] == pytest.approx(0.5)
    assert diversity(noise_like(images), images, labels)["mean"] > 1.5
    collapsed = torch.where((labels == 2)[:, None, None, None], prototypes(images, labels), images)
    per_class = diversity(collapsed, images, labels)["per_class"]
    assert [entry["diversity"] for entry in per_class] == pytest.approx([1, 1, 0])


def test_the_interval_of_a_mean_is_the_normal_approximation() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    said = mean_ci(values)
    assert said["mean"] == pytest.approx(values.mean().item())
    low, high = stats.norm.interval(0.95, values.mean().item(), stats.sem(values.double().numpy()))
    assert said["interval"] == pytest.approx([low, high])


def test_features_that_are_not_finite_are_refused() -> None:
    missing = torch.full((10, 8), torch.nan)
    with pytest.raises(ValueError, match="a Frechet distance needs finite features"):
        frechet_distance(missing, torch.randn(10, 8))
    with pytest.raises(ValueError, match="a Frechet distance needs finite features"):
        realism(missing, missing)


def test_equal_sets_have_no_negative_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        features = torch.randn(50, 16, generator=generator)
        assert frechet_distance(features, features) >= 0
