"""The networks: their shapes, their published sizes, and that each of them can learn."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models.generator
import models.vggish
from models.discriminator import Discriminator
from models.generator import NOISE_SIZE, Generator, seeded_noise
from models.judge_cnn import CNNJudge
from models.lenet import LeNet
from models.vggish import VGGish


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def small_networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """Each network, small, with four inputs."""
    torch.manual_seed(0)
    images = normal(4, 1, 64, 64).clamp(-1, 1)
    return {
        "vggish": (VGGish(frames=32, width=4), normal(4, 1, 32, 64)),
        "generator": (Generator(4), normal(4, 100)),
        "discriminator": (Discriminator(4), images),
        "lenet": (LeNet(), images),
        "judge": (CNNJudge(), images),
    }


NAMES = ("vggish", "generator", "discriminator", "lenet", "judge")


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# Shapes and ranges.


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("vggish", (4, 10)),
        ("generator", (4, 1, 64, 64)),
        ("discriminator", (4,)),
        ("lenet", (4, 10)),
        ("judge", (4, 10)),
    ],
)
def test_output_shapes(name: str, shape: tuple[int, ...]) -> None:
    network, inputs = small_networks()[name]
    assert network(inputs).shape == shape
    assert network.eval()(inputs[:1]).shape == (1, *shape[1:])


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_float32_under_bfloat16_autocast(name: str) -> None:
    network, inputs = small_networks()[name]
    with torch.autocast("cpu", torch.bfloat16):
        output = network(inputs)
    assert output.dtype == torch.float32
    assert output.isfinite().all()


def test_embeddings_and_features_are_float32_under_bfloat16_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = VGGish(frames=16, width=4).embed(normal(2, 1, 16, 64))
        features = CNNJudge().features(normal(2, 1, 64, 64))
    assert embeddings.dtype == features.dtype == torch.float32


def test_other_numbers_of_classes() -> None:
    images = normal(2, 1, 64, 64)
    assert LeNet(classes=62)(images).shape == (2, 62)
    assert CNNJudge(classes=62)(images).shape == (2, 62)
    assert VGGish(frames=16, width=4, classes=62)(normal(2, 1, 16, 64)).shape == (2, 62)


@pytest.mark.parametrize("training", [True, False])
def test_the_generator_draws_from_minus_one_to_one(training: bool) -> None:
    generator = Generator(4).train(training)
    with torch.no_grad():
        generator.layers[
            -2
        ].weight *= 1e6  # as they begin, the weights are too small to leave the range
    images = generator(normal(4, 100))
    assert images.min() == -1
    assert images.max() == 1


def test_the_cnn_judge_has_64_features_of_32_by_32_pixels() -> None:
    judge = CNNJudge().eval()
    images = normal(3, 1, 64, 64)
    features = judge.features(images)
    assert features.shape == (3, 64)
    assert features.dtype == torch.float32
    assert judge.classifier(features).equal(judge(images))
    means = (
        images.reshape(3, 1, 32, 2, 32, 2)
        .mean((3, 5))
        .repeat_interleave(2, 2)
        .repeat_interleave(2, 3)
    )
    # The mean of four equal numbers, and of four numbers, differ by float32's rounding only.
    torch.testing.assert_close(judge(means), judge(images), rtol=1e-4, atol=1e-5)


# VGGish.


def test_vggish_has_a_relu_after_every_convolution() -> None:
    layers = list(VGGish(frames=16, width=4).features)
    behind = [
        after
        for layer, after in zip(layers, layers[1:], strict=False)
        if isinstance(layer, nn.Conv2d)
    ]
    assert len(behind) == 6
    assert all(isinstance(layer, nn.ReLU) for layer in behind)


@pytest.mark.parametrize(("frames", "flat"), [(96, 12288), (112, 14336), (208, 26624)])
def test_vggish_flattens_to_the_published_size(frames: int, flat: int) -> None:
    with torch.device("meta"):  # shapes only: no memory, no time
        network = VGGish(frames=frames)
        maps = network.features(torch.empty(1, 1, frames, 64))
    assert maps[0].numel() == network.embedding[0].in_features == flat


def test_vggish_has_the_published_layers() -> None:
    with torch.device("meta"):
        network = VGGish(frames=96)
    convolutions = [
        (c.in_channels, c.out_channels) for c in network.features if isinstance(c, nn.Conv2d)
    ]
    assert convolutions == [(1, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    linear = [
        (layer.in_features, layer.out_features)
        for layer in network.modules()
        if isinstance(layer, nn.Linear)
    ]
    assert linear == [(12288, 1024), (1024, 100), (100, 1024), (1024, 10)]
    assert [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)] == [0.5, 0.5]


def test_vggish_flattens_time_first_and_channels_last() -> None:
    """The order of the original, and of the released weights."""
    network = VGGish(frames=32, width=4).eval()
    logmels = normal(2, 1, 32, 64)
    flat = []
    network.embedding[0].register_forward_pre_hook(lambda layer, inputs: flat.append(inputs[0]))
    network.embed(logmels)
    maps = network.features(logmels)  # 2 x 32 channels x 2 times x 4 bands
    assert maps.shape == (2, 32, 2, 4)
    for time, band, channel in [(0, 0, 0), (0, 0, 31), (0, 3, 5), (1, 0, 0), (1, 2, 17)]:
        # The convolutions may add in another order where the memory is laid out in another one.
        torch.testing.assert_close(
            flat[0][:, (time * 4 + band) * 32 + channel], maps[:, channel, time, band]
        )


def test_the_embedding_has_mean_0_and_variance_1_like_the_noise() -> None:
    torch.manual_seed(0)
    network = VGGish(frames=16, width=4).train()
    embeddings = network.embed(5 * normal(64, 1, 16, 64))
    assert embeddings.shape == (64, NOISE_SIZE)
    torch.testing.assert_close(embeddings.mean(0), torch.zeros(100), rtol=0, atol=1e-4)
    # BatchNorm adds 1e-5 to a variance that is some 0.01 at the start.
    torch.testing.assert_close(embeddings.var(0, correction=0), torch.ones(100), rtol=0, atol=0.01)


def test_the_batchnorm_of_the_embedding_has_no_parameters() -> None:
    norms = [
        layer for layer in VGGish(frames=16, width=4).modules() if isinstance(layer, nn.BatchNorm1d)
    ]
    assert len(norms) == 1
    assert not list(norms[0].parameters())
    assert norms[0].num_features == 100


def test_the_noise_size_and_the_embedding_size_are_one_constant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Change it, and both networks change: one's output must fit the other's input."""
    assert models.vggish.NOISE_SIZE is models.generator.NOISE_SIZE
    for module in (models.generator, models.vggish):
        monkeypatch.setattr(module, "NOISE_SIZE", 60)
    noise = seeded_noise(4, 0, torch.device("cpu"))
    network = VGGish(frames=16, width=4)
    embeddings = network.embed(normal(4, 1, 16, 64))
    assert embeddings.shape == noise.shape == (4, 60)
    assert Generator(4)(embeddings).shape == (4, 1, 64, 64)
    assert network(normal(4, 1, 16, 64)).shape == (4, 10)


# Published sizes.


def test_the_generator_has_the_size_of_the_dcgan_example() -> None:
    """pytorch/examples dcgan, nz = 100, ngf = 64, nc = 1: 4 x 4 kernels without bias, BatchNorm
    behind all but the last."""
    kernels = 16 * (100 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 1)
    norms = 2 * (512 + 256 + 128 + 64)
    assert parameters(Generator(64)) == kernels + norms == 3_574_656


def test_the_discriminator_has_the_size_of_the_dcgan_example() -> None:
    """ndf = 64, nc = 1: no BatchNorm behind the first convolution, nor behind the last."""
    kernels = 16 * (1 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1)
    norms = 2 * (128 + 256 + 512)
    assert parameters(Discriminator(64)) == kernels + norms == 2_763_520


def test_lenet_has_the_published_layers() -> None:
    network = LeNet()
    linear = [
        (layer.in_features, layer.out_features)
        for layer in network.layers
        if isinstance(layer, nn.Linear)
    ]
    assert linear == [(3380, 512), (512, 10)]
    flatten = next(i for i, layer in enumerate(network.layers) if isinstance(layer, nn.Flatten))
    assert network.layers[: flatten + 1](normal(2, 1, 64, 64)).shape == (2, 3380)
    assert parameters(network) == (25 * 10 + 10) + (25 * 10 * 20 + 20) + (3380 * 512 + 512) + (
        512 * 10 + 10
    )


@pytest.mark.parametrize("network_type", [Generator, Discriminator])
def test_dcgan_initialisation(network_type: type[nn.Module]) -> None:
    torch.manual_seed(0)
    for layer in network_type(16).modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            # The fewest weights are 256, whose deviation is uncertain by 0.02 / sqrt(2 * 256); four
            # times that.
            assert layer.weight.std().item() == pytest.approx(0.02, abs=0.0036)
            assert abs(layer.weight.mean().item()) < 0.005
        elif isinstance(layer, nn.BatchNorm2d):
            assert layer.weight.mean().item() == pytest.approx(1, abs=0.02)
            assert 0.005 < layer.weight.std().item() < 0.04
            assert not layer.bias.any()


# Deterministic.


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_fixes_the_weights_and_eval_mode_is_deterministic(name: str) -> None:
    (first, inputs), (second, _) = small_networks()[name], small_networks()[name]
    assert all(
        a.equal(b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    first.eval(), second.eval()
    output = first(inputs)
    assert output.equal(first(inputs))
    assert output.equal(second(inputs))


@pytest.mark.parametrize("name", NAMES)
def test_in_eval_mode_an_output_does_not_depend_on_the_batch(name: str) -> None:
    network, inputs = small_networks()[name]
    network.eval()
    singles = torch.cat([network(one[None]) for one in inputs])
    torch.testing.assert_close(network(inputs), singles, rtol=1e-4, atol=1e-5)


# Each of them can memorise a few examples.


def fit(network: nn.Module, loss: Callable[[], Tensor], steps: int, learning_rate: float) -> None:
    optimiser = torch.optim.Adam(network.parameters(), learning_rate)
    network.train()
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    network.eval()


@pytest.mark.parametrize("name", ["vggish", "lenet", "judge"])
def test_a_classifier_learns_ten_examples(name: str) -> None:
    torch.manual_seed(0)
    inputs = normal(10, 1, 16 if name == "vggish" else 64, 64)
    labels = torch.arange(10)
    network = {"vggish": lambda: VGGish(frames=16, width=4), "lenet": LeNet, "judge": CNNJudge}[
        name
    ]()
    fit(network, lambda: F.cross_entropy(network(inputs), labels), 40, 1e-3)
    with torch.no_grad():
        assert network(inputs).argmax(1).equal(labels)


def test_the_generator_learns_four_images() -> None:
    torch.manual_seed(0)
    generator, noise = Generator(8), normal(4, 100)
    images = -torch.ones(4, 1, 64, 64)
    for i in range(4):  # a bar at another place in each
        images[i, :, 8:56, 8 + 12 * i : 16 + 12 * i] = 1
    fit(generator, lambda: F.mse_loss(generator(noise), images), 100, 1e-2)
    generator.train()  # its statistics over 100 steps are not those of the last one
    with torch.no_grad():
        drawn = generator(noise)
    # The mean of the four images has an error of 0.28.
    assert F.mse_loss(drawn, images) < 0.1


def test_the_discriminator_learns_to_classify_eight_images() -> None:
    torch.manual_seed(0)
    discriminator, images = Discriminator(8), normal(8, 1, 64, 64).clamp(-1, 1)
    real = torch.tensor([1.0, 0.0]).repeat(4)
    fit(
        discriminator,
        lambda: F.binary_cross_entropy_with_logits(discriminator(images), real),
        40,
        2e-3,
    )
    discriminator.train()
    with torch.no_grad():
        assert ((discriminator(images) > 0) == (real > 0)).all()
