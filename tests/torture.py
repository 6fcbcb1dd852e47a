"""`make torture`: sweeps that are killed, starved of space and robbed of their files must end with
the records of a calm sweep.

    python tests/torture.py --minutes 5 --seed 0

Two sweeps on one store, of two grids each, one of them with packs, are started again and again; at
random moments a training process, a sweep, or a sweep with all its children gets SIGKILL or
SIGTERM, and files of every kind are cut off, emptied, altered, removed, or get a copy beside them.
At the end one sweep finishes in peace; then, at rest, something is done to a file of every kind,
and a sweep must make it good. Every record must equal, but for times, that of a sweep nobody
disturbed; no record may ever have changed or vanished by itself. Round after round until the time
is over. First, once, the disk of a store runs full. Exit status 1 if anything was lost, with what
differs; the folder is then kept. Linux only.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
TIMES = ("started", "seconds", "images_per_second")
# Some seconds a run, so that checkpoints are written and found.
BASE = {
    "preset": "smoke",
    "teacher": "resnet8x0.5",
    "student": "resnet8x0.25",
    "train_images": 400,
    "validation_images": 100,
    "epochs": 120,
}
GRIDS = {
    "first.yaml": {
        "base": {**BASE, "teacher_epochs": 80, "ae_epochs": 40},
        "runs": [{"method": ["kd", "ie-ft"], "seed": [0, 1]}],
    },
    "second.yaml": {
        "base": BASE,
        "runs": [
            {"method": "dml", "seed": 0},
            {"method": "at", "views": 1, "teacher_epochs": 80, "seed": 0},
        ],
    },
}
# A file is of the first of these kinds whose end its name has.
KINDS = {
    "copy": re.compile(r"/(\._|[^/]*( copy|\.sync-conflict| \(1\)))[^/]*$"),
    "checkpoint": re.compile(r"\.checkpoint\.safetensors$"),
    "record": re.compile(r"\.json$"),
    "views": re.compile(r"/views/.*\.safetensors$"),
    "weights": re.compile(r"\.safetensors$"),
    "lock": re.compile(r"\.lock$"),
    "log": re.compile(r"/cache/.*\.log$"),
    "damaged checkpoint": re.compile(r"\.damaged$"),
}
WAYS = {
    "record": ["cut off", "emptied", "removed", "copied"],
    "checkpoint": ["cut off", "emptied", "altered", "removed", "copied"],
    "weights": ["cut off", "emptied", "altered", "removed", "copied"],
    "views": ["cut off", "emptied", "altered", "removed"],
    "lock": ["removed at rest"],
    "log": ["cut off", "emptied", "removed"],
    "damaged checkpoint": ["removed"],
    "copy": ["removed"],
}
COPIES = ["._{}", "{} copy{}", "{}.sync-conflict-20261125-101010{}", "{} (1){}"]


def start(folder: Path, jobs: int = 1, pack: int = 1) -> subprocess.Popen:
    """A sweep on the store in `folder`, in a process group of its own."""
    folder.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "IEKD_RUNS": str(folder),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    grids = [str(folder.parent / name) for name in GRIDS]
    words = [
        sys.executable,
        "-m",
        "iekd",
        "sweep",
        *grids,
        "--jobs",
        str(jobs),
        "--pack",
        str(pack),
    ]
    with (folder / "sweeps.log").open("a") as log:
        return subprocess.Popen(words, stdout=log, stderr=log, env=environment, process_group=0)


def training(folder: Path) -> dict[int, int]:
    """The processes that train a run of this store, with their parents; also those whose sweep is
    dead.
    """
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (
                re.search(rb"iekd\0(run|pack)\0", (process / "cmdline").read_bytes())
                and f"IEKD_RUNS={folder}\0".encode() in (process / "environ").read_bytes()
            ):
                found[int(process.name)] = int(
                    (process / "stat").read_text().rpartition(")")[2].split()[1]
                )
        except OSError:  # it has just ended
            pass
    return found


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """What the records say, without times; a damaged one says nothing. How many ran in a pack is no
    result.
    """
    found = {}
    for path in sorted(
        path for path in folder.glob("records/**/*.json") if kind_of(path) == "record"
    ):
        try:
            content = json.loads(path.read_text())
        except ValueError:
            content = {}
        content.get("device", {}).pop("packed", None)
        found[str(path.relative_to(folder))] = {
            name: value for name, value in content.items() if name not in TIMES
        }
    return found


def kind_of(path: Path) -> str:
    """What kind of file this is; '' if none that is touched."""
    return next((kind for kind, end in KINDS.items() if end.search(str(path))), "")


def compare(calm: dict, found: dict, when: str) -> None:
    """End the torture unless both are the same, and say which record differs in what."""
    lines = [f"  {path}: missing" for path in calm.keys() - found.keys()]
    lines += [f"  {path}: nobody asked for it" for path in found.keys() - calm.keys()]
    for path in calm.keys() & found.keys():
        differ = [
            name
            for name in calm[path].keys() | found[path].keys()
            if calm[path].get(name) != found[path].get(name)
        ]
        lines += [
            f"  {path}: {name} is {found[path].get(name)!r:.200}, not {calm[path].get(name)!r:.200}"
            for name in sorted(differ)
        ]
    if lines:
        raise SystemExit(
            "\n".join(
                [f"FAILED: {when}, the records are not those of a calm sweep", *sorted(lines)]
            )
        )


def finish(folder: Path) -> None:
    """Sweep in peace, doing what the messages ask for: a damaged file is deleted, and its run made
    again.
    """
    for _ in range(20):
        log = folder / "sweeps.log"
        said = log.stat().st_size if log.exists() else 0
        if start(folder, jobs=2).wait() == 0:
            return
        words = log.read_bytes()[said:].decode(errors="replace")
        for name in re.findall(
            rf"({re.escape(str(folder))}\S+) (?:is damaged|cannot be read|is not a valid record)",
            words,
        ):
            Path(name).unlink(missing_ok=True)  # deleting is what the message asks for
    raise SystemExit(f"FAILED: a sweep of {folder} does not come to its end; see {log}")


# ---------------------------------------------------------------------- what is done to them


def kill_training(folder: Path, sweeps: list[subprocess.Popen], chance: random.Random) -> str:
    processes = list(training(folder))
    if not processes:
        return ""
    number = chance.choice([signal.SIGKILL, signal.SIGTERM])
    send(chance.choice(processes), number)
    return f"{number.name} to a training process"


def kill_sweep(folder: Path, sweeps: list[subprocess.Popen], chance: random.Random) -> str:
    """Its children go on without it."""
    chance.choice(sweeps).kill()
    return "SIGKILL to a sweep"


def kill_group(folder: Path, sweeps: list[subprocess.Popen], chance: random.Random) -> str:
    os.killpg(chance.choice(sweeps).pid, signal.SIGKILL)
    return "SIGKILL to a sweep and its children"


def stop_sweep(folder: Path, sweeps: list[subprocess.Popen], chance: random.Random) -> str:
    """It must take its children along."""
    sweep = chance.choice(sweeps)
    sweep.terminate()
    children = {process for process, parent in training(folder).items() if parent == sweep.pid}
    sweep.wait(60)
    if left := children & set(training(folder)):
        raise SystemExit(f"FAILED: a stopped sweep left {left} behind")
    return "SIGTERM to a sweep"


def damage(folder: Path, sweeps: list[subprocess.Popen], chance: random.Random) -> str:
    """Do something to a file: all kinds that are there have the same chance, for there are few
    checkpoints at a time.
    """
    found = files(folder)
    kind = chance.choice(sorted(found)) if found else ""
    ways = [way for way in WAYS.get(kind, []) if "rest" not in way]
    return hurt(chance.choice(found[kind]), kind, chance.choice(ways), chance) if ways else ""


def files(folder: Path) -> dict[str, list[Path]]:
    """The files of a store that may be touched, by kind."""
    found: dict[str, list[Path]] = {}
    for path in sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and (not p.name.startswith(".") or kind_of(p) == "copy")
    ):
        if kind := kind_of(path):
            found.setdefault(kind, []).append(path)
    return found


def hurt(victim: Path, kind: str, way: str, chance: random.Random) -> str:
    """Do this to a file; '' if it has just gone."""
    try:
        content = bytearray(victim.read_bytes())
        if way.startswith("removed"):
            victim.unlink()
        elif way == "copied":
            name = chance.choice(COPIES).format(
                victim.name.partition(".")[0], victim.name[victim.name.index(".") :]
            )
            victim.with_name(
                name if name.endswith(victim.suffix) else f"{name}{victim.suffix}"
            ).write_bytes(content)
        elif way == "emptied" or not content:
            victim.write_bytes(b"")
        elif way == "altered":
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            victim.write_bytes(content)
        else:
            victim.write_bytes(content[: chance.randrange(len(content))])
    except FileNotFoundError:  # a checkpoint whose run has just ended
        return ""
    return f"{kind} {way}"


ACTIONS = {
    kill_training: 8,
    kill_sweep: 2,
    kill_group: 3,
    stop_sweep: 2,
    damage: 2,
}  # with their weights


def send(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


# ---------------------------------------------------------------------- trials


def fill_disk(folder: Path, calm: dict) -> str:
    """A store on a disk that runs full: the sweep says so, what is recorded is whole, and with more
    space it goes on.
    """
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=400k", "iekd", folder], stderr=subprocess.DEVNULL
        ).returncode
    ):
        return "full disk: skipped, it takes root to mount a small one"
    try:
        status = start(folder, jobs=2).wait()
        early = results(folder)
        said = "No space left" in "".join(
            p.read_text(errors="replace") for p in folder.rglob("*.log")
        )
        subprocess.run(["mount", "-o", "remount,size=100m", folder], check=True)
        finish(folder)
        compare({path: calm[path] for path in early}, early, "on a full disk")
        compare(calm, results(folder), "after a full disk")
        if not status:
            raise SystemExit("FAILED: a sweep on a full disk called itself done")
        return f"full disk: stopped with {len(early)} of {len(calm)} records{' and said so' if said else ''}, and went on to the end"
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def torture(folder: Path, calm: dict, until: float, chance: random.Random) -> Counter:
    """One round; returns what was done."""
    done, sweeps = Counter(), []
    known: dict[str, dict] = {}  # the records that are there; nobody but us may touch them
    while time.monotonic() < until and results(folder) != calm:
        sweeps = [sweep for sweep in sweeps if sweep.poll() is None]
        while len(sweeps) < 2:
            sweeps.append(start(folder, pack=chance.choice([1, 3])))
        time.sleep(chance.uniform(0.2, 5))
        found = results(folder)
        compare(
            known,
            {path: found[path] for path in known.keys() & found.keys()},
            "without an attack on them",
        )
        (action,) = chance.choices(list(ACTIONS), list(ACTIONS.values()))
        if what := action(folder, sweeps, chance):
            done[what] += 1
        known = results(folder)
        for path in [path for path, content in known.items() if not content]:
            (folder / path).unlink()  # we damaged this record, and do what the message asks for
            del known[path]
    for sweep in sweeps:
        sweep.terminate()
    for sweep in sweeps:
        sweep.wait(60)
    finish(folder)
    compare(calm, results(folder), "at the end of a round")
    return done + at_rest(folder, calm, chance)


def at_rest(folder: Path, calm: dict, chance: random.Random) -> Counter:
    """When all is finished: a record of every method is gone, as a message asks for, and a file of
    every kind is hurt.
    """
    done: Counter = Counter()
    by_method = {
        calm[path]["config"]["method"]: path for path in chance.sample(sorted(calm), len(calm))
    }
    for path in by_method.values():
        (folder / path).unlink()
        done["record removed at rest"] += 1
    for kind, found in files(folder).items():
        way = chance.choice(WAYS[kind])
        if what := hurt(chance.choice(found), kind, way, chance):
            done[what if "rest" in what else f"{what} at rest"] += 1
    finish(folder)
    compare(calm, results(folder), f"after {', '.join(sorted(done))}")
    return done


def keep(path: Path, facts: dict[str, Any]) -> None:
    """Only a torture that lost nothing gets here: a loss ends it before."""
    sys.path.insert(0, str(ROOT))  # as for the processes that were tortured
    from iekd.records import provenance

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({**facts, "losses": 0, **provenance()}, indent=1, sort_keys=True) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="kill sweeps at random and see whether anything is lost"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=5.0,
        help="for the rounds; the calm sweeps before and after come on top",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=random.SystemRandom().randrange(1000),
        help="of the choices, not of the moments",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="write what was done, with the machine, to this JSON file (the book shows runs/torture/)",
    )
    options = parser.parse_args()
    chance, done, rounds = random.Random(options.seed), Counter(), 0
    folder = Path(tempfile.mkdtemp(prefix="iekd-torture-"))
    for name, grid in GRIDS.items():
        (folder / name).write_text(yaml.safe_dump(grid))
    print(f"seed {options.seed}, {folder}; first a calm sweep", flush=True)
    try:
        finish(folder / "calm")
        calm = results(folder / "calm")
        print(f"{len(calm)} records; {fill_disk(folder / 'full', calm)}", flush=True)
        until = time.monotonic() + 60 * options.minutes
        while time.monotonic() < until:
            rounds += 1
            done += (what := torture(folder / f"round{rounds}", calm, until, chance))
            print(
                f"round {rounds}: {sum(what.values())} attacks, all {len(calm)} records as in the "
                "calm sweep",
                flush=True,
            )
    finally:
        for process in [p for place in folder.iterdir() for p in training(place)]:
            send(process, signal.SIGKILL)
    for what, count in sorted(done.items()):
        print(f"{count:6} {what}")
    print(f"{sum(done.values())} attacks in {rounds} rounds, 0 losses")
    if options.out:
        keep(
            options.out,
            {
                "seed": options.seed,
                "minutes": options.minutes,
                "rounds": rounds,
                "records": len(calm),
                "attacks": dict(done),
            },
        )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
