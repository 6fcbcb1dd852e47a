"""Bundles: what comes home is what was sent, and nothing bad gets in."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import tarfile
import tempfile
from pathlib import Path

import pytest
from test_records import STRAYS
from tiny import made_up, tiny

from iekd import records
from iekd.analysis import metrics
from iekd.errors import ConfigError, StoreError
from iekd.records import store, transfer
from iekd.training import checkpoint, loop, runner


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but locks."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.suffix != ".lock"
    }


@pytest.fixture
def away(tmp_path, monkeypatch):
    """away('other') -> from now on the store is another machine's."""

    def away(name: str) -> Path:
        monkeypatch.setenv("IEKD_RUNS", str(tmp_path / name))
        return tmp_path / name

    return away


def begin(config, epochs: int) -> None:
    """Leave the checkpoint of a run after some epochs."""
    run = runner.make_run(config)
    history = [loop.train_epoch(config, run, epoch) for epoch in range(epochs)]
    checkpoint.save(config, {}, run, history, 1.0)


def test_what_comes_home_is_what_was_sent_and_the_second_time_nothing_changes(runs, away, tmp_path):
    file = tmp_path / "b.tar"
    runner.train(tiny("kd"), progress=False)
    begin(tiny(seed=1), 2)
    said = transfer.pack(file, [tiny("kd"), tiny(seed=1), tiny(seed=2)])
    assert said == f"{file}: 2 records, 2 weights, 1 checkpoints"
    sent = files(runs)
    home = away("home")
    merged = transfer.merge(file)
    assert merged == (5, 0, []) and files(home) == sent
    assert transfer.merge(file) == (0, 5, []) and files(home) == sent
    assert runner.load_network(tiny("kd").teacher_run())  # its weights came along
    resumed = runner.train(tiny(seed=1), progress=False)
    away("straight")
    assert resumed.weights == runner.train(tiny(seed=1), progress=False).weights


def test_without_runs_all_is_packed_and_a_grid_packs_only_its_own(tmp_path):
    for config in (tiny(), tiny("kd"), tiny("kd").teacher_run()):
        made_up(config).save()
    assert transfer.pack(tmp_path / "all.tar").endswith("3 records, 0 weights, 0 checkpoints")
    assert transfer.pack(tmp_path / "kd.tar", [tiny("kd")]).endswith(
        "2 records, 0 weights, 0 checkpoints"
    )


def test_one_content_is_one_archive(tmp_path):
    made_up(tiny()).save()
    for name in "ab":
        transfer.pack(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_damaged_weights_and_checkpoints_stay_behind(runs, tmp_path):
    runner.train(tiny(), progress=False)
    begin(tiny(seed=1), 1)
    for path in runs.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-3])
    assert transfer.pack(tmp_path / "b.tar").endswith("1 records, 0 weights, 0 checkpoints")


def test_an_archive_that_cannot_be_finished_is_not_there(tmp_path, monkeypatch):
    made_up(tiny()).save()
    file = tmp_path / "b.tar"
    transfer.pack(file)
    before = file.read_bytes()
    made_up(tiny(seed=1)).save()
    monkeypatch.setattr(
        "os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(StoreError, match="cannot write .*b.tar: No space left"):
        transfer.pack(file)
    assert file.read_bytes() == before and [p.name for p in tmp_path.glob(".b*")] == []


# ---------------------------------------------------------------------- conflicts


def test_another_result_of_the_same_run_is_refused_and_ours_stays(away, tmp_path):
    made_up(tiny(), error=10).save()
    made_up(tiny(seed=1)).save()
    transfer.pack(tmp_path / "b.tar")
    away("home")
    made_up(tiny(), error=11).save()
    merged = transfer.merge(tmp_path / "b.tar")
    assert merged.taken == 1 and len(merged.conflicts) == 1
    assert (
        f"refused: {tiny().path} has another result here (metrics differ); the one that is here "
        "stays" in str(merged)
    )
    assert records.find(tiny()).metrics["last"].test_error == 11 and records.find(tiny(seed=1))


def test_the_same_result_from_another_machine_is_no_conflict(away, tmp_path):
    made_up(tiny()).save()
    transfer.pack(tmp_path / "b.tar")
    away("home")
    made_up(tiny()).model_copy(
        update={"seconds": 2.0, "device": {"name": "slide rule", "type": "cpu", "threads": 2}}
    ).save()
    assert transfer.merge(tmp_path / "b.tar") == (0, 1, [])
    assert records.find(tiny()).device["name"] == "slide rule"


def test_a_student_of_another_teacher_is_refused(away, tmp_path):
    teacher = tiny("kd").teacher_run()
    made_up(teacher).save()
    made_up(tiny("kd")).model_copy(update={"parents": {"teacher": "0" * 64}}).save()
    transfer.pack(tmp_path / "b.tar")
    away("home")
    made_up(teacher).model_copy(update={"weights": "1" * 64}).save()
    merged = transfer.merge(tmp_path / "b.tar")
    assert merged.taken == 0 and len(merged.conflicts) == 2 and not records.find(tiny("kd"))
    assert (
        f"{tiny('kd').path} was trained with another teacher than the one here"
        in merged.conflicts[1]
    )


@pytest.mark.parametrize(("here", "stays"), [(1, 2), (2, 2), (3, 3)])
def test_the_checkpoint_that_came_further_stays(away, tmp_path, here, stays):
    begin(tiny(epochs=4), 2)
    transfer.pack(tmp_path / "b.tar")
    away("home")
    begin(tiny(epochs=4), here)
    transfer.merge(tmp_path / "b.tar")
    (found,) = store.cache_folder().rglob("*.checkpoint.safetensors")
    assert len(json.loads(store.load_tensors(found)[1]["history"])) == stays


def test_no_checkpoint_comes_back_after_the_run_is_finished(away, tmp_path):
    begin(tiny(), 2)
    transfer.pack(tmp_path / "b.tar")
    away("home")
    made_up(tiny()).save()
    assert transfer.merge(tmp_path / "b.tar") == (0, 1, [])


# ---------------------------------------------------------------------- bad archives


@pytest.fixture(scope="module")
def archive():
    """The bytes of a good archive: one record with its weights."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("IEKD_RUNS", folder)
        runner.train(tiny(), progress=False)
        transfer.pack(Path(folder) / "b.tar")
        return (Path(folder) / "b.tar").read_bytes()


def refused(runs: Path, file: Path, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        transfer.merge(file)
    assert files(runs) == {} and not list(runs.rglob(".merge*"))


@pytest.mark.parametrize("part", [0, 0.01, 0.3, 0.6, 0.95, 0.999])
def test_an_archive_that_was_cut_off_is_refused(runs, tmp_path, archive, part):
    file = tmp_path / "b.tar"
    file.write_bytes(archive[: int(part * archive.rindex(b"}"))])
    refused(runs, file, "b.tar is damaged .*Nothing was taken in; copy it again")


@pytest.mark.parametrize("what", [b'"seed": 0', b"student.", b"smoke/digits"])
def test_an_altered_archive_is_refused(runs, tmp_path, archive, what):
    at = archive.index(what)
    file = tmp_path / "b.tar"
    file.write_bytes(archive[:at] + bytes([archive[at] ^ 1]) + archive[at + 1 :])
    refused(runs, file, "b.tar is (damaged|refused)")


def test_every_flipped_bit_of_the_content_is_noticed(runs, tmp_path, archive):
    file = tmp_path / "b.tar"
    with tarfile.open(fileobj=io.BytesIO(archive)) as good:
        members = [member for member in good if member.name != transfer.MANIFEST]
    assert len(members) == 2
    for member in members:
        for at in range(member.offset_data, member.offset_data + member.size, member.size // 40):
            file.write_bytes(
                archive[:at] + bytes([archive[at] ^ 1]) + archive[at + 1 :]
            )  # a digit stays a digit
            refused(runs, file, "is damaged")


def test_a_flipped_bit_elsewhere_is_noticed_or_means_nothing(away, tmp_path, archive):
    file = tmp_path / "b.tar"
    with tarfile.open(fileobj=io.BytesIO(archive)) as good:
        members = [member for member in good if member.name != transfer.MANIFEST]
        sent = {member.name: good.extractfile(member).read() for member in members}
    harmless = 0
    for at in range(0, len(archive) - 20 * 512, 199):
        if any(member.offset_data <= at < member.offset_data + member.size for member in members):
            continue
        home = away(str(at))
        file.write_bytes(archive[:at] + bytes([archive[at] ^ 64]) + archive[at + 1 :])
        try:
            transfer.merge(file)
        except StoreError:
            assert files(home) == {}
        else:
            harmless += 1
            assert files(home) == sent
    assert harmless > 0  # in the padding


@pytest.mark.parametrize(
    "name",
    [
        "../out.json",
        "records/../../out.json",
        "/tmp/out.json",
        "records/a/../b.json",
        "cache/x/seed0.lock",
        "records/x/seed0.py",
        "records//seed0.json",
        "cache\\..\\a.safetensors",
        "setup.py",
        "records/x/seed0 (1).json",
        "results.tar",
    ],
)
def test_a_member_that_is_none_of_ours_is_refused(runs, tmp_path, name):
    file = tmp_path / "b.tar"
    forge(file, {name: b"{}"})
    assert not transfer._is_member(name)
    refused(runs, file, "is not something that iekd packs")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("stray", STRAYS)
def test_a_bundle_never_holds_what_merge_refuses(runs, away, tmp_path, stray):
    """What lies beside records and checkpoints, wherever it comes from, is left out; a record at
    another place too.
    """
    made_up(tiny()).save()
    begin(tiny(seed=1), 1)
    for path, end in (
        (records.record_path(tiny()), ".json"),
        (checkpoint.path_of(tiny(seed=1)), transfer.CHECKPOINT),
    ):
        copy = path.parent / stray.replace(".json", end)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    misplaced = records.record_path(tiny(seed=7))
    misplaced.write_bytes(records.record_path(tiny()).read_bytes())
    assert transfer.pack(tmp_path / "b.tar").endswith("1 records, 0 weights, 1 checkpoints")
    away("home")
    assert transfer.merge(tmp_path / "b.tar") == (2, 0, [])


def test_what_a_desktop_adds_to_an_archive_or_an_older_iekd_packed_is_passed_over(
    runs, tmp_path, archive, capsys
):
    path, extra = f"records/{tiny().path}", {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as good:
        members = {
            member.name: good.extractfile(member).read()
            for member in good
            if member.name != transfer.MANIFEST
        }
    for name in (
        "._records",
        ".DS_Store",
        path.replace("/seed0", "/._seed0.json"),
        "records/.ipynb_checkpoints/seed0.json",
        "cache/.merge-x/records/seed0.json",
        "records/.json",
        "cache/..x/seed0.safetensors",
    ):
        extra[name] = b"nothing of ours"
    forge(tmp_path / "b.tar", members | extra)
    assert transfer.merge(tmp_path / "b.tar") == (2, 0, []) and set(files(runs)) == set(members)
    assert capsys.readouterr().err.count("passed over") == 1


@pytest.mark.parametrize("name", ["b.tar", "b.tar.gz", "b"])
@pytest.mark.parametrize("packed", [gzip.compress, bz2.compress, lzma.compress])
def test_an_archive_that_was_compressed_on_the_way_is_read(runs, tmp_path, archive, packed, name):
    (tmp_path / name).write_bytes(packed(archive))
    assert transfer.merge(tmp_path / name) == (2, 0, [])


@pytest.mark.parametrize("part", [0.1, 0.5, 0.97])
@pytest.mark.parametrize("packed", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_archive_that_was_cut_off_or_altered_is_refused(
    runs, tmp_path, archive, packed, part
):
    content = packed(archive)
    at = int(part * len(content))
    for bad in (content[:at], content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]):
        (tmp_path / "b.tar").write_bytes(bad)
        refused(runs, tmp_path / "b.tar", "b.tar is (damaged .*copy it again|refused)")


@pytest.mark.parametrize("made", [b"PK\x03\x04", b"\n<!DOCTYPE html><title>Sign in"])
def test_what_is_another_kind_of_file_is_said_to_be_no_archive(runs, tmp_path, archive, made):
    (tmp_path / "b.tar").write_bytes(made + archive)
    refused(runs, tmp_path / "b.tar", "b.tar is damaged or not an archive of `iekd bundle`")


@pytest.mark.parametrize("limit", [-1, float("nan"), -0.001, -float("inf")])
def test_a_limit_that_is_none_is_refused(tmp_path, limit):
    with pytest.raises(ConfigError, match="limit: .* is not usable; choose 0"):
        transfer.pack(tmp_path / "b.tar", limit=limit)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(runs, tmp_path, kind):
    file = tmp_path / "b.tar"
    with tarfile.open(file, "w") as archive:
        member = tarfile.TarInfo("records/a.json")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    refused(runs, file, "is not something that iekd packs")


def test_a_record_at_the_place_of_another_is_refused(runs, tmp_path):
    made_up(tiny()).save()
    record = files(runs)[f"records/{tiny().path}.json"]
    records.record_path(tiny()).unlink()
    forge(tmp_path / "b.tar", {f"records/{tiny(seed=1).path}.json": record})
    refused(runs, tmp_path / "b.tar", "in the archive is the record of")


@pytest.mark.parametrize("file", ["none.tar", "text.tar"])
def test_what_is_no_archive_is_refused(runs, tmp_path, file):
    (tmp_path / "text.tar").write_text("no archive")
    refused(runs, tmp_path / file, "cannot be read: No such file|is damaged")


def forge(file: Path, members: dict[str, bytes]) -> None:
    """An archive with these members and a right list of them."""
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    with tarfile.open(file, "w") as archive:
        for name, data in {
            **members,
            transfer.MANIFEST: json.dumps({"files": digests}).encode(),
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def ended(runs):
    """What a short window leaves: a run with its analysis and two parents finished, a run begun."""
    runner.train(tiny("ft"), progress=False)
    metrics.analyse(tiny("ft"))
    begin(tiny(seed=1), 1)
    return [tiny("ft"), tiny(seed=1)]


def sizes(configs) -> dict[str, int]:
    """Bytes of what an archive would hold of their tensors, by name."""
    found = [source for config in configs for source in transfer._sources(config.path)]
    return {name: path.stat().st_size for name, path in found if name.startswith("cache/")}


def test_records_travel_by_themselves_and_a_lost_archive_of_weights_costs_none_of_them(
    runs, away, tmp_path, ended
):
    first, second = tmp_path / "records.tar", tmp_path / "weights.tar"
    assert transfer.pack(first, ended, limit=0).endswith(
        "3 records, 0 weights, 0 checkpoints; 4 weights and checkpoints did not fit"
    )
    assert transfer.pack(second, ended, limit=1e6).endswith("3 records, 3 weights, 1 checkpoints")
    sent = files(runs)
    home = away("home")
    assert transfer.merge(first) == (4, 0, [])
    assert files(home) == {
        name: content for name, content in sent.items() if name.startswith("records/")
    }
    assert transfer.merge(second) == (4, 4, []) and files(home) == sent  # had it not been lost
    assert transfer.merge(first) == transfer.merge(first) == (0, 4, [])


def test_within_a_limit_comes_first_what_others_need_then_what_is_begun(tmp_path, ended):
    needed = sizes(tiny("ft").parents().values())
    begun, other = sizes([tiny(seed=1)]), sizes([tiny("ft")])

    def packed(limit):
        transfer.pack(tmp_path / "b.tar", ended, limit)
        with tarfile.open(tmp_path / "b.tar") as archive:
            return {name for name in archive.getnames() if name.startswith("cache/")}

    total = sum(needed.values())
    assert packed(min(needed.values())) == {min(needed, key=needed.get)}
    assert packed(total) == packed(total + sum(begun.values()) - 1) - set(other) == set(needed)
    assert packed(total + sum(begun.values())) == {*needed, *begun}
    assert packed(total + sum(begun.values()) + sum(other.values())) == {*needed, *begun, *other}


def test_a_checkpoint_whose_run_ends_meanwhile_stays_behind(away, tmp_path, monkeypatch):
    made_up(tiny()).save()
    begin(tiny(seed=1), 1)
    add = transfer._add

    def as_it_ends(*arguments):
        for checkpoint_file in store.cache_folder().rglob("*.checkpoint.safetensors"):
            checkpoint_file.unlink()
        add(*arguments)

    monkeypatch.setattr(transfer, "_add", as_it_ends)
    assert transfer.pack(tmp_path / "b.tar").endswith("1 records, 0 weights, 0 checkpoints")
    away("home")
    assert transfer.merge(tmp_path / "b.tar") == (1, 0, [])
