"""`iekd bench`: the engine against the usual training loop, and the cost of a step of every method.

Both sides train the same networks on the same number of images, in turns, each in its own process.
Images are random bytes of CIFAR's shape and teachers have random weights: the time does not depend
on them, and nothing has to be downloaded. The measurements and the machine are written to
`runs/bench/<device>-<cores>.json`.
"""

import collections
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from iekd import records
from iekd.benchmark import loader, sides
from iekd.benchmark.roofline import rates, roof
from iekd.benchmark.sides import epoch, random_images, untrained_parents
from iekd.benchmark.timing import in_turns, ratios, speeds
from iekd.config import RunConfig, known
from iekd.records import store
from iekd.speed import memory
from iekd.training.run import Run, build_run
from iekd.training.session import this_device

SCHEMA = 1
# Training images per epoch. With few batches, a GPU's fixed costs dominate.
IMAGES = {"cpu": {"class": 2560, "paper": 640}, "cuda": {"class": 12800, "paper": 12800}}
COMPARED = ("supervised", "kd", "ft", "ie-ft")
METHODS = tuple(name for name in known.methods() if name != "factor-ae")
FILES = {"cpu": 512, "cuda": 8192}  # for the loader of ImageNet
SEEDS = (0, 1)  # of the packed runs, each with the methods in `COMPARED`

Rows = list[dict[str, Any]]


def bench(images: Mapping[str, int] | None, rounds: int) -> dict[str, Any]:
    """All measurements, as they are stored: lists of rows, with machine and versions.

    `images`: training images per epoch by preset ('class', 'paper'), by default `IMAGES`. Times
    are medians over `rounds`. 'loops' names precisions; all else is computed in that of the preset.
    'packing', 'roof' and 'loader' were added later: old measurements lack them.
    """
    device = this_device()
    images = images or IMAGES[device.type]
    memory.keep()
    rows: dict[str, Rows] = {"loops": []}
    for preset, count in images.items():
        for method in COMPARED:
            rows["loops"] += compare(preset, method, count, rounds, device)
    provenance, able = records.provenance(), rates(device)
    rows["methods"] = methods_cost(images["class"], rounds, device)
    rows["loader"] = loader.compare(FILES[device.type], rounds, device)
    rows |= {"packing": [], "roof": [], "profile": []}
    for preset, count in images.items():
        rows["packing"] += packing(preset, count, rounds, device)
        rows["roof"] += [roof(_config(preset, method), able) for method in COMPARED]
        rows["profile"] += step_profile(preset, "ie-ft", count, device)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    about = {"schema": SCHEMA, "started": started, **provenance}
    return {**about, "cores": os.cpu_count(), "rounds": rounds, **rows}


def path(measured: Mapping[str, Any]) -> Path:
    """Where measurements are kept: one file per kind of machine, overwritten by the latest."""
    kind = f"cpu-{measured['cores']}-cores"
    if measured["device"]["type"] == "cuda":
        kind = measured["device"]["name"].lower().replace(" ", "-")
    return store.runs_folder() / "bench" / f"{kind}.json"


def save(measured: Mapping[str, Any]) -> Path:
    """Write measurements to their `path`, which is returned."""
    store.write_atomic(path(measured), (json.dumps(measured, indent=1) + "\n").encode())
    return path(measured)


def load(folder: Path | None = None) -> list[dict[str, Any]]:
    """The measurements of all machines, GPUs last."""
    files = sorted((folder or store.runs_folder() / "bench").glob("*.json"))
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return sorted(found, key=lambda measured: measured["device"]["type"] == "cuda")


# ---------------------------------------------------------------------- what is measured


def compare(preset: str, method: str, images: int, rounds: int, device: torch.device) -> Rows:
    """One row per side: images per second (median), as a multiple of the plain loop's, and memory.

    The ratio comes with the smallest and largest of the rounds; memory is the peak of the side's
    process in MB (without worker processes; on a GPU, of its tensors there).
    """
    config = _config(preset, method)
    names = sides.of(config, device)
    with ExitStack() as processes:
        work, peaks = {}, {}
        for name in names:
            side = sides.apart(name, preset, method, images, str(device))
            do = processes.enter_context(side)
            work[name], peaks[name] = partial(do, sides.train), partial(do, sides.peak)
        times = in_turns(work, rounds, device, f"{config.pair} {method}")
        memories = {name: peak() for name, peak in peaks.items()}
    about = {"preset": preset, "pair": config.pair, "method": method, "images": images}
    found = speeds(times, images)
    return [{**about, "side": n, "peak_mb": memories[n], **found[n]} for n in names]


def methods_cost(images: int, rounds: int, device: torch.device) -> Rows:
    """One row per method on the class pair: time of an epoch relative to plain training, and
    parameters.

    Only parameters used in training alone are counted. A method with two stages is measured in
    both, and its cost is the mean over a run.
    """
    dataset, work, extra, shares = random_images("class", images), {}, {}, {}
    for method in METHODS:
        config = _config("class", method)
        run = _untrained_run(config, device, dataset)
        trained = [p for p in run.learner["method"].parameters() if p.requires_grad]
        extra[method] = sum(p.numel() for p in trained)
        shares[method] = _stages(config)
        for number in shares[method]:
            work[method, number] = epoch([(config, run)], number)
    times = in_turns(work, rounds, device, "methods")

    means = {}
    for method in METHODS:
        rounds_of = [times[method, number] for number in shares[method]]
        weights = torch.tensor([*shares[method].values()], dtype=torch.double)
        means[method] = (weights @ torch.tensor(rounds_of, dtype=torch.double)).tolist()
    found = []
    for method in METHODS:
        # inverted: how many times slower
        cost = ratios(means[method], means["supervised"])
        row = {"method": method, "cost": cost["ratio"], "low": cost["low"], "high": cost["high"]}
        found.append({**row, "parameters": extra[method]})
    return found


def _stages(config: RunConfig) -> dict[int, float]:
    """One epoch of each stage of a method, and the fraction of the run that the stage takes."""
    first = 0.0
    if "init_epochs" in known.methods()[config.method].fields:
        first = config.init_epochs / config.epochs
    stages = {config.epochs - 1: 1 - first}
    return stages | {0: first} if first else stages


def packing(preset: str, images: int, rounds: int, device: torch.device) -> Rows:
    """One row per way to train eight runs: images per second over all of them, and relative to the
    first way.

    The ways are one run after the other, and packed.
    """
    dataset = random_images(preset, images)
    configs = [_config(preset, method).replace(seed=seed) for seed in SEEDS for method in COMPARED]
    # one teacher for all, as with seeds that share a teacher
    parents = max((untrained_parents(config) for config in configs), key=len)

    def fresh() -> list[tuple[RunConfig, Run]]:
        runs = []
        for config in configs:
            own = {role: parents[role] for role in config.parents()}
            runs.append((config, build_run(config, own, device, dataset)))
        return runs

    alone = [epoch([run]) for run in fresh()]
    ways = {"one after the other": lambda: [work() for work in alone], "packed": epoch(fresh())}
    pair = configs[-1].pair
    times = in_turns(ways, rounds, device, f"{pair} packed")
    about = {"preset": preset, "pair": pair, "runs": len(configs)}
    found = speeds(times, images * len(configs))
    return [{**about, "side": way, **found[way]} for way in ways]


def step_profile(
    preset: str, method: str, images: int, device: torch.device, most: int = 8
) -> Rows:
    """Where the time of a step goes: the operators with the largest shares, and the rest."""
    config = _config(preset, method)
    work = epoch([(config, _untrained_run(config, device, random_images(preset, images)))])
    work()
    kinds = [ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(ProfilerActivity.CUDA)
    with profile(activities=kinds) as taken:
        work()
    spent = own_times(taken.key_averages(), device)
    total = sum(spent.values())
    largest = sorted(spent, key=spent.get, reverse=True)[:most]
    shares = {name: spent[name] / total for name in largest}
    shares["all others"] = 1 - sum(shares.values())
    about = {"preset": preset, "pair": config.pair, "method": method}
    return [{**about, "operator": name, "share": round(share, 4)} for name, share in shares.items()]


def own_times(events: Iterable[Any], device: torch.device) -> dict[str, float]:
    """Time by operator; on a GPU by kernel, without the arguments of its template.

    On a GPU, the profiler's times of operators, and of ranges named by the program, would count the
    same kernels again.
    """
    times: dict[str, float] = collections.defaultdict(float)
    for event in events:
        if device.type == "cpu":
            times[event.key] += event.self_cpu_time_total
        elif event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            kernel = event.key.replace("(anonymous namespace)::", "")
            name = re.sub(r"[<(].*", "", kernel).removeprefix("void ").strip()
            times[name] += event.self_device_time_total
    return times


def _config(preset: str, method: str) -> RunConfig:
    return RunConfig.create(preset, method=method)


def _untrained_run(config: RunConfig, device: torch.device, dataset: Any) -> Run:
    return build_run(config, untrained_parents(config), device, dataset)
