"""The one primitive: the same run gives the same record, whatever interrupts it; and every method
does what its name says.
"""

import json
import math
import random
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from tiny import content, start, tiny

from iekd import data, records
from iekd.config import RunConfig
from iekd.data import augment
from iekd.errors import StoreError, TrainingError
from iekd.method.features import Batch
from iekd.records import store
from iekd.training import checkpoint, loop, member, runner
from iekd.training.loop import evaluate, learning_rate, step, train_epoch
from iekd.training.runner import load_network, load_run, make_run

CPU = torch.device("cpu")
METHODS = [
    "supervised",
    "kd",
    "ft",
    "ie-ft",
    "at",
    "od",
    "tf-kd",
    "ie-at",
    "ie-od",
    "vid",
    "dml",
    "ie-dml",
]
STAGED = ["fitnet", "ab"]  # methods that train different parts in different epochs


def train(config: RunConfig, **how):
    return runner.train(config, progress=False, **how)


@pytest.fixture
def folder(tmp_path, monkeypatch, shelf):
    """folder('b') switches to another runs folder, where nothing has been trained; the parents of
    `lent` runs are there.
    """

    def switch(name, *lent):
        monkeypatch.setenv("IEKD_RUNS", str(tmp_path / name))
        shelf.lend(*lent, to=tmp_path / name)
        return tmp_path / name

    return switch


@pytest.fixture
def every_epoch(monkeypatch):
    """Checkpoints after every epoch."""
    monkeypatch.setattr(member, "CHECKPOINT_SECONDS", -1)
    monkeypatch.setattr(member, "CHECKPOINT_SHARE", math.inf)


def checkpoint_of(config: RunConfig):
    return store.cache_folder() / f"{config.path}.checkpoint.safetensors"


@pytest.fixture
def student(shelf):
    """All weights and statistics of a trained student in one vector."""

    def weights(config: RunConfig) -> torch.Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("IEKD_RUNS", str(shelf.folder))
            shelf.train(config)
            network = load_network(config)
        return torch.cat([t.flatten().double() for t in network.state_dict().values()])

    return weights


# ---------------------------------------------------------------------- the record


@pytest.mark.parametrize(
    "fields",
    [dict(method=m) for m in (*METHODS, *STAGED, "factor-ae")]
    + [dict(method="kd", augment="standard", schedule="steps")],
)
def test_the_same_run_twice_is_the_same_record(folder, shelf, fields):
    config = tiny(**fields)
    one = shelf.train(config)
    assert (
        config.method in STAGED or one.history["loss"][-1] < one.history["loss"][0]
    )  # the loss of another stage is another loss
    folder("again", config)
    assert records.find(config) is None
    assert content(train(config)) == content(one)


def test_another_seed_is_another_record(shelf):
    assert shelf.train(tiny()).weights != shelf.train(tiny(seed=1)).weights


def test_a_finished_run_is_loaded(monkeypatch):
    config = tiny("kd")
    record = train(config)
    monkeypatch.setattr(runner, "fit", lambda *_: pytest.fail("trained again"))
    assert train(config).to_json() == record.to_json()


def test_what_a_record_says():
    config = tiny("ie-ft", epochs=5, evaluate_every=2, schedule="steps", lr=0.01)
    record = train(config)
    assert record.config == config and record.hash == config.hash
    assert record.parents == {
        role: records.find(parent).weights for role, parent in config.parents().items()
    }
    assert record.data == {"name": "digits", "checksum": data.load(config).checksum}
    assert {name for name in record.history if not name.startswith("probe_")} == {
        "lr",
        "loss",
        "loss_task",
        "loss_inherit",
        "loss_explore",
        "train_error",
        "validation_error",
        "test_error",
        "train_eval_error",
    }
    assert [value is not None for value in record.history["test_error"]] == [
        False,
        True,
        False,
        True,
        True,
    ]
    assert record.history["lr"] == pytest.approx([0.01, 0.01, 0.01, 0.001, 0.0001])
    for epoch, total in enumerate(record.history["loss"]):
        assert total == pytest.approx(
            sum(record.history[f"loss_{term}"][epoch] for term in ("task", "inherit", "explore"))
        )
    evaluated = [4, 1, 3]  # the last first; 0-based
    for rule, by in (("val_selected", "validation_error"), ("best_on_test", "test_error")):
        best = min(record.history[by][i] for i in evaluated)
        metric = record.metrics[rule]
        assert (
            record.history[by][metric.epoch - 1] == best
            and record.history["test_error"][metric.epoch - 1] == metric.test_error
        )
        assert not [
            i for i in evaluated if i < metric.epoch - 1 and record.history[by][i] == best
        ], "ties go to the first"
    assert (
        record.metrics["last"].epoch == 5
        and record.metrics["last"].test_error == record.history["test_error"][-1]
    )


def test_no_validation_images_no_selection():
    record = train(tiny(validation_images=0))
    assert (
        record.metrics["val_selected"] is None and record.metrics["last"].validation_error is None
    )


def test_the_stored_network_makes_the_recorded_errors():
    config = tiny("ie-ft")
    record = train(config)
    network, test = load_network(config), data.load(config).test
    facts = data.FACTS["digits"]
    logits = network((test.images.float() / 255 - facts.mean[0]) / facts.std[0]).logits
    assert 100 * (logits.argmax(1) != test.labels).double().mean().item() == pytest.approx(
        record.metrics["last"].test_error
    )
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_a_finished_run_comes_back_with_its_own_encoders(monkeypatch):
    config = tiny("ie-ft")
    record = train(config)
    monkeypatch.setattr(runner, "fit", lambda *_: pytest.fail("trained again"))
    run = load_run(config)
    assert store.checksum(run.learner.state_dict()) == record.weights
    assert not any(module.training for module in run.learner.modules())
    assert evaluate(run, "test")["error"] == pytest.approx(record.metrics["last"].test_error)


def test_an_autoencoder_learns_to_reconstruct():
    config = tiny("factor-ae", epochs=8)
    loss = train(config).history["loss_reconstruction"]
    assert loss[-1] < loss[0] / 2
    assert train(config).metrics["last"].test_loss == pytest.approx(
        train(config).history["test_loss"][-1]
    )


# ---------------------------------------------------------------------- kills


def train_in_child(config: RunConfig) -> int:
    member.CHECKPOINT_SECONDS, member.CHECKPOINT_SHARE = -1, math.inf
    train(config)
    return 0


def test_a_run_killed_at_random_moments_ends_with_the_same_record(folder):
    config = tiny("ie-ft", augment="standard", epochs=16, teacher_epochs=6, ae_epochs=6)
    before = time.monotonic()
    expected = content(train(config))
    duration = time.monotonic() - before
    runs, kills, resumed = folder("killed"), 0, 0
    for number in range(5):
        process = start(train_in_child, runs, config)
        if number == 0:  # surely in the middle of the student's training
            while process.is_alive() and not checkpoint_of(config).exists():
                time.sleep(0.002)
        else:  # anywhere: importing, in an epoch, while writing
            process.join(random.uniform(0, 1.5 * duration))
        process.kill()
        process.join()
        kills += process.exitcode == -9
        resumed += checkpoint_of(config).exists()
    assert kills and resumed
    assert content(train(config)) == expected
    assert not checkpoint_of(config).exists()
    assert [
        store.stored_checksum(path) for path in records.weights_paths(config) if path.exists()
    ] == [expected["weights"]]
    assert len(records.load()) == 3


@contextmanager
def stopping(monkeypatch, epoch: int):
    """Ctrl-C in the middle of an epoch (counted from 0)."""

    def train_until(config, run, at):
        row = train_epoch(config, run, at)
        if at == epoch:
            raise KeyboardInterrupt
        return row

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_epoch", train_until)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize(
    "fields",
    [
        dict(method="supervised", momentum=0),
        dict(method="supervised", student="wrn10_1", schedule="steps"),
        dict(method="ie-ft", inherit="partial-l2", explore="cka"),
        dict(method="kd", evaluate_every=2),
        dict(method="factor-ae"),
        dict(method="ie-od", od_weight=0.01),
        dict(method="ie-at"),
        dict(method="fitnet", init_epochs=2),
        dict(method="ab", init_epochs=2),
        dict(method="ab", init_epochs=2, momentum=0),
        dict(method="vid"),
        dict(method="crd"),
        dict(method="ie-dml"),
    ],
)
@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_run_stopped_in_an_epoch_resumes_to_the_same_record(
    folder, shelf, monkeypatch, every_epoch, fields, epoch
):
    config = tiny(**fields, epochs=4)
    expected = content(shelf.train(config))
    folder("stopped", config)
    with stopping(monkeypatch, epoch):
        train(config)
    assert records.find(config) is None and checkpoint_of(config).exists() == (epoch > 0)
    assert content(train(config)) == expected


def test_checkpoints_are_not_written_all_the_time(monkeypatch):
    written = []
    monkeypatch.setattr(checkpoint, "save", lambda *_: written.append(1))
    monkeypatch.setattr(member, "CHECKPOINT_SECONDS", 3600)
    train(tiny())
    assert not written


def test_runs_that_save_slowly_save_less_often(monkeypatch):
    now, written = [0.0], []

    def save(*_):
        written.append(now[0])
        now[0] += 0.5

    monkeypatch.setattr(member, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(checkpoint, "save", save)
    run = member.Member(tiny(), None, {}, "", saved=0.0)
    for _ in range(50):  # epochs of a second
        now[0] += 1
        run.save_if_due(2)
    assert written == [
        3.0,
        24.5,
        46.0,
    ]  # after 2 s, then after 20 times the second that two of them take


# ------------------------------------------------------------------ checkpoints that cannot be used


def rewrite(path, **changes):
    """The checkpoint with other metadata (None = without it), its checksum right."""
    tensors, metadata = store.load_tensors(path)
    store.save_tensors(
        path, tensors, {k: v for k, v in {**metadata, **changes}.items() if v is not None}
    )


def drop_a_tensor(path):
    tensors, metadata = store.load_tensors(path)
    store.save_tensors(
        path, {k: v for k, v in tensors.items() if k != "student.head.bias"}, metadata
    )


SPOILT = {
    "a flipped bit": lambda path: path.write_bytes(
        (b := bytearray(path.read_bytes())).__setitem__(-9, b[-9] ^ 4) or bytes(b)
    ),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "of another run": lambda path: rewrite(path, hash="0" * 12),
    "of another teacher": lambda path: rewrite(path, parents=json.dumps({"teacher": "0"})),
    "without history": lambda path: rewrite(path, history=None),
    "with broken history": lambda path: rewrite(path, history="[{"),
    "with other tensors": drop_a_tensor,
}


@pytest.mark.parametrize("kind", SPOILT)
def test_an_unusable_checkpoint_is_set_aside_and_the_run_starts_afresh(
    folder, shelf, monkeypatch, every_epoch, capsys, kind
):
    config = tiny("kd")
    expected = content(shelf.train(config))
    folder("spoilt", config)
    with stopping(monkeypatch, 2):
        train(config)
    SPOILT[kind](checkpoint_of(config))
    assert content(train(config)) == expected
    assert (
        checkpoint_of(config).with_suffix(".damaged").exists()
        and not checkpoint_of(config).exists()
    )
    said = "".join(capsys.readouterr())
    assert "Delete it" not in said  # nothing is left to delete
    assert (
        "the checkpoint cannot be used" in said
        and config.path in said
        and "starting from the first epoch" in said
    )


# ---------------------------------------------------------------------- the methods are active


@pytest.mark.parametrize(
    "off",
    [
        dict(method="kd", kd_alpha=0),
        dict(method="ft", ft_weight=0),
        dict(method="ie-ft", inherit_weight=0, explore_weight=0),
        dict(method="ie-ft", inherit="none", explore="none"),
        dict(method="at", at_weight=0),
        dict(method="od", od_weight=0),
        dict(method="ie-at", at_weight=0, explore_weight=0),
        dict(method="tf-kd", tfkd_weight=0),
        dict(method="ab", init_epochs=0),
    ],
)
def test_a_method_with_its_losses_off_is_the_student_alone_bit_for_bit(student, off):
    """So student, order and augmentation do not depend on the method."""
    alone = student(tiny(augment="standard"))
    assert torch.equal(student(tiny(**off, augment="standard")), alone)


def test_ie_od_with_its_losses_off_is_the_student_alone_but_for_rounding(student):
    """Its gradient, though 0, has another memory layout, and what follows sums in another order."""
    off = student(tiny("ie-od", od_weight=0, explore_weight=0))
    torch.testing.assert_close(off, student(tiny()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "on",
    [
        dict(method="kd"),
        dict(method="ft"),
        dict(method="ie-ft", inherit_weight=0),
        dict(method="ie-ft", explore_weight=0),
        *(
            dict(method="ie-ft", inherit="none", explore=name)
            for name in ("l2", "cosine", "partial-l2", "orthogonal", "cka")
        ),
        *(dict(method=name) for name in ("at", "od", "tf-kd", "fitnet", "ab")),
        dict(method="fitnet", init_epochs=0),
        dict(method="ie-at", at_weight=0),
        dict(method="ie-at", explore_weight=0),
        dict(method="ie-od", od_weight=0),
        dict(method="ie-od", explore_weight=0),
        *(
            dict(method="ie-ft", explore="none", inherit=name)
            for name in ("l2", "cosine", "partial-l2")
        ),
    ],
)
def test_each_loss_alone_changes_the_student(student, on):
    assert not torch.equal(student(tiny(**on)), student(tiny()))


def test_fields_of_a_method_change_the_run(shelf):
    base = dict(method="ie-ft")
    variants = [
        {},
        dict(split="halves"),
        dict(split_ratio=0.25),
        dict(factor_ratio=0.25),
        dict(reconstruction="l1"),
        dict(decoder="conv"),
        dict(ae_epochs=1),
        dict(ae_lr=0.01),
        dict(teacher_epochs=1),
        dict(inherit_weight=5),
        dict(explore_weight=5),
    ]
    found = {shelf.train(tiny(**base, **fields)).weights for fields in variants}
    assert len(found) == len(variants)


@pytest.mark.parametrize(
    "field",
    [
        dict(lr=0.01),
        dict(momentum=0.5),
        dict(weight_decay=0),
        dict(batch_size=50),
        dict(schedule="steps"),
        dict(augment="standard"),
        dict(train_images=100),
        dict(student="resnet8x0.5"),
        dict(epochs=2),
    ],
)
def test_fields_of_the_loop_change_the_run(shelf, field):
    assert shelf.train(tiny(**field)).weights != shelf.train(tiny()).weights


def test_inheritance_pulls_the_factors_together_and_exploration_apart():
    history = train(tiny("ie-ft", epochs=10)).history
    assert (
        history["loss_inherit"][-1] < history["loss_inherit"][0]
        and history["loss_explore"][-1] < history["loss_explore"][0] < 0
    )


# ---------------------------------------------------------------------- what every method shares


def test_every_method_starts_from_the_same_student_and_leaves_the_global_generator_alone(lent):
    state = torch.get_rng_state()
    starts = [
        make_run(tiny(m, seed=0), CPU).learner["student"].state_dict() for m in (*METHODS, *STAGED)
    ]
    assert torch.equal(state, torch.get_rng_state())
    assert all(store.checksum(start) == store.checksum(starts[0]) for start in starts)
    assert store.checksum(
        make_run(tiny(seed=1), CPU).learner["student"].state_dict()
    ) != store.checksum(starts[0])


def batches(config: RunConfig, monkeypatch, epoch: int = 0) -> list[str]:
    """What the steps of an epoch see."""
    seen = []
    run = make_run(config, CPU)

    def look(run, images, batch):  # instead of loop.step
        seen.append(
            store.checksum({"images": images, "labels": batch.labels, "index": batch.index})
        )
        return {"task": torch.zeros(())}

    with monkeypatch.context() as patch:
        patch.setattr(loop, "step", look)
        train_epoch(config, run, epoch)
    return seen


def test_every_method_sees_the_same_batches_seed_by_seed(monkeypatch):
    same = [batches(tiny(m, augment="standard"), monkeypatch) for m in (*METHODS, *STAGED)]
    assert len(same[0]) == 4 and all(seen == same[0] for seen in same)
    assert not set(same[0]) & set(batches(tiny(augment="standard", seed=1), monkeypatch))
    assert not set(same[0]) & set(batches(tiny(augment="standard"), monkeypatch, epoch=1))


def test_a_step_gives_the_detached_terms_of_the_loss():
    run = make_run(tiny("ie-ft"), CPU)
    images, labels, _ = run.dataset.train
    terms = step(
        run, augment.normalise(images[:16], run.mean, run.std), Batch(labels[:16], torch.arange(16))
    )
    assert list(terms) == ["task", "inherit", "explore", "train_error"]
    assert all(term.dim() == 0 and not term.requires_grad for term in terms.values())


def test_an_epoch_sees_every_training_image_once(monkeypatch):
    config, counts = tiny(), []
    run = make_run(config, CPU)

    def look(run, images, batch):
        assert torch.equal(batch.labels, run.dataset.train.labels[batch.index])
        counts.append(batch.labels)
        return {"task": torch.zeros(())}

    monkeypatch.setattr(loop, "step", look)
    train_epoch(config, run, 0)
    assert [len(labels) for labels in counts] == [64, 64, 64, 8]
    assert torch.equal(torch.cat(counts).sort().values, run.dataset.train.labels.sort().values)


@pytest.mark.parametrize(
    "method", [*STAGED, "crd", *(m for m in METHODS if tiny(m).has_teacher), "factor-ae"]
)
def test_the_teacher_stays_as_it_is(method):
    config = tiny(method, teacher="wrn10_1")  # BN that cannot be folded
    run = make_run(config, CPU)
    before = {name: tensor.clone() for name, tensor in run.teacher.state_dict().items()}
    assert any(name.endswith("running_mean") for name in before)
    train_epoch(config, run, 0)
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in run.teacher.state_dict().items()
    )
    assert not any(module.training for module in run.teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in run.teacher.parameters())
    held = {p.data_ptr() for group in run.optimiser.param_groups for p in group["params"]}
    assert not held & {p.data_ptr() for p in run.teacher.parameters()}


@pytest.mark.parametrize("method", [*METHODS, "factor-ae"])
def test_everything_in_the_learner_is_trained(method):
    config = tiny(method, weight_decay=0)
    run = make_run(config, CPU)
    before = {name: p.detach().clone() for name, p in run.learner.named_parameters()}
    train_epoch(config, run, 0)
    assert not [name for name, p in run.learner.named_parameters() if torch.equal(p, before[name])]


# ---------------------------------------------------------------------- learning rate


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 0.1), (79.99, 0.1), (80, 0.01), (119.99, 0.01), (120, 0.001), (159.99, 0.001)],
)
def test_the_steps_of_the_paper(epoch, rate):
    assert learning_rate(RunConfig.create("paper"), epoch) == pytest.approx(rate)


@pytest.mark.parametrize("epochs", [10, 30, 50, 90, 100])
def test_30_60_90(epochs):
    config = tiny(epochs=epochs, schedule="30-60-90", lr=0.1)
    rates = [learning_rate(config, epoch) for epoch in range(epochs)]
    expected = [3 * [0.1], 3 * [0.01], 3 * [0.001], [0.0001]]
    assert rates == pytest.approx([rate for part in expected for rate in part * (epochs // 10)])
    assert learning_rate(config, 0.3 * epochs - 0.01) == 0.1


@pytest.mark.parametrize(
    ("epoch", "rate"), [(0, 0), (1, 0.05), (2, 0.1), (6, 0.05), (9.99, 0.000125), (10, 0)]
)
def test_one_cycle(epoch, rate):
    assert learning_rate(tiny(epochs=10, schedule="onecycle", lr=0.1), epoch) == pytest.approx(rate)


def test_the_rate_moves_within_an_epoch(monkeypatch):
    config, rates = tiny(epochs=10, schedule="onecycle", lr=0.1), []
    run = make_run(config, CPU)

    def look(run, images, batch):
        rates.append(run.optimiser.param_groups[0]["lr"])
        return {"task": torch.zeros(())}

    monkeypatch.setattr(loop, "step", look)
    train_epoch(config, run, 1)
    assert rates == pytest.approx([0.05, 0.0625, 0.075, 0.0875])


# ---------------------------------------------------------------------- what stops a run


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_checkpoint(
    folder, monkeypatch, every_epoch
):
    config, calls = tiny("kd"), []
    expected = content(train(config))
    folder("diverged")
    for parent in config.parents().values():
        train(parent)

    def diverge(*arguments):
        calls.append(1)
        terms = step(*arguments)
        return {**terms, "kd": terms["kd"] + float("inf")} if len(calls) == 4 + 3 else terms

    monkeypatch.setattr(loop, "step", diverge)
    with pytest.raises(
        TrainingError,
        match=r"/kd-.*seed0: the loss term 'kd' became inf in step 3 of epoch 2\..*Lower lr",
    ):
        train(config)
    assert records.find(config) is None
    assert len(json.loads(store.load_tensors(checkpoint_of(config))[1]["history"])) == 1
    assert content(train(config)) == expected  # resumed from the last good epoch


def test_a_rate_that_is_too_high_is_said_so():
    with pytest.raises(
        TrainingError, match=r"the loss term 'task' became (nan|inf|-inf) in step \d of epoch \d"
    ):
        train(tiny(lr=1e30, epochs=5))
    assert len(records.load()) == 0


@pytest.mark.parametrize("method", ["ft", "ie-ft"])
def test_a_pair_that_does_not_fit_is_refused_before_anything_trains(monkeypatch, method):
    monkeypatch.setattr(runner, "fit", lambda *_: pytest.fail("trained"))
    with pytest.raises(
        TrainingError,
        match=r"the teacher gives \(1, 1\)\. Choose a pair with the same down-sampling",
    ):
        train(tiny(method, teacher="vgg13"))


def test_pairs_of_unequal_width_and_family_fit():
    for teacher, student in (
        ("resnet8", "resnet8x0.25"),
        ("wrn10_2", "resnet8x0.25"),
        ("resnet8x0.25", "wrn10_1"),
    ):
        runner.check_pair(tiny("ie-ft", teacher=teacher, student=student))
    runner.check_pair(tiny("kd", teacher="vgg13"))  # KD compares logits only
    runner.check_pair(tiny("at", teacher="vgg13"))  # AT compares the stages that are equally large


def test_lost_or_damaged_weights(runs, capsys):
    config = tiny("kd")
    teacher = config.teacher_run()
    train(config)
    weights = records.find(teacher).weights
    path = store.cache_folder() / f"{teacher.path}.safetensors"
    path.unlink()
    load_network(teacher)
    assert "its weights are missing, so it is trained again" in "".join(capsys.readouterr())
    assert store.stored_checksum(path) == weights
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        load_network(teacher)


def test_a_parent_that_comes_out_different_does_not_orphan_its_students():
    student = tiny("kd", seed=0)
    train(student)
    teacher = records.find(student.teacher_run())
    lost = teacher.model_copy(update={"weights": "lost"})
    lost.save()
    records.find(student).model_copy(update={"parents": {"teacher": "lost"}}).save()
    assert records.orphans(teacher.model_copy(update={"weights": "new"})) == [student.path]
    with pytest.raises(
        TrainingError, match="came out different.*1 finished runs.*Bring these weights"
    ):
        train(tiny("kd", seed=5))
    assert records.find(student.teacher_run()) == lost
    records.record_path(student).unlink()
    train(tiny("kd", seed=5))  # nobody is left to be orphaned
    assert records.find(student.teacher_run()).weights == teacher.weights


def test_committed_weights_beside_the_record_count(monkeypatch):
    teacher = tiny("kd").teacher_run()
    train(teacher)
    committed, cached = records.weights_paths(teacher)
    cached.replace(committed)
    monkeypatch.setattr(runner, "fit", lambda *_: pytest.fail("trained again"))
    load_network(teacher)


def test_a_folder_that_cannot_be_written(runs):
    runs.parent.mkdir(exist_ok=True)
    runs.write_text("a file")
    with pytest.raises(StoreError, match="cannot write .*set IEKD_RUNS"):
        train(tiny())


# ---------------------------------------------------------------------- many processes


def train_and_note(config: RunConfig, notes: str) -> int:
    fit = runner.fit

    def noting(configs, progress):
        with open(notes, "a") as file:
            file.writelines(f"{config.path}\n" for config in configs)
        return fit(configs, progress)

    runner.fit = noting
    train(config)
    return 0


def test_processes_that_ask_for_the_same_run_train_it_once(runs, tmp_path):
    config, notes = tiny("ie-ft", epochs=6), tmp_path / "notes"
    others = [start(train_and_note, runs, c, str(notes)) for c in (config, config, tiny("ft"))]
    for process in others:
        process.join(600)
    assert [process.exitcode for process in others] == [0, 0, 0]
    fitted = notes.read_text().split()
    assert len(fitted) == len(set(fitted)) == 4
    assert len(records.load()) == 4


def test_again_takes_what_another_process_finished_meanwhile(monkeypatch):
    config = tiny()
    record = train(config)

    @contextmanager
    def claim(config, wait):
        record.model_copy(update={"started": "while this one waited"}).save()
        yield

    monkeypatch.setattr(runner, "claim", claim)
    monkeypatch.setattr(runner, "fit", lambda *_: pytest.fail("trained"))
    assert train(config, again=True).started == "while this one waited"


def test_again_trains_again():
    config = tiny()
    record = train(config)
    record.model_copy(update={"started": "long ago"}).save()
    assert train(config, again=True).started == "long ago"  # the same weights: the record stays
    record.model_copy(update={"started": "long ago", "weights": "others"}).save()
    again = train(config, again=True)
    assert again.started != "long ago" and content(again) == content(record)


def test_weights_that_the_last_step_made_infinite_are_not_recorded(folder, monkeypatch):
    folder("broken")
    config = tiny(epochs=1)

    def blow_up(run, images, batch):
        terms = step(run, images, batch)
        with torch.no_grad():
            next(run.learner.parameters()).mul_(float("inf"))
        return {name: torch.ones_like(term) for name, term in terms.items()}

    monkeypatch.setattr(loop, "step", blow_up)
    with pytest.raises(TrainingError, match="infinite"):
        train(config)
    assert records.find(config) is None
