"""The other commands: hand-outs, a benchmark, data sets, and what this machine has."""

import importlib.metadata
from pathlib import Path

import pandas as pd

from iekd import __version__, data, records
from iekd.cli.options import count
from iekd.cli.parser import Options, command, flag, option
from iekd.errors import ConfigError
from iekd.records import store


@command(
    "handout",
    option("folder", "where the notebooks are written", type=Path),
    option("--chapters", "with commas (default: all with exercises)", default=""),
    flag("--solutions", "with the solutions, for the teacher"),
)
def hand_out(options: Options) -> None:
    """chapters for a class: without solutions, with a cell to write in below each exercise"""
    try:
        from iekd.cli import handout
    except ImportError as error:
        raise ConfigError(f"{error}; hand-outs need the book: pip install -e '.[book]'") from error

    names = [name.strip() for name in options.chapters.split(",") if name.strip()]
    for path in handout.write(options.folder, names, options.solutions):
        print(path)


@command(
    "bench",
    option("--rounds", "medians are over so many (default 5)", type=count, default=5),
    option(
        "--images",
        "images of an epoch (default: see iekd.benchmark.bench)",
        type=count,
        nargs=2,
        metavar=("CLASS", "PAPER"),
    ),
)
def bench(options: Options) -> None:
    """measure the engine against the usual training loop, and a step of every method"""
    from iekd.benchmark import bench

    images = options.images and dict(zip(("class", "paper"), options.images, strict=True))
    measured = bench.bench(images, options.rounds)
    for part in ("loops", "methods", "packing", "loader", "profile"):
        print(pd.DataFrame(measured[part]).to_string(index=False), end="\n\n")
    print(f"kept in {bench.save(measured)}")


@command("data list", option("--root", "look here first", type=Path))
def data_list(options: Options) -> None:
    """which data sets are available, and where"""
    for row in data.describe(options.root):
        print("  ".join(row))


@command(
    "data pack",
    option("name"),
    option("destination", type=Path),
    option("--root", "where the data set is now", type=Path),
)
def data_pack(options: Options) -> None:
    """write a data set as lossless sprites; imagenet64: ImageNet at 64 pixels, from its files"""
    folder = data.pack(options.name, options.destination, options.root)
    print(f"{options.name} packed in {folder}: name its parent with IEKD_DATA to use it")


@command("data teacher", option("network", "resnet18 or resnet34"))
def data_teacher(options: Options) -> None:
    """download torchvision's weights for ImageNet as a teacher of your own"""
    from iekd.training import given

    path = given.fetch(options.network)
    print(f"{path}: name it with --teacher {options.network} --teacher-file {path.stem}")


@command("doctor")
def doctor(options: Options) -> None:
    """what is installed, which data and device are found, what to do"""
    found = records.provenance()
    device, commit = found["device"], found["git"]["commit"] or "unknown"
    print(f"python {found['versions']['python']}, iekd {__version__}, commit {commit}")
    print(f"device: {device['type']}, {device['name']}, {device['threads']} threads")
    for package in ("torch", "torchvision", "pydantic", "safetensors", "jupyter-book", "papermill"):
        try:
            print(f"  {package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {package} is missing: pip install -e '.[book]'")
    folder = store.records_folder()
    print(f"records: {len(records.files(folder))} in {folder}")
    print("data sets:")
    for row in data.describe():
        print("  " + "  ".join(row))
