"""Six test images of a detection grid, with the boxes of the truth, teacher, student alone, IE-FT.

    IEKD_DATA=... python runs/detection_figure.py [GRID] [--seed 100] [--out FILE.png]

Writes book/_static/detection.png, or FILE.png, and beside it a recipe, detection.json: command,
images, weights and data by checksum. It needs the images; the weights of seed 100 are committed.
The images are the first six of the test set, whatever is on them.
"""

import argparse
import json
from pathlib import Path

import torch

from iekd import data, records
from iekd.checkout import ROOT
from iekd.config import grid
from iekd.data import augment
from iekd.networks.ssd import detections
from iekd.report.figures import boxes_grid
from iekd.training import detect, runner

COUNT, LEAST_SCORE = 6, 0.3


def boxes_of(config, images):
    """What a finished run says of normalised images, where it is sure enough."""
    with torch.no_grad():
        said = detections(runner.load_network(config)(images))
    return [{key: each[key][each["scores"] > LEAST_SCORE] for key in each} for each in said]


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("grid", nargs="?", default="detection.yaml")
parser.add_argument("--seed", type=int, default=100)
parser.add_argument("--out", type=Path, default=ROOT / "book" / "_static" / "detection.png")
given = parser.parse_args()

# The runs of that seed, and their teacher.
configs = [each for each in grid.read(grid.find(given.grid)) if each.seed == given.seed]
arms = {c.method: c for c in configs if c.explore != "none" and c.explore_target == "teacher"}
shown = {"student alone": arms["supervised"], "IE-FT": arms["ie-ft"]}
shown = {"teacher": shown["IE-FT"].teacher_run(), **shown}

dataset = data.load(shown["IE-FT"])
pixels, labels = dataset.test.images[:COUNT], dataset.test.labels[:COUNT]
mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in (dataset.mean, dataset.std))
images = augment.normalise(pixels, mean, std)
found = {"the truth": list(detect.listed(labels))}
found |= {name: boxes_of(config, images) for name, config in shown.items()}

boxes_grid(pixels, found).savefig(given.out, dpi=220)
recipe = {
    "command": f"python runs/detection_figure.py {given.grid} --seed {given.seed}",
    "images": f"test images 0 to {COUNT - 1} of {dataset.name}",
    "boxes": f"scores above {LEAST_SCORE}",
    "data": dataset.checksum,
    "weights": {config.path: records.find(config).weights for config in shown.values()},
}
given.out.with_suffix(".json").write_text(json.dumps(recipe, indent=1) + "\n")
print(given.out)
