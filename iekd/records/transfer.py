"""Move finished and started runs from one machine to another as a single file.

An archive is a plain tar of the store's own files (`records/<path>.json` and
`....analysis.json`, `cache/<path>.safetensors`, `cache/<path>.checkpoint.safetensors`). The last
member, `MANIFEST.json`, holds the SHA-256 of every other, so a truncated or altered archive is
noticed before anything is imported.
"""

import contextlib
import hashlib
import io
import json
import math
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from iekd import records
from iekd.config import RunConfig, grid
from iekd.errors import ConfigError, StoreError
from iekd.records import ANALYSIS, Record, store

MANIFEST = "MANIFEST.json"
CHECKPOINT = ".checkpoint.safetensors"
# What an archive holds for each run, by folder.
ENDS = {"records": (".json", ANALYSIS), "cache": (".safetensors", CHECKPOINT)}
# What two trainings of one run must share; time and machine may differ.
RESULT = ("parents", "weights", "data", "history", "metrics")


# ---------------------------------------------------------------------- packing


def pack(file: Path, configs: list[RunConfig] | None = None, limit: float = math.inf) -> str:
    """Write one archive of the given runs and their parents (None = everything in the store).

    It holds a finished run's record, its analysis, and its weights if available, and an unfinished
    run's checkpoint. Weights and checkpoints take at most `limit` bytes: first weights that others
    need (of teachers and auto-encoders), then checkpoints, then other weights, the smallest of each
    first. A sweep may run meanwhile. Returns a sentence that describes the contents. Raises
    `StoreError` if a record is damaged or the archive cannot be written.
    """
    if not limit >= 0:
        raise ConfigError(f"limit: {limit} is not usable; choose 0 (records only) or more")
    begun: dict[str, Path] = {}
    if configs is None:
        paths = _by_run(store.records_folder(), ".json")
        runs = {path: records.read(file).config for path, file in paths.items()}
        begun = _by_run(store.cache_folder(), CHECKPOINT)
    else:
        runs = grid.with_parents(configs)
    found = [source for path in sorted({*runs, *begun}) for source in _sources(path)]
    left_out = _beyond(limit, found, runs)

    # The archive, with the list of its contents at the end.
    digests = {}
    with store.atomic(file) as output, tarfile.open(fileobj=output, mode="w") as archive:
        for name, source in found:
            # A checkpoint disappears as soon as its run is finished.
            with contextlib.suppress(FileNotFoundError):
                if name not in left_out:
                    content = source.read_bytes()
                    digests[name] = hashlib.sha256(content).hexdigest()
                    _add(archive, name, content)
        _add(archive, MANIFEST, json.dumps({"files": digests}, indent=1).encode())

    # The sentence about it.
    kinds = Counter(PurePosixPath(name).name.partition(".")[2] for name in digests)
    weights, checkpoints = kinds["safetensors"], kinds["checkpoint.safetensors"]
    left = f"; {len(left_out)} weights and checkpoints did not fit" if left_out else ""
    return f"{file}: {kinds['json']} records, {weights} weights, {checkpoints} checkpoints{left}"


def _by_run(folder: Path, end: str) -> dict[str, Path]:
    """The records, or the checkpoints, below a folder, by the path of their run."""
    found = records.files(folder, end)
    return {path.relative_to(folder).as_posix().removesuffix(end): path for path in found}


def _sources(path: str) -> Iterator[tuple[str, Path]]:
    """Member names and files of one run."""
    place = store.records_folder() / f"{path}.json"
    checkpoint = store.cache_folder() / f"{path}{CHECKPOINT}"
    if not store.exists(place):
        if _metadata(checkpoint):
            yield f"cache/{path}{CHECKPOINT}", checkpoint
        return
    record = records.read(place)
    if record.config.path != path:
        # The record of another run, which `merge` would refuse.
        records.pass_over([place])
        return
    yield f"records/{path}.json", place
    if records.read_analysis(place.with_suffix(ANALYSIS), record):
        yield f"records/{path}{ANALYSIS}", place.with_suffix(ANALYSIS)
    weights = records.weights_at_hand(record.config)
    if weights and _metadata(weights):
        yield f"cache/{path}.safetensors", weights


def _beyond(limit: float, found: list[tuple[str, Path]], runs: dict[str, RunConfig]) -> list[str]:
    """The names of the weights and checkpoints that do not fit into the limit."""
    needed, sizes, beyond = set(), {}, []
    for config in runs.values():
        needed |= {f"cache/{parent.path}.safetensors" for parent in config.parents().values()}
    for name, source in found:
        if name.startswith("cache/") and source.exists():
            sizes[name] = source.stat().st_size

    # The most valuable first.
    def worth(name: str) -> tuple:
        return name not in needed, not name.endswith(CHECKPOINT), sizes[name], name

    for name in sorted(sizes, key=worth):
        if sizes[name] <= limit:
            limit -= sizes[name]
        else:
            beyond.append(name)
    return beyond


def _metadata(path: Path) -> dict[str, str]:
    """The metadata of a complete tensor file; empty if it is missing or damaged."""
    try:
        return store.load_tensors(path)[1]
    except StoreError:
        return {}


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


# ---------------------------------------------------------------------- taking in


class Merged(NamedTuple):
    """The outcome of a merge: new files, files not taken, and messages."""

    taken: int
    known: int
    # One for each refused record.
    conflicts: list[str]

    def __str__(self) -> str:
        refused = f"{len(self.conflicts)} records refused"
        summary = f"{self.taken} files taken in, {self.known} known already, {refused}"
        return "\n".join([*self.conflicts, summary])


def merge(file: Path) -> Merged:
    """Import an archive of `pack` into this store; what is here already stays as it is.

    A record is refused, with its weights, if the same run has another result here, or if it
    learned from a teacher other than the one here. Raises `StoreError`, before anything is
    imported, for an archive that is damaged or holds anything that `pack` does not write.
    """
    store.check_writable(store.cache_folder() / "merge")
    with tempfile.TemporaryDirectory(prefix=".merge-", dir=store.cache_folder()) as name:
        _unpack(file, Path(name))
        return _take_in(Path(name))


def _unpack(file: Path, folder: Path) -> None:
    """Extract every member into a folder. Raises `StoreError` if any is bad."""
    try:
        # Also accepts an archive that was compressed by gzip, bzip2 or xz on the way.
        with tarfile.open(file) as archive:
            names = _names(file, archive)
            digests = json.loads(_content(archive, MANIFEST))["files"]
            listed = [name for name in digests if not _is_hidden(name)]
            if sorted([*listed, MANIFEST]) != sorted(names):
                raise ValueError("its files do not match its list")
            for name in listed:
                content = _content(archive, name)
                if hashlib.sha256(content).hexdigest() != digests[name]:
                    raise ValueError(f"{name} does not match its checksum")
                store.write_atomic(folder / name, content)
    except StoreError:
        raise
    except Exception as error:
        # tarfile, json and the decompressors raise many kinds of errors, the first at length.
        if isinstance(error, OSError) and error.errno:
            raise StoreError(f"{file} cannot be read: {error.strerror}") from error
        reason = str(error).partition("\n")[0].rstrip(":")
        raise StoreError(
            f"{file} is damaged or not an archive of `iekd bundle` ({reason}). "
            "Nothing was taken in; copy it again."
        ) from error


def _names(file: Path, archive: tarfile.TarFile) -> list[str]:
    """The members' names, without files added by a desktop. Raises `StoreError` for any other."""
    members = archive.getmembers()
    ours = [member for member in members if not _is_hidden(member.name)]
    for member in ours:
        if not member.isfile() or not (member.name == MANIFEST or _is_member(member.name)):
            raise StoreError(
                f"{file} is refused: {member.name!r} is not something that iekd packs. "
                "Nothing was taken in."
            )
    records.pass_over(f"{file}: {each.name}" for each in members if _is_hidden(each.name))
    return [member.name for member in ours]


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    member: Any = archive.extractfile(name)
    return member.read()


def _is_member(name: str) -> bool:
    folder, _, rest = name.partition("/")
    return folder in ENDS and records.is_place(rest, *ENDS[folder])


def _is_hidden(name: str) -> bool:
    """Whether a member is a hidden file or in a hidden folder ('..' is not one)."""
    return any(part.startswith(".") and part.strip(".") for part in name.split("/"))


def _take_in(folder: Path) -> Merged:
    """Copy what is new from an unpacked archive into the store."""
    files = sum(path.is_file() for path in folder.rglob("*"))
    found, taken, conflicts = _records(folder), 0, []

    # Parents first: their outcome decides for their children.
    for path in grid.with_parents([record.config for record in found.values()]):
        if path in found and (conflict := _conflict(found[path])):
            conflicts.append(conflict)
        elif path in found:
            for source, target in _new(folder, found[path]):
                store.write_atomic(target, source.read_bytes())
                taken += 1

    # Checkpoints, unless the run is finished here or is as far along.
    for path, source in _by_run(folder / "cache", CHECKPOINT).items():
        target = store.cache_folder() / f"{path}{CHECKPOINT}"
        finished = store.exists(store.records_folder() / f"{path}.json")
        if not finished and _epochs(source) > _epochs(target):
            store.write_atomic(target, source.read_bytes())
            taken += 1
    return Merged(taken, files - taken, conflicts)


def _records(folder: Path) -> dict[str, Record]:
    """The records of an archive. Raises `StoreError` for a misplaced one."""
    found = {}
    for path, file in _by_run(folder / "records", ".json").items():
        found[path] = record = records.read(file)
        if path != record.config.path:
            raise StoreError(
                f"records/{path}.json in the archive is the record of {record.config.path}. "
                "Nothing was taken in."
            )
    return found


def _conflict(record: Record) -> str:
    """Why a record cannot be taken in; '' if it can."""
    path, here = record.config.path, records.find(record.config)
    differ = [name for name in RESULT if here and getattr(here, name) != getattr(record, name)]
    if differ:
        which = f"({', '.join(differ)} differ)"
        return f"refused: {path} has another result here {which}; the one that is here stays"
    for role, config in record.config.parents().items():
        parent, other = records.find(config), f"another {role} than the one here, {config.path}"
        if parent and parent.weights != record.parents[role]:
            return f"refused: {path} was trained with {other}"
    return ""


def _new(folder: Path, record: Record) -> Iterator[tuple[Path, Path]]:
    """What the store lacks of a run, as (from, to); weights first: no record without them."""
    config = record.config
    source = folder / f"cache/{config.path}.safetensors"
    if source.exists() and not records.weights_at_hand(config):
        if store.load_tensors(source)[1]["checksum"] != record.weights:
            raise StoreError(
                f"the weights of {config.path} in the archive are not those of its record"
            )
        yield source, records.weights_paths(config)[-1]
    if not records.find(config):
        yield folder / f"records/{config.path}.json", records.record_path(config)
    source, target = folder / f"records/{config.path}{ANALYSIS}", records.analysis_path(config)
    if not target.exists() and records.read_analysis(source, record):
        yield source, target


def _epochs(checkpoint: Path) -> int:
    """How many epochs a checkpoint holds; 0 if it is missing or damaged."""
    return len(json.loads(_metadata(checkpoint).get("history", "[]")))
