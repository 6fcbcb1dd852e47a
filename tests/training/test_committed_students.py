"""The last row of the probe, from the committed students: by another person's formulas, on tensors
read from the files, with nothing of the library but its training images.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from iekd import data
from iekd.config import RunConfig

ROOT = Path(__file__).parents[2]
DESK = ROOT / "runs" / "records" / "desk" / "cifar10"
SHARED = ROOT.parent / "shared" / "data"
STUDENTS = [
    path
    for path in sorted(DESK.glob("*/ie-ft*/seed*.json"))
    if path.with_suffix(".safetensors").exists()
]
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

pytestmark = pytest.mark.skipif(not (SHARED.exists() and STUDENTS), reason="needs ../shared/data")


def weights(path: Path, prefix: str) -> dict:
    found = load_file(path.with_suffix(".safetensors"))
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def conv_norm(x, w, conv, norm, batch, stride=1):
    """A convolution and its normalisation, by the statistics of the batch or the stored ones."""
    kernel = w[f"{conv}.weight"]
    x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
    stored = w[f"{norm}.running_mean"], w[f"{norm}.running_var"]
    return F.batch_norm(x, *stored, w[f"{norm}.weight"], w[f"{norm}.bias"], training=batch)


def resnet(x, w, batch):
    """The last feature of a ResNet for CIFAR."""
    x = F.relu(conv_norm(x, w, "conv", "norm", batch))
    for name in dict.fromkeys(k.rsplit(".", 2)[0] for k in w if k.endswith("conv1.weight")):
        stride = 2 if f"{name}.shortcut.0.weight" in w else 1
        y = F.relu(conv_norm(x, w, f"{name}.conv1", f"{name}.norm1", batch, stride))
        y = conv_norm(y, w, f"{name}.conv2", f"{name}.norm2", batch)
        if stride == 2:
            x = conv_norm(x, w, f"{name}.shortcut.0", f"{name}.shortcut.1", batch, stride)
        x = F.relu(x + y)
    return x


def unit_factor(x, w, batch):
    """The factor of a feature, of length 1 for every image: (B, N)."""
    for k in range(3):
        x = F.leaky_relu(conv_norm(x, w, f"{k}.0", f"{k}.1", batch), 0.1)
    return F.normalize(x.flatten(1))


def share(factors):
    return 1 - factors.mean(0).square().sum()


@pytest.mark.parametrize("path", STUDENTS, ids=lambda path: "/".join(path.parts[-2:]))
@torch.no_grad()
def test_another_person_finds_the_last_row_of_the_probe(path, monkeypatch):
    monkeypatch.setenv("IEKD_DATA", str(SHARED))
    record = json.loads(path.read_text())
    last = {name: curve[-1] for name, curve in record["history"].items()}
    config = record["config"]

    # the teacher's factors, in evaluation mode
    images = data.load(RunConfig.create("desk")).train.images[:512].float() / 255
    images = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    teacher = DESK / "resnet56" / "{}" / f"seed{config['seed'] % config['teachers']}.json"
    own = weights(Path(str(teacher).format("supervised-epochs=30")), "student.")
    auto = Path(str(teacher).format("factor-ae-epochs=10"))
    target = unit_factor(
        resnet(images, own, False), weights(auto, "method.autoencoder.encoder."), False
    )

    # the student's, as in training
    feature = resnet(images, weights(path, "student."), True)
    found = {"share_target": share(target)}
    for side in ("inherit", "explore"):
        half = weights(path, f"method.halves.{side}.")
        if not half:
            continue
        encoder = {k.removeprefix("encoder."): v for k, v in half.items()}
        factors = unit_factor(feature[:, half["channels"]], encoder, True)
        away = side == "explore"
        shuffled = away and config["explore_target"] == "shuffled"
        goal = target.roll(1, 0) if shuffled else target
        sign = -config["explore_weight"] if away else config["inherit_weight"]
        found |= {f"share_{side}": share(factors), f"negative_{side}": (factors < 0).float().mean()}
        if config[side] == "l1":
            found[f"loss_{side}"] = sign * (factors - goal).abs().mean()
            found[f"rolled_{side}"] = sign * (factors.roll(1, 0) - goal).abs().mean()

    # the run computed in bfloat16
    for name, value in found.items():
        assert value.item() == pytest.approx(last[f"probe_{name}"], rel=0.02, abs=0.005), name
