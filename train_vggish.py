"""Stage one, sound perception: a VGGish learns which digit a soundscape is.

    python train_vggish.py                # the published schedule; a GPU, or a lot of patience
    python train_vggish.py --help         # every setting below is a flag

Reads MNIST (downloaded on first use). Writes `results/train_vggish/`: checkpoint.pt, metrics.json, log.jsonl, curves.png,
and soundscapes.png with soundscapes.wav, to see and hear what it hears. For the shortened schedule on two cores, its
minutes, and what it should give, see the README.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import data
import figures
import runs
from models.vggish import VGGish
from replay import Replayed
from vggish import HEARD_TOGETHER, HOP, Ear, Heard, Probe, load_audioset_convolutions
from voice_translator import Encoding


@dataclass(frozen=True)
class Config:
    # what is heard
    dataset: Literal["mnist", "handwritten"] = "mnist"  # handwritten: scikit-learn's small digits, no download
    encoding: Encoding = Encoding()  # the scheme; it travels in the checkpoint, and stage three hears with it
    frames: int | None = None  # log-mel frames heard; None: all (112 at 1.05 s). Published: 96, which cuts off 0.075 s
    hop: int = HOP  # samples at 16 kHz from frame to frame, 400 at most. Published: 160; 305 hears 2.0 s in 112 frames

    # the network
    width: int = 64  # channels of the first convolution. Published: 64; 16 trains some 10 times as fast on two cores
    audioset_weights: Path | None = None  # torchvggish's state dict, for the convolutions to start from; width 64 only

    # the schedule
    epochs: int = 5  # published: 5
    images_per_epoch: int | None = None  # drawn anew each epoch; None: all but the validation part. Published: all
    batch: int = 128  # published: 128
    learning_rate: float = 1e-4  # Adam. Published: 1e-4
    late_epoch: int = 3  # from this epoch on, a tenth of the learning rate. Published: 3
    keep_gigabytes: float = 2.0  # of log-mels, made once and kept in float16; where they take more, anew in every epoch

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
    train = data.load_heard(config.dataset, "train", config.data_root, device)
    validation = data.load_heard(config.dataset, "validation", config.data_root, device)

    torch.manual_seed(config.seed)
    try:
        ear = Ear(config.encoding, config.frames, config.hop).to(device)
    except ValueError as error:
        raise runs.UserError(str(error)) from error
    network = VGGish(frames=ear.frames, width=config.width)
    if config.audioset_weights:
        load_audioset_convolutions(network, config.audioset_weights)
    network.to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(network.parameters(), config.learning_rate, fused=True)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, [config.late_epoch - 1], gamma=0.1)

    made_from = data.sha256(train=train, validation=validation)
    run = runs.Run("train_vggish", config, device, sha256=made_from, draw=draw_curves)
    if run.done:
        return run.done
    first = run.restore(vggish=network, probe=Probe(ear), optimiser=optimiser, scheduler=scheduler)
    sounds = config.epochs * (config.images_per_epoch or len(train.labels))
    heard = Heard(ear, train.images, sounds, config.keep_gigabytes)

    def learn(index: Tensor) -> Tensor:
        with runs.autocast(device):
            logits = network(heard[index])
        loss = F.cross_entropy(logits, train.labels[index])
        runs.step(loss, optimiser)
        return loss

    learn = Replayed(learn, device, optimiser)
    for epoch in range(first, config.epochs + 1):
        generator = runs.seed_epoch(config.seed, epoch)
        network.train()
        mean_loss = runs.Mean("the loss", epoch)
        title = f"epoch {epoch}/{config.epochs}"
        for index in runs.batches(len(train.labels), config.batch, generator, device, config.images_per_epoch, title):
            mean_loss.add(learn(index))
        scheduler.step()

        record = {"epoch": epoch, "loss": mean_loss.read()}
        record["validation_accuracy"] = accuracy(ear, network, validation)
        best = record["validation_accuracy"] > max((line["validation_accuracy"] for line in run.history), default=-1.0)
        run.end_epoch(record, best)

    run.load_best()
    test = data.load_heard(config.dataset, "test", config.data_root, device)
    metrics = {
        "test_accuracy": accuracy(ear, network, test),
        "validation_accuracy": max(line["validation_accuracy"] for line in run.history),
    }
    shown = figures.per_class(test.labels, 1)[:, 0]
    figures.save_soundscapes(run.folder, ear, test.images[shown], test.labels[shown])
    run.finish(metrics, data.sha256(test=test))
    print(f"sounds told apart: {metrics['test_accuracy']:.2%} of the test set. {run.folder}. Next: mnist_classify_train.py")
    return metrics


def draw_curves(folder: Path) -> None:
    figures.save_curves(folder, [["loss"], ["validation_accuracy"]])


def accuracy(ear: Ear, network: nn.Module, digits: data.Digits) -> float:
    """Share of the digits that are told right by their sound."""
    return (tell_apart(ear, network, digits.images) == digits.labels).double().mean().item()


@torch.no_grad()
def tell_apart(ear: Ear, network: nn.Module, images: Tensor) -> Tensor:
    """The digits, `(N,)`, that the network takes the sounds of `(N, 28, 28)` uint8 images for."""
    network.eval()
    said = []
    for part in images.split(HEARD_TOGETHER):
        with runs.autocast(images.device):
            said.append(network(ear(part)).argmax(1))
    return torch.cat(said)


if __name__ == "__main__":
    runs.command_line(Config, main, __doc__)
