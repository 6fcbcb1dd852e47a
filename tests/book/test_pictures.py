"""The pictures of the book that are drawn where the data are (runs/*_figure.py): drawn on data that
every machine has.
"""

import json
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import yaml
from tiny import SMALL

from iekd import records
from iekd.analysis.metrics import analyse
from iekd.config import grid
from iekd.training import runner

SCRIPTS = Path(__file__).parents[2] / "runs"
DIGITS = dict(preset="smoke", method=["supervised", "kd", "ie-ft"], **SMALL)
DISCS = dict(preset="smoke", dataset="discs", method=["supervised", "ie-ft"])
DISCS |= dict(train_images=24, validation_images=8, epochs=1, teacher_epochs=1, ae_epochs=1)


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """draw(script, ...) -> the recipe of the picture that a script makes of a grid."""

    def script(name, **arms):
        file, picture = tmp_path / "grid.yaml", tmp_path / "picture.png"
        file.write_text(yaml.safe_dump({"runs": [arms]}))
        monkeypatch.setattr("sys.argv", [name, str(file), "--seed", "0", "--out", str(picture)])
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        assert plt.imread(picture).std() > 0.05  # no blank sheet
        return json.loads(picture.with_suffix(".json").read_text())

    return script


def made(measured=None, **arms):
    """Trains the runs of such a grid; `measured`(config) changes what is measured of IE-FT."""
    for config in grid.runs(arms):
        record = runner.train(config, progress=False)
        if measured and config.method == "ie-ft":
            analyse(config)
            found, _ = records.analysis_of(record)
            found.metrics.update(measured(config))
            found.save(config)


def left(config):
    """Relevance finds what the teacher needs, whichever teacher it is; the class map does not."""
    noise = 0.01 * (config.seed + 1)
    return {"left_relevance": 0.2 + noise, "left_cam": 0.7 - noise, "left_random": 0.6}


def test_maps_are_drawn_of_the_kinds_that_beat_deletion_at_random(draw):
    arms = DIGITS | dict(teachers=3, seed=[0, 1, 2])
    made(left, **arms)
    recipe = draw("looks_figure.py", **arms)
    assert recipe["maps"] == ["relevance"]
    assert recipe["images"] and set(recipe["images"]) <= set("0123456789")
    assert all(recipe["weights"].values()) and len(recipe["weights"]) == 6
    assert set(recipe["curves"]["seed"]) == {0, 1, 2} and max(recipe["curves"]["left"]) >= 1


def test_no_kind_of_map_is_chosen_before_students_of_all_teachers_are_analysed(draw):
    made(left, **DIGITS | dict(teachers=3, seed=[0, 1]))
    with pytest.raises(SystemExit, match="Students of 2 of the 3 teachers are analysed"):
        draw("looks_figure.py", **DIGITS | dict(teachers=3, seed=[0, 1, 2]))


def test_boxes_are_drawn_of_the_first_images(draw):
    made(**DISCS, seed=[0])
    recipe = draw("detection_figure.py", **DISCS, seed=0)
    assert recipe["images"] == "test images 0 to 5 of discs"
    assert all(recipe["weights"].values()) and len(recipe["weights"]) == 3
