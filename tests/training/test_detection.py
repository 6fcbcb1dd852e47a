"""Detectors trained like every other student: what they learn, how it is measured, what IE changes
and what is refused. All on discs, which are drawn.
"""

import contextlib
import importlib.util
import io
from pathlib import Path

import pytest
import torch
from tiny import content

from iekd import data, records
from iekd.analysis import metrics
from iekd.config import RunConfig, grid
from iekd.config.known import methods
from iekd.errors import ConfigError, TrainingError
from iekd.networks.ssd import default_boxes
from iekd.training import checks, detect, digest, loop, member, pack, runner
from iekd.training.run import Run

ABLE = [name for name, row in methods().items() if row.detects]
SMALL = dict(train_images=24, validation_images=8, epochs=2, teacher_epochs=1, ae_epochs=1)


def little(method: str = "supervised", **fields) -> RunConfig:
    """A run of 24 images and two epochs: a second."""
    first = {"init_epochs": 1} if method == "ab" else {}
    return RunConfig.create("smoke", dataset="discs", method=method, **SMALL | first | fields)


def train(config: RunConfig) -> records.Record:
    return runner.train(config, progress=False)


# ---------------------------------------------------------------------- what is learned


def learned(shuffled: bool) -> float:
    """AP50 on the test images after training on 60 images; their boxes may be those of others."""
    config = little(train_images=60, epochs=40)
    dataset = data.load(config)
    if shuffled:
        train = dataset.train._replace(labels=dataset.train.labels.roll(1, 0))
        dataset = dataset._replace(train=train)
    run = runner.make_run(config, dataset=dataset)
    for epoch in range(config.epochs):
        loop.train_epoch(config, run, epoch)
    return loop.evaluate(run, "test")["ap50"]


def test_a_detector_learns_from_boxes_and_not_from_those_of_other_images():
    assert learned(shuffled=False) > 60
    assert learned(shuffled=True) < 5


# ---------------------------------------------------------------------- what is measured


CLASSES = ("disc", "ring")
ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"


def made_up(seed: int) -> tuple[list[dict], list[dict]]:
    """What is said of 6 images, and what is there: right, shifted, doubled and missing boxes."""
    generator = torch.Generator().manual_seed(seed)
    said, found = [], []
    for _ in range(6):
        count = int(torch.randint(1, 6, (1,), generator=generator))
        low = 60 * torch.rand(count, 2, generator=generator)
        boxes = torch.cat([low, low + 20 + 30 * torch.rand(count, 2, generator=generator)], 1)
        labels = torch.randint(1, 3, (count,), generator=generator)
        noise = 3 * torch.randn(2 * count, 4, generator=generator)
        scores = torch.rand(2 * count, generator=generator)
        found.append({"boxes": boxes, "labels": labels})
        twice = {"boxes": boxes.repeat(2, 1) + noise, "labels": labels.repeat(2)}
        said.append({**twice, "scores": scores})
    return said, found


def test_perfect_answers_have_all_of_the_precision_and_shifted_ones_none():
    _, found = made_up(0)
    said = [{**each, "scores": torch.ones(len(each["labels"]))} for each in found]
    perfect = detect.precision(said, found, CLASSES)
    assert perfect == {
        "error": pytest.approx(0),
        **dict.fromkeys(("ap50", "ap50_11", "ap_disc", "ap_ring"), pytest.approx(100)),
    }
    for each in said:
        each["boxes"] = each["boxes"] + 200
    wrong = detect.precision(said, found, CLASSES)
    assert (wrong["error"], wrong["ap50"], wrong["ap_disc"]) == (100, 0, 0)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
    silent = [{**nothing, "scores": torch.zeros(0)} for _ in found]
    assert detect.precision(silent, found, CLASSES)["error"] == 100


def judged(said: list[dict], found: list[dict]) -> tuple[float, float]:
    """100 - AP and AP50 by pycocotools, which matches and counts by itself."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        there, kinds = coco.COCO(), sorted({int(k) for each in found for k in each["labels"]})
        there.dataset = {"images": [{"id": i} for i in range(len(found))], "info": {}}
        there.dataset |= {"categories": [{"id": kind} for kind in kinds]}
        there.dataset["annotations"] = [
            {**row, "id": n, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3]}
            for n, row in enumerate(rows(found), 1)
        ]
        there.createIndex()
        judge = cocoeval.COCOeval(there, there.loadRes(rows(said)), "bbox")
        judge.evaluate(), judge.accumulate(), judge.summarize()
    return 100 - 100 * judge.stats[0], 100 * judge.stats[1]


def test_precision_is_that_of_pycocotools():
    """On 50 random cases."""
    for seed in range(50):
        said, found = made_up(seed)
        ours = detect.precision(said, found, CLASSES)
        assert (ours["error"], ours["ap50"]) == pytest.approx(judged(said, found), abs=1e-3)


def rows(images: list[dict]) -> list[dict]:
    """Boxes as COCO writes them: corner, width, height."""
    listed = []
    for number, image in enumerate(images):
        for k, box in enumerate(image["boxes"].tolist()):
            bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            row = {"image_id": number, "category_id": int(image["labels"][k]), "bbox": bbox}
            listed.append(row | ({"score": float(image["scores"][k])} if "scores" in image else {}))
    return listed


def read_by_others(run: Run) -> tuple[list[dict], list[dict]]:
    """What a student says of the test images, decoded by torchvision's own coder, and the truth."""
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.ops import batched_nms, box_convert

    test, side = run.dataset.test, run.dataset.test.images.shape[-1]
    with torch.no_grad():
        output = run.learner["student"].eval()((test.images.float() / 255 - run.mean) / run.std)
    anchors = side * box_convert(default_boxes(output), "cxcywh", "xyxy")
    said = []
    for logits in output.logits:
        scores = logits[:, :-4].softmax(1)[:, 1:]
        boxes = BoxCoder((10, 10, 5, 5)).decode_single(logits[:, -4:], anchors)
        place, label = (scores > 0.01).nonzero(as_tuple=True)
        score, boxes = scores[place, label], boxes.clamp(0, side)[place]
        kept = batched_nms(boxes, score, label, 0.45)
        said.append({"boxes": boxes[kept], "scores": score[kept], "labels": 1 + label[kept]})
    real = [each[each[:, 0] > 0] for each in test.labels]
    return said, [{"labels": each[:, 0].long(), "boxes": side * each[:, 1:]} for each in real]


def test_the_record_says_what_an_independent_reading_of_the_student_says():
    """Of the weights that the record names."""
    config = little(epochs=6, train_images=60)
    record = train(config)
    error, _ = judged(*read_by_others(runner.load_run(config)))
    assert record.last.test_error == pytest.approx(error, abs=0.1)
    assert record.last.test_error < 95  # it has learned something by then


@pytest.mark.skipif(not (DATA / "bccd").is_dir(), reason=f"needs {DATA / 'bccd'}")
@pytest.mark.parametrize("kind", ["alone", "taught"])
def test_so_it_is_for_the_committed_students_of_blood_cells(kind, monkeypatch):
    monkeypatch.setenv("IEKD_RUNS", str(ROOT / "runs"))
    monkeypatch.setenv("IEKD_DATA", str(DATA))
    configs = grid.read(ROOT / "runs" / "detection.yaml")
    usual = {"alone": "supervised", "taught": "ie-ft"}[kind]
    config = next(each for each in configs if each.seed == 100 and each.method == usual)
    assert records.weights_at_hand(config)
    error, _ = judged(*read_by_others(runner.load_run(config)))
    assert records.find(config).last.test_error == pytest.approx(error, abs=0.1)


# ---------------------------------------------------------------------- what IE is


@pytest.mark.parametrize("method", ABLE)
def test_every_method_for_detectors_trains_one(method):
    record = train(little(method))
    first = {"factor-ae": "reconstruction", "ab": "ab"}.get(method, "task")
    assert record.history[f"start_{first}"][0] > 0
    if method == "factor-ae":
        return
    assert 0 <= record.last.test_error <= 100 and record.last.validation_error is not None
    wanted = {"test_ap50", "test_ap50_11", "test_ap_disc", "validation_ap_ring", "train_eval_error"}
    assert wanted <= record.history.keys() and "train_error" not in record.history
    if method == "ie-ft":
        assert record.history["probe_gradient_inherit"][-1] > 0
        assert -2 < record.history["start_explore"][0] < 0 < record.history["start_inherit"][0] < 2


def test_ie_with_nothing_on_is_the_student_alone_bit_for_bit():
    alone, nothing = little(), little("ie-ft", inherit_weight=0, explore="none")
    states = []
    for config in (alone, nothing):
        run = runner.make_run(config)
        for epoch in range(config.epochs):
            loop.train_epoch(config, run, epoch)
        states.append(run.learner["student"].state_dict())
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


def test_a_run_that_is_stopped_resumes_to_the_same_record(tmp_path, monkeypatch):
    config = little("ie-ft", epochs=3)
    expected = content(train(config))
    monkeypatch.setenv("IEKD_RUNS", str(tmp_path / "stopped"))
    monkeypatch.setattr(member, "CHECKPOINT_SECONDS", -1)
    for parent in config.parents().values():
        train(parent)
    plain = loop.train_epoch

    def until_the_third(config, run, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return plain(config, run, epoch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_epoch", until_the_third)
        train(config)
    assert records.find(config) is None and content(train(config)) == expected


def test_a_pack_trains_them_as_the_loop_does():
    configs = [little("ie-ft"), little("ft"), little(seed=1)]
    alone = [loop.train_epoch(config, runner.make_run(config), 0) for config in configs]
    together = pack.Pack([(config, runner.make_run(config)) for config in configs])
    assert together.train_epoch(0) == alone


def test_augmentation_changes_images_and_boxes_and_the_seed_decides():
    config = little()
    run = runner.make_run(config)
    plans = [loop.draw_epoch(config, run.dataset, epoch) for epoch in (0, 0, 1)]
    assert torch.equal(plans[0], plans[1]) and not torch.equal(plans[0], plans[2])
    (images, batch), (plain, as_drawn) = (
        loop.take(each, run, plans[0][:, :8], 0) for each in (config, little(augment="none"))
    )
    assert not torch.equal(images, plain) and not torch.equal(batch.labels, as_drawn.labels)
    assert torch.equal(batch.labels[..., 0], as_drawn.labels[..., 0])


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(method="kd"), "kd reads class scores or a pooled feature.*ie-ft"),
        (dict(method="ie-dml"), "ie-dml reads class scores"),
        (dict(student="resnet8"), "student: resnet8 is not usable; discs needs a detector"),
        (dict(method="ft", views=2), "views: 2 is not usable with boxes"),
        (dict(dataset="digits", student="ssd_resnet10"), "digits has no boxes"),
    ],
)
def test_what_no_detector_can_do_is_refused_before_anything_trains(fields, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig.create("smoke", **{"dataset": "discs", "method": "supervised", **fields})


def test_missing_packages_are_named_before_anything_trains(monkeypatch):
    find = importlib.util.find_spec
    hidden = lambda name: None if name == "faster_coco_eval" else find(name)  # noqa: E731
    monkeypatch.setattr(detect, "find_spec", hidden)
    with pytest.raises(TrainingError, match=r"faster_coco_eval.*pip install 'iekd\[detection\]'"):
        train(little("ie-ft"))
    assert len(records.load()) == 0


def test_an_analysis_is_refused_with_the_reason():
    assert "one class each" in metrics.impossible(little())


def test_shards_are_refused():
    with pytest.raises(ConfigError, match="several processes cannot train this"):
        checks.check_shards(little(), 2)


def test_the_digest_of_a_detector_names_its_loss(monkeypatch):
    from iekd.method import detection

    other = RunConfig.create("smoke", method="supervised")
    before = digest.of(little()), digest.of(other)
    assert before[0] != before[1]
    monkeypatch.setattr(detection, "NEGATIVES", 5)
    assert digest.of(little()) != before[0] and digest.of(other) == before[1]
