"""The data sets: those that need no download, those in torchvision's files, written here, and the
real ones if present."""

import struct
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

import data
from common.files import UserError
from data import (
    DATASETS,
    Digits,
    class_names,
    default_root,
    downloads,
    load_digits,
    load_gan_images,
)
from data.augment import affine_grid, augment_uint8, random_affine, sample_by_gathers
from data.downloads import VALIDATION
from data.resize import downsample_lstsq, project_to_28x28, upsample
from data.synthetic import printed_letters, simple_shapes

PARTS = ("train", "validation", "test")
NOWHERE = Path("no download is needed")


def as_rows(digits: Digits) -> list[bytes]:
    """Each image as bytes, for sets of images."""
    return [image.numpy().tobytes() for image in digits.images]


# The digits that need no download.


@pytest.fixture(scope="module")
def handwritten() -> dict[str, Digits]:
    return {part: load_digits("handwritten", part, NOWHERE, "cpu") for part in PARTS}


@pytest.fixture(scope="module")
def printed() -> dict[str, Digits]:
    return {
        part: load_gan_images("printed", part, NOWHERE, "cpu") for part in ("train", "validation")
    }


def check(digits: Digits, count: int) -> None:
    assert digits.images.shape == (count, 28, 28)
    assert digits.images.dtype == torch.uint8
    assert digits.labels.shape == (count,)
    assert digits.labels.dtype == torch.int64
    assert digits.labels.unique().tolist() == list(range(10))
    # White on black, using the whole range: strokes are bright, and most of an image is not.
    assert digits.images.max() == 255
    assert digits.images.median() == 0
    assert digits.images.flatten(1).max(1).values.min() > 100


@pytest.mark.parametrize(("part", "count"), [("train", 1257), ("validation", 180), ("test", 360)])
def test_handwritten_digits(handwritten: dict[str, Digits], part: str, count: int) -> None:
    check(handwritten[part], count)
    edge = handwritten[part].images.clone()
    edge[:, 4:24, 4:24] = 0
    assert not edge.any()  # 20 x 20 in the middle of 28 x 28, as in MNIST


@pytest.mark.parametrize(("part", "count"), [("train", 7200), ("validation", 800)])
def test_printed_digits(printed: dict[str, Digits], part: str, count: int) -> None:
    check(printed[part], count)
    # 800 of each class, of which a tenth is drawn to validate: 80 with a deviation of 8.
    assert (printed[part].labels.bincount() - count // 10).abs().max() < 40


@pytest.mark.parametrize("sets", ["handwritten", "printed"])
def test_parts_are_disjoint(sets: str, request: pytest.FixtureRequest) -> None:
    parts = [set(as_rows(digits)) for digits in request.getfixturevalue(sets).values()]
    assert len(set.union(*parts)) == sum(len(part) for part in parts)


def test_the_labels_fit_the_images(
    handwritten: dict[str, Digits], printed: dict[str, Digits]
) -> None:
    """The nearest mean image of the training part names most of the validation part."""
    for sets in (handwritten, printed):
        train, validation = sets["train"], sets["validation"]
        means = torch.stack(
            [train.images[train.labels == digit].float().mean(0) for digit in range(10)]
        )
        nearest = torch.cdist(validation.images.flatten(1).float(), means.flatten(1)).argmin(1)
        assert (nearest == validation.labels).float().mean() > 0.5  # 0.1 by chance


def test_handwritten_and_printed_digits_share_the_orientation_but_no_image(
    handwritten: dict[str, Digits], printed: dict[str, Digits]
) -> None:
    """The mean printed digit looks like the mean handwritten one, and less so when it is
    transposed."""
    assert not set(as_rows(handwritten["train"])) & set(as_rows(printed["train"]))
    for digit in (2, 4, 7):  # those that change most when transposed
        handwriting, print_ = (
            sets["train"].images[sets["train"].labels == digit].float().mean(0)
            for sets in (handwritten, printed)
        )
        assert (
            pixel_correlation(handwriting, print_) > pixel_correlation(handwriting, print_.T) + 0.1
        )


def pixel_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


def test_loading_again_gives_the_same_and_keeps_the_random_state(
    handwritten: dict[str, Digits], printed: dict[str, Digits]
) -> None:
    """The state of the global random generators does not matter, and does not change."""
    torch.manual_seed(123)
    np.random.seed(123)
    state, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    for first, second in [
        (handwritten["test"], load_digits("handwritten", "test", NOWHERE, "cpu")),
        (printed["validation"], load_gan_images("printed", "validation", NOWHERE, "cpu")),
    ]:
        assert first.images.equal(second.images)
        assert first.labels.equal(second.labels)
    assert torch.get_rng_state().equal(state)
    assert (np.random.get_state()[1] == numpys).all()


def test_upsample_gives_64_by_64_pixels_from_minus_one_to_one(
    handwritten: dict[str, Digits],
) -> None:
    seen = upsample(handwritten["test"].images[:50])
    assert seen.shape == (50, 1, 64, 64)
    assert seen.dtype == torch.float32
    assert seen.min() == -1
    assert 0.9 < seen.max() <= 1
    for grey, value in ((0, -1.0), (255, 1.0), (51, -0.6)):
        assert upsample(torch.full((1, 28, 28), grey, dtype=torch.uint8)).allclose(
            torch.tensor(value)
        )


def test_downsample_is_the_least_squares_inverse_of_upsample(
    handwritten: dict[str, Digits],
) -> None:
    images = handwritten["test"].images[:20]
    torch.testing.assert_close(
        downsample_lstsq(upsample(images))[:, 0], images / 255, atol=1e-5, rtol=0
    )
    # An image that is no enlargement gives the nearest one. The reference is NumPy's, with the
    # matrix of the enlargement found pixel by pixel.
    pixels = torch.eye(28 * 28).view(-1, 28, 28)
    enlarging = (upsample((pixels * 255).byte()) + 1).flatten(1).T.double().numpy() / 2
    noise = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = (noise.flatten(1).T.double().numpy() + 1) / 2
    expected = np.linalg.solve(
        enlarging.T @ enlarging, enlarging.T @ seen
    )  # a tenth of the time of lstsq
    torch.testing.assert_close(
        downsample_lstsq(noise).flatten(1).T, torch.from_numpy(expected).float(), atol=1e-4, rtol=0
    )
    enlarged = torch.from_numpy(enlarging @ expected).float().T.view(2, 1, 64, 64) * 2 - 1
    torch.testing.assert_close(project_to_28x28(noise), enlarged, atol=2e-4, rtol=0)


def test_letters_and_shapes_are_all_different() -> None:
    for images, count in ((printed_letters(), 26), (simple_shapes(), 10)):
        assert images.shape == (count, 28, 28)
        assert images.dtype == torch.uint8
        assert len({tuple(image.flatten().tolist()) for image in images}) == count
        assert (images.flatten(1).max(1).values > 200).all()
        edge = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]])
        assert not edge.any()  # nothing is cut off


def test_upsample_keeps_the_image_upright() -> None:
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[0, 3, 20] = 255  # 28 -> 64: its centre goes to (3.5, 20.5) * 64 / 28 = (8.0, 46.9)
    row, column = divmod(upsample(image).argmax().item(), 64)
    assert row in (7, 8)
    assert column in (46, 47)


# Data sets by name.


@pytest.mark.parametrize("name", ["fashion-mnist", "", "MNIST"])
def test_an_unknown_data_set_is_refused_with_the_names(name: str) -> None:
    names = ", ".join(DATASETS)
    message = f"--dataset {name}: there is no such data set; give one of {names}.$"
    with pytest.raises(UserError, match=message):
        load_digits(name, "test", NOWHERE, "cpu")
    with pytest.raises(UserError, match=message):
        class_names(name, NOWHERE)
    message = f"--dataset {name}: there is no such data set; give one of emnist, printed, {names}.$"
    with pytest.raises(UserError, match=message):
        load_gan_images(name, "train", NOWHERE, "cpu")


def test_no_data_set_stands_in_for_another_one(tmp_path: Path) -> None:
    for name in ("mnist", "fashion_mnist", "pictures"):
        with pytest.raises(UserError, match="cannot be downloaded|pictures is missing"):
            load_digits(name, "train", tmp_path, "cpu")
    assert class_names("fashion_mnist", tmp_path)[:2] == ("T-shirt", "trouser")
    assert class_names("handwritten", tmp_path) == tuple("0123456789")


# A folder of pictures.


def draw_pictures(root: Path, counts: dict[str, int], size: tuple[int, int] = (28, 28)) -> Path:
    """The folder `pictures` in `root`: a subfolder a class, and in it grey PNGs, each of another
    level."""
    level = 0
    for name, count in counts.items():
        folder = root / "pictures" / name
        folder.mkdir(parents=True)
        for number in range(count):
            level += 1
            Image.new("L", size, level).save(folder / f"{number:03d}.png")
    return root / "pictures"


@pytest.mark.parametrize("size", [(28, 28), (50, 40)])
def test_a_folder_of_pictures_has_a_class_for_each_subfolder(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    folder = draw_pictures(tmp_path, {"pear": 20, "apple": 10, "plum": 11}, size)
    (folder / ".hidden").mkdir()
    (folder / "pear" / "notes.txt").write_text("no picture")
    assert class_names("pictures", tmp_path) == ("apple", "pear", "plum")
    parts = {part: load_digits("pictures", part, tmp_path, "cpu") for part in PARTS}
    counts = {part: digits.labels.bincount().tolist() for part, digits in parts.items()}
    assert counts == {"train": [7, 14, 8], "validation": [1, 2, 1], "test": [2, 4, 2]}
    levels = torch.cat([digits.images[:, 14, 14] for digits in parts.values()])
    labels = torch.cat([digits.labels for digits in parts.values()])
    assert sorted(levels.tolist()) == list(range(1, 42))  # each in one part
    assert sorted(levels[labels == 0].tolist()) == list(range(21, 31))
    assert parts["train"].images.shape == (29, 28, 28)
    again = load_digits("pictures", "validation", tmp_path, "cpu")
    assert again.images.equal(parts["validation"].images)


def test_errors_name_what_a_folder_of_pictures_lacks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pictures is missing; make it, with one subfolder"):
        load_digits("pictures", "train", tmp_path, "cpu")
    folder = draw_pictures(tmp_path, {"apple": 10})
    with pytest.raises(UserError, match="pictures has 1 subfolders; it needs one for each class"):
        class_names("pictures", tmp_path)
    draw_pictures(tmp_path, {"pear": 9})
    with pytest.raises(UserError, match="pear holds 9 pictures; a class needs at least 10"):
        load_digits("pictures", "train", tmp_path, "cpu")
    (folder / "pear" / "009.png").write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match="009.png is damaged, or no picture"):
        load_digits("pictures", "train", tmp_path, "cpu")


# Random rotation, shift and scaling.


def test_affine_grid_agrees_with_pytorch() -> None:
    matrices = torch.randn(5, 2, 3)
    for height, width in ((64, 64), (28, 28), (7, 20)):
        shape = [5, 1, height, width]
        expected = torch.nn.functional.affine_grid(matrices, shape, align_corners=False)
        grid = affine_grid(matrices, height, width)
        torch.testing.assert_close(grid, expected, rtol=0, atol=2e-6)


def test_random_affine_draws_for_each_image() -> None:
    torch.manual_seed(0)
    images = -torch.ones(64, 1, 32, 32)
    images[:, :, 12:20, 8:24] = 1
    assert torch.equal(random_affine(images, 0.0), images)
    rotated = random_affine(images, 180.0)
    assert len({tuple(image.flatten().tolist()) for image in rotated}) == 64
    assert rotated.min() == -1
    torch.manual_seed(1)
    expected = random_affine(images, 10.0)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(random_affine(images, 10.0), expected)
    ink, before = (rotated + 1).sum((1, 2, 3)), (images + 1).sum((1, 2, 3))
    torch.testing.assert_close(ink, before, rtol=0.05, atol=0)  # a rotation keeps the ink
    scaled = (random_affine(images, 0.0, scale=0.3) + 1).sum((1, 2, 3)) / before
    assert scaled.min() < 0.75
    assert scaled.max() > 1.4


@pytest.mark.parametrize("augmentation", [0.5, 1.0])
def test_augmentation_rotates_shifts_and_scales_up_to_its_limits(augmentation: float) -> None:
    torch.manual_seed(0)
    bars = torch.zeros(200, 28, 28, dtype=torch.uint8)
    bars[:, 13:15, 4:24] = 255
    moved = augment_uint8(bars, augmentation)
    assert moved.shape == bars.shape
    assert moved.dtype == torch.float32
    assert (moved.min(), moved.max()) == (0, 1)
    # Place, angle and length of each bar, from the moments of its ink.
    ink, places = moved.double().numpy(), np.arange(28) - 13.5
    mass = ink.sum((1, 2))
    x, y = ((ink.sum(axis) * places).sum(1) / mass for axis in (1, 2))
    xx, yy = (
        (ink.sum(axis) * places**2).sum(1) / mass - mean**2 for axis, mean in ((1, x), (2, y))
    )
    xy = np.einsum("nij,i,j->n", ink, places, places) / mass - x * y
    angle = np.degrees(0.5 * np.arctan2(2 * xy, xx - yy))
    length = np.sqrt(xx / np.cos(np.radians(angle)) ** 2)
    for measured, limit, rounding in (
        (angle, 10 * augmentation, 0.3),
        (x, 0.04 * 28 * augmentation * 1.25, 0.05),
        (y, 0.04 * 28 * augmentation * 1.25, 0.05),
        (length / np.median(length) - 1, 0.1 * augmentation * 1.15, 0.02),
    ):
        assert 0.7 * limit < abs(measured).max() < limit + rounding


@pytest.mark.parametrize(("augmentation", "reach"), [(1.0, 1.0), (0.3, 1.0), (1.0, 8.0)])
def test_sampling_by_gathers_agrees_with_grid_sample(augmentation: float, reach: float) -> None:
    """Values and gradients, also far outside of the image."""
    torch.manual_seed(0)
    images = torch.rand(3, 1, 20, 31, dtype=torch.float64, requires_grad=True)
    noise = augmentation * torch.randn(3, 2, 3, dtype=torch.float64) / 4
    matrices = torch.eye(2, 3, dtype=torch.float64) + noise
    grid = torch.nn.functional.affine_grid(matrices, [3, 1, 24, 24], align_corners=False) * reach
    one = torch.nn.functional.grid_sample(images, grid, align_corners=False)
    other = sample_by_gathers(images, grid)
    torch.testing.assert_close(other, one)
    assert 0 < one.count_nonzero() < one.numel()
    gradients = [torch.autograd.grad(sampled.square().sum(), images)[0] for sampled in (one, other)]
    torch.testing.assert_close(*gradients)


# torchvision's files, written here.


def write_idx(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    """The format of MNIST: a magic number, the sizes, all big-endian, and then bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">IIII", 2051, *images.shape)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.astype(np.uint8).tobytes())
    head = struct.pack(">II", 2049, len(labels))
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(head + labels.astype(np.uint8).tobytes())


def numbered(count: int, first: int = 0) -> np.ndarray:
    """Images that carry their number in the top right corner, which transposing would move."""
    images = np.zeros((count, 28, 28))
    images[:, 0, 27] = np.arange(first, first + count)
    return images


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A root with an MNIST of 20 training and 4 test images."""
    write_idx(tmp_path / "MNIST" / "raw", "train", numbered(20), np.arange(20) % 10)
    write_idx(tmp_path / "MNIST" / "raw", "t10k", numbered(4, first=100), np.arange(4))
    return tmp_path


def emnist(root: Path, split: str, count: int, classes: int, file: str = "train") -> Path:
    """A root with an EMNIST, whose images are stored transposed, as the official ones are."""
    images = numbered(count).transpose(0, 2, 1)
    write_idx(root / "EMNIST" / "raw", f"emnist-{split}-{file}", images, np.arange(count) % classes)
    return root


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise URLError("no network in the tests")

    monkeypatch.setattr(datasets.MNIST, "download", refuse)
    monkeypatch.setattr(datasets.EMNIST, "download", refuse)


def test_mnist_parts(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The validation part is the end of the training file; the test file is another."""
    assert VALIDATION == 5000
    monkeypatch.setattr(downloads, "VALIDATION", 6)
    parts = {part: load_digits("mnist", part, mnist, "cpu") for part in PARTS}
    numbers = {part: digits.images[:, 0, 27].tolist() for part, digits in parts.items()}
    assert numbers == {
        "train": list(range(14)),
        "validation": list(range(14, 20)),
        "test": [100, 101, 102, 103],
    }
    for part, digits in parts.items():
        assert digits.images.dtype == torch.uint8
        assert digits.labels.tolist() == [number % 100 % 10 for number in numbers[part]]


def test_mnist_is_not_transposed(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "VALIDATION", 6)
    images = load_digits("mnist", "train", mnist, "cpu").images
    assert images[3].count_nonzero() == 1
    assert images[3, 0, 27] == 3


@pytest.mark.parametrize("file", ["train", "test"])
def test_emnist_is_transposed_back(tmp_path: Path, file: str) -> None:
    """It is split into nine tenths and one tenth, and each image keeps its label."""
    root = emnist(tmp_path, "mnist", 40, 10, file)
    parts = {
        part: load_gan_images("emnist", part, root, "cpu", emnist_part=file)
        for part in ("train", "validation")
    }
    assert {part: len(digits.labels) for part, digits in parts.items()} == {
        "train": 36,
        "validation": 4,
    }
    images, labels = (torch.cat(tensors) for tensors in zip(*parts.values(), strict=True))
    numbers = images[:, 0, 27]
    assert sorted(numbers.tolist()) == list(range(40))
    assert labels.equal(numbers.long() % 10)
    images[:, 0, 27] = 0
    assert not images.any()


def test_emnist_parts_are_the_same_each_time(tmp_path: Path) -> None:
    root = emnist(tmp_path, "mnist", 40, 10)
    first = load_gan_images("emnist", "validation", root, "cpu")
    torch.manual_seed(99)
    assert load_gan_images("emnist", "validation", root, "cpu").images.equal(first.images)


def test_digits_only_leaves_out_the_letters(tmp_path: Path) -> None:
    root = emnist(tmp_path, "byclass", 124, 62)

    def labels(digits_only: bool) -> list[int]:
        parts = [
            load_gan_images("emnist", part, root, "cpu", split="byclass", digits_only=digits_only)
            for part in ("train", "validation")
        ]
        return sorted(torch.cat([digits.labels for digits in parts]).tolist())

    assert labels(digits_only=True) == sorted(2 * list(range(10)))
    assert labels(digits_only=False) == sorted(2 * list(range(62)))


def test_letters_hold_no_digits(tmp_path: Path) -> None:
    """The labels of 'letters' begin at 1 for A, so that some of them look like digits."""
    root = emnist(tmp_path, "letters", 52, 26)
    with pytest.raises(UserError, match="'letters' holds no digits; give --no-digits-only"):
        load_gan_images("emnist", "train", root, "cpu", split="letters")
    assert (
        len(
            load_gan_images(
                "emnist", "train", root, "cpu", split="letters", digits_only=False
            ).labels
        )
        == 47
    )


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="EMNIST has no split 'digit'; give one of byclass, .*, digits, mnist"
    ):
        load_gan_images("emnist", "train", tmp_path, "cpu", split="digit")


# Damaged and missing files.


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def overwrite(path: Path) -> None:
    path.write_bytes(b"<html>404 Not Found</html>" * 40)


def shorten(path: Path) -> None:
    """A whole file, of fewer images than there are labels."""
    write_idx(path.parent, "other", numbered(3), np.arange(3))
    path.write_bytes((path.parent / "other-images-idx3-ubyte").read_bytes())


def resize(path: Path) -> None:
    """A whole file, of images of another size."""
    write_idx(path.parent, "other", np.zeros((20, 20, 20)), np.arange(20))
    path.write_bytes((path.parent / "other-images-idx3-ubyte").read_bytes())


DAMAGES = [truncate, empty, overwrite, shorten, resize]


def damaged(name: str) -> str:
    """The error for a file of the wrong length or size, or for whole files that do not fit."""
    one_file = f"raw/{name} (is damaged; delete it|holds no images of 28 x 28; put another there)"
    return f"{one_file}|MNIST/raw holds damaged files; .* {name}"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_mnist_is_refused(mnist: Path, damage: Callable[[Path], None]) -> None:
    damage(mnist / "MNIST" / "raw" / "train-images-idx3-ubyte")
    with pytest.raises(UserError, match=damaged("train-images-idx3-ubyte")):
        load_digits("mnist", "train", mnist, "cpu")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_emnist_is_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    root = emnist(tmp_path, "mnist", 20, 10)
    damage(root / "EMNIST" / "raw" / "emnist-mnist-train-images-idx3-ubyte")
    with pytest.raises(UserError, match=damaged("emnist-mnist-train-images-idx3-ubyte")):
        load_gan_images("emnist", "train", root, "cpu")


def test_damaged_labels_are_refused(mnist: Path) -> None:
    path = mnist / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{path.name} is damaged; delete it and put a whole one"):
        load_digits("mnist", "test", mnist, "cpu")


@pytest.mark.parametrize("missing", ["all", "t10k-labels-idx1-ubyte"])
def test_a_missing_mnist_without_a_network_names_folder_and_files(
    mnist: Path, tmp_path_factory: pytest.TempPathFactory, missing: str
) -> None:
    root = mnist
    if missing == "all":
        root = tmp_path_factory.mktemp("empty")
    else:
        (mnist / "MNIST" / "raw" / missing).unlink()
    with pytest.raises(UserError, match="MNIST is not in .* and cannot be downloaded") as refusal:
        load_digits("mnist", "train", root, "cpu")
    message = str(refusal.value)
    assert str(root / "MNIST" / "raw") in message
    for prefix in ("train", "t10k"):
        assert f"{prefix}-images-idx3-ubyte" in message
        assert f"{prefix}-labels-idx1-ubyte" in message
    assert "--data-root or LISTEN_DATA" in message


@pytest.mark.parametrize(("split", "file"), [("mnist", "train"), ("byclass", "test")])
def test_a_missing_emnist_without_a_network_names_folder_and_files(
    tmp_path: Path, split: str, file: str
) -> None:
    with pytest.raises(UserError, match="EMNIST is not in .* and cannot be downloaded") as refusal:
        load_gan_images("emnist", "train", tmp_path, "cpu", split=split, emnist_part=file)
    message = str(refusal.value)
    assert str(tmp_path / "EMNIST" / "raw") in message
    assert (
        f"emnist-{split}-{file}-images-idx3-ubyte, emnist-{split}-{file}-labels-idx1-ubyte"
        in message
    )


def test_missing_files_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.EMNIST, "download", lambda self: emnist(tmp_path, "mnist", 20, 10))
    assert len(load_gan_images("emnist", "train", tmp_path, "cpu").labels) == 18


def test_listen_data_names_the_folder_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_DATA", str(tmp_path))
    assert default_root() == tmp_path
    for unset in (
        lambda: monkeypatch.setenv("LISTEN_DATA", ""),
        lambda: monkeypatch.delenv("LISTEN_DATA"),
    ):
        unset()
        assert default_root() == Path(data.__file__).parent


# The real data, where they are.


def real(file: str) -> Path:
    """The root that holds `file`: the default one, or `shared/data` beside the repository; else the
    test is skipped."""
    roots = (default_root(), Path(__file__).parents[2] / "shared" / "data")
    for root in roots:
        if (root / file).is_file():
            return root
    pytest.skip(f"needs the real {file}, in $LISTEN_DATA, data/ or ../shared/data")


def test_the_real_mnist() -> None:
    root = real("MNIST/raw/train-images-idx3-ubyte")
    parts = {part: load_digits("mnist", part, root, "cpu") for part in PARTS}
    assert [len(parts[part].labels) for part in PARTS] == [55000, 5000, 10000]
    assert parts["train"].labels[0] == 5  # the first image that anyone sees of MNIST
    check(parts["train"], 55000)


def test_the_real_emnist_is_upright() -> None:
    """Its digits of byclass are as many as its authors say, and look like MNIST's, and less so when
    transposed."""
    root = real("EMNIST/raw/emnist-byclass-test-images-idx3-ubyte")
    parts = [
        load_gan_images("emnist", part, root, "cpu", split="byclass", emnist_part="test")
        for part in ("train", "validation")
    ]
    assert sum(len(part.labels) for part in parts) == 57918
    assert parts[0].labels.unique().tolist() == list(range(10))
    mnist = load_digits("mnist", "test", real("MNIST/raw/t10k-images-idx3-ubyte"), "cpu")
    for digit in (2, 4, 7):
        handwriting, print_ = (
            part.images[part.labels == digit].float().mean(0) for part in (mnist, parts[0])
        )
        assert (
            pixel_correlation(handwriting, print_) > pixel_correlation(handwriting, print_.T) + 0.1
        )
