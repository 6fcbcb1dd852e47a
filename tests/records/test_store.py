"""A file is whole or not there, and a tensor file that was damaged is noticed."""

import errno
import fcntl
import os
import pickle
import resource

import pytest
import torch
from tiny import made_up, start, tiny

from iekd import records
from iekd.errors import StoreError
from iekd.records import store, transfer
from iekd.sweeps import sweep
from iekd.training import checkpoint, locks, runner


@pytest.fixture
def tensors():
    return {
        "weight": torch.randn(8, 3, 3, 3),
        "steps": torch.tensor(7),
        "empty": torch.zeros(0, 2),
        "half": torch.ones(3).bfloat16(),
    }


def test_what_is_written_is_read(tmp_path, tensors):
    path = tmp_path / "new" / "folder" / "w.safetensors"
    digest = store.save_tensors(path, tensors, {"hash": "abc"})
    found, metadata = store.load_tensors(path)
    assert found.keys() == tensors.keys() and all(
        torch.equal(found[k], tensors[k]) for k in tensors
    )
    assert metadata["hash"] == "abc" and digest == metadata["checksum"] == store.stored_checksum(
        path
    ) == store.checksum(found)


def test_memory_format_is_no_content(tensors):
    other = {**tensors, "weight": tensors["weight"].contiguous(memory_format=torch.channels_last)}
    assert store.checksum(other) == store.checksum(tensors)


@pytest.mark.parametrize("change", ["value", "name", "shape", "type"])
def test_the_checksum_sees_every_change(tensors, change):
    weight = tensors["weight"]
    changed = {
        "value": weight + 1,
        "name": weight,
        "shape": weight.flatten(),
        "type": weight.view(torch.int32),
    }[change]
    other = {k: v for k, v in tensors.items() if k != "weight"} | {
        "kernel" if change == "name" else "weight": changed
    }
    assert store.checksum(other) != store.checksum(tensors)


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("s3://bucket/runs", "is an address"),
        ("gs://b", "is an address"),
        ("file:///x/y", "is an address"),
        ("s3:/bucket/runs", "is an address"),
        ("ann@host.edu:/scratch", "is an address"),
        ("abfs+ssl://a@b/c", "is an address"),
        ('"/x/y"', "has quotation marks"),
        ("'/x/y'", "has quotation marks"),
        ("/x/y'", "has quotation marks"),
        ("/x/y\r", "ends with a space"),
        (" /x/y", "begins or ends"),
        (" ", "begins or ends"),
        ("/x/y\n", "begins or ends"),
        ("$SCRATCH/runs", "has a variable"),
        ("/x/${USER}/runs", "has a variable"),
        ("%USERPROFILE%/runs", "has a variable"),
        ("~nobody-of-this-name/runs", "names the home of an unknown user"),
    ],
)
def test_what_cannot_be_a_folder_is_refused_and_made_nowhere(tmp_path, monkeypatch, named, why):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IEKD_RUNS", named)
    for use in (
        store.runs_folder,
        records.load,
        lambda: runner.train(tiny()),
        lambda: sweep.sweep([tiny()]),
    ):
        with pytest.raises(StoreError, match=f"IEKD_RUNS: .*{why}"):
            use()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "named",
    [
        "/x/John's runs",
        "C:/Users/x/runs",
        "rel/x",
        "/x/a b",
        "/x/50% of it",
        "/x/a$",
        "x:y",
        "/über/x",
    ],
)
def test_what_can_be_a_folder_is_one(monkeypatch, named):
    monkeypatch.setenv("IEKD_RUNS", named)
    assert str(store.runs_folder()) == named


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
    with pytest.raises(
        StoreError, match=r"cannot write .*a\.json: No space left on device.*same command again"
    ):
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


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EDQUOT, "Free some space"),
        (errno.EACCES, "Make its folder writable"),
        (errno.EROFS, "Make its folder writable"),
        (errno.EISDIR, "It is a folder: name a file in it"),
        (errno.EFBIG, "Free some space"),
    ],
)
def test_only_what_belongs_to_a_training_promises_to_go_on_from_a_checkpoint(
    runs, tmp_path, monkeypatch, number, words
):
    monkeypatch.setattr(
        os, "replace", lambda *_: (_ for _ in ()).throw(OSError(number, os.strerror(number)))
    )
    for path, end in (
        (tmp_path / "b.tar", "again."),
        (runs / "cache" / "x", "again: it continues from the last checkpoint."),
    ):
        with pytest.raises(StoreError, match=f"cannot write .*{words}.*same command {end}$"):
            store.write_atomic(path, b"")


def test_a_bundle_in_the_place_of_a_folder(tmp_path):
    with pytest.raises(StoreError, match="It is a folder: name a file in it"):
        store.check_writable(tmp_path)


# ---------------------------------------------------------------------- what is out of reach


@pytest.fixture
def forbidden(runs):
    """forbidden(folder) -> from now on nobody may look into it."""
    runner.check_pair(
        tiny()
    )  # it imports parts of torch, for which another user may not have the rights
    closed = []

    def close(folder):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0)
        closed.append(folder)
        if os.getuid() == 0:
            runs.parent.parent.chmod(0o755)  # pytest's own are private
            runs.parent.chmod(0o755)
            os.seteuid(65534)

    yield close
    os.seteuid(os.getuid())
    for folder in closed:
        folder.chmod(0o755)


USES = {
    "train": lambda: runner.train(tiny(), progress=False),
    "pack of runs": lambda: runner.train_pack([tiny(), tiny(seed=1)], progress=False),
    "find": lambda: records.find(tiny()),
    "table": records.load,
    "weights": lambda: records.weights_at_hand(tiny()),
    "network": lambda: runner.load_network(tiny()),
    "bundle": lambda: transfer.pack(store.runs_folder() / "b.tar"),
    "bundle of a grid": lambda: transfer.pack(store.runs_folder() / "b.tar", [tiny()]),
    "resume": lambda: checkpoint.resume(tiny(), {}, None),
    "tensors": lambda: store.load_tensors(records.weights_paths(tiny())[1]),
    "claim": lambda: locks.claim(tiny()).__enter__(),
}


@pytest.mark.parametrize("use", USES)
def test_a_store_that_one_may_not_look_into(runs, forbidden, use):
    forbidden(runs)
    with pytest.raises(
        StoreError,
        match=r"cannot (read|write) .*Permission denied\. (Have it made readable|Make its folder writable)",
    ):
        USES[use]()


@pytest.mark.parametrize("use", ["train", "find", "table", "weights", "bundle"])
def test_a_folder_of_records_that_one_may_not_look_into_is_not_an_empty_one(runs, forbidden, use):
    made_up(tiny("kd")).save()
    made_up(tiny()).save()
    forbidden(records.record_path(tiny()).parent)
    with pytest.raises(StoreError, match="cannot read .*Permission denied"):
        USES[use]()


def test_records_that_cannot_be_written_are_refused_before_the_training(runs, monkeypatch):
    (runs / "records").mkdir(parents=True)
    (runs / "records" / "smoke").write_text("a file where a folder should be")
    monkeypatch.setattr(runner, "fit", lambda *_: pytest.fail("trained"))
    with pytest.raises(StoreError, match=r"cannot write .*seed0\.json"):
        runner.train(tiny())


def test_a_sweep_of_a_store_out_of_reach_lists_its_runs(runs, forbidden):
    forbidden(runs / "records")
    outcomes = sweep.sweep([tiny(), tiny(seed=1)])
    assert [o.state for o in outcomes] == ["failed"] * 2 and "Permission denied" in outcomes[
        0
    ].reason


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
@pytest.mark.parametrize("use", ["train", "claim"])
def test_a_file_system_without_locks(runs, monkeypatch, number, use):
    def flock(fd, operation):
        if operation != fcntl.LOCK_UN:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(
        StoreError,
        match="cannot lock .*this file system has no locks .*IEKD_RUNS .* `iekd bundle` and `iekd merge`",
    ):
        USES[use]()


def test_an_older_filelock_without_flock(runs, monkeypatch):
    def acquire(self):
        raise NotImplementedError(
            "FileSystem does not appear to support flock; use SoftFileLock instead"
        )

    monkeypatch.setattr(store.FileLock, "acquire", acquire)
    with pytest.raises(StoreError, match="this file system has no locks"):
        USES["claim"]()


def test_files_without_a_byte(runs, tmp_path):
    """As a full disk or a broken synchronisation leaves them: each is told by name, with what to
    do, or made again.
    """
    weights, record = records.weights_paths(tiny())[1], records.record_path(tiny())
    made_up(tiny()).save()
    for path in (
        weights,
        records.analysis_path(tiny()),
        tmp_path / "b.tar",
        checkpoint.path_of(tiny(seed=1)),
    ):
        store.write_atomic(path, b"")
    tries = {
        lambda: store.load_tensors(weights): "cannot be read .*Delete it",
        lambda: records.load(): r"analysis.json is not a valid analysis .*Delete it",
        lambda: transfer.merge(tmp_path / "b.tar"): "is damaged .*copy it again",
    }
    for use, message in tries.items():
        with pytest.raises(StoreError, match=message):
            use()
    assert (
        runner.train(tiny(seed=1), progress=False) and not checkpoint.path_of(tiny(seed=1)).exists()
    )
    store.write_atomic(record, b"")
    for use in (
        records.load,
        lambda: runner.train(tiny()),
        lambda: transfer.pack(tmp_path / "c.tar"),
    ):
        with pytest.raises(
            StoreError, match="is not a valid record .*Restore it from git, or delete it"
        ):
            use()
    assert sweep.sweep([tiny()])[0].reason.endswith("or delete it and run it again.")


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
    assert (
        store.records_folder() == tmp_path / "elsewhere" / "records"
        and store.cache_folder().parent == tmp_path / "elsewhere"
    )
    monkeypatch.delenv("IEKD_RUNS")
    assert store.runs_folder().parts[-1] == "runs"
