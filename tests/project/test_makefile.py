"""make installs into no environment of another checkout, and nothing at all where nothing is
needed. The environment here is made up.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


@pytest.fixture
def venv(tmp_path):
    """An environment that writes down what its Python was asked to do."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (folder / "bin" / "python").chmod(0o755)
    return folder


def installed(venv: Path, url: str, **info: bool) -> None:
    """As if `pip install` had put an iekd there."""
    place = venv / "lib" / "python3.11" / "site-packages" / "iekd-0.1.0.dist-info"
    place.mkdir(parents=True)
    (place / "direct_url.json").write_text(json.dumps({"url": url, "dir_info": info}))


def make(*words: str) -> subprocess.CompletedProcess:
    environment = {
        name: value for name, value in os.environ.items() if name != "MAKEFLAGS"
    }  # of a `make test` that runs this
    return subprocess.run(
        ["make", "-C", str(ROOT), *words], capture_output=True, text=True, env=environment
    )


@pytest.mark.parametrize("target", ["setup", "test"])
def test_an_environment_of_another_checkout_is_left_alone(venv, tmp_path, target):
    other = tmp_path / "other clone"
    other.mkdir()
    installed(venv, other.as_uri(), editable=True)
    (
        venv / ".iekd-ready"
    ).touch()  # nothing to install: the tests would still import the other's library
    result = make(target, f"VENV={venv}")
    assert (
        result.returncode != 0
        and f"{venv} is the environment of {other}: name another one" in result.stderr
    )
    assert not (tmp_path / "asked").exists() and venv.exists()


# ---------------------------------------------------------------------- two at once

FAKE = """#!/bin/sh
case "$1 $2" in
"-m venv") echo venv >> {log}; sleep 0.3; mkdir -p $3/bin; cp $0 $3/bin/python ;;
"-m pip") echo pip >> {log}; sleep {seconds}; [ ! -e {log}.broken ] || {{ rm {log}.broken; exit 1; }}; echo installed >> {log} ;;
"-m pytest") echo tested >> {log} ;;
*) exec {python} "$@" ;;
esac
"""


@pytest.fixture
def fresh(tmp_path):
    """fresh(*words) -> `make` in a clone without an environment, whose Python only writes down what
    it was asked to do.
    """
    python = tmp_path / "python3"
    python.write_text(FAKE.format(log=tmp_path / "log", seconds=0.7, python=sys.executable))
    python.chmod(0o755)
    (tmp_path / "clone" / ".ci").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", ".ci/one-at-a-time"):
        shutil.copy(ROOT / name, tmp_path / "clone" / name)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MAKEFLAGS", "MAKELEVEL", "HELD")
    }

    def fresh(*words: str) -> subprocess.Popen:
        command = ["make", "-C", str(tmp_path / "clone"), f"PYTHON={python}", *words]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )

    fresh.log = tmp_path / "log"
    return fresh


@pytest.mark.parametrize(
    "targets",
    [
        ["test", "test"],
        ["setup", "test"],
        ["test", "setup", "torture"],
        ["check", "test"],
        ["setup"] * 4,
    ],
)
def test_makes_side_by_side_on_a_fresh_clone_set_up_once_and_all_end_well(fresh, targets):
    started = [fresh(target) for target in targets]
    said = [process.communicate(timeout=120)[0] for process in started]
    done = fresh.log.read_text().split()
    assert (done.count("venv"), done.count("pip"), done.count("installed")) == (1, 1, 1), said
    assert done.count("tested") == targets.count("test") and not any(
        "interrupted" in words for words in said
    )
    assert sum("waiting for it" in words for words in said) >= 1
    good = [
        process.returncode
        for target, process in zip(targets, started, strict=True)
        if target in ("test", "setup")
    ]
    assert good == [0] * len(good), said


@pytest.mark.parametrize("moment", ["venv", "pip"])
def test_a_make_that_was_killed_in_its_setup_is_made_good_by_the_next(fresh, moment):
    first = fresh("setup")
    while moment not in (fresh.log.read_text().split() if fresh.log.exists() else []):
        time.sleep(0.02)
    second = fresh("test")
    time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    said, _ = second.communicate(timeout=120)
    assert second.returncode == 0 and "An earlier set-up was interrupted: starting again." in said
    assert fresh.log.read_text().split()[-2:] == ["installed", "tested"]


def test_a_setup_that_fails_is_tried_again_by_the_one_that_waited(fresh):
    fresh.log.with_name("log.broken").touch()
    first, second = fresh("setup"), fresh("test")
    first.communicate(timeout=120), second.communicate(timeout=120)
    assert sorted([bool(first.returncode), bool(second.returncode)]) == [False, True]
    assert fresh.log.read_text().split().count("installed") == 1


@pytest.mark.parametrize("url", ["", ROOT.as_uri(), "file:///nowhere/any/more"])
def test_other_environments_are_set_up(venv, tmp_path, url):
    if url:
        installed(venv, url, editable=True)
    assert make("setup", f"VENV={venv}").returncode == 0
    assert "pip install" in (tmp_path / "asked").read_text() and (venv / ".iekd-ready").exists()


def test_to_serve_the_book_needs_no_environment(venv, tmp_path):
    result = make("--dry-run", "serve", f"VENV={venv}")
    assert (
        result.returncode == 0 and "http.server" in result.stdout and str(venv) not in result.stdout
    )


def test_the_folder_for_a_host_has_all_pages_and_nothing_of_the_build(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    built = tmp_path / "_build" / "html"
    for name in ("index.html", ".buildinfo", "_static/theme.js", "_static/theme.js.map"):
        (built / name).parent.mkdir(parents=True, exist_ok=True)
        (built / name).touch()
    (tmp_path / "_build" / "site").mkdir()
    (tmp_path / "_build" / "site" / "old.html").touch()
    command = ["make", "-C", str(tmp_path), "--old-file=book", "site"]
    subprocess.run(command, check=True, capture_output=True)
    made = tmp_path / "_build" / "site"
    files = {str(f.relative_to(made)) for f in made.rglob("*") if f.is_file()}
    assert files == {"index.html", ".nojekyll", "_static/theme.js"}
