"""Files that are complete or absent: the runs folder, atomic writes, locks, checked tensors.

Tensors are safetensors files; nothing is ever unpickled. The checksum of the tensors' bytes is in
the file's metadata, so a truncated or altered file is noticed when it is read.
"""

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from iekd.checkout import ROOT
from iekd.errors import StoreError

# Ends the message about a damaged file.
DELETE_IT = " Delete it; the run that made it will make it again."
# The errors of a file system without locks.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
EVIDENCE = ROOT / "runs" / "records"
# What $IEKD_RUNS must not be, because a folder of that name would be created here, and what to do.
NO_FOLDER = {
    r"[A-Za-z][\w+.@-]+:/.*": "is an address; name a folder of this machine, "
    "for example where that storage is mounted",
    r"['\"].*|.*['\"]": "has quotation marks; leave them out",
    r"\s.*|.*\s": "begins or ends with a space; leave it out",
    r".*(\$\w|\$\{\w|%\w+%).*": "has a variable that no shell has filled in; "
    "write out what it stands for",
}


def runs_folder() -> Path:
    """Where records and the cache are stored: $IEKD_RUNS, or `runs/` of the checkout or of this
    folder.

    Raises `StoreError` for a name that cannot have been meant as a folder.
    """
    if named := os.environ.get("IEKD_RUNS"):
        return _folder(named)
    return (ROOT if (ROOT / "pyproject.toml").exists() else Path.cwd()) / "runs"


def _folder(named: str) -> Path:
    for pattern, why in NO_FOLDER.items():
        if re.fullmatch(pattern, named, re.DOTALL):
            raise StoreError(f"IEKD_RUNS: {named!r} {why}")
    try:
        return Path(named).expanduser()  # a shell does not expand the ~ of IEKD_RUNS='~/x'
    except RuntimeError:
        raise StoreError(
            f"IEKD_RUNS: {named!r} names the home of an unknown user; write out the folder"
        ) from None


def records_folder() -> Path:
    return runs_folder() / "records"


def evidence_folder() -> Path | None:
    """The records that come with the checkout, if $IEKD_RUNS names another store."""
    folder = EVIDENCE if EVIDENCE.is_dir() else None
    return None if folder and folder.resolve() == records_folder().resolve() else folder


def record_file(path: str) -> Path:
    """Where to read the record of a run: in the store, or else among the checkout's evidence."""
    own, evidence = records_folder() / f"{path}.json", evidence_folder()
    return own if evidence is None or exists(own) else evidence / f"{path}.json"


def cache_folder() -> Path:
    return runs_folder() / "cache"


def exists(path: Path) -> bool:
    """Whether there is such a file. Raises `StoreError` if permission is denied."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise cannot_read(path, error) from error
    return True


def walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder, if it exists. Raises `StoreError` if permission is denied."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise cannot_read(Path(error.filename), error) from error

    for place, _, names in os.walk(folder, onerror=refuse):
        for name in names:
            yield Path(place, name)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader, even after a kill, sees the old content or the new.

    Raises like `atomic`.
    """
    with atomic(path) as file:
        file.write(content)


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which replaces `path` when the block succeeds.

    Until then, and after an exception, nothing changes. Raises `StoreError` if the disk is full or
    the folder cannot be written.
    """
    temporary, hidden = None, f".{path.name}."
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=hidden, delete=False) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # NamedTemporaryFile makes private files
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:  # even if Ctrl-C interrupts
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Held by one process at a time; the system releases it if the process dies.

    Raises filelock's `Timeout` if another process holds it and `wait` is false, and
    `StoreError` if the file cannot be created or the file system has no locks.
    """
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:  # which is an OSError
        raise
    except NotImplementedError as error:  # of an older filelock
        raise _no_locks(path, str(error)) from error
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise _no_locks(path, str(error.strerror)) from error
        raise _cannot_write(path, error) from error
    try:
        yield
    finally:
        lock.release()


def check_writable(path: Path) -> None:
    """Raise `StoreError` now if `atomic` could not write this file hours later."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _cannot_write(path, error) from error


def cannot_read(path: Path, error: OSError) -> StoreError:
    """The error for a file or folder that is not damaged but inaccessible."""
    return StoreError(
        f"cannot read {path}: {error.strerror or error}. Have it made readable for you, "
        "or set IEKD_RUNS to another folder."
    )


def _cannot_write(path: Path, error: OSError) -> StoreError:
    trained = any(path.is_relative_to(folder) for folder in (records_folder(), cache_folder()))
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            do = "Free some space"
        case errno.EISDIR:
            do = "It is a folder: name a file in it"
        case _:
            do = "Make its folder writable"
    other = "set IEKD_RUNS to another folder" if trained else "name another place"
    then = ": it continues from the last checkpoint" if trained else ""
    return StoreError(
        f"cannot write {path}: {error.strerror or error}. {do} (or {other}) "
        f"and start the same command again{then}."
    )


def _no_locks(path: Path, why: str) -> StoreError:
    return StoreError(
        f"cannot lock {path}: this file system has no locks ({why}), so two processes could train "
        "one run. Set IEKD_RUNS to a folder on a disk of this machine, and bring results together "
        "with `iekd bundle` and `iekd merge`."
    )


def checksum(tensors: dict[str, Tensor]) -> str:
    """SHA-256 (hex) over names, shapes, types and bytes of the tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        # No copy: a cache of views takes gigabytes.
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> str:
    """Write tensors atomically; returns their checksum."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = checksum(tensors)
    write_atomic(path, save(tensors, {**(metadata or {}), "checksum": digest}))
    return digest


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file written by `save_tensors`.

    Raises `StoreError` if it is not such a file, is truncated, or does not match its checksum.
    """
    _check_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}).{DELETE_IT}") from error
    if metadata.get("checksum") != checksum(tensors):
        raise StoreError(f"{path} is damaged: its content does not match its checksum.{DELETE_IT}")
    return tensors, metadata


def _check_readable(path: Path) -> None:
    """Raise `StoreError` if permission is denied: safetensors calls such a file missing."""
    try:
        path.open("rb").close()
    except PermissionError as error:
        raise cannot_read(path, error) from error
    except OSError:
        pass  # safetensors will say what is wrong


def stored_checksum(path: Path) -> str | None:
    """The checksum that a tensor file states, without reading its tensors.

    None if it is not a complete tensor file. Raises `StoreError` if permission is denied.
    """
    _check_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("checksum")
    except (SafetensorError, OSError, ValueError):
        return None
