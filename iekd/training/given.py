"""A teacher of your own: trained weights from a file, used as they are.

    $IEKD_DATA/teachers/mine.pth     iekd run --method kd --teacher resnet56 --teacher-file mine

The file holds a state dict, as safetensors or from `torch.save`; nothing in it is executed. Names
are ours, or those of torchvision's ResNets, with any prefix (`module.`). Paths contain only the
file's name; the teacher's record holds its checksum.

`iekd data teacher resnet34` puts torchvision's weights for ImageNet there. The file names their
source, and so does the record.

Images are normalised by the data set's mean and standard deviation, as in every run. The teacher's
record gives its error on them.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from iekd.data import roots
from iekd.errors import ConfigError, DataError
from iekd.records import Record, store

SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".tar")
# Where a checkpoint keeps the state dict.
KEYS = ("state_dict", "model_state_dict", "model", "net")
FETCHED = ("resnet18", "resnet34")  # torchvision's networks that we have, too
SAVE = "Save the state dict alone: torch.save(model.state_dict(), ...)."
TORCHVISION = {"conv1": "conv", "bn1": "norm", "fc": "head", "linear": "head"}


def find(name: str) -> Path:
    """The file of a teacher. Raises `DataError` if there is none."""
    folders = [root / "teachers" for root in roots.roots(roots.named_root(None))]
    for folder in folders:
        for suffix in SUFFIXES:
            if (path := folder / f"{name}{suffix}").is_file():
                return path
    places = " or ".join(str(folder / name) for folder in folders[:2])
    raise DataError(
        f"teacher_file: there is no {places} with one of the suffixes {', '.join(SUFFIXES)}. Put "
        "the file there, or name the folder that holds teachers/ (IEKD_DATA)."
    )


def checksum(name: str) -> str:
    """Sixteen hexadecimal digits of the file's SHA-256."""
    return hashlib.sha256(find(name).read_bytes()).hexdigest()[:16]


def facts(name: str) -> dict[str, str]:
    """What a record says about a file: its checksum, and its source if the file names one."""
    found, path = {"weights_file": checksum(name)}, find(name)
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            if source := (file.metadata() or {}).get("source"):
                found["weights_source"] = source
    return found


def fetch(network: str) -> Path:
    """Save torchvision's weights of a network, without unpickling; returns the file.

    Raises `ConfigError` for a network without such weights, `DataError` if they cannot be
    downloaded or hold more than weights.
    """
    if network not in FETCHED:
        raise ConfigError(f"{network}: no such weights; choose one of {', '.join(FETCHED)}")
    from torchvision.models import get_model_weights

    weights = get_model_weights(network)["IMAGENET1K_V1"]  # type: ignore[index]
    try:
        # torchvision's own default unpickles whatever it has downloaded
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:
        # a download or a damaged file can go wrong in any way
        reason, kept = str(error).partition("\n")[0], Path(torch.hub.get_dir()) / "checkpoints"
        raise DataError(
            f"{weights}: cannot be downloaded ({reason}). Connect to the network, and delete "
            f"{kept / Path(weights.url).name} if it is there; or bring {weights.url} here as a "
            "file teachers/NAME.pth (IEKD_DATA)."
        ) from error
    root = roots.roots(roots.named_root(None))[0]
    path = root / "teachers" / f"torchvision-{network}.safetensors"
    store.save_tensors(path, state, {"source": f"torchvision {weights}, {weights.url}"})
    return path


def refuse_other(record: Record) -> None:
    """Raise `DataError` if the file is no longer the one that a record was made from."""
    name = record.config.weights_file
    try:
        now = checksum(name)
    except DataError:  # a finished run needs no file
        return
    if now != record.data["weights_file"]:
        raise DataError(
            f"{find(name)}: not the file that {record.config.path} was made of. Give it a name of "
            "its own, and name that one as teacher_file."
        )


def load(network: nn.Module, name: str) -> None:
    """Put the weights of a file into a network.

    Raises a `DataError` that says what does not fit: missing or unknown names, and shapes.
    """
    path = find(name)
    found = _our_names(_read(path))
    own = network.state_dict()
    needed = {key for key in own if not key.endswith("num_batches_tracked")}

    # What does not fit, at most three of each kind.
    problems = []
    if missing := sorted(needed - found.keys()):
        problems.append(f"missing: {_some(missing)}")
    if unknown := sorted(found.keys() - own.keys()):
        problems.append(f"unknown: {_some(unknown)}")
    for key in sorted(needed & found.keys()):
        theirs, ours = tuple(found[key].shape), tuple(own[key].shape)
        if theirs != ours:
            problems.append(f"{key} is {theirs} in the file and {ours} in the network")
    if problems:
        raise DataError(
            f"{path}: these are not the weights of this network ({'; '.join(problems[:3])}). Name "
            "the network that they belong to, or rename them in the file."
        )
    network.load_state_dict(found, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name. Raises `DataError` if it holds no state dict."""
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything in torch's unpickler
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: cannot be read ({reason}). {SAVE}") from error

    while isinstance(content, Mapping):
        inner = [content[key] for key in KEYS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    named = dict(content) if isinstance(content, Mapping) else {}
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        raise DataError(f"{path}: holds no state dict. {SAVE}")
    return tensors


def _our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip a prefix shared by all names, and translate torchvision's ResNet names into ours."""
    while len(firsts := {name.partition(".")[0] for name in state}) == 1:
        state = {name.partition(".")[2]: value for name, value in state.items()}
        if firsts == {""}:
            return {}
    return {_our_name(name): value for name, value in state.items()}


def _our_name(name: str) -> str:
    first, _, rest = name.partition(".")
    if first.startswith("layer") and first[5:].isdecimal():
        rest = rest.replace("bn", "norm").replace("downsample", "shortcut")
        return f"stages.{int(first[5:]) - 1}.{rest}"
    return f"{TORCHVISION.get(first, first)}.{rest}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
