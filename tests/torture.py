"""`make torture`: sweeps that are killed, starved of space and robbed of their files must end with the records of a calm sweep.

    python tests/torture.py --minutes 5 --seed 0

Two sweeps on one store are started again and again; at random moments a training process, a sweep, or a sweep with all its children gets
SIGKILL or SIGTERM, and files are cut off, altered or removed. At the end one sweep finishes in peace, and every record must equal, but
for times, that of a sweep nobody disturbed; no record may ever have changed or vanished by itself. Round after round until the time is
over. First, once, the disk of a store runs full. Exit status 1 if anything was lost; the folder is then kept. Linux only.
"""

from __future__ import annotations

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
GRID = {
    "base": {
        "preset": "smoke", "teacher": "resnet8x0.5", "student": "resnet8x0.25", "train_images": 400, "validation_images": 100,
        "epochs": 150, "teacher_epochs": 80, "ae_epochs": 40,
    },
    "runs": [{"method": ["kd", "ie-ft"], "seed": [0, 1]}],
}  # fmt: skip


def start(folder: Path, jobs: int = 1) -> subprocess.Popen:
    """A sweep on the store in `folder`, in a process group of its own."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "IEKD_RUNS": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-m", "iekd", "sweep", str(folder.parent / "grid.yaml"), "--jobs", str(jobs)]
    with (folder / "sweeps.log").open("a") as log:
        return subprocess.Popen(words, stdout=log, stderr=log, env=environment, process_group=0)


def training(folder: Path) -> dict[int, int]:
    """The processes that train a run of this store, with their parents; also those whose sweep is dead."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (
                b"iekd\0run\0" in (process / "cmdline").read_bytes()
                and f"IEKD_RUNS={folder}\0".encode() in (process / "environ").read_bytes()
            ):
                found[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            pass
    return found


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """What the records say, without times; a damaged one says nothing."""
    found = {}
    for path in sorted(folder.glob("records/**/*.json")):
        try:
            content = json.loads(path.read_text())
        except ValueError:
            content = {}
        found[str(path.relative_to(folder))] = {name: value for name, value in content.items() if name not in TIMES}
    return found


def finish(folder: Path) -> None:
    """Sweep in peace, doing what the messages ask for: a damaged file is deleted, and its run made again."""
    for _ in range(20):
        log = folder / "sweeps.log"
        said = log.stat().st_size if log.exists() else 0
        if start(folder, jobs=2).wait() == 0:
            return
        words = log.read_bytes()[said:].decode(errors="replace")
        for name in re.findall(rf"({re.escape(str(folder))}\S+) (?:is damaged|cannot be read|is not a valid record)", words):
            Path(name).unlink(missing_ok=True)
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
    """Cut off, alter or remove a checkpoint or weights; cut off a record."""
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json") and not p.name.startswith("."))
    if not files:
        return ""
    victim = chance.choice(files)
    kind = "record" if victim.suffix == ".json" else "checkpoint" if ".checkpoint." in victim.name else "weights"
    way = "cut off" if kind == "record" else chance.choice(["cut off", "altered", "removed"])
    try:
        content = bytearray(victim.read_bytes())
        if way == "removed":
            victim.unlink()
        elif way == "altered":
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            victim.write_bytes(content)
        else:
            victim.write_bytes(content[: chance.randrange(len(content))])
    except FileNotFoundError:  # a checkpoint whose run has just ended
        return ""
    return f"{kind} {way}"


ACTIONS = {kill_training: 8, kill_sweep: 2, kill_group: 3, stop_sweep: 2, damage: 2}  # with their weights


def send(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


# ---------------------------------------------------------------------- trials


def fill_disk(folder: Path, calm: dict) -> str:
    """A store on a disk that runs full: the sweep says so, what is recorded is whole, and with more space it goes on."""
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "iekd", folder], stderr=subprocess.DEVNULL).returncode:
        return "full disk: skipped, it takes root to mount a small one"
    try:
        status = start(folder, jobs=2).wait()
        early = results(folder)
        said = "No space left" in "".join(p.read_text(errors="replace") for p in folder.rglob("*.log"))
        subprocess.run(["mount", "-o", "remount,size=100m", folder], check=True)
        finish(folder)
        if not status or any(calm[path] != early[path] for path in early) or results(folder) != calm:
            raise SystemExit("FAILED: a full disk lost something")
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
            sweeps.append(start(folder))
        time.sleep(chance.uniform(0.2, 5))
        found = results(folder)
        if lost := [path for path, content in known.items() if found.get(path) != content]:
            raise SystemExit(f"FAILED: {lost} changed or vanished")
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
    if results(folder) != calm:
        raise SystemExit("FAILED: the records are not those of a calm sweep")
    return done


def keep(path: Path, facts: dict[str, Any]) -> None:
    """Only a torture that lost nothing gets here: a loss ends it before."""
    sys.path.insert(0, str(ROOT))  # as for the processes that were tortured
    from iekd.records import provenance

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, "losses": 0, **provenance()}, indent=1, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="kill sweeps at random and see whether anything is lost")
    parser.add_argument("--minutes", type=float, default=5.0, help="for the rounds; the calm sweeps before and after come on top")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1000), help="of the choices, not of the moments")
    parser.add_argument("--out", type=Path, help="write what was done, with the machine, to this JSON file (the book shows runs/torture/)")
    options = parser.parse_args()
    chance, done, rounds = random.Random(options.seed), Counter(), 0
    folder = Path(tempfile.mkdtemp(prefix="iekd-torture-"))
    (folder / "grid.yaml").write_text(yaml.safe_dump(GRID))
    print(f"seed {options.seed}, {folder}; first a calm sweep", flush=True)
    try:
        finish(folder / "calm")
        calm = results(folder / "calm")
        print(f"{len(calm)} records; {fill_disk(folder / 'full', calm)}", flush=True)
        until = time.monotonic() + 60 * options.minutes
        while time.monotonic() < until:
            rounds += 1
            done += (what := torture(folder / f"round{rounds}", calm, until, chance))
            print(f"round {rounds}: {sum(what.values())} attacks, all {len(calm)} records as in the calm sweep", flush=True)
    finally:
        for process in [p for place in folder.iterdir() for p in training(place)]:
            send(process, signal.SIGKILL)
    for what, count in sorted(done.items()):
        print(f"{count:6} {what}")
    print(f"{sum(done.values())} attacks in {rounds} rounds, 0 losses")
    if options.out:
        keep(options.out, {"seed": options.seed, "minutes": options.minutes, "rounds": rounds, "records": len(calm), "attacks": dict(done)})
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
