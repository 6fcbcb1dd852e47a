"""A configuration refuses what it does not know, and one training has one identity, one path and
one command.
"""

import functools
import shlex
from pathlib import Path

import pytest

from iekd import data
from iekd.cli import parser
from iekd.config import RunConfig, grid, refuse_unread
from iekd.config.known import methods
from iekd.config.presets import PRESETS
from iekd.data import FACTS
from iekd.errors import ConfigError

FIELDS = {name: row.fields for name, row in methods().items()}

GRIDS = sorted((Path(__file__).parents[2] / "runs").glob("*.yaml"))


def every_run() -> list[RunConfig]:
    """The runs of all grids, with their parents."""
    return [config for path in GRIDS for config in grid.with_parents(grid.read(path)).values()]


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            dict(exlore="cka"),
            r"exlore: no such parameter \(did you mean 'explore'\?\); `iekd run --help` lists all of them$",
        ),
        (dict(colour="red"), r"colour: no such parameter; `iekd run --help` lists"),
        (
            dict(explore="cca"),
            r"explore: 'cca' is not usable; choose one of none, l1, l2, cosine, partial-l2, orthogonal, cka",
        ),
        (
            dict(method="ie"),
            r"method: 'ie' is not usable; choose one of supervised, factor-ae, kd, ft, ie-ft",
        ),
        (dict(method=["kd"]), r"method: \['kd'\] is not usable"),
        (
            dict(dataset="mnist"),
            r"dataset: 'mnist' is not usable; choose one of digits, fashion-mnist, cifar10, cifar100, imagenette",
        ),
        (dict(seed=-1), r"seed: -1 is not usable; .*greater than or equal to 0"),
        (dict(epochs="many"), r"epochs: 'many' is not usable; .*integer"),
        (dict(epochs=2.5), r"epochs: 2.5 is not usable"),
        (dict(lr=0), r"lr: 0 is not usable; .*greater than 0"),
        (dict(lr=float("inf")), r"lr: inf is not usable; .*finite"),
        (dict(image_size=7), r"image_size: 7 is not usable; .*choose 0 \(native\) or from 8"),
        (
            dict(student="resnet21"),
            r"network 'resnet21' is not known; the networks are resnet<d>.*wrn<d>_<k>.*vgg13",
        ),
        (dict(method="kd", teacher="none"), r"method 'kd' needs a teacher: name a network"),
        (dict(student="none"), r"method 'supervised' needs a student: name a network"),
    ],
)
def test_a_refusal_says_what_is_allowed(fields, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig.create("smoke", **fields)


def test_an_unknown_preset_lists_the_presets():
    with pytest.raises(
        ConfigError, match=r"preset: 'huge' is not usable; choose one of smoke, class, desk, paper"
    ):
        RunConfig.create("huge")


def test_all_mistakes_are_named_at_once():
    with pytest.raises(ConfigError) as error:
        RunConfig.create("smoke", lr=-1, explore="cca", seed="x")
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "seed",
        "lr",
        "explore",
    ]


def test_a_value_that_the_method_does_not_read_is_checked_all_the_same():
    with pytest.raises(ConfigError, match="explore: 'cca'"):
        RunConfig.create("smoke", method="kd", explore="cca")
    with pytest.raises(ConfigError, match="network 'resnet21'"):
        RunConfig.create("smoke", method="supervised", teacher="resnet21")


@pytest.mark.parametrize("method", FIELDS)
@pytest.mark.parametrize("name", ["teacher", "student", "explore", "kd_alpha", "epochs", "preset"])
def test_a_field_that_changes_nothing_is_refused_when_somebody_names_it(method, name):
    config = RunConfig.create("smoke", method=method)
    if name not in config.unread():
        return refuse_unread([name], [config])
    with pytest.raises(
        ConfigError, match=rf"^{name}: {method} does not read it; methods that do: "
    ) as error:
        refuse_unread(["seed", name], [config])
    readers = str(error.value).rpartition(": ")[2].split(", ")
    assert (
        readers == [m for m in FIELDS if name not in RunConfig.create("smoke", method=m).unread()]
        and method not in readers
    )


def test_one_of_several_runs_that_reads_a_field_is_enough():
    alone, kd, ft = (
        RunConfig.create("smoke", method=method) for method in ("supervised", "kd", "ft")
    )
    refuse_unread(["kd_alpha", "teacher"], [alone, kd, ft])
    with pytest.raises(
        ConfigError, match="kd_alpha: supervised, ft do not read it; methods that do: kd$"
    ):
        refuse_unread(["kd_alpha", "teacher"], [alone, ft])


def test_the_weight_of_a_half_without_measure_is_refused_when_somebody_names_it():
    config = RunConfig.create("smoke", method="ie-ft", explore="none", explore_weight=5)
    with pytest.raises(
        ConfigError,
        match="explore_weight: ie-ft does not read it where the measure of that half is none",
    ):
        refuse_unread(["explore", "explore_weight"], [config])


def test_it_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        RunConfig.create("smoke").seed = 1


# ---------------------------------------------------------------------- identity


def test_hashes_stay_as_they_are():
    """A changed default or preset would make every record of the store another run. Add fields;
    never change these numbers.
    """
    known = {
        ("smoke", "supervised"): "a016e0a79660",
        ("smoke", "ie-ft"): "b264b37fd295",
        ("class", "supervised"): "35a9170331d6",
        ("class", "kd"): "fd7df47a1d07",
        ("class", "ie-ft"): "7c0a8a9ff629",
        ("paper", "ie-ft"): "26effc084037",
    }
    assert {key: RunConfig.create(key[0], method=key[1]).hash for key in known} == known


OTHER = dict(
    teacher_epochs=7,
    teacher_lr=0.7,
    teachers=2,
    ae_epochs=7,
    ae_lr=0.7,
    factor_ratio=0.25,
    reconstruction="l1",
    decoder="conv",
    kd_alpha=0.3,
    kd_temperature=7,
    ft_weight=7,
    inherit="l2",
    explore="cka",
    inherit_weight=7,
    explore_weight=7,
    split="halves",
    split_ratio=0.25,
    explore_target="inherit",
    explore_encoder="frozen",
    at_weight=7,
    od_weight=7,
    tfkd_weight=0.7,
    tfkd_temperature=7,
    fitnet_weight=7,
    ab_weight=7,
    init_epochs=7,
    sp_weight=7,
    cc_weight=7,
    vid_weight=7,
    rkd_weight=7,
    pkt_weight=7,
    nst_weight=7,
    crd_weight=7,
    place="second",
    dml_weight=7,
    teacher_file="mine",
    weights_file="mine",
    turns="epoch",
)


@pytest.mark.parametrize("method", FIELDS)
@pytest.mark.parametrize("name", OTHER)
def test_exactly_the_fields_that_a_method_reads_are_its_identity(method, name):
    plain, changed = (
        RunConfig.create("smoke", method=method, **fields) for fields in ({}, {name: OTHER[name]})
    )
    read = name in FIELDS[method]
    assert (plain.hash != changed.hash) == (plain.path != changed.path) == read


def test_every_method_field_is_tried_above():
    assert {name for fields in FIELDS.values() for name in fields} == set(OTHER)


@pytest.mark.parametrize("side", ["inherit", "explore"])
def test_the_weight_of_a_half_without_measure_is_no_identity(side):
    one, two = (
        RunConfig.create("smoke", method="ie-ft", **{side: "none", f"{side}_weight": w})
        for w in (1, 2)
    )
    assert one == two


def test_the_teacher_is_no_identity_of_a_student_alone():
    assert (
        RunConfig.create("smoke", teacher="resnet20").hash
        == RunConfig.create("smoke", teacher="resnet56").hash
    )


def test_the_preset_names_a_folder_and_is_no_identity():
    fields = RunConfig.create("smoke", method="kd").model_dump(exclude={"preset"})
    other = RunConfig.create("class", **fields)
    assert other.hash == RunConfig.create("smoke", method="kd").hash and other.path.startswith(
        "class/"
    )


@pytest.mark.parametrize("value", [0.1 + 1e-9, 1 / 3, 1234567.5, 1e-12])
def test_numbers_keep_all_their_digits_in_path_and_command(value):
    config = RunConfig.create("smoke", lr=value)
    assert f"lr={value}" in config.path and parsed(config) == config


def test_replace_takes_what_was_not_read_from_the_preset():
    ie = RunConfig.create("smoke", dataset="cifar10", method="ie-ft")
    assert ie.replace(method="kd") == RunConfig.create("smoke", dataset="cifar10", method="kd")
    assert ie.replace(method="supervised").replace(method="ie-ft") == ie


# ------------------------------------------------------------------ paths and commands of the grids


def test_there_is_a_grid():
    assert GRIDS


def test_paths_of_the_grids_are_unique():
    by_path = {}
    for config in every_run():
        assert by_path.setdefault(config.path, config) == config
    assert len({(config.preset, config.hash) for config in by_path.values()}) == len(by_path)


known = functools.cache(parser.parser)  # it has some hundred options


def parsed(config: RunConfig) -> RunConfig:
    """What `iekd run` makes of the command that a configuration prints."""
    words = shlex.split(config.command())
    assert words[:2] == ["iekd", "run"]
    return parser.configuration(known().parse_args(words[1:]))


def test_the_printed_command_is_the_run():
    for config in every_run():
        assert parsed(config) == config, config.command()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", FIELDS)
@pytest.mark.parametrize("dataset", FACTS)
def test_the_printed_command_names_what_differs_from_the_preset(preset, method, dataset):
    read = {name: OTHER[name] for name in FIELDS[method]}
    boxes = FACTS[dataset].boxes
    if boxes and not methods()[method].detects:
        pytest.skip("no method for detectors")
    teacher, student = ("ssd_resnet18", "ssd_resnet10") if boxes else ("wrn16_2", "resnet8x0.5")
    fields = dict(dataset=dataset, teacher=teacher, student=student)
    config = RunConfig.create(preset, method=method, seed=3, **fields, **read)
    assert parsed(config) == config, config.command()


def test_the_printed_command_names_a_pair_that_is_usual_elsewhere():
    """Imagenette has a pair of its own at class scale: that one goes without saying, the pair of
    CIFAR does not.
    """
    usual = RunConfig.create("class", dataset="imagenette", method="ie-ft")
    cifar = RunConfig.create("class")
    other = usual.replace(teacher=cifar.student, student=cifar.student)
    assert (
        "teacher" not in usual.command()
        and "--teacher resnet8 --student resnet8" in other.command()
    )
    assert parsed(usual) == usual and parsed(other) == other
    assert (usual.image_size, usual.train_images, usual.kd_alpha) == (
        0,
        0,
        RunConfig.create("class", dataset="cifar100").kd_alpha,
    )


def test_imagenet_has_its_pair_and_the_usual_recipe_at_paper_scale():
    config = RunConfig.create("paper", dataset="imagenet", method="ie-ft")
    assert config.path == "paper/imagenet/resnet34-resnet18/ie-ft/seed0"
    assert (config.epochs, config.batch_size, config.lr) == (100, 256, 0.1)
    assert (config.momentum, config.weight_decay, config.schedule) == (0.9, 1e-4, "30-60-90")
    assert data.image_shape(config) == (3, 224, 224) and parsed(config) == config
    small = RunConfig.create("paper", dataset="imagenet64", method="ie-ft")
    assert small.pair == "resnet34_3x3-resnet18_3x3" and data.image_shape(small) == (3, 64, 64)


# ---------------------------------------------------------------------- parents


def test_parents_of_a_run():
    config = RunConfig.create("smoke", method="ie-ft", seed=7)
    teacher, autoencoder = config.parents().values()
    assert (teacher.method, teacher.student, teacher.epochs, teacher.seed) == (
        "supervised",
        config.teacher,
        config.teacher_epochs,
        2,
    )
    assert (autoencoder.method, autoencoder.teacher, autoencoder.epochs, autoencoder.lr) == (
        "factor-ae",
        config.teacher,
        10,
        0.1,
    )
    assert autoencoder.parents() == {"teacher": teacher} and teacher.parents() == {}


@pytest.mark.parametrize(
    "fields",
    [dict(lr=0.05), dict(ae_lr=0.01), dict(teacher_lr=0.05), dict(epochs=3), dict(batch_size=7)],
)
def test_the_autoencoder_learns_the_features_of_the_run_s_own_teacher(fields):
    config = RunConfig.create("smoke", method="ie-ft", seed=7, **fields)
    assert config.autoencoder_run().teacher_run() == config.teacher_run()


def test_every_method_and_seed_modulo_teachers_has_the_same_teacher():
    teachers = {
        RunConfig.create("smoke", method=m, seed=s).teacher_run()
        for m in ("kd", "ft", "ie-ft")
        for s in (1, 6, 11)
    }
    assert len(teachers) == 1


def test_the_native_size_by_name_or_by_number_is_one_run():
    for dataset, size in ((name, facts.side) for name, facts in FACTS.items() if facts.side):
        by_number = RunConfig.create("paper", dataset=dataset, image_size=size)
        assert (
            by_number.hash == RunConfig.create("paper", dataset=dataset).hash
            and by_number.image_size == 0
        )
    assert RunConfig.create("paper", image_size=16).image_size == 16


def test_a_seed_that_no_generator_takes_is_refused():
    with pytest.raises(ConfigError, match="seed"):
        RunConfig.create(seed=2**64)
