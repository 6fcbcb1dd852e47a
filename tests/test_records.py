"""Records: what the frame holds, and that nothing but a true record gets into it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from tiny import made_up, tiny

from iekd import records, store
from iekd.config import RunConfig


@pytest.fixture
def saved(runs):
    """Five records of made-up runs."""
    made = [made_up(tiny(method, seed=seed), 10 + seed) for method in ("supervised", "kd") for seed in (0, 1)]
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
    wanted = {"schema", "config", "hash", "parents", "weights", "git", "versions", "device", "started", "seconds", "images_per_second"}
    assert set(data) == wanted | {"data", "loss_digest", "history", "metrics"} and set(data["metrics"]) == {
        "last",
        "val_selected",
        "best_on_test",
    }
    assert set(data["config"]) == set(RunConfig.model_fields)
    text = records.record_path(record.config).read_text()
    assert json.loads(text)["hash"] == record.hash and len(text) < 5000


def test_columns_of_the_frame(saved):
    frame = records.load()
    assert len(frame) == 5 and set(frame.columns) == set(records._columns())
    assert set(RunConfig.model_fields) <= set(frame.columns)
    row = frame[frame["path"] == saved[1].config.path].iloc[0]
    assert (row["last"], row["last_epoch"], row["last_validation"], row["seed"]) == (11.0, 3, 12.0, 1)
    assert (row["variant"], row["pair"], row["hash"]) == (saved[1].config.variant, "resnet8x0.25", saved[1].hash)
    assert row["command"] == saved[1].config.command() and row["device"] == "abacus" and row["threads"] == 1
    assert list(frame["path"]) == sorted(frame["path"])


def test_rows_can_be_chosen(saved):
    assert len(records.load(method="kd")) == 2
    assert len(records.load(method=["kd", "ie-ft"], seed=0)) == 2
    assert len(records.load(preset="class")) == 0


def test_no_records_are_an_empty_frame_with_all_columns(runs):
    frame = records.load()
    assert len(frame) == 0 and set(frame.columns) == set(records._columns()) and len(records.load(preset="class")) == 0


def test_an_autoencoder_has_no_error(runs):
    metric = records.Metric(epoch=3, test_error=None, test_loss=0.5)
    record = made_up(tiny("factor-ae")).model_copy(update={"metrics": {"last": metric, "val_selected": None, "best_on_test": None}})
    record.save()
    row = records.load().iloc[0]
    assert pd.isna(row["last"]) and pd.isna(row["val_selected_epoch"]) and row["last_loss"] == 0.5


def test_history_has_a_row_for_every_run_and_epoch(saved):
    frame = records.load(method="kd")
    curves = records.history(frame)
    assert list(curves["epoch"]) == [1, 2, 3] * 2 and list(curves["seed"]) == [0] * 3 + [1] * 3
    assert set(curves["path"]) == set(frame["path"]) and list(curves["loss"][:3]) == [1, 0.5, 0.3333333]
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
    "an edited configuration": lambda content: edited(content, lambda data: data["config"].update(lr=0.3)),
    "a bad configuration": lambda content: edited(content, lambda data: data["config"].update(method="magic")),
    "an edited hash": lambda content: edited(content, lambda data: data.update(hash="0" * 12)),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_no_record_is_refused_by_name(saved, kind):
    path = records.record_path(saved[0].config)
    path.write_bytes(BAD[kind](path.read_bytes()))
    for read in (lambda: records.read(path), lambda: records.find(saved[0].config), records.load):
        with pytest.raises(store.StoreError) as error:
            read()
        assert str(path) in str(error.value) and "Restore it from git, or delete it" in str(error.value)


def test_another_run_at_this_path_is_refused(saved):
    records.record_path(saved[1].config).replace(records.record_path(saved[0].config))
    with pytest.raises(store.StoreError, match="holds another run"):
        records.find(saved[0].config)


@pytest.mark.parametrize("place", ["seed0 copy.json", "../other/seed0.json"])
def test_a_copy_at_another_place_does_not_count_twice(saved, place):
    path = records.record_path(saved[0].config)
    copy = path.parent / place
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(path.read_bytes())
    with pytest.raises(store.StoreError, match=r"is the record of .*seed0\.json\. Remove the copy"):
        records.load()


def test_provenance():
    facts = records.provenance()
    assert set(facts) == {"git", "versions", "device"} and set(facts["versions"]) == {"iekd", "python", "torch", "torchvision"}
    assert set(facts["device"]) == {"name", "type", "threads"} and set(facts["git"]) == {"commit", "dirty"}
    if (Path(__file__).parents[1] / ".git").exists() and shutil.which("git"):
        assert re.fullmatch("[0-9a-f]{40}", facts["git"]["commit"]) and isinstance(facts["git"]["dirty"], bool)
