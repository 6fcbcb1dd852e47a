"""Bundles: how results come home from a borrowed machine. One tar archive with records, their weights, and checkpoints of what is begun.

Members lie as in the runs folder (`records/<path>.json`, `cache/<path>.safetensors`, `cache/<path>.checkpoint.safetensors`); the last
one, `MANIFEST.json`, holds the SHA-256 of every other, so an archive that was cut off or altered is noticed before anything is taken in.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import math
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from iekd import records
from iekd.config import RunConfig, grid
from iekd.errors import ConfigError
from iekd.records import ANALYSIS, Record, store

MANIFEST = "MANIFEST.json"
CHECKPOINT = ".checkpoint.safetensors"
ENDS = {
    "records": (".json", ANALYSIS),
    "cache": (".safetensors", CHECKPOINT),
}  # what an archive holds of a run, by folder
# How archives begin that are not read here, and what else one gets in the place of an archive.
FOREIGN = {
    b"PK": "a zip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
    b"(\xb5/\xfd": "a zstd archive",
    b"<": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS",
}
RESULT = (
    "parents",
    "weights",
    "data",
    "history",
    "metrics",
)  # what two trainings of one run must agree in: not time and machine


def pack(file: Path, configs: list[RunConfig] | None = None, limit: float = math.inf) -> str:
    """Write one archive of the given runs and their parents (None = all that the store has), as far as they have come; says what is in it.

    Of a finished run the record, its analysis if there is one, and its weights if they are at hand; of a begun one the checkpoint.
    `limit`: bytes that the tensors may take. What others need comes first: weights of teachers and auto-encoders, then checkpoints, then
    other weights, the smallest of each first. Records are small and always in it. A sweep may run meanwhile.
    Raises `StoreError` if a record is damaged or the archive cannot be written.
    """
    if not limit >= 0:
        raise ConfigError(f"limit: {limit} is not usable; choose 0 (records only) or more")
    paths = list(grid.with_parents(configs)) if configs is not None else _all_paths()
    found = [source for path in paths for source in _sources(path)]
    sources, beyond = _within(found, limit, _needed(paths, configs or []))
    digests = {}
    with store.atomic(file) as output, tarfile.open(fileobj=output, mode="w") as archive:
        for name, source in sources:
            try:
                content = source.read_bytes()
            except FileNotFoundError:  # a checkpoint whose run has just been finished
                continue
            digests[name] = hashlib.sha256(content).hexdigest()
            _add(archive, name, content)
        _add(archive, MANIFEST, json.dumps({"files": digests}, indent=1).encode())
    begun = sum(name.endswith(CHECKPOINT) for name in digests)
    finished = sum(name.startswith("records/") and not name.endswith(ANALYSIS) for name in digests)
    weights = sum(name.startswith("cache/") for name in digests) - begun
    left = f"; {beyond} weights and checkpoints did not fit" if beyond else ""
    return f"{file}: {finished} records, {weights} weights, {begun} checkpoints{left}"


class Merged(NamedTuple):
    """What became of an archive."""

    taken: int  # files that are new here
    known: int  # files that were here already
    conflicts: list[str]  # one message for each record that was refused

    def __str__(self) -> str:
        return "\n".join(
            [
                *self.conflicts,
                f"{self.taken} files taken in, {self.known} known already, {len(self.conflicts)} records refused",
            ]
        )


def merge(file: Path) -> Merged:
    """Take an archive of `pack` into this store. What is here already stays as it is, so a second time changes nothing.

    A record is refused, with its weights, if the same run has another result here, or if it learned from another teacher than the one
    here. Raises `StoreError`, before anything is taken in, for an archive that is damaged or holds anything else than `pack` writes.
    """
    store.check_writable(store.cache_folder() / "merge")
    with tempfile.TemporaryDirectory(prefix=".merge-", dir=store.cache_folder()) as folder:
        _unpack(file, Path(folder))
        return _take_in(Path(folder))


# ---------------------------------------------------------------------- packing


def _all_paths() -> list[str]:
    found = [(store.records_folder(), ".json"), (store.cache_folder(), CHECKPOINT)]
    return sorted(
        {
            str(p.relative_to(folder)).removesuffix(end)
            for folder, end in found
            for p in records.files(folder, end)
        }
    )


def _needed(paths: list[str], configs: list[RunConfig]) -> set[str]:
    """The names of the weights that some of these runs needs."""
    finished = [
        record for path in paths if store.exists(record := store.records_folder() / f"{path}.json")
    ]
    known = [
        *grid.with_parents(configs).values(),
        *(records.read(record).config for record in finished),
    ]
    return {
        f"cache/{parent.path}.safetensors"
        for config in known
        for parent in config.parents().values()
    }


def _within(
    found: list[tuple[str, Path]], limit: float, needed: set[str]
) -> tuple[list[tuple[str, Path]], int]:
    """What of it an archive holds, in the same order, and how many files with tensors are too much for it."""

    def worth(name: str) -> tuple:
        return name not in needed, not name.endswith(CHECKPOINT), sizes[name], name

    sizes = {name: _size(source) for name, source in found if name.startswith("cache/")}
    chosen = set()
    for name in sorted(sizes, key=worth):
        if sizes[name] <= limit:
            chosen.add(name)
            limit -= sizes[name]
    return [(name, source) for name, source in found if name in chosen or name not in sizes], len(
        sizes
    ) - len(chosen)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # just finished, as in `pack`
        return 0


def _sources(path: str) -> Iterator[tuple[str, Path]]:
    """Member names and files of one run."""
    record, checkpoint = (
        store.records_folder() / f"{path}.json",
        store.cache_folder() / f"{path}{CHECKPOINT}",
    )
    if store.exists(record):
        found = records.read(record)
        if found.config.path != path:  # of another run: `merge` would refuse it
            records.pass_over([record])
            return
        yield f"records/{path}.json", record
        if (analysis := record.with_suffix(ANALYSIS)).exists() and records.read_analysis(
            analysis, found
        ):
            yield f"records/{path}{ANALYSIS}", analysis
        for weights in records.weights_paths(found.config):
            if _metadata(weights).get("checksum") == found.weights:
                yield f"cache/{path}.safetensors", weights
                break
    elif _metadata(checkpoint):
        yield f"cache/{path}{CHECKPOINT}", checkpoint


def _metadata(path: Path) -> dict[str, str]:
    """What a whole tensor file says of itself; nothing if it is missing or damaged."""
    try:
        return store.load_tensors(path)[1]
    except store.StoreError:
        return {}


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


# ---------------------------------------------------------------------- taking in


def _unpack(file: Path, folder: Path) -> None:
    """Every member into a folder, once all were found good."""
    try:
        with tarfile.open(file) as archive:  # packed again by gzip, bzip2 or xz on the way, or not
            members = _members(file, archive)
            listed = json.loads(archive.extractfile(MANIFEST).read())["files"]
            digests = {name: digest for name, digest in listed.items() if not _is_hidden(name)}
            if sorted([*digests, MANIFEST]) != sorted(member.name for member in members):
                raise ValueError("its files are not those of its list")
            for name, digest in digests.items():
                content = archive.extractfile(name).read()
                if hashlib.sha256(content).hexdigest() != digest:
                    raise ValueError(f"{name} does not match its checksum")
                store.write_atomic(folder / name, content)
    except DAMAGE as error:
        if getattr(error, "errno", None):  # of the disk, not of the archive
            raise store.StoreError(f"{file} cannot be read: {error.strerror}") from error
        if kind := _foreign(file):
            way = "unpack it, or fetch what it stands for, and merge that"
            raise store.StoreError(
                f"{file} is {kind} and no tar archive: {way}. Nothing was taken in."
            ) from error
        raise store.StoreError(
            f"{file} is damaged ({_first_line(error)}). Nothing was taken in; copy it again."
        ) from error


# What a damaged archive raises; gzip and bz2 have an OSError without number for it.
DAMAGE = (
    tarfile.TarError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
)


def _members(file: Path, archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """The members of an archive, without what a desktop has added. Raises `StoreError` for one that is nothing that `pack` writes."""
    members = archive.getmembers()
    hidden = [member.name for member in members if _is_hidden(member.name)]
    records.pass_over([f"{file}: {name}" for name in hidden])
    members = [member for member in members if member.name not in hidden]
    for member in members:
        if not member.isfile() or not (member.name == MANIFEST or _is_member(member.name)):
            raise store.StoreError(
                f"{file} is refused: {member.name!r} is nothing that iekd packs. Nothing was taken in."
            )
    return members


def _first_line(error: Exception) -> str:
    """Of an archive that cannot be opened, tarfile tells at length what it is not."""
    return str(error).partition("\n")[0].rstrip(":")


def _is_member(name: str) -> bool:
    folder, _, rest = name.partition("/")
    return folder in ENDS and records.is_place(rest, *ENDS[folder])


def _is_hidden(name: str) -> bool:
    """Whether a member lies in a hidden folder or is a hidden file; it is left where it is, whatever it is."""
    return any(part.startswith(".") and part.strip(".") for part in name.split("/"))


def _foreign(file: Path) -> str:
    """What a file is that is no archive of ours, as far as its first bytes tell; '' if they do not."""
    with file.open("rb") as opened:
        start = opened.read(100).lstrip()
    return next((kind for begin, kind in FOREIGN.items() if start.startswith(begin)), "")


def _take_in(folder: Path) -> Merged:
    found = _records(folder)
    files = sum(path.is_file() for path in folder.rglob("*"))
    taken, conflicts = 0, []
    for path in grid.with_parents(
        [record.config for record in found.values()]
    ):  # what becomes of a parent decides for its children
        if path not in found:
            continue
        if conflict := _conflict(found[path]):
            conflicts.append(conflict)
        else:
            taken += _take_weights(folder, found[path]) + _take_record(
                folder, found[path]
            )  # weights first: no record without
            taken += _take_analysis(folder, found[path])
    taken += sum(
        _take_checkpoint(path, folder) for path in sorted(folder.glob(f"cache/**/*{CHECKPOINT}"))
    )
    return Merged(taken, files - taken, conflicts)


def _records(folder: Path) -> dict[str, Record]:
    """The records of an archive by path, each at its place."""
    found = {}
    for path in records.files(folder / "records"):
        record = records.read(path)
        if path != folder / "records" / f"{record.config.path}.json":
            raise store.StoreError(
                f"{path.relative_to(folder)} in the archive is the record of {record.config.path}. Nothing was taken in."
            )
        found[record.config.path] = record
    return found


def _conflict(record: Record) -> str:
    """Why a record cannot be taken in; '' if it can."""
    here = records.find(record.config)
    if here and (
        differ := [name for name in RESULT if getattr(here, name) != getattr(record, name)]
    ):
        return f"refused: {record.config.path} has another result here ({', '.join(differ)} differ); the one that is here stays"
    for role, config in record.config.parents().items():
        parent = records.find(config)
        if parent and parent.weights != record.parents[role]:
            return f"refused: {record.config.path} was trained with another {role} than the one here, {config.path}"
    return ""


def _take_weights(folder: Path, record: Record) -> bool:
    source, targets = (
        folder / "cache" / f"{record.config.path}.safetensors",
        records.weights_paths(record.config),
    )
    if not source.exists() or any(
        store.stored_checksum(target) == record.weights for target in targets
    ):
        return False
    if store.load_tensors(source)[1]["checksum"] != record.weights:
        raise store.StoreError(
            f"the weights of {record.config.path} in the archive are not those of its record"
        )
    store.write_atomic(targets[-1], source.read_bytes())
    return True


def _take_record(folder: Path, record: Record) -> bool:
    if records.find(record.config):
        return False
    target = records.record_path(record.config)
    store.write_atomic(target, (folder / "records" / f"{record.config.path}.json").read_bytes())
    return True


def _take_analysis(folder: Path, record: Record) -> bool:
    source, target = (
        folder / "records" / f"{record.config.path}{ANALYSIS}",
        records.analysis_path(record.config),
    )
    if not source.exists() or target.exists() or not records.read_analysis(source, record):
        return False
    store.write_atomic(target, source.read_bytes())
    return True


def _take_checkpoint(source: Path, folder: Path) -> bool:
    """Unless the run is finished here, or has come as far."""
    path = str(source.relative_to(folder / "cache")).removesuffix(CHECKPOINT)
    target = store.cache_folder() / f"{path}{CHECKPOINT}"
    if store.exists(store.records_folder() / f"{path}.json") or _epochs(source) <= _epochs(target):
        return False
    store.write_atomic(target, source.read_bytes())
    return True


def _epochs(checkpoint: Path) -> int:
    """How many epochs a checkpoint holds; 0 if it is missing or damaged."""
    return len(json.loads(_metadata(checkpoint).get("history", "[]")))
