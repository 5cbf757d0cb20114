"""Stage two, visual memory: a DCGAN learns to draw characters that it saw, from noise.

    python emnist_dcgan.py            # the published schedule
    python emnist_dcgan.py --help     # every setting below is a flag

Reads EMNIST (downloaded on first use) and `results/judge/`, in whose features it measures how real the samples look.
Writes `results/emnist_dcgan/`: checkpoint.pt (the generator that stage three imagines with), metrics.json, log.jsonl,
curves.png, and samples_001.png ... of the same noise after every epoch. For the shortened schedule on two cores, its
minutes, and what it should give, see the README.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import data
import figures
import mnist_classify_train
import ratings
import runs
from models.discriminator import Discriminator
from models.generator import Generator
from replay import Replayed

WON = 0.02  # the discriminator has won when its mean loss comes this near to the least that it can have
ALIKE = 0.05  # samples are alike when they deviate by less than this share of what real images do


@dataclass(frozen=True)
class Config:
    # what is remembered
    dataset: Literal["emnist", "printed"] = "emnist"  # printed: digits in matplotlib's fonts, no download
    split: Literal["mnist", "digits", "byclass", "bymerge", "balanced", "letters"] = "mnist"  # of EMNIST. Published: mnist
    file: Literal["train", "test"] = "train"  # of EMNIST: which of its two official files
    digits_only: bool = True  # leave out the letters; --no-digits-only keeps all characters

    # the networks
    width: int = 64  # channels of the last hidden layer of the generator, the first of the discriminator. Published: 64

    # the schedule
    epochs: int = 50  # published: 50
    images_per_epoch: int | None = None  # drawn anew each epoch; None: all but the tenth that is held out. Published: all
    batch: int = 64  # published: 64
    learning_rate: float = 2e-4  # Adam, of the generator. Published: 2e-4
    discriminator_learning_rate: float = 2e-4  # Adam. Published: 2e-4; a fifth of the generator's spares many steps
    beta1: float = 0.5  # Adam, of both; beta2 is 0.999. Published: 0.5

    # without these two the discriminator wins within 50 steps and the samples stay noise
    instance_noise: float = 0.3  # sigma on what the discriminator sees; falls linearly to 0. Published: 0
    real_label: float = 0.9  # what it shall say of real images, 0 of others. Published: 1

    # the run
    seed: int = 0  # of weights, order and noise
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    deterministic: bool = False  # on a GPU the same bits again, somewhat slower; the CPU gives them anyway
    data_root: Path = field(default_factory=data.default_root)  # torchvision's folder; also $LISTEN_DATA
    results: Path = Path("results")  # the folder of all runs
    resume: bool = False  # go on after the last finished epoch


def main(config: Config) -> dict[str, float]:
    """Run the stage; returns what metrics.json says."""
    device = runs.choose_device(config.device, config.deterministic)
    which = (config.data_root, device, config.split, config.file, config.digits_only)
    train = data.load_remembered(config.dataset, "train", *which)
    validation = data.load_remembered(config.dataset, "validation", *which)
    judge = mnist_classify_train.load_judge(config.results, None, device)
    runs.require_complete(config.results / "judge", "run mnist_classify_train.py")
    seen = data.as_seen(validation.images)
    real_features, real_deviation = ratings.judge_features(judge, seen), deviation(seen)

    torch.manual_seed(config.seed)
    generator = Generator(config.width).to(device, memory_format=torch.channels_last)
    discriminator = Discriminator(config.width).to(device, memory_format=torch.channels_last)
    betas = (config.beta1, 0.999)
    g_optimiser = torch.optim.Adam(generator.parameters(), config.learning_rate, betas, fused=True)
    d_optimiser = torch.optim.Adam(discriminator.parameters(), config.discriminator_learning_rate, betas, fused=True)
    fixed_noise = noise(len(validation.labels), config.seed, device)

    made_from = data.sha256(train=train, validation=validation) | runs.checkpoint_sha256(config.results, "judge")
    run = runs.Run("emnist_dcgan", config, device, sha256=made_from, draw=draw_curves)
    if run.done:
        return run.done
    first = run.restore(generator=generator, discriminator=discriminator, g_optimiser=g_optimiser, d_optimiser=d_optimiser)

    def learn(index: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        real = data.as_seen(train.images[index])
        z = torch.randn(len(index), generator.noise_size, device=device)

        with runs.autocast(device):
            imagined = generator(z)
            real_logits = discriminator(real + sigma * torch.randn_like(real))
            fake_logits = discriminator(imagined.detach() + sigma * torch.randn_like(imagined))
        d_loss = gan_loss(real_logits, config.real_label) + gan_loss(fake_logits, 0.0)
        runs.step(d_loss, d_optimiser)

        discriminator.requires_grad_(False)  # the generator's step needs no gradient of its weights
        with runs.autocast(device):
            fake_logits = discriminator(imagined + sigma * torch.randn_like(imagined))
        g_loss = gan_loss(fake_logits, 1.0)  # non-saturating
        runs.step(g_loss, g_optimiser)
        discriminator.requires_grad_(True)
        return d_loss, g_loss

    learn = Replayed(learn, device, d_optimiser, g_optimiser, tries=True)
    for epoch in range(first, config.epochs + 1):
        order = runs.seed_epoch(config.seed, epoch)
        generator.train()
        d_loss_mean = runs.Mean("the discriminator's loss", epoch)
        g_loss_mean = runs.Mean("the generator's loss", epoch)
        taken = list(runs.batches(len(train.labels), config.batch, order, device, config.images_per_epoch))
        done = [(epoch - 1 + step / len(taken)) / config.epochs for step in range(len(taken))]
        sigmas = torch.tensor([config.instance_noise * (1 - share) for share in done]).to(device)
        for index, sigma in zip(runs.progress(taken, f"epoch {epoch}/{config.epochs}"), sigmas, strict=True):
            d_loss, g_loss = learn(index, sigma)
            d_loss_mean.add(d_loss)
            g_loss_mean.add(g_loss)

        samples = draw(generator, fixed_noise)
        record = {
            "epoch": epoch,
            "discriminator_loss": d_loss_mean.read(),
            "generator_loss": g_loss_mean.read(),
            "frechet_distance": ratings.frechet_distance(ratings.judge_features(judge, samples), real_features),
        }
        record["samples_deviation"] = (deviation(samples) / real_deviation).item()
        record["collapsed"] = collapse(record["discriminator_loss"], record["samples_deviation"], config.real_label)
        if record["collapsed"]:
            print(f"warning: epoch {epoch}: {record['collapsed']}; try a lower --discriminator-learning-rate, or more "
                  "--instance-noise.")  # fmt: skip
        figures.save_grid(run.folder / f"samples_{epoch:03d}.png", samples[:100], columns=10)
        run.end_epoch(record, best=True)  # the last epoch counts, as published: nothing is picked

    metrics = {name: run.history[-1][name] for name in ("frechet_distance", "discriminator_loss", "generator_loss")}
    run.finish(metrics)
    print(f"samples at a Frechet distance of {metrics['frechet_distance']:.2f}. {run.folder}. Next: train_all.py")
    return metrics


def deviation(images: Tensor) -> Tensor:
    """How much `(N, 1, H, W)` images differ: the standard deviation of a pixel over them, its mean over the pixels."""
    return images.std(0).mean()


def collapse(discriminator_loss: float, samples_deviation: float, real_label: float) -> str:
    """What went wrong in an epoch, or nothing: the discriminator tells real and imagined apart without fail, so that the
    generator learns no more; or all samples are alike."""
    least = -sum(p * math.log(p) for p in (real_label, 1 - real_label) if p > 0)  # no discriminator's loss is smaller
    if discriminator_loss - least < WON:
        return f"the discriminator has won: its loss of {discriminator_loss:.4f} is the least that there is"
    if samples_deviation < ALIKE:
        return f"the samples are alike: they differ by {samples_deviation:.1%} of what real images do"
    return ""


def draw_curves(folder: Path) -> None:
    figures.save_curves(folder, [["discriminator_loss", "generator_loss"], ["frechet_distance"]])


def gan_loss(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def noise(count: int, seed: int, device: torch.device) -> Tensor:
    """`(count, 100)` standard normal, always the same for a seed, on every device."""
    return torch.randn(count, Generator.noise_size, generator=torch.Generator().manual_seed(seed)).to(device)


@torch.no_grad()
def draw(generator: nn.Module, z: Tensor) -> Tensor:
    """`(N, 100)` noise -> `(N, 1, 64, 64)` samples in [-1, 1], in eval mode."""
    generator.eval()
    return torch.cat([generator(part) for part in z.split(256)])


if __name__ == "__main__":
    runs.command_line(Config, main, __doc__)
