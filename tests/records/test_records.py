"""Records: what the frame holds, and that nothing but a true record gets into it."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import made_up, tiny

from iekd import records
from iekd.config import RunConfig
from iekd.config.run import LONGEST
from iekd.errors import ConfigError
from iekd.records import store
from iekd.records.frame import columns
from iekd.records.provenance import commit_of
from iekd.training import finish


@pytest.fixture
def saved(runs):
    """Five records of made-up runs."""
    made = [
        made_up(tiny(method, seed=seed), 10 + seed)
        for method in ("supervised", "kd")
        for seed in (0, 1)
    ]
    made.append(made_up(tiny("ie-ft", explore="cka")))
    for record in made:
        record.save()
    return made


def test_a_record_comes_back_as_it_was(saved):
    for record in saved:
        assert records.find(record.config) == records.read(records.record_path(record.config))
        assert records.find(record.config).to_json() == record.to_json()
    assert records.find(tiny("ft")) is None


def test_the_file_is_small_plain_json_with_the_schema_first(saved):
    record = saved[0].model_copy(update={"history": {"loss": [1 / 3, None]}})
    data = record.to_json()
    assert list(data)[0] == "schema" and data["schema"] == records.SCHEMA
    assert data["history"] == {"loss": [0.3333333, None]}
    wanted = {
        "schema",
        "config",
        "hash",
        "parents",
        "weights",
        "git",
        "versions",
        "device",
        "started",
        "seconds",
        "images_per_second",
    }
    assert set(data) == wanted | {"data", "loss_digest", "history", "metrics"} and set(
        data["metrics"]
    ) == {"last", "val_selected", "best_on_test"}
    assert set(data["config"]) == set(RunConfig.model_fields)
    text = records.record_path(record.config).read_text()
    assert json.loads(text)["hash"] == record.hash and len(text) < 5000


def test_columns_of_the_frame(saved):
    frame = records.load()
    assert len(frame) == 5 and set(frame.columns) == set(columns())
    assert set(RunConfig.model_fields) <= set(frame.columns)
    row = frame[frame["path"] == saved[1].config.path].iloc[0]
    assert (row["last"], row["last_epoch"], row["last_validation"], row["seed"]) == (
        11.0,
        3,
        12.0,
        1,
    )
    assert (row["variant"], row["pair"], row["hash"]) == (
        saved[1].config.variant,
        "resnet8x0.25",
        saved[1].hash,
    )
    assert (
        row["command"] == saved[1].config.command()
        and row["device"] == "abacus"
        and row["threads"] == 1
    )
    assert list(frame["path"]) == sorted(frame["path"])


def test_rows_can_be_chosen(saved):
    assert len(records.load(method="kd")) == 2
    assert len(records.load(method=["kd", "ie-ft"], seed=0)) == 2
    assert len(records.load(preset="class")) == 0


def test_no_records_are_an_empty_frame_with_all_columns(runs):
    frame = records.load()
    assert (
        len(frame) == 0
        and set(frame.columns) == set(columns())
        and len(records.load(preset="class")) == 0
    )


def test_an_autoencoder_has_no_error(runs):
    metric = records.Metric(epoch=3, test_error=None, test_loss=0.5)
    record = made_up(tiny("factor-ae")).model_copy(
        update={"metrics": {"last": metric, "val_selected": None, "best_on_test": None}}
    )
    record.save()
    row = records.load().iloc[0]
    assert pd.isna(row["last"]) and pd.isna(row["val_selected_epoch"]) and row["last_loss"] == 0.5


def test_history_has_a_row_for_every_run_and_epoch(saved):
    frame = records.load(method="kd")
    curves = records.history(frame)
    assert list(curves["epoch"]) == [1, 2, 3] * 2 and list(curves["seed"]) == [0] * 3 + [1] * 3
    assert set(curves["path"]) == set(frame["path"]) and list(curves["loss"][:3]) == [
        1,
        0.5,
        0.3333333,
    ]
    assert records.history(frame[:0]).empty


# ---------------------------------------------------------------------- what is no record


def edited(content: bytes, change) -> bytes:
    data = json.loads(content)
    change(data)
    return json.dumps(data).encode()


BAD = {
    "truncated": lambda content: content[:100],
    "empty": lambda content: b"",
    "not text": lambda content: b"\xff\xfe\x00",
    "a list": lambda content: b"[1, 2]",
    "another schema": lambda content: edited(content, lambda data: data.update(schema=99)),
    "no schema": lambda content: edited(content, lambda data: data.pop("schema")),
    "a missing key": lambda content: edited(content, lambda data: data.pop("metrics")),
    "an unknown key": lambda content: edited(content, lambda data: data.update(comment="nice")),
    "an edited configuration": lambda content: edited(
        content, lambda data: data["config"].update(lr=0.3)
    ),
    "a bad configuration": lambda content: edited(
        content, lambda data: data["config"].update(method="magic")
    ),
    "an edited hash": lambda content: edited(content, lambda data: data.update(hash="0" * 12)),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_no_record_is_refused_by_name(saved, kind):
    path = records.record_path(saved[0].config)
    path.write_bytes(BAD[kind](path.read_bytes()))
    for read in (lambda: records.read(path), lambda: records.find(saved[0].config), records.load):
        with pytest.raises(store.StoreError) as error:
            read()
        assert str(path) in str(error.value) and "Restore it from git, or delete it" in str(
            error.value
        )


def test_another_run_at_this_path_is_refused(saved):
    records.record_path(saved[1].config).replace(records.record_path(saved[0].config))
    with pytest.raises(store.StoreError, match="holds another run"):
        records.find(saved[0].config)


@pytest.mark.parametrize("place", ["seed10.json", "../other/seed0.json"])
def test_a_copy_at_another_place_does_not_count_twice(saved, place):
    path = records.record_path(saved[0].config)
    copy = path.parent / place
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(path.read_bytes())
    with pytest.raises(store.StoreError, match=r"is the record of .*seed0\.json\. Remove the copy"):
        records.load()


STRAYS = [
    ".ipynb_checkpoints/seed0-checkpoint.json",
    "._seed0.json",
    ".seed0.json",
    "seed0 copy.json",
    "seed0 (1).json",
    "seed0-PC7.json",
    "seed0.sync-conflict-20261125-101010-ABCDEFG.json",
    "seed0 (Ann's conflicted copy 2026-11-25).json",
    "seed0~.json",
    "seed00.json",
    ".stversions/seed0~20261125-101010.json",
    "../supervised copy/seed0.json",
    ".git/seed0.json",
    "notes.json",
    "._seed0.analysis.json",
]


def littered(path: Path, strays=STRAYS) -> list[Path]:
    """Copies of a record where other programs leave them."""
    made = [path.parent / stray for stray in strays]
    for stray in made:
        stray.parent.mkdir(exist_ok=True)
        stray.write_bytes(
            path.read_bytes()
            if "._" not in stray.name
            else b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X"
        )
    return made


def test_what_other_programs_leave_in_a_store_is_passed_over_and_named_once(saved, capsys):
    littered(records.record_path(saved[0].config))
    assert len(records.load()) == len(records.files(store.records_folder())) == 5
    said = capsys.readouterr().err
    assert said.startswith("iekd: passed over, not the file of a run") and said.count("\n") == 1
    assert f"and {len(STRAYS) - 3} more" in said
    assert records.orphans(saved[0]) == [] and capsys.readouterr().err == ""


@given(
    st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20
    )
)
@settings(max_examples=60, deadline=None)
def test_of_the_names_beside_a_record_only_seeds_are_places(name):
    """A file name is that of a run exactly if a configuration leads to it."""
    folder, end = tiny().path.rpartition("/")[0], ".json"
    seeds = [f"seed{k}" for k in (re.findall("^seed([0-9]+)$", name) or [0])]
    assert records.is_place(f"{folder}/{name}{end}", end) == (
        name in seeds and name == f"seed{int(name[4:])}"
    )
    assert not records.is_place(f"{folder}/.{name}/seed0{end}", end) and not records.is_place(
        f"../{folder}/{name}{end}", end
    )


@pytest.mark.parametrize("folder", ["runs/records", "runs/again/records"])
def test_committed_records_have_the_paths_and_hashes_that_they_always_had(folder):
    root = Path(__file__).parents[2] / folder
    # live runs are not committed: those of the book's own cells may be of a reader's method
    places = records.files(root)
    found = [path for path in places if path.relative_to(root).parts[0] != "smoke"]
    committed = {str(path.relative_to(root)): json.loads(path.read_text()) for path in found}
    finished = {"finished": True}  # some have a loss that the library does not have
    configs = {
        path: RunConfig.model_validate(data["config"], context=finished)
        for path, data in committed.items()
    }
    assert len(found) > 40 and {path: data["hash"] for path, data in committed.items()} == {
        p: c.hash for p, c in configs.items()
    }
    assert [f"{config.path}.json" for config in configs.values()] == list(configs)
    for record in (
        records.read(path)
        for path, config in zip(found, configs.values(), strict=True)
        if config.is_mutual
    ):
        partner = root / f"{record.config.partner().path}.json"
        if partner.exists():
            assert finish.swap_curves(record.history) == records.read(partner).history


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            {"presett": "class"},
            r"presett: the records have no such column \(did you mean 'preset'\?\)",
        ),
        (
            {"preset": "clas"},
            "preset: 'clas' is not usable; choose one of smoke, class, desk, paper",
        ),
        ({"method": ["kd", "kdd"]}, "method: 'kdd' is not usable"),
        ({"dataset": None}, "dataset: None is not usable"),
        ({"explore": "CKA"}, "explore: 'CKA' is not usable; choose one of none"),
        ({"turns": ("batch", "step")}, "turns: 'step' is not usable; choose one of batch, epoch"),
    ],
)
def test_what_no_record_can_have_is_refused(saved, where, message):
    with pytest.raises(ConfigError, match=message):
        records.load(**where)


def test_a_folder_may_be_named_by_its_text(saved):
    assert len(records.load(str(store.records_folder()))) == 5


# ---------------------------------------------------------------------- long variants

KNOBS = {
    "batch_size": st.integers(1, 10**30),
    "lr": st.floats(1e-12, 1e12),
    "schedule": st.sampled_from(["steps", "onecycle"]),
    "momentum": st.floats(0, 0.99),
    "weight_decay": st.floats(0, 1),
    "train_images": st.integers(0, 10**12),
    "precision": st.just("bf16"),
    "evaluate_every": st.integers(1, 10**40),
    "teacher_epochs": st.integers(1, 10**20),
    "teacher_lr": st.floats(1e-9, 1),
    "teachers": st.integers(1, 99),
    "ae_lr": st.floats(1e-9, 1),
    "factor_ratio": st.floats(1e-9, 1),
    "inherit_weight": st.floats(0, 1e9),
    "explore_weight": st.floats(0, 1e9),
    "split_ratio": st.floats(0.1, 1),
    "explore": st.sampled_from(["cka", "l2"]),
}


@given(st.fixed_dictionaries({}, optional=KNOBS), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_every_configuration_has_a_place_of_its_own(fields, seed):
    """However many fields are named: on any file system, the same folder for all seeds, and another
    one for another run.
    """
    config = RunConfig.create("smoke", method="ie-ft", seed=seed, **fields)
    assert records.is_place(f"{config.path}.json", ".json") and all(
        len(part) <= LONGEST for part in config.path.split("/")
    )
    assert config.path.rpartition("/")[0] == config.replace(seed=1).path.rpartition("/")[0]
    other = config.replace(lr=config.lr / 3)
    assert other.path != config.path
    assert (len(config.variant) <= LONGEST) == (config.path.split("/")[3] == config.variant)


def test_a_run_with_many_fields_is_saved_found_and_listed(runs):
    many = dict(
        batch_size=65,
        lr=0.11,
        schedule="steps",
        momentum=0.8,
        weight_decay=0.0001,
        train_images=130,
        validation_images=100,
        evaluate_every=2,
        teacher_epochs=1,
        teacher_lr=0.12,
        teachers=4,
        ae_epochs=1,
        ae_lr=0.13,
        factor_ratio=0.25,
        reconstruction="l1",
        decoder="conv",
        epochs=2,
        method="ie-ft",
        inherit="l2",
        explore="cka",
        inherit_weight=51,
        explore_weight=49,
        split="halves",
        split_ratio=0.4,
    )
    configs = [RunConfig.create("smoke", **many, seed=seed) for seed in (0, 1)]
    configs.append(configs[0].replace(split_ratio=0.3))
    assert len(configs[0].variant) > 255
    for config in configs:
        made_up(config).save()
    frame = records.load()
    assert (
        sorted(frame["path"]) == sorted(config.path for config in configs)
        and frame["variant"].nunique() == 2
    )
    assert (
        shlex.split(configs[0].command())[-1] == "0"
        and records.find(configs[2]).config == configs[2]
    )


def test_provenance():
    facts = records.provenance()
    assert set(facts) == {"git", "versions", "device"} and set(facts["versions"]) == {
        "iekd",
        "python",
        "torch",
        "torchvision",
    }
    assert set(facts["device"]) == {"name", "type", "threads"} and set(facts["git"]) == {
        "commit",
        "dirty",
    }
    if (Path(__file__).parents[2] / ".git").exists() and shutil.which("git"):
        assert re.fullmatch("[0-9a-f]{40}", facts["git"]["commit"]) and isinstance(
            facts["git"]["dirty"], bool
        )


@pytest.fixture
def repository(tmp_path):
    """repository(*words) -> what git says in somebody's own repository."""

    def git(*words: str) -> str:
        command = [
            "git",
            "-C",
            str(tmp_path / "thesis"),
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b.c",
            *words,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    (tmp_path / "thesis").mkdir()
    git("init")
    (tmp_path / "thesis" / "thesis.tex").write_text("words")
    (tmp_path / "thesis" / ".gitignore").write_text(".venv/\n")
    git("add", ".")
    git("commit", "-m", "words")
    return git


def source_at(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "records.py").write_text("x = 1")
    return folder / "records.py"


NOTHING = {"commit": None, "dirty": None}


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
@pytest.mark.parametrize(
    "place",
    [
        ".venv/lib/python3.11/site-packages/iekd",
        "iekd",
        "vendor/iekd",
        "../elsewhere/iekd",
        ".git/iekd",
    ],
)
def test_a_repository_that_does_not_hold_the_source_is_not_its_provenance(
    repository, tmp_path, place
):
    assert commit_of(source_at(tmp_path / "thesis" / place)) == NOTHING


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_repository_that_holds_the_source_is(repository, tmp_path, monkeypatch):
    source = source_at(tmp_path / "thesis" / "iekd")
    repository("add", ".")
    assert commit_of(source)["dirty"]  # not committed yet
    repository("commit", "-m", "a copy of iekd")
    known = {"commit": repository("rev-parse", "HEAD"), "dirty": False}
    assert commit_of(source) == known
    (tmp_path / "thesis" / "thesis.tex").write_text("more words")  # of something else
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a hook
    assert commit_of(source) == known
    source.write_text("x = 2")
    assert commit_of(source) == {**known, "dirty": True}
    monkeypatch.setenv("PATH", "/nowhere")
    assert commit_of(source) == NOTHING


# ------------------------------------------------------------------ a store beside the evidence


@pytest.fixture
def evidence(tmp_path, monkeypatch):
    """The records of a checkout: a run at class scale, and one of somebody's live cells."""
    folder = tmp_path / "checkout" / "records"
    monkeypatch.setattr(store, "EVIDENCE", folder)
    own = os.environ["IEKD_RUNS"]
    monkeypatch.setenv("IEKD_RUNS", str(folder.parent))
    for preset in ("class", "smoke"):
        made_up(RunConfig.create(preset, method="kd"), error=30).save()
    assert len(records.load()) == 2  # no store beside it
    monkeypatch.setenv("IEKD_RUNS", own)
    return folder


def test_a_store_of_one_s_own_leaves_the_evidence_in_sight(evidence):
    assert list(records.load()["path"]) == [RunConfig.create("class", method="kd").path]
    made_up(RunConfig.create("class", method="ft"), error=20).save()
    made_up(RunConfig.create("smoke", method="ft"), error=10).save()
    assert sorted(records.load()["last"]) == [10, 20, 30]
    assert sorted(records.load(preset="class")["last"]) == [20, 30]
    assert (
        len(records.history(records.load(preset="class"))) == 2 * RunConfig.create("class").epochs
    )


def test_of_a_run_of_both_the_store_s_counts(evidence):
    made_up(RunConfig.create("class", method="kd"), error=29).save()
    assert list(records.load()["last"]) == [29]
    assert records.history(records.load())["path"].nunique() == 1


def test_the_evidence_is_no_part_of_the_store(evidence):
    """What the store lacks is not finished there, and is trained."""
    assert records.find(RunConfig.create("class", method="kd")) is None
    assert records.load(store.records_folder()).empty


def test_presets_can_be_asked_for_by_several_and_a_wrong_one_is_refused(evidence):
    assert len(records.load(preset=["class", "paper"])) == 1
    with pytest.raises(ConfigError, match="preset: 'clas' is not usable"):
        records.load(preset="clas")
