"""Checkpoints: the full training state at the end of an epoch; a killed run resumes bit for bit."""

import json
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from iekd.config import RunConfig
from iekd.records import store
from iekd.training.run import Run

MOMENTUM = "momentum."  # prefix of the optimiser's tensors


def path_of(config: RunConfig) -> Path:
    return store.cache_folder() / f"{config.path}.checkpoint.safetensors"


def state(run: Run) -> dict[str, Tensor]:
    """All that changes during training: weights, statistics, and momentum by parameter name."""
    tensors = dict(run.learner.state_dict())
    for name, parameter in run.learner.named_parameters():
        buffer = run.optimiser.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            tensors[MOMENTUM + name] = buffer
    return tensors


def restore(run: Run, tensors: dict[str, Tensor]) -> None:
    """Restore a run to a saved `state`.

    Raises `StoreError` and changes nothing if the tensors are not the run's.
    """
    own = run.learner.state_dict()
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(MOMENTUM)}
    if _shapes(weights) != _shapes(own):
        raise store.StoreError("its tensors are not those of this network")
    run.learner.load_state_dict(weights)
    for name, parameter in run.learner.named_parameters():
        if MOMENTUM + name in tensors:
            # in the memory format of the parameter
            buffer = torch.empty_like(parameter).copy_(tensors[MOMENTUM + name])
            run.optimiser.state[parameter]["momentum_buffer"] = buffer


def save(
    config: RunConfig, parents: dict[str, str], run: Run, history: list[dict], seconds: float
) -> None:
    """Write a run's checkpoint; `parents` holds the parents' weight checksums by role."""
    facts = {
        "hash": config.hash,
        "parents": json.dumps(parents),
        "history": json.dumps(history),
        "seconds": str(seconds),
    }
    store.save_tensors(path_of(config), state(run), facts)


def resume(config: RunConfig, parents: dict[str, str], run: Run) -> tuple[list[dict], float]:
    """Restore a run to its checkpoint, if there is one; returns its history and the seconds spent.

    A checkpoint that is damaged, or belongs to another run or other parents, is set aside with a
    message; everything is checked before the run is touched.
    """
    path = path_of(config)
    if not store.exists(path):
        return [], 0.0
    try:
        tensors, metadata = store.load_tensors(path)
        if metadata["hash"] != config.hash or json.loads(metadata["parents"]) != parents:
            raise store.StoreError(
                "it belongs to another run, or its teacher was trained again since"
            )
        history, seconds = json.loads(metadata["history"]), float(metadata["seconds"])
        restore(run, tensors)
        return history, seconds
    except (store.StoreError, KeyError, ValueError) as error:
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        # the message's advice to delete it no longer applies
        why = str(error).replace(store.DELETE_IT, "")
        tqdm.write(
            f"{config.path}: the checkpoint cannot be used ({why}); set aside as {aside}, "
            "starting from the first epoch"
        )
        return [], 0.0


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
