"""Grids: what a file means, and what it must not say."""

from pathlib import Path

import pytest
import yaml
from tiny import SMALL, tiny

from iekd.config import RunConfig, grid
from iekd.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    """write(text or data) -> the path of a grid file."""

    def write(data) -> Path:
        path = tmp_path / "grid.yaml"
        path.write_bytes(data if isinstance(data, bytes) else yaml.safe_dump(data).encode())
        return path

    return write


# ---------------------------------------------------------------------- reading


def test_lists_multiply():
    assert grid.expand({"method": "ie-ft", "explore": ["l1", "cka"], "seed": [0, 1]}) == [
        {"method": "ie-ft", "explore": explore, "seed": seed}
        for explore in ("l1", "cka")
        for seed in (0, 1)
    ]
    assert grid.expand({"method": "kd"}) == [{"method": "kd"}]
    assert grid.expand({"method": []}) == []


def test_a_grid_is_base_and_runs_each_once_and_seed_by_seed(write):
    path = write(
        {
            "title": "t",
            "base": {**SMALL, "seed": [0, 1]},
            "runs": [{"method": ["supervised", "ft"]}, {"method": "ft", "ft_weight": 500}],
        }
    )
    configs = grid.read(path)
    assert configs == [
        tiny(method, seed=seed) for seed in (0, 1) for method in ("supervised", "ft")
    ]


def test_a_field_that_one_run_of_an_entry_reads_or_of_the_base_one_entry_may_stand(write):
    runs = [{"method": ["supervised", "ft"], "ae_epochs": 3}, {"method": "supervised"}]
    ft, alone = sorted(
        grid.read(write({"base": {"teacher_epochs": 2, "seed": 0}, "runs": runs})),
        key=lambda config: config.method,
    )
    assert (ft.teacher_epochs, ft.ae_epochs) == (2, 3) and alone == RunConfig.create("smoke")


def test_an_empty_base_is_none(write):
    assert grid.read(write(b"base:\nruns: [{}]")) == [RunConfig.create("smoke")]


def test_an_entry_overrides_the_base(write):
    (config,) = grid.read(write({"base": {"seed": [0, 1], "method": "kd"}, "runs": [{"seed": 7}]}))
    assert config.seed == 7


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"runs: [", "is not a grid"),
        (b"", "is not a grid"),
        (b"\xff\xfe\x00\x01", "is not a grid"),
        ([1], "is not a grid"),
        ({"run": []}, "is not a grid: it needs a list `runs:`"),
        ({"runs": None}, "is not a grid"),
        ({"runs": []}, "has no runs"),
        ({"runs": [{}, {"seed": []}]}, "run 2: seed: an empty list, so the entry has no runs"),
        (
            {"base": {"seed": "0-4"}, "runs": [{}]},
            r"run 1: seed: '0-4' is not a value; write several as a list, \[0, 1, 2\]",
        ),
        (
            {"runs": [{"method": ["kd", "ft"], "explore": "cka"}]},
            "run 1: explore: kd, ft do not read it; methods that do: ie-ft",
        ),
        (
            {"base": {"explore": "cka"}, "runs": [{"method": "kd"}, {"method": "ft"}]},
            "base: explore: kd, ft do not read it",
        ),
        ({"runs": {"method": "kd"}}, "is not a grid"),
        ({"runs": ["kd"]}, "is not a grid"),
        (
            {"bases": {"seed": 1}, "runs": []},
            "bases: no such key; the keys of a grid are title, notebook, import, base, runs",
        ),
        (
            {"runs": [{}, {"exlore": "cka"}]},
            r"run 2: exlore: no such parameter \(did you mean 'explore'\?\)",
        ),
        (
            {"base": {"preset": "big"}, "runs": [{}]},
            "run 1: preset: 'big' is not usable; choose one of smoke, class, desk, paper",
        ),
        (
            {"runs": [{"method": ["kd", "magic"]}]},
            "run 1: method: 'magic' is not usable; choose one of .*supervised",
        ),
        (
            {"runs": [{"method": "ie-ft", "explore": None}]},
            "run 1: explore: None is not usable; choose one of none, l1",
        ),
        ({"runs": [{True: 1}]}, "run 1: true: no such parameter"),
        ({"runs": [{"method": {"kd": 1}}]}, "run 1: method: .* is not usable"),
        ({"runs": [{"preset": {"smoke": 1}}]}, "run 1: preset: .* is not usable"),
    ],
)
def test_a_bad_grid_is_refused_with_file_and_entry(write, data, message):
    path = write(data)
    with pytest.raises(ConfigError, match=message) as error:
        grid.read(path)
    assert str(path) in str(error.value)


def test_a_missing_grid_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="none.yaml: No such file"):
        grid.read(tmp_path / "none.yaml")


def test_a_misspelt_file_is_told_its_neighbour(tmp_path):
    """Of a grid, and of a file that a grid imports."""
    (tmp_path / "desk.yaml").write_text("import: my_loses.py\nruns: [{method: ie-ft}]\n")
    (tmp_path / "my_losses.py").touch()
    for name in ("desk.yml", "Desk.yaml", "dsk.yaml"):
        with pytest.raises(ConfigError, match=r"No such file.*\(did you mean 'desk.yaml'\?\)"):
            grid.read(tmp_path / name)
    with pytest.raises(ConfigError, match=r"no such Python file \(did you mean 'my_losses.py'\?\)"):
        grid.read(tmp_path / "desk.yaml")
    with pytest.raises(ConfigError, match="No such file or directory$"):
        grid.read(tmp_path / "nowhere" / "desk.yaml")


def test_parents_come_first_and_once():
    configs = [tiny(method, seed=seed) for seed in (0, 1) for method in ("ie-ft", "ft", "kd")]
    ordered = list(grid.with_parents(configs).values())
    assert len(ordered) == len(set(ordered)) == 6 + 2 * 2
    for place, config in enumerate(ordered):
        assert all(parent in ordered[:place] for parent in config.parents().values())


# -------------------------------------------------------------------- the grids that hold some runs


def test_few_grids_hold_some_runs():
    def path(**fields):
        return RunConfig.create("class", **fields).path

    assert grid.holding([]) == grid.holding([tiny("kd").path, path(method="kd", seed=7_000)]) == []
    assert grid.holding([path(method="kd", seed=3)]) == ["runs/class.yaml"]
    # seed 100 of KD is in two grids: the one that is needed anyway is taken
    together = [
        path(method="kd", seed=100),
        path(method="kd", seed=119),
        path(method="at", at_weight=300, seed=100),
    ]
    assert grid.holding(together) == ["runs/confirm.yaml", "runs/methods.yaml"]
    partner = (
        RunConfig.create("class", method="dml", seed=110).partner().path
    )  # the second network has a record of its own
    assert grid.holding([partner]) == ["runs/confirm-methods.yaml"]
