"""`iekd bench`: the engine beside the loop as it is usually written (iekd.benchmark.usual_loop), and the cost of a step of every method.

Both sides train the same networks on the same number of images, in turns, each in a process of its own that has what its users have (the
engine's the allocator settings of `iekd sweep`); a ratio is taken within a round, so that a busy machine slows both. Images are random
bytes of CIFAR's shape and teachers have random weights: the time does not depend on them, and nobody has to download anything. What is
measured is written, with the machine, to `runs/bench/<device>-<cores>.json`.
"""

from __future__ import annotations

import collections
import json
import multiprocessing
import os
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from iekd import data, records
from iekd.benchmark.roofline import now, rates, roof
from iekd.benchmark.usual_loop import PlainRun
from iekd.config import RunConfig
from iekd.method import registry
from iekd.method.factor import FactorAutoEncoder
from iekd.records import store
from iekd.speed import memory
from iekd.training import engine, views
from iekd.training.engine import Member, Run, build_network
from iekd.training.graphs import Graphed

SCHEMA = 1
# Training images of an epoch. A graphics card is through with a few batches before its fixed costs are.
IMAGES = {"cpu": {"class": 2560, "paper": 640}, "cuda": {"class": 12800, "paper": 12800}}
VIEWS = 2  # of the option with finite views: their number does not change the time of a step
COMPARED = ("supervised", "kd", "ft", "ie-ft")
METHODS = tuple(name for name in registry.methods() if name != "factor-ae")
PLAIN, CARELESS = "plain loop", "plain loop, gradient through the teacher"
PACKED = (
    ("supervised", "kd", "ft", "ie-ft"),
    (0, 1),
)  # methods and seeds of the runs that are packed
ENGINE, TF32, BF16 = "engine", "engine, TF32", "engine, bfloat16"
FINITE, FINITE_BF16 = "engine, finite views", "engine, finite views, bfloat16"
PRECISION = {
    TF32: "tf32",
    BF16: "bf16",
    FINITE_BF16: "bf16",
}  # of the engine's sides; the others compute in float32


def bench(images: Mapping[str, int] | None, rounds: int) -> dict[str, Any]:
    """All measurements, as they are stored: 'loops', 'methods' and 'profile' are lists of rows, beside machine and versions.

    `images`: training images of an epoch by preset ('class', 'paper'), by default `IMAGES`. Times are medians over `rounds`. 'loops'
    names precisions; all else is computed in that of the preset. 'packing' and 'roof' came later: old measurements are without.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = images or IMAGES[device.type]
    memory.keep()
    loops = [
        row
        for preset in images
        for method in COMPARED
        for row in compare(preset, method, images[preset], rounds, device)
    ]
    provenance, able = records.provenance(), rates(device)
    return {
        "schema": SCHEMA,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **provenance,
        "cores": os.cpu_count(),
        "rounds": rounds,
        "loops": loops,
        "methods": methods_cost(images["class"], rounds, device),
        "packing": [
            row for preset in images for row in packing(preset, images[preset], rounds, device)
        ],
        "roof": [roof(_config(preset, method), able) for preset in images for method in COMPARED],
        "profile": [
            row
            for preset in images
            for row in step_profile(preset, "ie-ft", images[preset], device)
        ],
    }


def path(measured: Mapping[str, Any]) -> Path:
    """Where measurements are kept: one file for a kind of machine, the latest stays."""
    kind = (
        measured["device"]["name"]
        if measured["device"]["type"] == "cuda"
        else f"cpu-{measured['cores']}-cores"
    )
    return store.runs_folder() / "bench" / f"{kind.lower().replace(' ', '-')}.json"


def save(measured: Mapping[str, Any]) -> Path:
    store.write_atomic(path(measured), (json.dumps(measured, indent=1) + "\n").encode())
    return path(measured)


def load(folder: Path | None = None) -> list[dict[str, Any]]:
    """The measurements of all machines, the graphics cards last."""
    found = [
        json.loads(file.read_text(encoding="utf-8"))
        for file in sorted((folder or store.runs_folder() / "bench").glob("*.json"))
    ]
    return sorted(found, key=lambda measured: measured["device"]["type"] == "cuda")


# ---------------------------------------------------------------------- what is measured


def compare(
    preset: str, method: str, images: int, rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """One row per side: images per second (median), how many times the plain loop's (median, smallest and largest of the rounds), and the
    peak of its process's memory in MB (without worker processes; on a GPU, of its tensors there)."""
    config = _config(preset, method)
    names = (
        [PLAIN, CARELESS, ENGINE, TF32, BF16, FINITE, FINITE_BF16]
        if config.has_teacher
        else [PLAIN, ENGINE, TF32, BF16]
    )
    names = [name for name in names if name != TF32 or device.type == "cuda"]
    with ExitStack() as processes:
        sides = {
            name: processes.enter_context(_apart(name, preset, method, images, str(device)))
            for name in names
        }
        times = in_turns(sides, rounds, device, f"{config.pair} {method}")
        peaks = {name: side("peak") for name, side in sides.items()}
    about = {"preset": preset, "pair": config.pair, "method": method, "images": images}
    return [
        {**about, "side": side, "peak_mb": peaks[side], **speed}
        for side, speed in speeds(times, images).items()
    ]


@contextmanager
def _apart(*side: Any) -> Iterator[Callable[..., Any]]:
    """A side (see `_epoch_of`) in a process of its own: called, it trains an epoch there, or tells the process's 'peak'."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(there, *side), daemon=False
    )
    own = {
        name: value
        for name, value in memory.HUGE_PAGES.items()
        if side[0] not in (PLAIN, CARELESS) and name not in os.environ
    }
    os.environ.update(own)
    process.start()
    for name in own:
        del os.environ[name]
    there.close()  # so that the death of the process is noticed

    def ask(word: str = "epoch") -> Any:
        here.send(word)
        return here.recv()

    try:
        yield ask
    finally:
        here.close()
        process.join()


def _serve(connection: Any, side: str, preset: str, method: str, images: int, device: str) -> None:
    """The other end of `_apart`, until it hangs up."""
    if side not in (PLAIN, CARELESS):
        memory.keep()
    work = _epoch_of(side, preset, method, images, torch.device(device))
    while True:
        try:
            word = connection.recv()
        except EOFError:
            return
        if word == "epoch":
            work()
            now(torch.device(device))
        connection.send(
            torch.cuda.max_memory_allocated() >> 20 if device == "cuda" else memory.peak()
        )


def _epoch_of(
    side: str, preset: str, method: str, images: int, device: torch.device
) -> Callable[[], Any]:
    """What trains an epoch on one side."""
    config, dataset = (
        _config(preset, method).replace(precision=PRECISION.get(side, "fp32")),
        random_images(preset, images),
    )
    parents = _parents(config)
    if side in (PLAIN, CARELESS):
        return PlainRun(config, parents, device, dataset, teacher_grad=side == CARELESS).train_epoch
    member = config, engine.make_run(config, parents, device, dataset)
    return _epoch([_with_views(*member) if side in (FINITE, FINITE_BF16) else member], device)


def _epoch(members: Sequence[Member], device: torch.device, epoch: int = 0) -> Callable[[], Any]:
    """What trains an epoch of these runs as `iekd run` and `iekd pack` do: on a GPU from CUDA graphs."""
    return partial(
        engine.train_epochs, members, epoch, Graphed() if device.type == "cuda" else None
    )


def methods_cost(images: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """One row per method on the class pair: time of an epoch relative to plain training, and the parameters that only training needs.

    A method with a first stage is measured in both, and counts as the mean over a run.
    """
    dataset, work, extra, shares = random_images("class", images), {}, {}, {}
    for method in METHODS:
        config = _config("class", method)
        run = engine.make_run(config, _parents(config), device, dataset)
        extra[method] = sum(
            p.numel() for p in run.learner["method"].parameters() if p.requires_grad
        )
        first = (
            config.init_epochs / config.epochs
            if "init_epochs" in registry.methods()[method].fields
            else 0.0
        )
        shares[method] = {config.epochs - 1: 1 - first} | ({0: first} if first else {})
        work |= {
            (method, epoch): _epoch([(config, run)], device, epoch) for epoch in shares[method]
        }
    times = in_turns(work, rounds, device, "methods")

    def mean(method: str) -> list[float]:
        parts = [
            [share * t for t in times[method, epoch]] for epoch, share in shares[method].items()
        ]
        return [sum(values) for values in zip(*parts, strict=True)]

    plain = mean("supervised")
    rows = []
    for method in METHODS:
        cost = ratios(mean(method), plain)  # the other way round: how many times slower
        rows.append(
            {
                "method": method,
                "cost": cost["ratio"],
                "low": cost["low"],
                "high": cost["high"],
                "parameters": extra[method],
            }
        )
    return rows


def packing(preset: str, images: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """One row per way to make eight runs (four methods, two seeds): images per second over all of them, and how many times as many as
    one run after the other."""
    dataset, (methods, seeds) = random_images(preset, images), PACKED
    configs = [_config(preset, method).replace(seed=seed) for seed in seeds for method in methods]
    parents = max(
        (_parents(config) for config in configs), key=len
    )  # one teacher for all, as the seeds of a teacher have

    def fresh() -> list[Member]:
        return [
            (c, engine.make_run(c, {role: parents[role] for role in c.parents()}, device, dataset))
            for c in configs
        ]

    alone, together = [_epoch([member], device) for member in fresh()], fresh()
    engine.share_teachers([run for _, run in together])
    sides = {
        "one after the other": lambda: [epoch() for epoch in alone],
        "packed": _epoch(together, device),
    }
    times = in_turns(sides, rounds, device, f"{configs[-1].pair} packed")
    about = {"preset": preset, "pair": configs[-1].pair, "runs": len(configs)}
    return [
        {**about, "side": side, **speed}
        for side, speed in speeds(times, images * len(configs)).items()
    ]


def step_profile(
    preset: str, method: str, images: int, device: torch.device, most: int = 8
) -> list[dict[str, Any]]:
    """Where the time of the engine's step goes: the operators (on a GPU its kernels) with the largest share of it, and the rest."""
    config = _config(preset, method)
    epoch = _epoch(
        [
            (
                config,
                engine.make_run(config, _parents(config), device, random_images(preset, images)),
            )
        ],
        device,
    )
    epoch()
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=kinds) as taken:
        epoch()
    spent = own_times(taken.key_averages(), device)
    shares = {
        name: spent[name] / sum(spent.values())
        for name in sorted(spent, key=spent.get, reverse=True)[:most]
    }
    shares["all others"] = 1 - sum(shares.values())
    about = {"preset": preset, "pair": config.pair, "method": method}
    return [{**about, "operator": name, "share": round(share, 4)} for name, share in shares.items()]


def own_times(events: Iterable[Any], device: torch.device) -> dict[str, float]:
    """Time by operator. On a GPU by kernel, without the arguments of its template: what the profiler says there of an operator, or of a
    range that the program named, is the time of the same kernels once more."""
    times: dict[str, float] = collections.defaultdict(float)
    for event in events:
        if device.type == "cpu":
            times[event.key] += event.self_cpu_time_total
        elif event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            name = (
                re.sub(r"[<(].*", "", event.key.replace("(anonymous namespace)::", ""))
                .removeprefix("void ")
                .strip()
            )
            times[name] += event.self_device_time_total
    return times


# ---------------------------------------------------------------------- how


def in_turns(
    work: Mapping[Any, Callable[[], Any]], rounds: int, device: torch.device, title: str
) -> dict[Any, list[float]]:
    """Seconds of every piece of work in every round, after one that does not count; every other round goes backwards."""
    times: dict[Any, list[float]] = {name: [] for name in work}
    for number in tqdm(range(rounds + 1), desc=title, unit="round"):
        for name in list(work) if number % 2 else reversed(list(work)):
            began = now(device)
            work[name]()
            times[name].append(now(device) - began)
    return {name: seconds[1:] for name, seconds in times.items()}


def speeds(times: Mapping[str, list[float]], images: int) -> dict[str, dict[str, float]]:
    """Images per second of every side, and how many times as many as those of the first."""
    first = next(iter(times.values()))
    return {
        side: {"images_per_second": round(images / statistics.median(t), 1), **ratios(first, t)}
        for side, t in times.items()
    }


def ratios(slow: list[float], fast: list[float]) -> dict[str, float]:
    """How many times as long the first took, within each round: median, smallest, largest."""
    each = [a / b for a, b in zip(slow, fast, strict=True)]
    return {
        "ratio": round(statistics.median(each), 3),
        "low": round(min(each), 3),
        "high": round(max(each), 3),
    }


def random_images(preset: str, images: int) -> data.DataSet:
    """A data set of the preset's size and classes that shows nothing."""
    config = RunConfig.create(preset, student="resnet8", method="supervised")
    facts, shape = data.FACTS[config.dataset], data.image_shape(config)
    generator = torch.Generator().manual_seed(0)
    train = data.Split(
        torch.randint(256, (images, *shape), dtype=torch.uint8, generator=generator),
        torch.randint(facts.num_classes, (images,), generator=generator),
    )
    none = data.Split(train.images[:0], train.labels[:0])
    return data.DataSet(
        "random",
        facts.num_classes,
        train,
        none,
        none,
        "random",
        facts.mean,
        facts.std,
        facts.flip,
        shape[-1] // 8,
    )


def _config(preset: str, method: str) -> RunConfig:
    return RunConfig.create(preset, method=method)


def _parents(config: RunConfig) -> dict[str, nn.Module]:
    """Untrained networks in the roles of the parents."""
    parents = config.parents()
    networks: dict[str, nn.Module] = {}
    if "teacher" in parents:
        networks["teacher"] = build_network(config.teacher, config)
    if "autoencoder" in parents:
        networks["autoencoder"] = FactorAutoEncoder(
            networks["teacher"].feature_channels, config.factor_ratio, config.decoder
        )
    _settle(networks.get("teacher"), networks.get("autoencoder"), data.image_shape(config))
    return {role: network.eval().requires_grad_(False) for role, network in networks.items()}


@torch.no_grad()
def _settle(
    teacher: nn.Module | None, autoencoder: nn.Module | None, shape: tuple[int, ...]
) -> None:
    """Give the batch normalisation of untrained networks the statistics of a batch; without, the features of a deep one overflow."""
    passed: Any = torch.randn(64, *shape, generator=torch.Generator().manual_seed(0))
    for network in filter(None, (teacher, autoencoder)):
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        passed = getattr(
            network.train()(passed), "feature", None
        )  # of the teacher: what the auto-encoder sees


def _with_views(config: RunConfig, run: Run) -> Member:
    """The run on finite views, whose teacher has been asked before (which is not part of the time)."""
    finite = config.replace(views=VIEWS)
    kept = views.shapes(finite, len(run.dataset.train.labels))
    tensors = {
        name: tensor.to(run.mean.device)
        for name, tensor in views.compute(finite, run, kept).items()
    }
    return finite, run._replace(stored=views.Stored(tensors))
