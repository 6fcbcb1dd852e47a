"""Finite views: the same images for every run, and a teacher that was asked once says what it says
when it is asked each time.
"""

import pytest
import torch
from test_training import train
from tiny import content, start, tiny

from iekd.config import methods as methods_of
from iekd.config.known import methods
from iekd.data import augment
from iekd.errors import ConfigError
from iekd.networks import Output
from iekd.records import store
from iekd.training import loop, runner, views
from iekd.training.run import build_run

pytestmark = pytest.mark.usefixtures("lent")

FIELDS = {name: row.fields for name, row in methods().items()}

V = 3
TAUGHT = [method for method, fields in FIELDS.items() if "teacher_epochs" in fields]


def finite(method="kd", **fields):
    return tiny(method, augment="standard", views=V, **fields)


def run_of(config):
    return views.with_stored_teacher(config, runner.make_run(config))


def files():
    return sorted((store.cache_folder() / "views").rglob("*.safetensors"))


# ---------------------------------------------------------------------- which views


def test_every_epoch_shows_each_image_once_in_one_of_its_views():
    config = finite("supervised")
    dataset = build_run(config, {}, torch.device("cpu")).dataset
    every, seen = loop.draw_views(config, dataset), set()
    for epoch in range(8):
        order, *draws = loop.draw_epoch(config, dataset, epoch)
        again, rows, _ = loop.draw_order(config, 200, epoch)
        assert torch.equal(order, again) and torch.equal(rows % 200, order)
        assert torch.equal(order.sort().values, torch.arange(200))
        assert all(torch.equal(got, kept[rows]) for got, kept in zip(draws, every, strict=True))
        seen |= {*rows.tolist()}
    assert len(seen) > 0.9 * V * 200  # 1 - (2/3)^8 = 96 % of the views have had their turn
    assert (
        len({*zip(every.dy.tolist(), every.dx.tolist(), strict=True)}) == (2 * dataset.pad + 1) ** 2
    )


def test_the_views_are_those_of_all_seeds_and_methods_and_the_choice_among_them_is_the_seeds():
    one, same, other = (
        build_run(finite("supervised", seed=s), {}, torch.device("cpu")).dataset for s in (0, 0, 1)
    )
    drawn = [loop.draw_views(finite("supervised", seed=s), d) for s, d in ((0, one), (1, other))]
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
    plans = [
        loop.draw_epoch(finite(m, seed=s), d, 1)
        for m, s, d in (("supervised", 0, one), ("kd", 0, same), ("kd", 1, other))
    ]
    assert torch.equal(plans[0], plans[1]) and not torch.equal(plans[0], plans[2])


def test_without_finite_views_the_plan_is_what_it_always_was():
    config = tiny(augment="standard")
    dataset = build_run(config, {}, torch.device("cpu")).dataset
    order, *draws = loop.draw_epoch(config, dataset, 2)
    generator = torch.Generator().manual_seed(2)
    assert torch.equal(order, torch.randperm(200, generator=generator))
    expected = augment.draw(200, dataset.pad, dataset.flip, generator)
    assert all(torch.equal(got, drawn[order]) for got, drawn in zip(draws, expected, strict=True))


# ---------------------------------------------------------------------- what is stored


@pytest.mark.parametrize("method", TAUGHT)
def test_training_with_stored_outputs_is_training_with_the_teacher_up_to_half_precision(method):
    config = finite(method)
    stored, asked = (
        loop.train_epoch(config, run, 0) for run in (run_of(config), runner.make_run(config))
    )
    for log in (stored, asked):
        log.pop("train_error", None)  # counts: an image at the boundary jumps
    assert stored == pytest.approx(asked, rel=5e-3)


@pytest.mark.parametrize("method", TAUGHT)
def test_a_method_reads_what_it_says_and_all_of_it(method):
    config = finite(method)
    run = runner.make_run(config)
    read = set()

    class Noting(dict):
        def __getitem__(self, name):
            read.add(name)
            return super().__getitem__(name)

    def teacher(images, batch):
        logits, features = training_teacher(images)
        return Output(logits, Noting({name: features[name] for name in methods_of.needs(config)}))

    training_teacher = run.teacher
    for epoch in range(config.epochs):
        loop.train_epoch(config, run._replace(teacher=teacher), epoch)
    assert read <= {*methods_of.needs(config)} and (
        read or method in ("kd", "sp", "factor-ae")
    )  # these ask for `Output.feature`


def test_nothing_is_computed_twice(monkeypatch):
    run_of(finite("kd"))
    assert [path.name for path in files()] == ["logits.safetensors"]
    run_of(finite("ft"))
    assert len(files()) == 3  # the encoder is part of the teacher that FT sees
    monkeypatch.setattr(views, "compute", lambda *_: pytest.fail("computed again"))
    for again in (
        finite("kd", kd_alpha=0.5),
        finite("ft"),
        finite("ie-ft"),
        finite("kd", seed=5),
    ):  # 5 teachers: seed 5 has teacher 0
        run_of(again)
    with pytest.raises(pytest.fail.Exception):
        run_of(finite("kd", seed=1))


def test_the_file_holds_half_precision_and_no_more_than_it_says():
    config = finite("ft")
    run_of(config)
    expected = sum(2 * V * 200 * size for size in (10, 16 * 2 * 2))
    kept = views.shapes(config, 200)
    assert kept == {"logits": (V * 200, 10), "factor": (V * 200, 16, 2, 2)}
    assert expected <= sum(path.stat().st_size for path in files()) <= expected + 2000


def test_only_the_images_of_a_step_are_looked_up():
    config = finite("kd")
    run, asked = run_of(config), runner.make_run(config)
    images = augment.normalise(run.dataset.train.images[:4], run.mean, run.std)
    assert torch.equal(run.teacher(images).logits, asked.teacher(images).logits)


def test_too_much_is_refused_before_anything_trains(monkeypatch):
    monkeypatch.setattr(views, "LIMIT", 50_000)
    monkeypatch.setattr(runner, "fit", lambda *_: pytest.fail("trained"))
    with pytest.raises(
        ConfigError,
        match=r"views: 3 is not usable; what ft needs of the teacher \(logits, factor\) "
        "would take .* fewer views",
    ):
        train(finite("ft"))


def test_values_beyond_half_precision_are_refused():
    config = finite("kd")
    run = runner.make_run(config)
    with torch.no_grad():
        run.teacher.network.head.bias.fill_(1e5)
    with pytest.raises(ConfigError, match="exceeds the range of float16"):
        views.with_stored_teacher(config, run)
    assert not files()


@pytest.mark.parametrize(
    "spoil", [lambda b: b[:-50], lambda b: b"", lambda b: b[:-1] + bytes([b[-1] ^ 1])]
)
def test_a_damaged_file_is_made_again(spoil, capsys):
    config = finite("kd")
    expected = run_of(config).teacher.tensors["logits"].clone()
    (path,) = files()
    path.write_bytes(spoil(path.read_bytes()))
    assert torch.equal(run_of(config).teacher.tensors["logits"], expected)
    assert "is damaged; making it again" in "".join(capsys.readouterr())
    assert store.load_tensors(path)


def count_computations(config, notes):
    compute = views.compute

    def noting(*arguments):
        with open(notes, "a") as file:
            file.write("x")
        return compute(*arguments)

    views.compute = noting
    run_of(config)
    return 0


def test_processes_that_need_the_same_file_make_it_once(runs, tmp_path):
    runner.make_run(finite("kd"))
    notes = tmp_path / "notes"
    processes = [start(count_computations, runs, finite("kd"), str(notes)) for _ in range(3)]
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0, 0] and notes.read_text() == "x"


# ---------------------------------------------------------------------- as part of a run


def test_a_run_with_finite_views_is_another_run_with_the_same_parents():
    assert finite().hash != tiny("kd", augment="standard").hash and "views=3" in finite().path
    assert finite("ft").parents() == tiny("ft", augment="standard").parents()
    assert tiny("kd", augment="none", views=5) == tiny("kd", augment="none", views=1)


def test_the_same_run_twice_is_the_same_record_also_from_the_file(monkeypatch):
    one = content(train(finite("ie-ft")))
    monkeypatch.setattr(views, "compute", lambda *_: pytest.fail("computed again"))
    assert content(train(finite("ie-ft"), again=True)) == one
