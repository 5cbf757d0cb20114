"""Stage two, visual memory: a DCGAN learns to draw the characters of EMNIST from noise.

    python emnist_dcgan.py            # the published schedule
    python emnist_dcgan.py small      # a preset: narrower and shorter, for two cores
    python emnist_dcgan.py --help     # every setting below is a flag

It reads EMNIST, which is downloaded on first use, and `results/judges/cnn/`, in whose features it
measures how real the samples look. It writes `results/emnist_dcgan/`: checkpoint.pt with the
generator, metrics.json, log.jsonl, curves.png, and samples_001.png ... of the same noise after
every epoch. On one GPU it takes two minutes."""

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

from common.checkpoint import checkpoint_hashes
from common.cli import BatchSize, Count, LearningRate, Limit, Seed, Weight, command_line
from common.device import autocast, choose_device, place
from data import data_hashes, default_root, load_gan_images
from data.resize import upsample
from evaluation.metrics import frechet_distance, judge_features
from models.discriminator import Discriminator
from models.generator import NOISE_SIZE, Generator, generate, seeded_noise
from training.cuda_graph import CudaGraphStep
from training.figures import save_curves, save_grid
from training.loop import RunningMean, epoch_batches, optimizer_step
from training.run import Run, require_complete
from training.upstream import UPSTREAM_STAGES, load_judge

D_LOSS_MARGIN = 0.02  # the discriminator has won if its loss is this near to the least possible
MIN_DIVERSITY = 0.05  # the samples have collapsed if they vary less than this share of real images


@dataclass(frozen=True)
class Config:
    # -- data
    # emnist, printed (digits in matplotlib's fonts, no download), or a key of DATASETS in data/.
    dataset: str = "emnist"
    # Of EMNIST. Published: mnist.
    split: Literal["mnist", "digits", "byclass", "bymerge", "balanced", "letters"] = "mnist"
    # Which of EMNIST's two official files to learn from.
    emnist_part: Literal["train", "test"] = "train"
    digits_only: bool = True  # Leave out the letters of EMNIST.

    # -- network
    # Channels of the generator's last hidden and the discriminator's first layer. Published: 64.
    width: Count = 64

    # -- schedule
    epochs: Count = 50  # Number of epochs. Published: 50.
    # Images an epoch, drawn again in each. None: all but the tenth held out. Published: all.
    images_per_epoch: Annotated[int, Limit(2)] | None = None
    batch: BatchSize = 64  # Images a step. Published: 64.
    learning_rate: LearningRate = 2e-4  # Learning rate of the generator's Adam. Published: 2e-4.
    # Learning rate of the discriminator's Adam. Published: 2e-4. A fifth of the generator's saves
    # many steps.
    discriminator_learning_rate: LearningRate = 2e-4
    # First beta of both Adams; the second is 0.999. Published: 0.5.
    beta1: Annotated[float, Limit(0, 0.999)] = 0.5
    # Standard deviation of the noise on the discriminator's input; it falls to 0 along a line.
    # Published: 0. Without it the discriminator wins within 50 steps, and the samples stay noise.
    instance_noise: Weight = 0.3
    # The discriminator's target for real images. Published: 1.
    real_label: Annotated[float, Limit(0, 1)] = 0.9

    # -- run
    seed: Seed = 0  # Seed of the weights, the order and the noise.
    device: str = "auto"  # auto, cpu, cuda or cuda:1.
    deterministic: bool = False  # Give the same bits in every run on a GPU too, which is slower.
    cuda_graphs: bool = True  # Capture the step on a GPU. Set it to False while you edit it.
    # The folder of the data sets; also $LISTEN_DATA.
    data_root: Path = field(default_factory=default_root)
    results: Path = Path("results")  # The folder of all runs.
    resume: bool = False  # Continue after the last finished epoch.


PRESETS = {
    "published": Config(),
    "small": Config(
        width=32, epochs=5, images_per_epoch=6400, batch=32, learning_rate=1e-3, instance_noise=0.5
    ),
    "demo": Config(
        dataset="printed", width=16, epochs=2, images_per_epoch=4800, batch=32, learning_rate=1e-3,
        instance_noise=0.5,
    ),
}  # fmt: skip


def main(config: Config) -> dict[str, float]:
    """Run the stage; returns what metrics.json says."""
    device = choose_device(config.device, config.deterministic)
    which = (config.data_root, device, config.split, config.emnist_part, config.digits_only)
    train = load_gan_images(config.dataset, "train", *which)
    validation = load_gan_images(config.dataset, "validation", *which)
    judge_folder = config.results / UPSTREAM_STAGES["judge_cnn"]
    judge = load_judge(judge_folder, None, device)
    require_complete(judge_folder, "run mnist_classify_train.py")
    real = upsample(validation.images)
    real_features, real_diversity = judge_features(judge, real), pixel_diversity(real)

    torch.manual_seed(config.seed)
    generator = place(Generator(config.width), device)
    discriminator = place(Discriminator(config.width), device)
    betas = (config.beta1, 0.999)
    g_optimiser = torch.optim.Adam(generator.parameters(), config.learning_rate, betas, fused=True)
    d_optimiser = torch.optim.Adam(
        discriminator.parameters(), config.discriminator_learning_rate, betas, fused=True
    )
    fixed_noise = seeded_noise(len(validation.labels), config.seed, device)

    hashes = data_hashes(train=train, validation=validation)
    hashes |= checkpoint_hashes({"judge_cnn": judge_folder})
    prolongs = config.instance_noise == 0 or "the instance noise falls over all epochs"
    run = Run("emnist_dcgan", config, device, sha256=hashes, draw=draw_curves, prolongs=prolongs)
    if run.finished_metrics:
        return run.finished_metrics
    first = run.start_or_resume(
        generator=generator, discriminator=discriminator,
        g_optimiser=g_optimiser, d_optimiser=d_optimiser,
    )  # fmt: skip

    def step(index: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        real = upsample(train.images[index])
        z = torch.randn(len(index), NOISE_SIZE, device=device)

        with autocast(device):
            fake = generator(z)
            real_logits = discriminator(real + sigma * torch.randn_like(real))
            fake_logits = discriminator(fake.detach() + sigma * torch.randn_like(fake))
        d_loss = discriminator_loss(real_logits, fake_logits, config.real_label)
        optimizer_step(d_loss, d_optimiser)

        discriminator.requires_grad_(False)  # the generator's step needs no gradient of its weights
        with autocast(device):
            fake_logits = discriminator(fake + sigma * torch.randn_like(fake))
        g_loss = generator_loss(fake_logits)
        optimizer_step(g_loss, g_optimiser)
        discriminator.requires_grad_(True)
        return d_loss, g_loss

    graph_step = CudaGraphStep(
        step, device, d_optimiser, g_optimiser, enabled=config.cuda_graphs, try_algorithms=True
    )
    for epoch in range(first, config.epochs + 1):
        generator.train()
        d_loss_mean = RunningMean("the discriminator's loss", epoch)
        g_loss_mean = RunningMean("the generator's loss", epoch)
        title = f"epoch {epoch}/{config.epochs}"
        for index, done in epoch_batches(config, epoch, len(train.labels), device, title):
            sigma = torch.full((), config.instance_noise * (1 - done), device=device)
            d_loss, g_loss = graph_step(index, sigma)
            d_loss_mean.add(d_loss)
            g_loss_mean.add(g_loss)

        samples = generate(generator, fixed_noise)
        distance = frechet_distance(judge_features(judge, samples), real_features)
        diversity = (pixel_diversity(samples) / real_diversity).item()
        d_loss, g_loss = d_loss_mean.compute(), g_loss_mean.compute()
        failure = gan_failure(d_loss, diversity, config.real_label)
        if failure:
            advice = "try a lower --discriminator-learning-rate, or more --instance-noise"
            print(f"warning: epoch {epoch}: {failure}; {advice}.")
        save_grid(run.folder / f"samples_{epoch:03d}.png", samples[:100], columns=10)
        record = {
            "epoch": epoch,
            "discriminator_loss": d_loss,
            "generator_loss": g_loss,
            "frechet_distance": distance,
            "diversity": diversity,
            "failure": failure,
        }
        run.end_epoch(  # the last epoch counts, as published: nothing is picked
            record, True,
            f"{title}: Frechet distance {distance:.2f}, losses D {d_loss:.3f}, G {g_loss:.3f}",
        )  # fmt: skip

    names = ("frechet_distance", "discriminator_loss", "generator_loss")
    metrics = {name: run.history[-1][name] for name in names}
    run.finish(metrics)
    print(
        f"samples at a Frechet distance of {metrics['frechet_distance']:.2f}. {run.folder}. Next: "
        "train_all.py"
    )
    return metrics


# To train with another GAN loss, edit these two functions.


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, real_label: float) -> Tensor:
    """Binary cross-entropy: real images towards `real_label`, generated ones towards 0."""
    return _cross_entropy(real_logits, real_label) + _cross_entropy(fake_logits, 0.0)


def generator_loss(fake_logits: Tensor) -> Tensor:
    """The non-saturating loss: generated images towards 1."""
    return _cross_entropy(fake_logits, 1.0)


def _cross_entropy(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def pixel_diversity(images: Tensor) -> Tensor:
    """How much `(N, 1, H, W)` images vary: the standard deviation of each pixel, averaged over the
    pixels."""
    return images.std(0).mean()


def gan_failure(discriminator_loss: float, diversity: float, real_label: float) -> str:
    """What went wrong in an epoch; empty if nothing did."""
    # The least loss that is possible, with targets `real_label` and 0.
    least = -sum(p * math.log(p) for p in (real_label, 1 - real_label) if p > 0)
    if discriminator_loss - least < D_LOSS_MARGIN:
        return f"the discriminator has won: no loss is lower than its {discriminator_loss:.4f}"
    if diversity < MIN_DIVERSITY:
        return f"the samples have collapsed: they vary by {diversity:.1%} of what real images do"
    return ""


def draw_curves(folder: Path) -> None:
    """Draw the curves of a run from its log."""
    losses = {"discriminator_loss": "discriminator", "generator_loss": "generator"}
    distance = {"frechet_distance": "samples to real images, judge cnn"}
    save_curves(folder, {"GAN loss": losses, "Frechet distance": distance})


if __name__ == "__main__":
    command_line(Config, main, __doc__, PRESETS)
