"""Checkpoints: reading them safely, and loading their weights into networks."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.device import Network
from common.files import UserError, file_sha256, load_tensors

CHECKPOINT_VERSION = 2


def training_command(stage: str, name: str = "train_all") -> str:
    """The command that trains `stage`. One script trains the judges too, and a run of stage three
    may have another `name`."""
    script = "mnist_classify_train" if stage.startswith("judge_") else stage
    named = f" --name {name}" if stage == "train_all" and name != "train_all" else ""
    return f"{script}.py{named}"


def load_checkpoint(path: Path, stage: str, hint: str | None = None) -> dict[str, Any]:
    """Load the checkpoint of a stage, and check that it is one.

    Raises:
        UserError: if it is missing, damaged, of another stage or of another version; the sentence
            names the script to run.
    """
    hint = hint or f"run {training_command(stage)}"
    if not path.is_file():
        raise UserError(
            f"{path.absolute()} is missing; {hint}, or give the --results folder that holds it."
        )
    checkpoint = load_tensors(path, hint)
    kinds = {"stage": str, "version": int, "config": dict, "networks": dict, "epoch": int}
    wrong = ""
    if not all(isinstance(checkpoint.get(name), kind) for name, kind in kinds.items()):
        wrong = "is no checkpoint of this project"
    elif checkpoint["stage"] != stage:
        wrong = f"is a checkpoint of {checkpoint['stage'][:100]!r}, not of {stage!r}"
    elif checkpoint["version"] != CHECKPOINT_VERSION:
        wrong = f"has checkpoint version {checkpoint['version']}, but this code reads version "
        wrong += f"{CHECKPOINT_VERSION}"
    elif not all(isinstance(state, dict) for state in checkpoint["networks"].values()):
        wrong = "holds no weights"
    if wrong:
        raise UserError(f"{path} {wrong}; {hint}.")
    return checkpoint


def load_network(build: Callable[[], Network], state: dict[str, Tensor], path: Path) -> Network:
    """What `build` makes, with these weights. Its size comes from an untrusted file: it is made
    only when they fit it.

    Raises:
        UserError: if they do not fit, with the first reason.
        ValueError: if there is no such network.
    """
    try:
        with torch.device("meta"):  # no memory is taken
            sketch = build()
    except RuntimeError as error:
        raise ValueError(f"no such network: {error}") from error
    _require_fit(sketch, state, path)
    network = build()
    load_weights(network, state, path)
    return network


def load_weights(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load weights with strict keys, shapes and types, all of them finite.

    Raises:
        UserError: if they do not fit, with the first reason.
    """
    _require_fit(network, state, path)
    if not all_finite(state):
        raise UserError(f"the weights in {path} are not finite; train it again.")
    network.load_state_dict(state)


def _require_fit(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    own = network.state_dict()
    for name in own | state:
        wanted, given, reason = own.get(name), state.get(name), ""
        if wanted is None:
            reason = f"{name!r} is unknown"
        elif not isinstance(given, Tensor):
            reason = f"{name} is missing"
        elif given.shape != wanted.shape:
            reason = f"size mismatch of {name}: {list(given.shape)}, not {list(wanted.shape)}"
        elif given.dtype != wanted.dtype:
            reason = f"{name} is {given.dtype}, not {wanted.dtype}"
        if reason:
            what = f"the weights in {path} do not fit {type(network).__name__}"
            raise UserError(f"{what} ({reason[:200]}); train it again.")


def all_finite(state: dict[str, Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in state.values())


def weights_sha256(network: nn.Module) -> str:
    """The SHA-256 of a network's weights, wherever it was trained and is kept."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().numpy())
    return digest.hexdigest()


def checkpoint_hashes(folders: Mapping[str, Path]) -> dict[str, str]:
    """The SHA-256 of the checkpoints of some runs, from stage -> the folder of its run, by the name
    `<stage>/checkpoint.pt`."""
    return {
        f"{stage}/checkpoint.pt": file_sha256(folder / "checkpoint.pt")
        for stage, folder in folders.items()
    }
