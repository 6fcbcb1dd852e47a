"""A notebook refuses parameters that it does not have, before anything trains; and grids name only
parameters that it has.
"""

import ast
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml

from iekd import notebook
from iekd.config import RunConfig
from iekd.errors import ConfigError
from iekd.notebook import check

ROOT = Path(__file__).parents[2]
CELL = """\
method: str = 'ie-ft'  # how the student is trained
seed: int = 0  # seed
lr: float = 0.1  # peak rate
quick: bool = False  # fewer epochs"""
DEFAULTS = dict(method="ie-ft", seed=0, lr=0.1, quick=False)


def checked(*injected: str, cells=("", CELL), **values):
    """`check` after papermill injected a cell of assignments."""
    sources = [
        *cells,
        *(f"# Parameters\n{lines}" for lines in injected),
        "notebook.parameters('method')",
    ]
    return check(["method, seed, lr, quick: bool"], sources, {**DEFAULTS, **values})


def test_defaults_and_good_values_pass():
    assert checked() == DEFAULTS
    assert checked("method = 'kd'\nseed = 3", method="kd", seed=3) == {
        **DEFAULTS,
        "method": "kd",
        "seed": 3,
    }


def test_a_whole_number_is_a_float_too():
    values = checked("lr = 1", lr=1)
    assert values["lr"] == 1.0 and type(values["lr"]) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(exlore="cka"), "exlore: this notebook has no such parameter"),
        (
            dict(metod="kd"),
            r"metod: this notebook has no such parameter \(did you mean 'method'\?\)",
        ),
        (dict(seed="3"), "seed: '3' is no int"),
        (dict(seed=3.0), "seed: 3.0 is no int"),
        (dict(seed=True), "seed: True is no int"),
        (dict(seed=None), "seed: None is no int"),
        (dict(method=["kd", "ft"]), r"method: \['kd', 'ft'\] is no str"),
        (dict(lr="0.1"), "lr: '0.1' is no float"),
        (dict(lr=True), "lr: True is no float"),
        (dict(quick=1), "quick: 1 is no bool"),
    ],
)
def test_a_bad_parameter_is_refused_with_the_list_of_parameters(values, message):
    with pytest.raises(ConfigError, match=message) as error:
        checked("\n".join(f"{name} = {value!r}" for name, value in values.items()), **values)
    _, *known, problem = str(
        error.value
    ).splitlines()  # the problem last: it is what stands on the screen
    assert known == ["  method: str", "  seed: int", "  lr: float", "  quick: bool"]
    name, value = next(iter(values.items()))
    assert problem.startswith(f"{name}: ") and problem.endswith(
        f", in the line `{name} = {value!r}`"
    )


def test_all_bad_parameters_are_named_at_once():
    with pytest.raises(ConfigError) as error:
        checked("exlore = 1\nseed = 'x'", exlore=1, seed="x")
    assert "exlore: " in str(error.value) and "seed: 'x'" in str(error.value)


def test_cells_that_set_nothing_are_passed_over():
    cells = (
        "",
        "%matplotlib inline",
        CELL,
        "import x",
        "def f(:",
        "def g():\n    x = 1",
        "_own = 3",
    )
    assert checked(cells=cells) == DEFAULTS


def configured(names: str, cell: str, injected: str = "", **fields) -> RunConfig:
    """`run_config` in a notebook of these cells."""
    sources = [
        cell,
        f"# Parameters\n{injected}" if injected else "",
        f"config = run_config({names!r}, **{fields})",
    ]
    namespace: dict = {"In": sources, "run_config": notebook.run_config}
    for source in sources:
        exec(source, namespace)
    return namespace["config"]


def test_a_configuration_of_the_parameters():
    cell = "preset: str = 'smoke'\nstudent: str = ''\nseed: int = 0\nseeds: int = 5\nepochs: int = -1\nexplore: str = 'cka'"
    config = configured(
        "preset, student, seed, seeds, epochs, explore", cell, "seed = 2", method="ie-ft", seed=1
    )
    assert config == RunConfig.create("smoke", method="ie-ft", explore="cka", seed=2)


def test_a_bad_value_is_refused_by_the_configuration():
    with pytest.raises(
        ConfigError,
        match="explore: 'cca' is not usable; choose one of none, l1, l2, cosine, partial-l2, orthogonal, cka, centred-l1, in",
    ):
        configured(
            "method, explore", "method: str = 'ie-ft'\nexplore: str = 'l1'", "explore = 'cca'"
        )


def test_a_parameter_that_the_method_does_not_read_is_refused():
    names = "method, explore, teacher, kd_alpha"
    cell = "method: str = 'ie-ft'\nexplore: str = ''\nteacher: str = ''\nkd_alpha: float = -1.0"
    with pytest.raises(ConfigError, match="^explore: kd does not read it; methods that do: ie-ft$"):
        configured(names, cell, "method = 'kd'\nexplore = 'cka'")
    assert configured(names, cell, "method = 'kd'\nkd_alpha = 0.5") == RunConfig.create(
        "smoke", method="kd", kd_alpha=0.5
    )


# ---------------------------------------------------------------------- papermill itself


@pytest.fixture
def generated(tmp_path):
    """A small notebook as the book's are: parameters, check, training."""
    book = nbformat.v4.new_notebook(
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        }
    )
    book.cells = [
        nbformat.v4.new_markdown_cell("# Small"),
        nbformat.v4.new_code_cell(
            "explore: str = 'l1'  # measure\nseed: int = 0  # seed",
            metadata={"tags": ["parameters"]},
        ),
        nbformat.v4.new_code_cell(
            "from iekd.notebook import run_config\nconfig = run_config('explore, seed', "
            "method='ie-ft')\nimport matplotlib.pyplot as plt"
        ),
        nbformat.v4.new_code_cell("fig, ax = plt.subplots(figsize=(1, 1))\nplt.close(fig)\nfig"),
        nbformat.v4.new_code_cell("plt.plot([1, 2]);"),
    ]
    path = tmp_path / "small.ipynb"
    nbformat.write(book, path)
    return path


@pytest.fixture
def here(monkeypatch):
    """Kernels find this checkout."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


def test_papermill_with_a_wrong_parameter_fails_before_training(generated, runs, here):
    papermill = pytest.importorskip("papermill")
    with pytest.raises(papermill.PapermillExecutionError) as error:
        papermill.execute_notebook(
            generated, None, dict(exlore="cka", seed="3"), progress_bar=False
        )
    assert error.value.ename == "ConfigError" and "seed: '3' is no int" in error.value.evalue
    assert (
        "exlore: this notebook has no such parameter (did you mean 'explore'?)"
        in error.value.evalue
    )
    assert "explore: str\n  seed: int" in error.value.evalue and not runs.exists()
    assert list(error.value.traceback) == [
        f"ConfigError: {error.value.evalue}"
    ]  # nothing of the library's inside


def test_figures_are_pictures_whatever_backend_the_environment_names(generated, here, monkeypatch):
    papermill = pytest.importorskip("papermill")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.delenv("DISPLAY", raising=False)
    *_, returned, plotted = papermill.execute_notebook(generated, None, progress_bar=False).cells
    outputs = [*returned.outputs, *plotted.outputs]
    assert [set(output.data) for output in outputs] == [{"text/plain", "image/png"}] * 2
    # sharp, and as wide as a page shows it
    assert all(set(output.metadata["image/png"]) == {"width", "height"} for output in outputs)


@pytest.mark.parametrize("backend", ["agg", "svg", "TkAgg", "module://elsewhere", "inline", ""])
def test_a_kernel_that_has_matplotlib_already_gets_the_inline_backend(monkeypatch, backend):
    asked = []
    config = SimpleNamespace(InlineBackend=SimpleNamespace())
    magic = {"run_line_magic": lambda *words: asked.append(words)}
    shell = SimpleNamespace(kernel=None, config=config, **magic)
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monkeypatch.setenv("MPLBACKEND", backend)
    monkeypatch.setitem(sys.modules, "matplotlib", object())
    for _ in range(2):  # the second time there is nothing to do
        notebook._show_figures()
    assert asked == [("matplotlib", "inline")] and os.environ["MPLBACKEND"] == notebook.INLINE


def test_outside_a_kernel_the_backend_is_left_alone(monkeypatch):
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    notebook._show_figures()
    assert os.environ["MPLBACKEND"] == "Agg"


# ---------------------------------------------------------------------- grids and their notebooks


@pytest.mark.parametrize("path", sorted((ROOT / "runs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_key_of_a_grid_is_a_parameter_of_its_notebook(path):
    grid = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert "notebook" in grid, f"{path.name} has no key `notebook`"
    file = ROOT / grid["notebook"]
    assert file.exists(), f"{path.name} names {grid['notebook']}, which does not exist"
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    (cell,) = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    declared = {node.target.id for node in ast.parse("".join(cell["source"])).body}
    keys = {key for entry in grid["runs"] for key in {**grid.get("base", {}), **entry}}
    assert keys <= declared, (
        f"{grid['notebook']} has no parameter {', '.join(sorted(keys - declared))}"
    )


def test_the_command_of_a_page_has_the_parameters_it_was_given():
    assert notebook.again("mutual", ["", CELL, "x = 1"]) == "papermill book/mutual.ipynb out.ipynb"
    given = '# Parameters\nseed = 3\nmethod = "a b"\nlr = -1.0\n'
    assert (
        notebook.again("run", ["", CELL, given])
        == "papermill book/run.ipynb out.ipynb -p seed 3 -p method 'a b' -p lr -1.0"
    )


def test_an_exercise_says_what_is_right_and_what_is_wrong_and_why(capsys):
    @notebook.exercise
    def check_half(answer, whole=2):
        if answer != whole / 2:  # pytest adds to the message of an `assert`
            raise AssertionError(f"{answer} is not half of {whole}")
        return "half"

    for answer in (..., 1, 3, "1", None):
        check_half(answer)
    check_half(1, ...)
    check_half(4 * [1], 2, 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "Nothing to check yet: replace the dots.",
        "Right: half",
        "Not yet: 3 is not half of 2",
    ]
    assert lines[3:5] == ["Not yet: 1 is not half of 2", "Not yet: None is not half of 2"]
    assert lines[5].startswith("Nothing") and lines[6].startswith("Not yet: TypeError: ")


def test_a_function_that_returns_dots_is_no_answer_yet(capsys):
    @notebook.exercise
    def check_double(function):
        if function(2) != 4:
            raise AssertionError("not the double")
        return "the double"

    for answer in (lambda x: ..., lambda x: (..., x), lambda x: x * x, lambda x: x):
        check_double(answer)
    first, second, right, wrong = capsys.readouterr().out.splitlines()
    assert first.startswith("Nothing to check yet") and second == first
    assert (right, wrong) == ("Right: the double", "Not yet: not the double")
