"""Where the halves look, as numbers of a run: they add up, know no split of nothing, and say what
the networks answered."""

import pytest
import torch
from tiny import tiny

from iekd import networks
from iekd.analysis import looks, metrics
from iekd.analysis.metrics import analyse
from iekd.analysis.rescue import rescue, said
from iekd.analysis.similarity import halves_of, reference
from iekd.training import runner


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def finished(folder, monkeypatch):
    """A trained run, and another one whose teacher is another."""
    monkeypatch.setenv("IEKD_RUNS", str(folder))

    def make(**fields):
        config = tiny("ie-ft", **fields)
        runner.train(config, progress=False)
        return config

    return make


def test_an_analysis_holds_every_number_and_the_answers(finished):
    finished()
    found = analyse(finished(seed=1))
    kinds = ("teacher", "inherit", "explore", "halves")
    wanted = {f"{map_}_{kind}" for map_ in ("relevance", "cam") for kind in kinds}
    wanted |= {"floor_image", "floor_class", "floor_stage", "ceiling"}
    wanted |= {f"left_{order}" for order in ("relevance", "cam", "centre", "random")}
    wanted |= {f"lost_{k}{half}" for k in ("", "random_") for half in ("inherit", "explore")}
    parts = ("all", "inherit", "explore", "teacher")
    counts = ("active", "pca99", "participation", "ablation")
    wanted |= {f"{count}_{part}" for count in counts for part in parts}
    assert wanted <= set(found.metrics)
    assert all(found.metrics[name] is not None for name in wanted)

    # the answers are those that the record's test error counts
    record = runner.finished(tiny("ie-ft", seed=1))
    wrong = 100 * (said(found.answers["student"]) > 0).float().mean().item()
    assert wrong == pytest.approx(record.last.test_error, abs=1e-3)


def test_without_another_teacher_there_is_no_ceiling(finished):
    assert analyse(finished()).metrics["ceiling"] is None


def test_a_half_without_channels_has_nothing_to_compare(finished):
    config = finished(split_ratio=1.0)
    assert "relevance_teacher" not in analyse(config).metrics


def test_deleting_everything_loses_the_whole_of_both_halves(finished, monkeypatch):
    """All tiles grey: every image is the same, and no order matters."""
    config = finished()
    run, teacher = runner.load_run(config), runner.load_network(reference(config).teacher_run())
    halves = halves_of(config, run.learner["student"].feature_channels)
    images, labels = looks.sample(run, looks.IMAGES)

    def deleted(share):
        monkeypatch.setattr(looks, "SHARE", share)
        taught = looks.of_teacher(run, teacher, None)
        found = looks.deletions(run.learner["student"], taught, images, labels, halves, 0)
        return found | {k: v for k, v in taught.numbers.items() if k.startswith("left_")}

    found = deleted(1.0)
    left = [value for name, value in found.items() if name.startswith("left_")]
    assert len(left) == 4 and max(left) - min(left) < 1e-6
    for half in halves:
        assert found[f"lost_{half}"] == pytest.approx(found[f"lost_random_{half}"], abs=1e-6)
    kept = deleted(0.0)
    assert all(abs(value - (name[:4] == "left")) < 1e-6 for name, value in kept.items())


def test_what_students_share_is_measured_once(finished, monkeypatch):
    """Once a teacher; again after the teacher was trained again to other weights."""
    asked = []
    whole = looks.of_teacher
    monkeypatch.setattr(looks, "of_teacher", lambda *of: asked.append(1) or whole(*of))
    metrics._taught.cache_clear()
    finished(seed=1)
    for seed in (2, 4, 6):
        analyse(finished(seed=seed, teachers=2))
    assert len(asked) == 1
    own = reference(tiny("ie-ft")).teacher_run()
    assert metrics._taught(own, None, "here") is not metrics._taught(own, None, "anew")


def test_a_deletion_curve_begins_with_all_and_meets_the_numbers_of_the_analysis(finished):
    config = finished()
    run, teacher = runner.load_run(config), runner.load_network(reference(config).teacher_run())
    curve = looks.deletion_curve(run, teacher, config.seed).pivot(
        index="share", columns="order", values="left"
    )
    assert tuple(curve.index) == looks.SHARES and (curve.loc[0] == 1).all()
    assert curve.loc[1].nunique() == 1  # all grey, whatever the order
    found = analyse(config).metrics
    for order, left in curve.loc[looks.SHARE].items():
        assert found[f"left_{order}"] == pytest.approx(left, rel=1e-5)


@pytest.mark.parametrize("side", [8, 28, 32, 37, 44, 64])
def test_images_of_any_size_lose_the_same_share(side):
    """28 and 44 pixels are not eight tiles of whole pixels."""
    images, order = torch.ones(2, 3, side, side), torch.rand(2, side, side)
    lost = (looks.grey(images, order, looks.SHARE) == 0).float().mean((1, 2, 3))
    assert torch.allclose(lost, torch.tensor(looks.SHARE), atol=0.01)


def test_answers_of_more_than_ten_classes_are_words(finished):
    run = runner.load_run(finished())
    wide = networks.build("resnet8x0.25", 12, 1).eval()
    text = looks.answers(run, wide)
    assert len(said(text)) == len(run.dataset.test.labels) == len(text.split())


def test_the_rescued_are_counted_from_right_and_wrong_answers():
    teacher, alone, ie = said("1133..2"), said("113..2."), said(".13.3..")
    labels = torch.zeros(7, dtype=torch.long)
    found = rescue(labels, teacher, alone, ie)
    assert (found.alike, found.rescued, found.alike_ie, found.lost) == (3, 1, 2, 0)
