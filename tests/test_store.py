"""A file is whole or not there, and a tensor file that was damaged is noticed."""

from __future__ import annotations

import errno
import os
import pickle
import resource

import pytest
import torch
from tiny import start

from iekd import store
from iekd.store import StoreError


@pytest.fixture
def tensors():
    return {"weight": torch.randn(8, 3, 3, 3), "steps": torch.tensor(7), "empty": torch.zeros(0, 2), "half": torch.ones(3).bfloat16()}


def test_what_is_written_is_read(tmp_path, tensors):
    path = tmp_path / "new" / "folder" / "w.safetensors"
    digest = store.save_tensors(path, tensors, {"hash": "abc"})
    found, metadata = store.load_tensors(path)
    assert found.keys() == tensors.keys() and all(torch.equal(found[k], tensors[k]) for k in tensors)
    assert metadata["hash"] == "abc" and digest == metadata["checksum"] == store.stored_checksum(path) == store.checksum(found)


def test_memory_format_is_no_content(tensors):
    other = {**tensors, "weight": tensors["weight"].contiguous(memory_format=torch.channels_last)}
    assert store.checksum(other) == store.checksum(tensors)


@pytest.mark.parametrize("change", ["value", "name", "shape", "type"])
def test_the_checksum_sees_every_change(tensors, change):
    weight = tensors["weight"]
    changed = {"value": weight + 1, "name": weight, "shape": weight.flatten(), "type": weight.view(torch.int32)}[change]
    other = {k: v for k, v in tensors.items() if k != "weight"} | {"kernel" if change == "name" else "weight": changed}
    assert store.checksum(other) != store.checksum(tensors)


def test_the_home_folder_may_be_named_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IEKD_RUNS", "~/x")
    assert store.runs_folder() == tmp_path / "x"


# ---------------------------------------------------------------------- writing


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a.json"
    for content in (b"old", b"new"):
        store.write_atomic(path, content)
        assert path.read_bytes() == content and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, where):
    path = tmp_path / "a.json"
    store.write_atomic(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, where, full)
    with pytest.raises(StoreError, match=r"cannot write .*a\.json: No space left on device.*same command again"):
        store.write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    store.write_atomic(path, b"old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def write_with_little_space(path):
    """Exit status 0 if a file beyond the limit is refused as it should be."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        store.save_tensors(path, {"w": torch.zeros(1000)})
    except StoreError as error:
        return 0 if "cannot write" in str(error) and path.name in str(error) else 2
    return 1


def test_a_really_full_disk(tmp_path):
    process = start(write_with_little_space, tmp_path, tmp_path / "w.safetensors")
    process.join(600)
    assert process.exitcode == 0 and not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        store.write_atomic(tmp_path / "runs" / "a.json", b"")


# ---------------------------------------------------------------------- reading


def damage_truncate(content: bytes) -> bytes:
    return content[:-5]


def damage_header(content: bytes) -> bytes:
    return content[:20]


def damage_flip(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


def damage_empty(content: bytes) -> bytes:
    return b""


def damage_pickle(content: bytes) -> bytes:
    return pickle.dumps({"weight": [1.0]})


class Bomb:
    """Unpickled, it would leave a trace."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


def damage_bomb(content: bytes) -> bytes:
    return pickle.dumps(Bomb())


DAMAGES = [damage_truncate, damage_header, damage_flip, damage_empty, damage_pickle, damage_bomb]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_name(tmp_path, tensors, damage, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.safetensors"
    store.save_tensors(path, tensors)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreError, match=r"w\.safetensors (cannot be read|is damaged).*Delete it"):
        store.load_tensors(path)
    assert not (tmp_path / "exploded").exists()


def test_a_missing_file_and_one_without_checksum_are_refused(tmp_path, tensors):
    from safetensors.torch import save_file

    with pytest.raises(StoreError, match=r"none\.safetensors cannot be read"):
        store.load_tensors(tmp_path / "none.safetensors")
    assert store.stored_checksum(tmp_path / "none.safetensors") is None
    save_file(tensors, tmp_path / "foreign.safetensors")
    with pytest.raises(StoreError, match="does not match its checksum"):
        store.load_tensors(tmp_path / "foreign.safetensors")


def test_the_runs_folder_can_be_named(tmp_path, monkeypatch):
    monkeypatch.setenv("IEKD_RUNS", str(tmp_path / "elsewhere"))
    assert store.records_folder() == tmp_path / "elsewhere" / "records" and store.cache_folder().parent == tmp_path / "elsewhere"
    monkeypatch.delenv("IEKD_RUNS")
    assert store.runs_folder().parts[-1] == "runs"
