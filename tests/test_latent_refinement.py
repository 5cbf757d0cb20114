"""Latent refinement: the embedding of an uncertain sound is optimised at test time."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data import load_digits
from data.resize import downsample_lstsq
from evaluation.imagine import LatentRefiner
from evaluation.listener import Listener

pytestmark = pytest.mark.usefixtures("fewer_digits")


def refiner_and_sounds(chain: Path, steps: int) -> tuple[LatentRefiner, Tensor, Tensor]:
    """The refiner of the chain's run; ten log-mels `(10, 1, 112, 64)` and their embeddings
    `(10, 100)`."""
    listener = Listener(chain / "train_all")
    model = listener.model
    for kernels in (
        parameter for parameter in model.generator.parameters() if parameter.dim() == 4
    ):
        kernels.data *= 8  # after so little training it draws hardly anything else than grey
    refiner = listener.refiner(steps)
    with torch.no_grad():
        heard = model.front_end(load_digits(model.dataset, "test", Path(), "cpu").images[:10])
        return refiner, heard, model.embed(heard)


def objective(refiner: LatentRefiner, heard: Tensor, embedding: Tensor, digit: int) -> Tensor:
    """The loss that refinement lowers, of one sound, written out."""
    imagined = refiner.generator(embedding[None])
    sounded = refiner.front_end(downsample_lstsq(imagined), 1.0, validate=False)
    difference = torch.exp(0.6 * sounded) - torch.exp(0.6 * heard[None])
    levels = [F.avg_pool2d(difference, k).square().mean() for k in (1, 2, 4)]
    return sum(levels) / 3 - refiner.classifier(imagined).log_softmax(1)[0, digit]


def test_refinement_makes_steps_of_adam_towards_the_class_that_both_classifiers_decide(
    chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_PRECISION", "float32")
    refiner, heard, embeddings = refiner_and_sounds(chain, 1)
    with torch.no_grad():
        logits = refiner.sound_classifier(heard), refiner.classifier(refiner.generator(embeddings))
    opinions = [np.exp(part.double().numpy()) for part in logits]
    opinions = [part / part.sum(1, keepdims=True) for part in opinions]
    decided = (opinions[0] + opinions[1]).argmax(1)
    assert any(decided != opinions[0].argmax(1)) or any(decided != opinions[1].argmax(1))
    moved = refiner(heard, embeddings)
    assert refiner.count == 10  # after so little training every sound is uncertain
    for before, after, sound, digit in zip(embeddings, moved, heard, decided, strict=True):
        alone = before.clone().requires_grad_()
        objective(refiner, sound, alone, digit).backward()
        # Adam's first step is as wide as its learning rate
        first_step = 0.03 * alone.grad / (alone.grad.abs() + 1e-8)
        torch.testing.assert_close(before - after, first_step, atol=1e-3, rtol=0)

    refiner, heard, embeddings = refiner_and_sounds(chain, 8)
    moved = refiner(heard, embeddings)
    for before, after, sound, digit in zip(embeddings, moved, heard, decided, strict=True):
        with torch.no_grad():
            lower = objective(refiner, sound, after, digit)
            assert lower < objective(refiner, sound, before, digit)


def test_certain_sounds_are_not_refined(chain: Path) -> None:
    refiner, heard, embeddings = refiner_and_sounds(chain, 2)
    certain = torch.full((10, 10), -9.0)
    certain[range(10), range(10)] = 9.0
    uncertain = certain.clone()
    uncertain[3, 4] = uncertain[7, 1] = 9.0  # one of the two classifiers hesitates
    of_count = {len(heard): certain}
    refiner.classifier = lambda imagined: (
        of_count.get(len(imagined), certain[[3, 7]]) + 0 * imagined.sum()
    )
    refiner.sound_classifier = lambda heard: uncertain
    moved = refiner(heard, embeddings)
    assert refiner.count == 2
    assert (moved != embeddings).any(1).nonzero()[:, 0].tolist() == [3, 7]
    refiner.sound_classifier = lambda heard: certain
    assert refiner(heard, embeddings).equal(embeddings)
    assert refiner.count == 2


def test_refinement_changes_no_weight_and_does_not_depend_on_the_order(chain: Path) -> None:
    refiner, heard, embeddings = refiner_and_sounds(chain, 4)
    networks = [refiner.sound_classifier, refiner.generator, refiner.classifier]
    before = [
        {key: value.clone() for key, value in network.state_dict().items()} for network in networks
    ]
    moved = refiner(heard, embeddings)
    assert moved.equal(refiner(heard, embeddings))
    reversed_order = refiner(heard.flip(0), embeddings.flip(0)).flip(0)
    torch.testing.assert_close(reversed_order, moved, atol=0.02, rtol=0)
    for network, state in zip(networks, before, strict=True):
        assert all(value.equal(state[key]) for key, value in network.state_dict().items())
        assert not any(parameter.grad is not None for parameter in network.parameters())


def test_zero_steps_mean_no_refinement(chain: Path) -> None:
    assert Listener(chain).refiner(0) is None
