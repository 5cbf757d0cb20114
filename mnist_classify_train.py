"""Stage two, visual perception: a LeNet learns to read digits; and, apart from the model, so does the judge.

    python mnist_classify_train.py            # the published schedule
    python mnist_classify_train.py --help     # every setting below is a flag

Reads MNIST (downloaded on first use). Writes `results/mnist_classify_train/` (the classifier through which stage three is
trained) and `results/judge/` (the independent judge that rates what it imagined): checkpoint.pt, metrics.json, log.jsonl
and curves.png in each. For the shortened schedule on two cores, its minutes, and what it should give, see the README.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import data
import figures
import files
import runs
from models.judge import Judge
from models.lenet import LeNet
from replay import Replayed


@dataclass(frozen=True)
class Config:
    # what is read
    dataset: Literal["mnist", "handwritten"] = "mnist"  # handwritten: scikit-learn's small digits, no download
    rotation: float = 0.0  # of the training images, random, in degrees either way. Published: 180.
    # There the test images are turned too, so that 6 and 9 cannot be told apart

    # the classifier's schedule; the judge takes as many images an epoch, in batches as large
    epochs: int = 50  # published: 50
    images_per_epoch: int | None = None  # drawn anew each epoch; None: all but the validation part. Published: all
    batch: int = 128  # published: 128
    learning_rate: float = 1e-3  # SGD with momentum 0.9. Published: 1e-3
    late_epoch: int = 31  # from this epoch on, a tenth of the learning rate. Published: 31

    # the judge's, which is not published: AdamW along a cosine, images turned, shifted and scaled at random; turned by up to
    # 10 degrees more than the classifier's, but by at most 20: it shall tell 6 and 9 apart
    judge_epochs: int = 10  # of the judge; --epochs is the classifier's
    judge_learning_rate: float = 3e-3  # at first; 0 at the end

    # the run
    seed: int = 0  # of the classifier; the judge's is another
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    deterministic: bool = False  # on a GPU the same bits again, somewhat slower; the CPU gives them anyway
    data_root: Path = field(default_factory=data.default_root)  # torchvision's folder; also $LISTEN_DATA
    results: Path = Path("results")  # the folder of all runs
    resume: bool = False  # go on after the last finished epoch


def main(config: Config) -> dict[str, float]:
    """Run the stage; returns what the classifier's metrics.json says."""
    device = runs.choose_device(config.device, config.deterministic)
    for stage in ("mnist_classify_train", "judge"):  # both from the start: neither is refused after hours of the other
        files.hold(config.results / stage)
    train = data.load_heard(config.dataset, "train", config.data_root, device)
    validation = data.load_heard(config.dataset, "validation", config.data_root, device)

    torch.manual_seed(config.seed)
    classifier = LeNet().to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(classifier.parameters(), config.learning_rate, momentum=0.9, fused=True)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, [config.late_epoch - 1], gamma=0.1)

    def turned(images: Tensor) -> Tensor:
        return data.random_affine(images, config.rotation) if config.rotation else images

    read = fit("mnist_classify_train", classifier, optimiser, scheduler, turned, config.epochs, train, validation, config)

    judge_config = dataclasses.replace(config, seed=config.seed + 1000)  # nothing that the two draw is the same
    if config.resume and runs.settings_changed(config.results / "judge", judge_config):
        judge_config = dataclasses.replace(judge_config, resume=False)  # that judge is of a run before the classifier's
    torch.manual_seed(judge_config.seed)
    judge = Judge().to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(judge.parameters(), config.judge_learning_rate, weight_decay=0.01, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.judge_epochs)

    def turned_shifted_scaled(images: Tensor) -> Tensor:
        return data.random_affine(images, degrees=10 + min(config.rotation, 10), shift=0.08, scale=0.12)

    epochs = config.judge_epochs
    judged = fit("judge", judge, optimiser, scheduler, turned_shifted_scaled, epochs, train, validation, judge_config)
    print(
        f"digits read: the classifier {read['test_accuracy']:.2%} of the test set, the judge {judged['test_accuracy']:.2%}. "
        f"{config.results}/mnist_classify_train, {config.results}/judge. Next: emnist_dcgan.py"
    )
    return read


def fit(
    stage: str, network: nn.Module, optimiser: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler,
    augment: Callable[[Tensor], Tensor], epochs: int, train: data.Digits, validation: data.Digits, config: Config,
) -> dict[str, float]:  # fmt: skip
    """Train `network` to read digits, and leave it in `results/<stage>/`; returns what its metrics.json says."""
    device = train.images.device
    made_from = data.sha256(train=train, validation=validation)
    run = runs.Run(stage, config, device, sha256=made_from, draw=draw_curves)
    if run.done:
        return run.done
    role = "classifier" if stage == "mnist_classify_train" else "judge"
    first = run.restore(**{role: network}, optimiser=optimiser, scheduler=scheduler)

    def learn(index: Tensor) -> Tensor:
        images = augment(data.as_seen(train.images[index]))
        with runs.autocast(device):
            logits = network(images)
        loss = F.cross_entropy(logits, train.labels[index])
        runs.step(loss, optimiser)
        return loss

    learn = Replayed(learn, device, optimiser)
    for epoch in range(first, epochs + 1):
        generator = runs.seed_epoch(config.seed, epoch)
        network.train()
        mean_loss = runs.Mean("the loss", epoch)
        title = f"{stage} {epoch}/{epochs}"
        for index in runs.batches(len(train.labels), config.batch, generator, device, config.images_per_epoch, title):
            mean_loss.add(learn(index))
        scheduler.step()

        record = {"epoch": epoch, "loss": mean_loss.read()}
        record["validation_accuracy"] = accuracy(network, validation)
        best = record["validation_accuracy"] > max((line["validation_accuracy"] for line in run.history), default=-1.0)
        run.end_epoch(record, best)

    run.load_best()
    test = data.load_heard(config.dataset, "test", config.data_root, device)
    metrics = {
        "test_accuracy": accuracy(network, test),
        "validation_accuracy": max(line["validation_accuracy"] for line in run.history),
    }
    run.finish(metrics, data.sha256(test=test))
    return metrics


def draw_curves(folder: Path) -> None:
    figures.save_curves(folder, [["loss"], ["validation_accuracy"]])


@torch.no_grad()
def accuracy(network: nn.Module, digits: data.Digits) -> float:
    """Share of the digits, upright, that are read right."""
    network.eval()
    logits = torch.cat([network(data.as_seen(images)) for images in digits.images.split(500)])
    return (logits.argmax(1) == digits.labels).double().mean().item()


def load_classifier(results: Path, dataset: str | None, device: torch.device) -> LeNet:
    """The classifier that this script left in `results/mnist_classify_train/`, frozen, in eval mode.

    Raises:
        runs.UserError: if it is missing, damaged, or learned to read another data set than `dataset`, if one is named.
    """
    classifier = LeNet()
    _restore(classifier, "classifier", Path(results) / "mnist_classify_train", dataset)
    return classifier.to(device, memory_format=torch.channels_last)


def load_judge(results: Path, dataset: str | None, device: torch.device) -> Judge:
    """The judge that this script left in `results/judge/`, frozen, in eval mode; it raises as `load_classifier` does."""
    judge = Judge()
    _restore(judge, "judge", Path(results) / "judge", dataset)
    return judge.to(device, memory_format=torch.channels_last)


def _restore(network: nn.Module, role: str, folder: Path, dataset: str | None) -> None:
    path, mend = folder / "checkpoint.pt", "run mnist_classify_train.py"
    checkpoint = runs.load_checkpoint(path, folder.name, mend)
    with files.whole(path, mend):
        learned, state = checkpoint["config"]["dataset"], checkpoint["networks"][role]
        if dataset and learned != dataset:
            raise runs.UserError(f"{path} reads {learned}, but {dataset} is heard; {mend} --dataset {dataset}.")
        runs.load_weights(network, state, path)
    network.requires_grad_(False).eval()


if __name__ == "__main__":
    runs.command_line(Config, main, __doc__)
