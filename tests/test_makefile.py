"""make installs into no environment of another checkout, and nothing at all where nothing is needed. The environment here is made up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

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
    environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}  # of a `make test` that runs this
    return subprocess.run(["make", "-C", str(ROOT), *words], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("target", ["setup", "test"])
def test_an_environment_of_another_checkout_is_left_alone(venv, tmp_path, target):
    other = tmp_path / "other clone"
    other.mkdir()
    installed(venv, other.as_uri(), editable=True)
    (venv / ".iekd-ready").touch()  # nothing to install: the tests would still import the other's library
    result = make(target, f"VENV={venv}")
    assert result.returncode != 0 and f"{venv} is the environment of {other}: name another one" in result.stderr
    assert not (tmp_path / "asked").exists() and venv.exists()


@pytest.mark.parametrize("url", ["", ROOT.as_uri(), "file:///nowhere/any/more"])
def test_other_environments_are_set_up(venv, tmp_path, url):
    if url:
        installed(venv, url, editable=True)
    assert make("setup", f"VENV={venv}").returncode == 0
    assert "pip install" in (tmp_path / "asked").read_text() and (venv / ".iekd-ready").exists()


def test_to_serve_the_book_needs_no_environment(venv, tmp_path):
    result = make("--dry-run", "serve", f"VENV={venv}")
    assert result.returncode == 0 and "http.server" in result.stdout and str(venv) not in result.stdout
