"""Stage three, cross-modal generation: what a sound says to the ear moves the visual memory to imagine a digit.

    python train_all.py                           # the published objective and schedule
    python train_all.py --sound-consistency 1 ... # imagine what would sound the same; see the README for the schedule
    python train_all.py --help                    # every setting below is a flag

Reads what the three scripts before it left in `results/`. Writes `results/train_all/` (or another `--name`): checkpoint.pt,
metrics.json, log.jsonl, curves.png, and imagined_001.png ... after every epoch: heard and imagined digits side by side, a
row per class, of the validation part; at the end `results/train_all.png`, the same of the test set.

No image of the heard digits is shown to the model. Two numbers of every epoch are out of its reach: the accuracy of a
judge that took no part, and the Frechet distance between imagined and real digits in that judge's features.
"""

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

import data
import figures
import files
import mnist_classify_train
import ratings
import runs
from models.generator import Generator
from models.judge import Judge
from models.lenet import LeNet
from models.vggish import VGGish
from replay import Replayed
from vggish import HEARD_TOGETHER, Ear, Heard, Probe, load_embedder, refuse_other_sounds
from voice_translator import Encoding

STAGES_BEFORE = ("train_vggish", "mnist_classify_train", "judge", "emnist_dcgan")  # the judge among them takes no part
LOUDNESS = 0.6  # the power of the magnitude that loudness grows with, Stevens'
DOUBT = 0.01  # of what a sound is: with less than this, nobody thinks again
THOUGHT = 0.03  # the learning rate of Adam where the embedding is moved by thinking


@dataclass(frozen=True)
class Config:
    # what is heard: the data set and the encoding of stage one; another encoding named here is refused
    encoding: Encoding = Encoding()  # left as it is: the one that stage one learned

    # the objective
    sound_consistency: float = 0.0  # weight of the distance between the sound of what was imagined and the sound heard.
    # 0: the published objective. Measured on MNIST, in the README's runs: 99.3 % read right by the classifier, 38 % by the
    # judge, images of a class nearly alike (retrieval among 1,000: 0.8 %). 1, with what serves it: 99.1 %, 98.9 %, 98 %
    distance: Literal["absolute", "squared", "multiscale", "loudness"] = "absolute"  # of the log-mels; see sound_distance.
    # multiscale: the mean of the absolute ones at full, half and quarter resolution, so that what neighbours agree on weighs
    # more than a ripple; loudness: the same of the squared ones of the loudness, in which near-silence counts for little
    loudness_first: float = 0.0  # share of the run, from its start, in which the distance is that of loudness.
    # That finds the shape sooner, and `distance` then clears what lies between the strokes
    leak: float = 1.0  # share of the gradient that passes a pixel saturated by the contrast (VoiceTranslator.forward).
    # At 0, the true gradient, a pixel imagined white where black was heard is never told
    detail: float = 0.0  # weight of what no sound can tell of the imagined image: what is finer than 28 x 28. Published: 0.
    # It is the difference to the nearest image that 28 x 28 pixels can tell (inaudible_detail)
    grey: float = 0.0  # weight of the imagined image's grey, the mean of 1 - x^2: 0 for black and white. Published: 0.
    # It grows from 0 to this over the run, so that shape comes before ink. The contrast makes every grey above some 0.4 of
    # white as loud as white, so no sound asks for full ink
    rehearsal: float = 0.0  # weight of what is rehearsed: the memory's own drawings, from their sounds. Published: 0.
    # The generator as it was after stage two draws from noise; the drawing is sounded, and shall be imagined again from its
    # sound (mean squared difference of the images). No heard digit takes part
    classifier_weight: float = 1.0  # weight of the classifier's cross-entropy. Published: 1
    classifier_augmentation: float = 0.0  # of what the classifier reads, as below of what is heard. Published: 0.
    # A shape that only this classifier takes for the digit seldom survives it
    dropout: bool = True  # of the audio network while it learns. Published: yes; it blurs what can be consistent

    # the schedule: first the audio network alone, then the generator with it
    epochs: int = 4  # published: 4
    joint_epochs: int = 1  # the last of them train the generator too. Published: 1
    images_per_epoch: int | None = None  # drawn anew each epoch; None: all but the validation part. Published: all
    augmentation: float = 0.0  # of what is heard, so that nothing is learned by heart; 0.5: half of 1. Published: 0.
    # At 1 each digit is turned by up to 10 degrees, shifted by up to 4 %, scaled by up to 10 %, anew each time
    batch: int = 128  # published: 128
    learning_rate: float = 1e-3  # Adam, audio network alone. Published: 1e-3
    generator_rate: float = 1.0  # learning rate of the generator, as a share of the audio network's. Published: 1
    joint_learning_rate: float = 1e-4  # Adam, both; in the first joint epoch, then falling linearly. Published: 1e-4
    keep_gigabytes: float = 2.0  # of log-mels, made once and kept in float16; where they take more, anew in every epoch

    # the run
    name: str = "train_all"  # of the folder in results/
    seed: int = 0  # of order and noise; the weights are those of the stages before
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    deterministic: bool = False  # on a GPU the same bits again, somewhat slower; the CPU gives them anyway
    data_root: Path = field(default_factory=data.default_root)  # torchvision's folder; also $LISTEN_DATA
    results: Path = Path("results")  # the folder of all runs
    resume: bool = False  # go on after the last finished epoch


def main(config: Config) -> dict[str, float]:
    """Run the stage; returns what metrics.json says."""
    if config.joint_epochs > config.epochs:
        raise runs.UserError(f"--joint-epochs is {config.joint_epochs}, of {config.epochs} epochs; give no more of them.")
    device = runs.choose_device(config.device, config.deterministic)
    ear, network, dataset = load_ear(config, device)
    generator, classifier = load_memory(config.results, dataset, device)
    memory = copy.deepcopy(generator).requires_grad_(False)
    judge = mnist_classify_train.load_judge(config.results, dataset, device)
    for name in STAGES_BEFORE:
        runs.require_complete(config.results / name, f"run {runs.command_of(name)}")
    train = data.load_heard(dataset, "train", config.data_root, device)
    validation = data.load_heard(dataset, "validation", config.data_root, device)

    slower = {"params": list(generator.parameters()), "lr": config.generator_rate * config.learning_rate}
    optimiser = torch.optim.Adam([{"params": list(network.parameters())}, slower], config.learning_rate, fused=True)
    alone = config.epochs - config.joint_epochs

    def rate_of(done: int) -> float:
        """The learning rate after `done` epochs, relative to the first: one step down, then straight towards 0."""
        if done < alone:
            return 1.0
        return config.joint_learning_rate / config.learning_rate * (config.epochs - done) / max(config.joint_epochs, 1)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, rate_of)
    upstream = {"encoding": asdict(ear.encoding), "frames": ear.frames, "hop": ear.hop, "dataset": dataset}
    upstream |= {"vggish_width": network.width, "generator_width": generator.width}
    made_from = data.sha256(train=train, validation=validation)
    made_from |= runs.checkpoint_sha256(config.results, *STAGES_BEFORE)
    run = runs.Run("train_all", config, device, config.name, made_from, draw_curves, **upstream)
    if run.done:
        return run.done
    first = run.restore(vggish=network, generator=generator, probe=Probe(ear), optimiser=optimiser, scheduler=scheduler)
    count = config.epochs * (config.images_per_epoch or len(train.labels))
    logmels = Heard(ear, train.images, count, config.keep_gigabytes, config.augmentation)

    def learn(index: Tensor, grey: Tensor, kind: str, joint: bool) -> dict[str, Tensor]:
        generator.requires_grad_(joint)  # always in eval mode: its BatchNorm statistics are part of the memory
        heard = logmels[index]
        inputs = heard
        if config.rehearsal:
            remembered = remember(memory, len(index), device)
            with torch.no_grad():
                inputs = torch.cat([heard, ear(data.as_drawn(remembered))])
        with runs.autocast(device):
            imagined, rehearsed = generator(network.embed(inputs)).tensor_split([len(index)])
            shown = imagined
            if config.classifier_augmentation:
                shown = data.varied(imagined, config.classifier_augmentation)
            logits = classifier(shown)
        terms = {"cross_entropy": F.cross_entropy(logits, train.labels[index])}
        if config.sound_consistency:
            terms["sound_distance"] = sound_distance(ear, imagined, heard, config.leak, kind)
        if config.rehearsal:
            terms["rehearsal"] = F.mse_loss(rehearsed, remembered)
        if config.detail:
            terms["detail"] = inaudible_detail(imagined)
        if config.grey:
            terms["grey"] = greyness(imagined)
        runs.step(objective(config, terms, grey), optimiser)
        return terms

    learn = Replayed(learn, device, optimiser)
    for epoch in range(first, config.epochs + 1):
        order = runs.seed_epoch(config.seed, epoch)
        network.train()
        if not config.dropout:
            network.embedding[2].eval()  # its dropout; the BatchNorm behind it goes on learning
        means: dict[str, runs.Mean] = {}
        title = f"epoch {epoch}/{config.epochs}"
        taken = list(runs.batches(len(train.labels), config.batch, order, device, config.images_per_epoch))
        done = [(epoch - 1 + step / len(taken)) / config.epochs for step in range(len(taken))]
        greys = torch.tensor([config.grey * share for share in done]).to(device)
        for index, grey, share in zip(runs.progress(taken, title), greys, done, strict=True):
            kind = "loudness" if share < config.loudness_first else config.distance
            for name, term in learn(index, grey, kind, epoch > alone).items():
                means.setdefault(name, runs.Mean(f"the {name.replace('_', ' ')}", epoch)).add(term)
        scheduler.step()

        imagined, distance = imagine(ear, network, generator, validation.images, config.distance)
        rating = rate(classifier, judge, validation, imagined)
        record = {
            "epoch": epoch,
            **{name: mean.read() for name, mean in means.items()},
            **{f"validation_{name}": value for name, value in rating.items()},
            "validation_sound_distance": distance,
            "validation_detail": torch.stack([inaudible_detail(part) for part in imagined.split(500)]).mean().item(),
            "validation_grey": greyness(imagined).item(),
        }
        # The objective itself on the validation part, never the judge, says which epoch is best.
        validated = ("cross_entropy", "sound_distance", "detail", "grey")
        record["validation_loss"] = objective(
            config, {name: record[f"validation_{name}"] for name in validated}, config.grey
        )
        best = record["validation_loss"] < min((line["validation_loss"] for line in run.history), default=float("inf"))
        save_pairs(run.folder / f"imagined_{epoch:03d}.png", validation, imagined)
        run.end_epoch(record, best)

    best = run.load_best()
    test = data.load_heard(dataset, "test", config.data_root, device)
    imagined, distance = imagine(ear, network, generator, test.images, config.distance)
    rating = rate(classifier, judge, test, imagined)
    metrics = {"test_accuracy": rating.pop("accuracy"), **rating, "sound_distance": distance}
    save_pairs(config.results / f"{config.name}.png", test, imagined)
    run.finish(metrics, data.sha256(test=test))
    print(
        f"imagined digits read right: {metrics['judge_accuracy']:.2%} by the judge, {metrics['test_accuracy']:.2%} by the "
        f"classifier that was to be pleased (epoch {best}). {run.folder}, {config.results / config.name}.png. "
        f"Next: evaluate.py{'' if config.name == 'train_all' else f' --name {config.name}'}"
    )
    return metrics


def made_of(name: str) -> dict[str, str]:
    """Stage -> its folder in results, of all that the run `name` of this stage is made of, itself included."""
    return {**{stage: stage for stage in STAGES_BEFORE}, "train_all": name}


def objective(config: Config, terms: dict[str, Any], grey: float | Tensor) -> Any:
    """The loss: the sum of `terms`, by the weights of the header, but for `grey`, which grows over the run."""
    weights = {
        "cross_entropy": config.classifier_weight,
        "sound_distance": config.sound_consistency,
        "rehearsal": config.rehearsal,
        "detail": config.detail,
        "grey": grey,
    }
    return sum(weights[name] * term for name, term in terms.items())


def load_ear(config: Config, device: torch.device) -> tuple[Ear, VGGish, str]:
    """What stage one learned: the ear, the audio network, and the name of the data set that it heard."""
    path = config.results / "train_vggish" / "checkpoint.pt"
    ear, network = load_embedder(path, device)
    if config.encoding not in (Encoding(), ear.encoding):
        learned, named = asdict(ear.encoding), asdict(config.encoding)
        differing = ", ".join(f"{k} {learned[k]}, not {named[k]}" for k in learned if learned[k] != named[k])
        raise runs.UserError(
            f"{path} learned another encoding ({differing}); leave out --encoding, or run train_vggish.py with this one."
        )
    with files.whole(path, "run train_vggish.py"):
        dataset = runs.load_checkpoint(path, "train_vggish")["config"]["dataset"]
    return ear, network, dataset


def load_memory(results: Path, dataset: str | None, device: torch.device) -> tuple[Generator, LeNet]:
    """What stage two left in `results`: the generator, and the classifier, which is frozen and reads `dataset`, if one is
    named."""
    path = results / "emnist_dcgan" / "checkpoint.pt"
    checkpoint = runs.load_checkpoint(path, "emnist_dcgan")
    with files.whole(path, "run emnist_dcgan.py"):
        width, state = checkpoint["config"]["width"], checkpoint["networks"]["generator"]
        generator = runs.load_network(lambda: Generator(width), state, path)
    generator.to(device, memory_format=torch.channels_last).eval()
    return generator, mnist_classify_train.load_classifier(results, dataset, device)


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[Ear, VGGish, Generator, str]:
    """A stage-three checkpoint as a model that imagines what it hears: `generator(network.embed(ear(images)))`, and the
    name of the data set that it heard.

    Raises:
        runs.UserError: if the file is missing, damaged, or of another stage.
    """
    checkpoint = runs.load_checkpoint(path, "train_all")
    config, networks = checkpoint["config"], checkpoint["networks"]
    with files.whole(path, "run train_all.py"):
        encoding, frames, dataset = Encoding(**config["encoding"]), config["frames"], config["dataset"]
        network = runs.load_network(lambda: VGGish(frames, config["vggish_width"]), networks["vggish"], path)
        generator = runs.load_network(lambda: Generator(config["generator_width"]), networks["generator"], path)
        ear = Ear(encoding, frames, config["hop"]).to(device)
        refuse_other_sounds(ear, checkpoint, path)
    layout = {"device": device, "memory_format": torch.channels_last}
    return ear, network.to(**layout).eval(), generator.to(**layout).eval(), dataset


class SecondThoughts:
    """The machine thinks again of what it is in doubt of, before it draws. No weight changes, and no image, label or judge
    takes part: it has the sound, its own ear, and what the stages before taught it.

    Two say what a sound is: the sound classifier of stage one, of the sound, and the classifier of stage two, of the first
    drawing; the mean of their probabilities decides. Where that leaves a doubt of more than DOUBT, Adam moves the embedding
    so that the drawing is read as was decided, and sounds as was heard, by loudness (`sound_distance`).

    Args:
        ear: of the encoding that was learned.
        sound_classifier: stage one's network, in eval mode.
        steps: of Adam, at a learning rate of THOUGHT.

    Attributes:
        count: how many sounds were thought of again.
    """

    def __init__(self, ear: Ear, sound_classifier: VGGish, generator: Generator, classifier: LeNet, steps: int) -> None:
        if steps < 1:
            raise runs.UserError(f"--second-thoughts is {steps}; give a number of steps, or 0 for first thoughts.")
        self.ear, self.sound_classifier, self.generator, self.classifier = ear, sound_classifier, generator, classifier
        self.steps, self.count = steps, 0

    def __call__(self, heard: Tensor, embeddings: Tensor) -> Tensor:
        """Log-mels `(B, 1, frames, 64)` and their embeddings `(B, 100)` -> embeddings after thinking again, `(B, 100)`."""
        with torch.no_grad(), runs.autocast(heard.device):
            opinions = [self.sound_classifier(heard), self.classifier(self.generator(embeddings))]
        sure, decided = torch.stack([logits.float().softmax(1) for logits in opinions]).mean(0).max(1)
        doubtful = torch.nonzero(sure < 1 - DOUBT)[:, 0]
        self.count += len(doubtful)
        if not len(doubtful):
            return embeddings
        heard, decided = heard[doubtful], decided[doubtful]
        moved = embeddings[doubtful].detach().requires_grad_()
        optimiser = torch.optim.Adam([moved], THOUGHT)
        for _ in range(self.steps):
            with torch.enable_grad():
                with runs.autocast(heard.device):
                    imagined = self.generator(moved)
                    logits = self.classifier(imagined)
                distance = sound_distance(self.ear, imagined, heard, leak=1.0, kind="loudness")
                loss = distance + F.cross_entropy(logits.float(), decided)
                # Of the sum over the sounds: each is thought of as if it were alone.
                (moved.grad,) = torch.autograd.grad(len(moved) * loss, moved)
            optimiser.step()
        return embeddings.index_copy(0, doubtful, moved.detach())


def load_second_thoughts(
    results: Path, steps: int, ear: Ear, generator: Generator, dataset: str, device: torch.device
) -> SecondThoughts | None:
    """What a run thinks again with, in so many steps, from the stages before it in `results`; None if there are no steps."""
    if not steps:
        return None
    _, sound_classifier = load_embedder(results / "train_vggish" / "checkpoint.pt", device)
    classifier = mnist_classify_train.load_classifier(results, dataset, device)
    return SecondThoughts(ear, sound_classifier, generator, classifier, steps)


@torch.no_grad()
def remember(memory: Generator, count: int, device: torch.device) -> Tensor:
    """What the memory draws from noise, `(count, 1, 64, 64)` in [-1, 1]."""
    with runs.autocast(device):
        return memory(torch.randn(count, memory.noise_size, device=device))


def sound_distance(ear: Ear, imagined: Tensor, heard: Tensor, leak: float = 0.0, kind: str = "absolute") -> Tensor:
    """How the imagined images, `(B, 1, 64, 64)` in [-1, 1], would sound, against what was heard, `(B, 1, frames, 64)`: the
    mean absolute, or squared, difference of the log-mels, or of "multiscale" the mean over three resolutions, each half the
    one before in time and in pitch. "loudness" is the mean squared difference of the loudness, over the same resolutions:
    the mel magnitudes to the power of 0.6 (S. S. Stevens, J. Acoust. Soc. Am. 27, 1955). 0 for the heard image, as seen."""
    sounded = ear(data.as_drawn(imagined), leak)
    if kind == "loudness":
        sounded, heard = torch.exp(LOUDNESS * sounded), torch.exp(LOUDNESS * heard)
    difference = sounded - heard
    resolutions = (1, 2, 4) if kind in ("multiscale", "loudness") else (1,)
    levels = [F.avg_pool2d(difference, k) for k in resolutions]
    return torch.stack([(x.square() if kind in ("squared", "loudness") else x.abs()).mean() for x in levels]).mean()


def inaudible_detail(imagined: Tensor) -> Tensor:
    """Mean squared difference of the images, `(B, 1, 64, 64)` in [-1, 1], to the nearest ones that 28 x 28 pixels can tell,
    which is all that sounds. 0 for real digits, as seen."""
    return F.mse_loss(data.redrawn(imagined), imagined.float())


def greyness(imagined: Tensor) -> Tensor:
    """How far the images, in [-1, 1], are from black and white: the mean of 1 - x^2. 0.12 in MNIST."""
    return (1 - imagined.square()).mean()


@torch.no_grad()
def imagine(
    ear: Ear,
    network: VGGish,
    generator: Generator,
    images: Tensor,
    kind: str = "absolute",
    think_again: SecondThoughts | None = None,
) -> tuple[Tensor, float]:
    """What is imagined when `(N, H, W)` uint8 images are heard, `(N, 1, 64, 64)` in [-1, 1], and the mean `sound_distance`
    to them. With `think_again`, whose ear is the learned one whatever `ear` makes the sounds, after second thoughts."""
    network.eval()
    imagined, distance = [], 0.0
    for part in images.split(HEARD_TOGETHER):
        heard = ear(part)
        with runs.autocast(images.device):
            embeddings = network.embed(heard)
        if think_again:
            embeddings = think_again(heard, embeddings)
        with runs.autocast(images.device):
            imagined.append(generator(embeddings))
        distance += sound_distance(ear, imagined[-1], heard, kind=kind) * len(part)
    return torch.cat(imagined), (distance / len(images)).item()


@torch.no_grad()
def rate(classifier: LeNet, judge: Judge, digits: data.Digits, imagined: Tensor) -> dict[str, float]:
    """`ratings.rate`, and what the classifier that is to be pleased makes of the images: `accuracy`, `cross_entropy`."""
    logits = torch.cat([classifier(part) for part in imagined.split(512)])
    return {
        "accuracy": (logits.argmax(1) == digits.labels).double().mean().item(),
        "cross_entropy": F.cross_entropy(logits, digits.labels).item(),
        **ratings.rate(judge, imagined, data.as_seen(digits.images), digits.labels),
    }


def save_pairs(path: Path, digits: data.Digits, imagined: Tensor) -> None:
    shown = figures.per_class(digits.labels, 8)
    heard = data.as_seen(digits.images[shown.flatten()]).unflatten(0, shown.shape)
    figures.save_imagined(path, heard, imagined[shown])


def draw_curves(folder: Path) -> None:
    shares = ["validation_accuracy", "validation_judge_accuracy", "validation_retrieval", "validation_correlation"]
    figures.save_curves(folder, [shares, ["validation_frechet_distance"], ["cross_entropy", "validation_sound_distance"]])


if __name__ == "__main__":
    runs.command_line(Config, main, __doc__)
