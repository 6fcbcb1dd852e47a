"""Where teacher, KD student, IE-FT student and its halves look, on one test image of every class.

    IEKD_DATA=... python runs/looks_figure.py [GRID] [--seed 100] [--out FILE.png]

Writes book/_static/looks.png, or FILE.png, and beside it a recipe, looks.json: command, images,
weights and data by checksum, and the deletion curves of all teachers. It needs the images; the
weights of seed 100 are committed. Images and kinds of map are chosen by the rules of
book/campaign.ipynb: the images by answers, and a kind of map is shown if deleting what it finds
first takes more of the teacher's score than deleting at random.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
import torch

from iekd import records
from iekd.analysis import looks, relevance
from iekd.analysis.rescue import pick
from iekd.analysis.similarity import halves_of
from iekd.checkout import ROOT
from iekd.config import grid
from iekd.data import augment
from iekd.errors import ConfigError
from iekd.report.arms import finished
from iekd.report.figures import maps_grid
from iekd.report.statistics import by_teacher, paired
from iekd.training import runner

KINDS = {"relevance": "z+", "cam": "CAM"}


def trusted(runs, teachers):
    """The kinds of map that beat deletion at random; the teacher is the unit, so all are needed."""
    orders = ["left_random", *(f"left_{kind}" for kind in KINDS)]
    measured = runs.reindex(columns=["seed", *orders]).dropna().set_index("seed")
    left = by_teacher(measured, teachers)
    if len(left) < teachers:
        raise SystemExit(
            f"Students of {len(left)} of the {teachers} teachers are analysed: which kinds of map "
            "can be believed is asked when there are some of each."
        )
    tests = {kind: paired(left[f"left_{kind}"], left["left_random"]) for kind in KINDS}
    return [kind for kind, test in tests.items() if test.difference < 0 and test.p < 0.05]


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("grid", nargs="?", default="imagenette.yaml")
parser.add_argument("--seed", type=int, default=100)
parser.add_argument("--out", type=Path, default=ROOT / "book" / "_static" / "looks.png")
given = parser.parse_args()

# The runs of that seed, and their teacher.
configs = [each for each in grid.read(grid.find(given.grid)) if each.seed == given.seed]
plain = {c.method: c for c in configs if c.explore != "none" and c.explore_target == "teacher"}
shown = {"student alone": plain["supervised"], "KD": plain["kd"], "IE-FT": plain["ie-ft"]}
shown = {"teacher": plain["ie-ft"].teacher_run(), **shown}
runs = finished(records.load(), grid.read(grid.find(given.grid)))
kinds = trusted(runs, plain["ie-ft"].teachers)
if not kinds:
    raise SystemExit("No kind of map beats deletion at random: by the protocol none is shown.")

# The images that the rule picks.
networks = {name: runner.load_network(config) for name, config in shown.items()}
run = runner.load_run(plain["ie-ft"])
mean, std, dataset = run.mean, run.std, run.dataset
pixels, truth = dataset.test.images, dataset.test.labels


@torch.no_grad()
def answers(network):
    """The class that a network sees in every test image."""
    batches = [augment.normalise(part, mean, std) for part in pixels.split(relevance.BATCH)]
    return torch.cat([network(batch).logits.argmax(1) for batch in batches])


said = {name: answers(networks[name]) for name in ("teacher", "student alone", "IE-FT")}
picked = [one for one in pick(truth, *said.values()) if one.image is not None]
if not picked:
    raise ConfigError("no class has an image that fits the rule")
index = [one.image for one in picked]
images, labels = augment.normalise(pixels[index], mean, std), truth[index]

# Their maps.
box, rows = relevance.corners(mean, std), {}
halves = halves_of(plain["ie-ft"], networks["IE-FT"].feature_channels)
whole = {
    name: relevance.maps_of(networks[name], images, labels, box)
    for name in ("teacher", "KD", "IE-FT")
}
parts = relevance.maps_of(networks["IE-FT"], images, labels, box, halves)
for kind in kinds:
    rows |= {f"{name}, {KINDS[kind]}": maps[kind]["all"] for name, maps in whole.items()}
    rows |= {f"{half}, {KINDS[kind]}": map_ for half, map_ in parts[kind].items()}

titles = [f"{one.label}{' ✓' if one.rescued else ''}" for one in picked]
maps_grid(pixels[index], rows, titles).savefig(given.out, dpi=200)

# What deletion takes of the score of every teacher.
teachers = [plain["ie-ft"].replace(seed=k).teacher_run() for k in range(plain["ie-ft"].teachers)]
curves = pd.concat(
    looks.deletion_curve(run, runner.load_network(each), each.seed).assign(seed=each.seed)
    for each in teachers
)

recipe = {
    "command": f"python runs/looks_figure.py {given.grid} --seed {given.seed}",
    "images": {str(one.label): one.image for one in picked},
    "maps": kinds,
    "data": dataset.checksum,
    "weights": {
        config.path: records.find(config).weights for config in [*shown.values(), *teachers]
    },
    "curves": curves.round(4).to_dict("list"),
}
given.out.with_suffix(".json").write_text(json.dumps(recipe, indent=1) + "\n")
print(given.out)
