"""Stage three, cross-modal generation: the embedding of a sound drives the generator, which draws
what was heard.

    python train_all.py                           # the published objective and schedule
    # our objective: the image must sound like what was heard
    python train_all.py sound-consistent
    python train_all.py small-sound-consistent    # the same, shorter, for two cores
    python train_all.py --help                    # every setting below is a flag

It reads the runs that the three scripts before it left in `results/`. It writes
`results/train_all/`, or `results/train_all_sound_consistent/`: checkpoint.pt, metrics.json,
log.jsonl, curves.png, and imagined_001.png ... after every epoch: heard and imagined images of the
validation part in pairs, a row per class; at the end imagined.png, the same of the test set. On one
GPU it takes half a minute.

No loss uses the true image of a sound. Two numbers of every epoch use a judge that takes no part in
training: its accuracy, and the Frechet distance between imagined and real images in its features.
"""

import copy
import os
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

from common.checkpoint import checkpoint_hashes
from common.cli import BatchSize, Count, Fraction, LearningRate, Limit, Seed, Weight, command_line
from common.device import autocast, choose_device
from common.files import UserError
from data import class_names, data_hashes, default_root, load_digits
from data.augment import augment
from data.resize import downsample_lstsq
from evaluation.imagine import imagination_failure, imagine, rate_epoch, save_pairs
from models.generator import NOISE_SIZE, Generator
from models.late_blind import LateBlind
from training.cuda_graph import CudaGraphStep
from training.figures import save_curves
from training.logmels import LogMelCache
from training.loop import RunningMean, epoch_batches, optimizer_step
from training.losses import AudioLoss, audio_loss, binarization_penalty, null_space_penalty
from training.run import Run
from training.upstream import load_upstream, upstream_folders
from vggish import audio_fingerprint


@dataclass(frozen=True)
class Config:
    # -- objective
    # Weight of the audio loss: the imagined image is turned into sound, and its log-mel is compared
    # with the input's. Published: 0. No loss uses the true image.
    sound_consistency: Weight = 0.0
    # The audio loss: l1, mse, multires_l1 (l1 at three resolutions, so that fine ripples count
    # less), or loudness (squared difference of the loudness, in which near-silence counts little).
    audio_loss: AudioLoss = "l1"
    # The share of the run, from its start, in which the audio loss is `loudness`. It finds the
    # shape sooner; `audio_loss` then clears the space between the strokes.
    loudness_fraction: Fraction = 0.0
    # The share of the gradient that passes a pixel that the contrast saturates. With 0, the true
    # gradient, a pixel drawn white where black was heard never gets a gradient.
    straight_through: Weight = 1.0
    # Weight of the detail finer than 28 x 28 pixels, which no sound can tell. Published: 0.
    null_space_weight: Weight = 0.0
    # Weight of the binarization penalty, mean(1 - x^2); it grows from 0 over the run. Published: 0.
    # The encoding saturates: above 0.4 every grey is as loud as white, so the audio loss leaves
    # strokes grey.
    binarization_weight: Weight = 0.0
    # Weight of generative replay: the frozen generator of stage two draws from noise, and the model
    # must draw the same image from its sound (mean squared error). Published: 0.
    replay_weight: Weight = 0.0
    classifier_weight: Weight = 1.0  # Weight of the classifier's cross-entropy. Published: 1.
    # Random rotation, shift and scaling of what the classifier sees; the scale is that of
    # --augmentation. Published: 0. A shape that fools only this classifier seldom survives it.
    classifier_augmentation: Weight = 0.0
    # Dropout in the audio network. Published: yes. It blurs what could be consistent.
    dropout: bool = True

    # -- schedule
    epochs: Count = 4  # Number of epochs. Published: 4.
    # The last epochs train the generator too; those before, the audio network alone. Published: 1.
    joint_epochs: Annotated[int, Limit(0)] = 1
    # Images an epoch, drawn again in each. None: all but the validation part. Published: all.
    images_per_epoch: Annotated[int, Limit(2)] | None = None
    # Random rotation, shift and scaling of the images that are heard. At 1: up to 10 degrees, 4 %
    # and 10 %. Published: 0.
    augmentation: Weight = 0.0
    batch: BatchSize = 128  # Images a step. Published: 128.
    # Learning rate of Adam, for the audio network alone. Published: 1e-3.
    learning_rate: LearningRate = 1e-3
    # The generator's learning rate, as a share of the audio network's. Published: 1.
    generator_lr_scale: Weight = 1.0
    # Learning rate of both in the first joint epoch; it falls along a line to 0. Published: 1e-4.
    joint_learning_rate: LearningRate = 1e-4
    # The most memory for log-mels, in gigabytes. If they fit, they are computed once and kept in
    # float16; otherwise they are computed in every epoch.
    cache_gigabytes: Weight = 2.0

    # -- run
    name: str = "train_all"  # Name of the run's folder in results.
    seed: Seed = 0  # Seed of the order and the noise. The weights are those of the earlier stages.
    device: str = "auto"  # auto, cpu, cuda or cuda:1.
    deterministic: bool = False  # Give the same bits in every run on a GPU too, which is slower.
    cuda_graphs: bool = True  # Capture the step on a GPU. Set it to False while you edit it.
    # The folder of the data sets; also $LISTEN_DATA.
    data_root: Path = field(default_factory=default_root)
    results: Path = Path("results")  # The folder of all runs.
    resume: bool = False  # Continue after the last finished epoch.

    # -- earlier stages
    audio_run: Path | None = None  # Folder of the run of stage one. None: train_vggish in results.
    # Folder of the classifier's run. None: mnist_classify_train in results.
    classifier_run: Path | None = None
    gan_run: Path | None = None  # Folder of the GAN's run. None: emnist_dcgan in results.
    judges: Path | None = None  # Folder of the judges. None: judges in results.


PRESETS = {
    "published": Config(),
    "sound-consistent": Config(
        name="train_all_sound_consistent",
        sound_consistency=1, audio_loss="multires_l1", loudness_fraction=0.8,
        null_space_weight=10, binarization_weight=1, replay_weight=5, classifier_augmentation=1,
        dropout=False, epochs=7, joint_epochs=6, augmentation=0.5, batch=32,
        generator_lr_scale=0.2, joint_learning_rate=1e-3,
    ),
    "small": Config(images_per_epoch=37_500, learning_rate=5e-4),
    "demo": Config(epochs=3, batch=32),
}  # fmt: skip
PRESETS["small-sound-consistent"] = replace(
    PRESETS["sound-consistent"], epochs=10, joint_epochs=9, images_per_epoch=15_000
)


def main(config: Config) -> dict[str, float]:
    """Run the stage; returns what metrics.json says."""
    if config.joint_epochs > config.epochs:
        raise UserError(
            f"--joint-epochs is {config.joint_epochs}, but --epochs only {config.epochs}; give no "
            "more of them."
        )
    device = choose_device(config.device, config.deterministic)
    folders = upstream_folders(config)
    upstream = load_upstream(folders, device)
    front_end, network, generator = upstream.front_end, upstream.audio_network, upstream.generator
    model = LateBlind(front_end, network, generator, upstream.dataset)
    frozen_generator = copy.deepcopy(generator).requires_grad_(False)
    train = load_digits(upstream.dataset, "train", config.data_root, device)
    validation = load_digits(upstream.dataset, "validation", config.data_root, device)
    names = class_names(upstream.dataset, config.data_root)

    slower = config.generator_lr_scale * config.learning_rate
    groups = [
        {"params": list(network.parameters())},
        {"params": list(generator.parameters()), "lr": slower},
    ]
    optimiser = torch.optim.Adam(groups, config.learning_rate, fused=True)
    alone = config.epochs - config.joint_epochs

    def lr_factor(done: int) -> float:
        """The learning rate after `done` epochs, relative to the first: one step down, then along a
        line towards 0."""
        if done < alone:
            return 1.0
        step_down = config.joint_learning_rate / config.learning_rate
        return step_down * (config.epochs - done) / max(config.joint_epochs, 1)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lr_factor)
    inherited = {
        "encoding": asdict(front_end.encoding),
        "frames": front_end.frames,
        "hop": front_end.hop,
        "dataset": upstream.dataset,
        "classes": upstream.classes,
        "vggish_width": network.width,
        "generator_width": generator.width,
        "upstream": {
            stage: os.path.relpath(folder, config.results / config.name)
            for stage, folder in folders.items()
        },
    }
    hashes = data_hashes(train=train, validation=validation) | checkpoint_hashes(folders)
    prolongs = "its learning rate falls along a line over all epochs"
    run = Run("train_all", config, device, config.name, hashes, draw_curves,
              audio_fingerprint(front_end), prolongs, **inherited)  # fmt: skip
    if run.finished_metrics:
        return run.finished_metrics
    first = run.start_or_resume(
        vggish=network, generator=generator, optimiser=optimiser, scheduler=scheduler
    )
    count = config.epochs * (config.images_per_epoch or len(train.labels))
    logmels = LogMelCache(
        front_end, train.images, count, config.cache_gigabytes, config.augmentation
    )

    def step(
        index: Tensor, binarization: Tensor, kind: AudioLoss, joint: bool
    ) -> dict[str, Tensor]:
        # always in eval mode: its BatchNorm statistics are part of the memory
        generator.requires_grad_(joint)
        heard = logmels[index]
        inputs = heard
        if config.replay_weight:
            replayed = sample(frozen_generator, len(index), device)
            with torch.no_grad():
                inputs = torch.cat([heard, front_end(downsample_lstsq(replayed), validate=False)])
        with autocast(device):
            imagined, replay = generator(network.embed(inputs)).tensor_split([len(index)])
            seen = imagined
            if config.classifier_augmentation:
                seen = augment(imagined, config.classifier_augmentation)
            logits = upstream.classifier(seen)
        terms = {"cross_entropy": F.cross_entropy(logits, train.labels[index])}
        if config.sound_consistency:
            terms["audio_loss"] = audio_loss(
                front_end, imagined, heard, config.straight_through, kind
            )
        if config.replay_weight:
            terms["replay"] = F.mse_loss(replay, replayed)
        if config.null_space_weight:
            terms["null_space"] = null_space_penalty(imagined)
        if config.binarization_weight:
            terms["binarization"] = binarization_penalty(imagined)
        optimizer_step(objective(config, terms, binarization), optimiser)
        return terms

    graph_step = CudaGraphStep(step, device, optimiser, enabled=config.cuda_graphs)
    for epoch in range(first, config.epochs + 1):
        network.train()
        if not config.dropout:
            network.dropout.eval()  # the BatchNorm behind it goes on learning
        means: dict[str, RunningMean] = {}
        title = f"epoch {epoch}/{config.epochs}"
        for index, done in epoch_batches(config, epoch, len(train.labels), device, title):
            kind = "loudness" if done < config.loudness_fraction else config.audio_loss
            binarization = torch.full((), config.binarization_weight * done, device=device)
            for name, term in graph_step(index, binarization, kind, epoch > alone).items():
                mean = means.setdefault(name, RunningMean(f"the {name.replace('_', ' ')}", epoch))
                mean.add(term)
        scheduler.step()

        imagined, distance = imagine(model, validation.images, config.audio_loss)
        rating = rate_epoch(upstream.classifier, upstream.judge, validation, imagined)
        null_space = torch.stack([null_space_penalty(part) for part in imagined.split(500)])
        validated = {
            "cross_entropy": rating["cross_entropy"],
            "audio_loss": distance,
            "null_space": null_space.mean().item(),
            "binarization": binarization_penalty(imagined).item(),
        }
        # The objective itself on the validation part, never the judge, decides which epoch is best.
        loss = objective(config, validated, config.binarization_weight)
        record = {
            "epoch": epoch,
            **{name: mean.compute() for name, mean in means.items()},
            **{f"validation_{name}": value for name, value in (rating | validated).items()},
            "validation_loss": loss,
        }
        best = loss < min((line["validation_loss"] for line in run.history), default=float("inf"))
        failure = imagination_failure(imagined, rating["judge_accuracy"], len(names))
        if failure:
            print(f"warning: epoch {epoch}: {failure}. Look at imagined_{epoch:03d}.png.")
        save_pairs(run.folder / f"imagined_{epoch:03d}.png", validation, imagined, names)
        run.end_epoch(
            record, best,
            f"{title}: right by judge cnn {rating['judge_accuracy']:.2%}, retrieval "
            f"{rating['retrieval']:.1%}, validation loss {loss:.3f}",
        )  # fmt: skip

    best_epoch = run.load_best()
    test = load_digits(upstream.dataset, "test", config.data_root, device)
    imagined, distance = imagine(model, test.images, config.audio_loss)
    rating = rate_epoch(upstream.classifier, upstream.judge, test, imagined)
    metrics = {"test_accuracy": rating.pop("accuracy"), **rating, "audio_loss": distance}
    save_pairs(run.folder / "imagined.png", test, imagined, names)
    run.finish(metrics, data_hashes(test=test))
    print(
        f"imagined images classified right: {metrics['judge_accuracy']:.2%} by the judge cnn, "
        f"{metrics['test_accuracy']:.2%} by the classifier of the training (epoch {best_epoch}). "
        f"{run.folder}. Next: evaluate.py --name {config.name}"
    )
    if not config.sound_consistency:
        print("This is the published objective. Ours is better: train_all.py sound-consistent")
    return metrics


def objective(config: Config, terms: dict[str, Any], binarization: Any) -> Any:
    """The loss: the sum of `terms` by the weights of the header. The weight of binarization grows
    over the run."""
    weights = {
        "cross_entropy": config.classifier_weight,
        "audio_loss": config.sound_consistency,
        "replay": config.replay_weight,
        "null_space": config.null_space_weight,
        "binarization": binarization,
    }
    return sum(weights[name] * term for name, term in terms.items())


@torch.no_grad()
def sample(generator: Generator, count: int, device: torch.device) -> Tensor:
    """`(count, 1, 64, 64)` images in [-1, 1] that the generator draws from noise."""
    with autocast(device):
        return generator(torch.randn(count, NOISE_SIZE, device=device))


def draw_curves(folder: Path) -> None:
    """Draw the curves of a run from its log."""
    save_curves(
        folder,
        {
            "validation part": {
                "validation_accuracy": "accuracy, classifier",
                "validation_judge_accuracy": "accuracy, judge cnn",
                "validation_retrieval": "retrieval",
                "validation_correlation": "correlation",
            },
            "Frechet distance": {"validation_frechet_distance": "imagined to real images"},
            "loss": {
                "cross_entropy": "cross-entropy, training",
                "validation_audio_loss": "audio loss, validation",
            },
        },
    )


if __name__ == "__main__":
    command_line(Config, main, __doc__, PRESETS)
