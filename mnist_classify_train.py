"""Stage two, visual perception: a LeNet learns to classify images. Apart from the model, the three
judges learn it too.

    python mnist_classify_train.py            # the published schedule
    python mnist_classify_train.py small      # a preset: shorter, for two cores
    python mnist_classify_train.py --help     # every setting below is a flag

It reads MNIST, which is downloaded on first use. It writes `results/mnist_classify_train/`, the
classifier through which stage three is trained, and `results/judges/`: the judges cnn, vit and
kernel, which rate what the model imagines. Each folder holds checkpoint.pt, metrics.json, log.jsonl
and curves.png. On one GPU it takes a minute."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

from common.cli import BatchSize, Count, LearningRate, Limit, Seed, command_line
from common.device import choose_device, place
from common.locks import lock_folder
from data import class_names, default_root
from data.augment import random_affine
from evaluation.judges import JUDGES, JudgeConfig, KernelConfig, fit_kernel_judge, train_judge
from models.lenet import LeNet
from training.classifier import train_classifier


@dataclass(frozen=True)
class Config:
    # -- data
    # The data set, a key of DATASETS in data/. `handwritten` needs no download.
    dataset: str = "mnist"
    # Random rotation of the training images, in degrees either way. Published: 180. There the test
    # images are rotated too, so nothing can distinguish 6 from 9.
    rotation: Annotated[float, Limit(0, 180)] = 0.0

    # -- schedule
    # Number of epochs of the classifier. Published: 50. The judges use its batch and its images an
    # epoch.
    epochs: Count = 50
    # Images an epoch, drawn again in each. None: all but the validation part. Published: all.
    images_per_epoch: Annotated[int, Limit(2)] | None = None
    batch: BatchSize = 128  # Images a step. Published: 128.
    learning_rate: LearningRate = 1e-3  # Learning rate of SGD with momentum 0.9. Published: 1e-3.
    late_epoch: Count = 31  # From this epoch on, a tenth of the learning rate. Published: 31.

    # -- judges
    cnn_epochs: Count = 10  # Number of epochs of the judge cnn. The judges are not published.
    # Learning rate of its AdamW at the start. It falls to 0 along a cosine.
    cnn_learning_rate: LearningRate = 3e-3
    # Number of epochs of the judge vit. On MNIST's validation part it is right on 98.6 % after 5
    # and 99.1 % after 8.
    vit_epochs: Count = 8
    # Learning rate of its AdamW at the start. It falls to 0 along a cosine.
    vit_learning_rate: LearningRate = 2e-3
    # Real images with which the judge kernel compares. Fewer make it faster and worse.
    kernel_centres: Count = 2000

    # -- run
    seed: Seed = 0  # Seed of the classifier. The judges' seeds are this one plus 1000 and 2000.
    device: str = "auto"  # auto, cpu, cuda or cuda:1.
    deterministic: bool = False  # Give the same bits in every run on a GPU too, which is slower.
    cuda_graphs: bool = True  # Capture the step on a GPU. Set it to False while you edit it.
    # The folder of the data sets; also $LISTEN_DATA.
    data_root: Path = field(default_factory=default_root)
    results: Path = Path("results")  # The folder of all runs.
    resume: bool = False  # Continue after the last finished epoch.


PRESETS = {
    "published": Config(),
    "small": Config(rotation=10, learning_rate=0.02, epochs=14, late_epoch=11, cnn_epochs=6),
    "demo": Config(
        dataset="handwritten", batch=32, epochs=8, late_epoch=7, learning_rate=0.01, cnn_epochs=12,
        vit_epochs=30,
    ),
}  # fmt: skip


def main(config: Config) -> dict[str, float]:
    """Run the stage; returns what the classifier's metrics.json says."""
    device = choose_device(config.device, config.deterministic)
    classes = len(class_names(config.dataset, config.data_root))
    # All locks at the start, so that none is refused after hours of training.
    for name in ("mnist_classify_train", *(f"judges/{judge}" for judge in JUDGES)):
        lock_folder(config.results / name)

    torch.manual_seed(config.seed)
    classifier = place(LeNet(classes), device)
    rate = config.learning_rate
    optimiser = torch.optim.SGD(classifier.parameters(), rate, momentum=0.9, fused=True)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, [config.late_epoch - 1], gamma=0.1)

    def rotate(images: Tensor) -> Tensor:
        return random_affine(images, config.rotation) if config.rotation else images

    metrics = train_classifier(
        "mnist_classify_train", classifier, optimiser, scheduler, rotate, config
    )
    shared = {
        name: getattr(config, name)
        for name in ("dataset", "data_root", "results", "resume", "deterministic")
    }
    cnn = JudgeConfig(
        **shared,
        epochs=config.cnn_epochs,
        learning_rate=config.cnn_learning_rate,
        batch=config.batch,
        images_per_epoch=config.images_per_epoch,
        degrees=10 + min(config.rotation, 10),
        seed=config.seed + 1000,
        cuda_graphs=config.cuda_graphs,
    )
    schedule = {"epochs": config.vit_epochs, "learning_rate": config.vit_learning_rate}
    vit = replace(cnn, **schedule, seed=config.seed + 2000)
    kernel = KernelConfig(**shared, centres=config.kernel_centres, seed=config.seed + 2000)
    accuracies = {
        "cnn": train_judge("cnn", cnn, device),
        "vit": train_judge("vit", vit, device),
        "kernel": fit_kernel_judge(kernel, device),
    }
    judged = ", ".join(f"{name} {accuracy:.2%}" for name, accuracy in accuracies.items())
    print(
        f"test images classified right: the classifier {metrics['test_accuracy']:.2%}; "
        f"the judges {judged}. {config.results / 'mnist_classify_train'}, "
        f"{config.results / 'judges'}. Next: emnist_dcgan.py"
    )
    for name, accuracy in accuracies.items():
        if accuracy < 0.9:
            print(
                f"warning: the judge {name} is right on only {accuracy:.2%} of real test images. "
                "Do not trust its rating; train it for more epochs."
            )
    return metrics


if __name__ == "__main__":
    command_line(Config, main, __doc__, PRESETS)
