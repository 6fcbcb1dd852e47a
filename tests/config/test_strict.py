"""A grid's numbers mean what a person reads, and the same everywhere; what can be misread is
refused with its line.
"""

import ast
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from papermill.cli import _resolve_type

from iekd.config import RunConfig, grid, strict
from iekd.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("10", 10),
        ("-3", -3),
        ("+5", 5),
        ("1_000", 1000),
        ("0.5", 0.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.5", -0.5),
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("1.0e-3", 0.001),
        ("2e+4", 20000.0),
        ("1_0.5", 10.5),
        ("'010'", "010"),
        ("'1e-3'", "1e-3"),
        ("'yes'", "yes"),
        ("none", "none"),
        ("l1", "l1"),
        ("1e_3", "1e_3"),
        ("0-4", "0-4"),
        ("1.2.3", "1.2.3"),
        ("resnet8x0.25", "resnet8x0.25"),
    ],
)
def test_plain_numbers_and_texts(text, value):
    found = strict.read(f"a: {text}")["a"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("010", "10"),
        ("08", "8"),
        ("000", "0"),
        ("-010", "-10"),
        ("+09", "+9"),
        ("0_10", "10"),
        ("01.5", "1.5"),
        ("08e1", "8e1"),
        ("!!int '010'", "10"),
        ("1:30", "90"),
        ("1:30.5", "90.5"),
        ("190:20:30", "685230"),
        ("0x10", "16"),
        ("0b11", "3"),
        ("1_", "1"),
        ("1__0", "10"),
        ("yes", "a number"),
        ("no", "a number"),
        ("on", "a number"),
        ("Off", "a number"),
        ("true", "a number"),
        ("FALSE", "a number"),
    ],
)
@pytest.mark.parametrize("frame", ["\na: {}", "\na: [1, {}]", "\n{{a: {{b: {}}}}}", "\n- a: &x {}"])
def test_what_can_be_misread_is_refused_with_its_line_and_what_to_write(text, meant, frame):
    with pytest.raises(ConfigError, match="^line 2: YAML takes ") as error:
        strict.read(frame.format(text))
    assert f"; write {meant}, or '" in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: 2\na: 3",
        "x:\n  a: 1\n  a: 2",
        "- {a: 1, a: 1}",
        "a: 1\n'a': 2",
        "<<: {a: 1,\n a: 2}",
        "x: &x {a: 1}\ny: {<<: *x, <<: *x}",
        "on: 1\non: 2",
        "a: [{b: {c: 1, d: 2, c: 3}}]",
        "1: 2\n1: 3",
    ],
)
def test_a_key_stands_once_at_every_level(text):
    with pytest.raises(
        ConfigError, match=r"^line \d+: \S+ appears twice, line \d+ already has it; keep one$"
    ):
        strict.read(text)


def test_keys_are_text_and_merging_is_no_repetition():
    assert strict.read("on: 1\n010: 2\nx: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}") == {
        "on": 1,
        "010": 2,
        "x": {"a": 1, "b": 2},
        "y": {"a": 3, "b": 2},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "base: {preset: class}\nruns:\n- {method: kd, seed: [007, 008]}",
            "line 3: YAML takes 007 for 7; write 7",
        ),
        ("runs: [{}]\nbase: {epochs: 020}", "line 2: YAML takes 020 for 16; write 20"),
        (
            "runs:\n- {method: supervised, seed: 1, seed: 2}",
            "line 2: seed appears twice, line 2 already has it",
        ),
        ("runs: [{}]\nruns: [{seed: 1}]", "line 2: runs appears twice, line 1 already has it"),
        ("base: {seed: 1}\nbase: {seed: 2}\nruns: [{}]", "line 2: base appears twice"),
        ("runs: [{epochs: yes}]", "line 1: YAML takes yes for true or false"),
        ("runs: [{views: on}]", "line 1: YAML takes on for true or false"),
        ("runs: [{seed: !!int x}]", "is no YAML"),
        ("title: x", "is not a grid: it needs a list `runs:` of mappings, `- {method: kd}`"),
        ("", "is not a grid: it needs a list `runs:`"),
        ("runs: {a: 1}", "is not a grid"),
        ("runs: [kd]\n", "is not a grid"),
        ("base: [1]\nruns: [{}]", "is not a grid"),
    ],
)
def test_a_grid_is_read_so(tmp_path, text, message):
    path = tmp_path / "grid.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        grid.read(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value)
    with pytest.raises(ConfigError):  # the file's other reader
        grid.notebook(path)


def test_a_grid_is_utf8_whatever_the_locale(tmp_path, monkeypatch):
    path = tmp_path / "grid.yaml"
    path.write_bytes("title: Größe → 1\nruns: [{lr: 1e-3}]\n".encode())
    monkeypatch.setattr("locale.getencoding", lambda: "ascii")
    monkeypatch.setattr(
        "io.text_encoding",
        lambda encoding, *_: encoding or pytest.fail("read in the locale's encoding"),
    )
    assert grid.read(path) == [RunConfig.create(lr=0.001)]
    path.write_bytes("﻿runs: [{}]\n".encode())  # a mark that Windows editors put first
    assert grid.read(path) == [RunConfig.create()]


def test_the_committed_grids_say_what_they_said():
    for path in sorted((ROOT / "runs").glob("**/*.yaml")):
        if "profiles" not in path.parts:
            text = path.read_text(encoding="utf-8")
            assert strict.read(text) == yaml.safe_load(text)


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("name", ["seed", "epochs", "lr", "method", "views", "kd_alpha"])
def test_a_truth_value_is_no_parameter_in_python_either(name, value):
    with pytest.raises(
        ConfigError, match=f"{name}: {value} is not usable; no parameter is true or false"
    ):
        RunConfig.create(**{name: value})


# ---------------------------------------------------------------------- one spelling, one meaning


def numbers(text: str) -> dict[str, float]:
    """What each way in takes a spelling for, where it takes it for a number: grid, command line,
    papermill -p, -f, Python.
    """
    ways = {
        "grid": lambda: strict.read(f"a: {text}")["a"],
        "python": lambda: ast.literal_eval(text),
        "-p": lambda: _resolve_type(text),
        "-f": lambda: yaml.safe_load(f"a: {text}")["a"],
        "iekd run": lambda: RunConfig.create(lr=text).lr,
    }
    found = {}
    for way, read in ways.items():
        try:
            value = read()
        except (ValueError, SyntaxError, yaml.YAMLError):
            continue
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[way] = value
    return found


@given(st.text("0123456789_.:eE+-xb", min_size=1, max_size=7))
@settings(max_examples=300, deadline=None)
def test_a_number_in_a_grid_means_the_same_everywhere(text):
    found = numbers(text)
    if "grid" in found:
        assert set(found.values()) == {found["grid"]}, found
    found.pop("-f", None)  # 010 is 8 there, and the notebook sees only the 8
    assert len(set(found.values())) <= 1, found


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.lists(st.sampled_from("xyz"), max_size=3)), max_size=4
    )
)
@settings(max_examples=60, deadline=None)
def test_any_repetition_is_found(entries):
    lines = [
        f"{key}: {{{', '.join(f'{inner}: 1' for inner in inside)}}}" for key, inside in entries
    ]
    keys = [key for key, _ in entries]
    if len(set(keys)) < len(keys) or any(len(set(inside)) < len(inside) for _, inside in entries):
        with pytest.raises(ConfigError, match="appears twice"):
            strict.read("\n".join(lines))
    else:
        assert strict.read("\n".join(lines) or "{}") == {
            key: dict.fromkeys(inside, 1) for key, inside in entries
        }


def test_the_message_of_a_zero_is_no_advice_to_write_it_again():
    for text in ("00", "-00", "0_0"):
        with pytest.raises(ConfigError) as error:
            strict.read(f"a: {text}")
        assert re.search(r"write -?0, or", str(error.value))
