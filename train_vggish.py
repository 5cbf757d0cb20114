"""Stage one, sound perception: a VGGish learns to classify soundscapes.

    python train_vggish.py              # the published schedule
    python train_vggish.py small        # a preset: narrower and shorter, for two cores
    python train_vggish.py --help       # every setting below is a flag

It reads MNIST, which is downloaded on first use. It writes `results/train_vggish/`: checkpoint.pt,
metrics.json, log.jsonl, curves.png, and soundscapes.png with soundscapes.wav. On one GPU it takes
half a minute; small takes minutes on two cores."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

from common.cli import BatchSize, Count, LearningRate, Limit, Seed, Weight, command_line
from common.device import autocast, choose_device, place
from common.files import UserError
from data import class_names, data_hashes, default_root, load_digits
from models.vggish import VGGish, load_audioset_convolutions
from training.classifier import draw_curves, sound_accuracy
from training.cuda_graph import CudaGraphStep
from training.figures import first_of_each_class, save_soundscapes
from training.logmels import LogMelCache
from training.loop import RunningMean, epoch_batches, optimizer_step
from training.run import Run
from vggish import HOP, ImageToLogMel, audio_fingerprint
from voice_translator import Encoding


@dataclass(frozen=True)
class Config:
    # -- data
    # The data set, a key of DATASETS in data/. `handwritten` needs no download.
    dataset: str = "mnist"

    # -- network
    # Channels of the first convolution. Published: 64. With 16 it trains about ten times as fast on
    # two cores.
    width: Count = 64
    # A file with torchvggish's state dict, from which the convolutions start. It needs width 64.
    audioset_weights: Path | None = None

    # -- schedule
    epochs: Count = 5  # Number of epochs. Published: 5.
    # Images an epoch, drawn again in each. None: all but the validation part. Published: all.
    images_per_epoch: Annotated[int, Limit(2)] | None = None
    batch: BatchSize = 128  # Images a step. Published: 128.
    learning_rate: LearningRate = 1e-4  # Learning rate of Adam. Published: 1e-4.
    late_epoch: Count = 4  # From this epoch on, a tenth of the learning rate. Published: 4.
    # The most memory for log-mels, in gigabytes. If they fit, they are computed once and kept in
    # float16; otherwise they are computed in every epoch.
    cache_gigabytes: Weight = 2.0

    # -- run
    seed: Seed = 0  # Seed of the weights, the order and the dropout.
    device: str = "auto"  # auto, cpu, cuda or cuda:1.
    deterministic: bool = False  # Give the same bits in every run on a GPU too, which is slower.
    cuda_graphs: bool = True  # Capture the step on a GPU. Set it to False while you edit it.
    # The folder of the data sets; also $LISTEN_DATA.
    data_root: Path = field(default_factory=default_root)
    results: Path = Path("results")  # The folder of all runs.
    resume: bool = False  # Continue after the last finished epoch.

    # -- sound
    # The image-to-sound scheme. It is kept in the checkpoint, and stage three uses it.
    encoding: Encoding = Encoding()
    # Log-mel frames of the network's input. None: as many as the soundscape needs, 112 at 1.05 s.
    # Published: 96, which cuts off 0.075 s.
    frames: Annotated[int, Limit(16)] | None = None
    # Samples at 16 kHz from one frame to the next, at most 400. Published: 160. With 305, a sound
    # of 2.0 s fits into 112 frames.
    hop: Annotated[int, Limit(1, 400)] = HOP


PRESETS = {
    "published": Config(),
    "small": Config(width=16, learning_rate=1e-3),
    "demo": Config(
        dataset="handwritten", width=8, epochs=10, late_epoch=8, batch=32, learning_rate=1e-3
    ),
}


def main(config: Config) -> dict[str, float]:
    """Run the stage; returns what metrics.json says."""
    device = choose_device(config.device, config.deterministic)
    train = load_digits(config.dataset, "train", config.data_root, device)
    validation = load_digits(config.dataset, "validation", config.data_root, device)
    names = class_names(config.dataset, config.data_root)

    torch.manual_seed(config.seed)
    try:
        front_end = ImageToLogMel(config.encoding, config.frames, config.hop).to(device)
    except ValueError as error:
        raise UserError(str(error)) from error
    network = VGGish(front_end.frames, config.width, len(names))
    if config.audioset_weights:
        load_audioset_convolutions(network, config.audioset_weights)
    place(network, device)
    optimiser = torch.optim.Adam(network.parameters(), config.learning_rate, fused=True)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, [config.late_epoch - 1], gamma=0.1)

    hashes = data_hashes(train=train, validation=validation)
    run = Run("train_vggish", config, device, sha256=hashes, draw=draw_curves,
              fingerprint=audio_fingerprint(front_end), prolongs=True,
              classes=len(names))  # fmt: skip
    if run.finished_metrics:
        return run.finished_metrics
    first = run.start_or_resume(vggish=network, optimiser=optimiser, scheduler=scheduler)
    count = config.epochs * (config.images_per_epoch or len(train.labels))
    logmels = LogMelCache(front_end, train.images, count, config.cache_gigabytes)

    def step(index: Tensor) -> Tensor:
        with autocast(device):
            logits = network(logmels[index])
        loss = F.cross_entropy(logits, train.labels[index])
        optimizer_step(loss, optimiser)
        return loss

    graph_step = CudaGraphStep(step, device, optimiser, enabled=config.cuda_graphs)
    for epoch in range(first, config.epochs + 1):
        network.train()
        mean_loss = RunningMean("the loss", epoch)
        title = f"train_vggish, epoch {epoch}/{config.epochs}"
        for index, _ in epoch_batches(config, epoch, len(train.labels), device, title):
            mean_loss.add(graph_step(index))
        scheduler.step()

        loss, accuracy = mean_loss.compute(), sound_accuracy(front_end, network, validation)
        best = accuracy > max((line["validation_accuracy"] for line in run.history), default=-1.0)
        run.end_epoch(
            {"epoch": epoch, "loss": loss, "validation_accuracy": accuracy}, best,
            f"{title}: validation accuracy {accuracy:.2%}, loss {loss:.4f}",
        )  # fmt: skip

    run.load_best()
    test = load_digits(config.dataset, "test", config.data_root, device)
    metrics = {
        "test_accuracy": sound_accuracy(front_end, network, test),
        "validation_accuracy": max(line["validation_accuracy"] for line in run.history),
    }
    shown = first_of_each_class(test.labels, 1)[:, 0]
    shown_names = [names[label] for label in test.labels[shown].tolist()]
    save_soundscapes(run.folder, front_end, test.images[shown], shown_names)
    run.finish(metrics, data_hashes(test=test))
    print(f"sounds classified right: {metrics['test_accuracy']:.2%} of the test set. {run.folder}. "
          "Next: mnist_classify_train.py")  # fmt: skip
    return metrics


if __name__ == "__main__":
    command_line(Config, main, __doc__, PRESETS)
