"""Checkpoints: all that moves during training, written whole at the end of an epoch, so that a killed run goes on bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from iekd.config import RunConfig
from iekd.records import store
from iekd.training.engine import Run


def state(run: Run) -> dict[str, Tensor]:
    """All that moves during training: weights, running statistics, and the optimiser's momentum by parameter name."""
    known = run.optimiser.state
    momentum = {
        f"momentum.{name}": known[p]["momentum_buffer"]
        for name, p in run.learner.named_parameters()
        if p in known
    }
    return {
        **run.learner.state_dict(),
        **{name: buffer for name, buffer in momentum.items() if buffer is not None},
    }


def save(
    path: Path,
    config: RunConfig,
    parents: dict[str, str],
    run: Run,
    history: list[dict],
    seconds: float,
) -> None:
    facts = {
        "hash": config.hash,
        "parents": json.dumps(parents),
        "history": json.dumps(history),
        "seconds": str(seconds),
    }
    store.save_tensors(path, state(run), facts)


def path_of(config: RunConfig) -> Path:
    return store.cache_folder() / f"{config.path}.checkpoint.safetensors"


def resume(
    path: Path, config: RunConfig, parents: dict[str, str], run: Run
) -> tuple[list[dict], float]:
    """Put a run back to its checkpoint; returns its history and the seconds spent. A checkpoint that is damaged, or of another run or
    other parents, is set aside, and said so: all is checked before anything of the run is touched."""
    if not store.exists(path):
        return [], 0.0
    try:
        tensors, metadata = store.load_tensors(path)
        if metadata["hash"] != config.hash or json.loads(metadata["parents"]) != parents:
            raise store.StoreError(
                "it belongs to another run, or its teacher was trained again since"
            )
        history, seconds = json.loads(metadata["history"]), float(metadata["seconds"])
        weights = {
            name: tensor for name, tensor in tensors.items() if not name.startswith("momentum.")
        }
        if {k: v.shape for k, v in weights.items()} != {
            k: v.shape for k, v in run.learner.state_dict().items()
        }:
            raise store.StoreError("its tensors are not those of this network")
        run.learner.load_state_dict(weights)
        for name, parameter in run.learner.named_parameters():
            if f"momentum.{name}" in tensors:
                buffer = torch.empty_like(parameter).copy_(
                    tensors[f"momentum.{name}"]
                )  # same memory format as the parameter
                run.optimiser.state[parameter]["momentum_buffer"] = buffer
        return history, seconds
    except (store.StoreError, KeyError, ValueError) as error:
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        why = str(error).replace(store.DELETE_IT, "")  # that is done
        tqdm.write(
            f"{config.path}: the checkpoint cannot be used ({why}); set aside as {aside}, starting from the first epoch"
        )
        return [], 0.0
