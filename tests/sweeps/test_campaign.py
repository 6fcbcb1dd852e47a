"""The campaign: its grids are what the protocol says, and its runs came after it."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

from iekd import records
from iekd.config import RunConfig, grid
from iekd.method import registry
from iekd.report.claims import PLANNED

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "runs" / "records"
PINNED = (ROOT / "runs" / "campaign.commit").read_text().strip()
QUEUE = (ROOT / "runs" / "campaign.sh").read_text()
PILOT, IMAGENETTE, LATER, DETECTION, MIRROR, NEURONS = (
    re.search(rf"^{name}=([0-9a-f]{{40}})$", QUEUE, re.MULTILINE)[1]
    for name in ("pilot", "imagenette", "later", "detection", "mirror", "neurons")
)


def git(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)


def read(name: str) -> list[RunConfig]:
    return grid.read(ROOT / "runs" / name)


def test_every_primary_arm_has_the_planned_seeds_and_the_same_ones():
    seeds: dict[str, set[int]] = {}
    for config in read("desk.yaml"):
        seeds.setdefault(config.variant, set()).add(config.seed)
    assert len(seeds) == 5
    assert all(found == set(range(300, 300 + PLANNED["desk"])) for found in seeds.values())


def test_arms_of_a_seed_share_teacher_auto_encoder_and_data():
    for seed in range(300, 308):
        arms = [
            config
            for name in ("desk.yaml", "desk-secondary.yaml")
            for config in read(name)
            if config.seed == seed
        ]
        parents = {parent.path for config in arms for parent in config.parents().values()}
        assert len(parents) == 2 and all(path.endswith(f"seed{seed % 4}") for path in parents)
        assert (
            len(
                {
                    (c.epochs, c.lr, c.batch_size, c.precision, c.train_images, c.validation_images)
                    for c in arms
                }
            )
            == 1
        )


def test_the_pinned_commit_holds_the_protocol_and_the_grids():
    if git("rev-parse", "--verify", f"{PINNED}^{{commit}}").returncode:
        pytest.skip("a checkout without its history")
    for name in (
        "book/campaign.ipynb",
        "runs/desk.yaml",
        "runs/desk-secondary.yaml",
        "runs/controls.yaml",
    ):
        assert git("cat-file", "-e", f"{PINNED}:{name}").returncode == 0
    for name in ("runs/desk.yaml", "runs/desk-secondary.yaml", "runs/controls.yaml"):
        assert git("show", f"{PINNED}:{name}").stdout == (ROOT / name).read_text(), (
            "the plan changed after it was pinned"
        )


def test_imagenette_is_trained_by_a_commit_that_holds_its_protocol_and_the_rule_of_its_pilot():
    if git("rev-parse", "--verify", f"{PILOT}^{{commit}}").returncode:
        pytest.skip("a checkout without its history")
    plan = git("show", f"{PILOT}:book/campaign.ipynb").stdout
    assert "## Imagenette, in the same campaign" in plan and "The behaviour decides" in plan
    rule = git("show", f"{PILOT}:runs/imagenette-pilot.yaml").stdout
    assert rule == (ROOT / "runs" / "imagenette-pilot.yaml").read_text()
    chosen = git("show", f"{IMAGENETTE}:runs/imagenette.yaml").stdout
    assert chosen == (ROOT / "runs" / "imagenette.yaml").read_text()
    pins = {config.path: PILOT for config in read("imagenette-pilot.yaml")}
    pins |= {path: LATER for path in grid.with_parents(read("imagenette-pair.yaml"))}
    for path in records.files(RECORDS / "class" / "imagenette"):
        record = records.read(path)
        pin = pins.get(record.config.path, IMAGENETTE)
        assert git("merge-base", "--is-ancestor", pin, record.git["commit"]).returncode == 0, path


def test_the_grid_on_imagenette_has_what_the_rule_of_its_pilot_chooses():
    errors: dict[tuple[int, float], list[float]] = {}
    for config in read("imagenette-pilot.yaml"):
        record = records.read(RECORDS / f"{config.path}.json")
        errors.setdefault((config.epochs, config.lr), []).append(record.last.validation_error)
    means = {setting: sum(of) / len(of) for setting, of in errors.items()}
    near = [setting for setting in means if means[setting] <= min(means.values()) + 0.5]
    chosen = min(near, key=lambda setting: (setting[0], abs(setting[1] - 0.1)))
    assert {(c.epochs, c.lr) for c in read("imagenette.yaml")} == {chosen}


def test_what_came_later_is_trained_by_a_commit_that_holds_its_plan():
    if git("rev-parse", "--verify", f"{LATER}^{{commit}}").returncode:
        pytest.skip("a checkout without its history")
    for name in ("detection-pilot", "imagenette-pair"):
        planned = git("show", f"{LATER}:runs/{name}.yaml").stdout
        assert planned == (ROOT / "runs" / f"{name}.yaml").read_text()
    chosen = git("show", f"{DETECTION}:runs/detection.yaml").stdout
    assert chosen == (ROOT / "runs" / "detection.yaml").read_text()
    pilot = {config.path for config in read("detection-pilot.yaml")}
    for path in records.files(RECORDS / "class" / "bccd"):
        record = records.read(path)
        pin = LATER if record.config.path in pilot else DETECTION
        assert git("merge-base", "--is-ancestor", pin, record.git["commit"]).returncode == 0, path


def test_the_grid_of_detection_has_what_the_rule_of_its_pilot_chooses():
    errors: dict[tuple[str, int, float], list[float]] = {}
    for config in read("detection-pilot.yaml"):
        record = records.read(RECORDS / f"{config.path}.json")
        setting = (config.student, config.epochs, config.lr)
        errors.setdefault(setting, []).append(record.last.validation_error)
    assert {len(of) for of in errors.values()} == {3}
    means = {setting: sum(of) / len(of) for setting, of in errors.items()}
    (arm,) = {(c.student, c.epochs, c.lr) for c in read("detection.yaml")}
    assert {
        (c.teacher, c.teacher_epochs, c.teacher_lr)
        for c in read("detection.yaml")
        if c.teacher != "none"
    } == {("ssd_resnet10x0.25_3x3", *arm[1:])}
    own = {setting: mean for setting, mean in means.items() if setting[0] == arm[0]}
    near = [setting for setting in own if own[setting] <= min(own.values()) + 1]
    assert arm == min(near, key=lambda setting: (setting[1], abs(setting[2] - 0.02)))
    assert means["ssd_resnet10x0.25_3x3", *arm[1:]] <= means[arm] - 3


def test_the_arms_on_imagenette_share_everything_but_the_method():
    configs = read("imagenette.yaml")
    assert {config.seed for config in configs} == set(range(100, 110))
    assert len(configs) == 80 == len({config.path for config in configs})
    assert len({(c.epochs, c.lr, c.validation_images) for c in configs}) == 1
    assert all(config.seed < 100 for config in read("imagenette-pilot.yaml"))


def test_the_second_controls_are_trained_by_a_commit_that_holds_their_plan(own_losses):
    if git("rev-parse", "--verify", f"{MIRROR}^{{commit}}").returncode:
        pytest.skip("a checkout without its history")
    assert "## A second set of controls" in git("show", f"{MIRROR}:book/campaign.ipynb").stdout
    for name in ("grid.yaml", "mirror.py"):
        planned = git("show", f"{MIRROR}:runs/mirror/{name}").stdout
        assert planned == (ROOT / "runs" / "mirror" / name).read_text()
    paths = [RECORDS / f"{config.path}.json" for config in read("mirror/grid.yaml")]
    for commit in {records.read(path).git["commit"] for path in paths if path.exists()}:
        assert git("merge-base", "--is-ancestor", MIRROR, commit).returncode == 0, commit


def test_the_second_controls_are_the_mirror_image_and_the_mean(own_losses):
    configs = read("mirror/grid.yaml")
    assert {(c.explore, c.explore_target) for c in configs} == {
        ("mirrored-l1", "teacher"),
        ("centred-l1", "shuffled"),
        ("mean-l1", "teacher"),
    }
    assert {config.seed for config in configs} == set(range(100, 100 + PLANNED["class"]))
    student, teacher = torch.randn(2, 16, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    for name, best in (("centred-l1", -teacher), ("mirrored-l1", teacher)):
        values = [registry.EXPLORE[name](x, teacher) for x in (best, student, -best)]
        assert values[0] < values[1] < values[2]
    push = registry.EXPLORE["mean-l1"]
    assert torch.allclose(push(student, teacher), push(student, teacher.roll(1, 0)))


def test_active_neurons_on_cifar_are_counted_by_a_commit_that_holds_their_plan():
    if git("rev-parse", "--verify", f"{NEURONS}^{{commit}}").returncode:
        pytest.skip("a checkout without its history")
    planned = git("show", f"{NEURONS}:runs/again/neurons.yaml").stdout
    assert planned == (ROOT / "runs" / "again" / "neurons.yaml").read_text()
    configs = read("again/neurons.yaml")
    assert len(configs) == 50 and {config.seed for config in configs} == set(range(120, 130))
    made = [ROOT / "runs" / "again" / "records" / f"{config.path}.json" for config in configs]
    made = [json.loads(path.read_text()) for path in made if path.exists()]
    counted = records.files(RECORDS / "desk", records.ANALYSIS)
    counted = [json.loads(path.read_text()) for path in counted]
    made += [analysis for analysis in counted if "active_all" in analysis["metrics"]]
    for commit in {NEURONS, *(each["git"]["commit"] for each in made)}:
        page = git("show", f"{commit}:book/campaign.ipynb").stdout
        assert "## Active neurons on CIFAR-10" in page, commit


def test_every_run_of_the_campaign_comes_after_its_protocol():
    if git("rev-parse", "--verify", f"{PINNED}^{{commit}}").returncode:
        pytest.skip("a checkout without its history")
    controls = [RECORDS / f"{config.path}.json" for config in read("controls.yaml")]
    made = [path for path in [*records.files(RECORDS / "desk"), *controls] if path.exists()]
    commits = {records.read(path).git["commit"] for path in made}
    for commit in commits:
        assert git("merge-base", "--is-ancestor", PINNED, commit).returncode == 0, commit
