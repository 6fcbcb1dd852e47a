"""However a person edits a parameters cell and whatever runs it: the values on the page are used,
or the notebook refuses.
"""

import re
import runpy
import sys
from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell
from papermill.parameterize import parameterize_notebook
from traitlets.config import Config

from iekd import cells, notebook
from iekd.config import RunConfig
from iekd.errors import ConfigError

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"
SEED, EPOCHS = "seed: int = 0  # first seed", "epochs: int = -1  # epochs, -1: the preset value"
CELL = f"""\
preset: str = "smoke"  # where unset fields come from
method: str = "ie-ft"  # how the student is trained
{SEED}
{EPOCHS}
lr: float = -1.0  # peak rate"""
CHECK = """\
from iekd import notebook

config = notebook.run_config("preset, method, seed, epochs", "lr")
made = config.command()"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """kernel(*cells) -> the variables after the cells ran as in Jupyter, or the message of the
    first that failed (they all run).
    """
    main, patch = sys.modules["__main__"], pytest.MonkeyPatch()
    patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config)

    def run(*sources):
        shell.user_ns.clear()  # `reset` would collect garbage, which takes a second
        shell.history_manager.input_hist_parsed[:] = [""]
        shell.init_user_ns()
        error = None
        for source in sources:
            result = shell.run_cell(source, store_history=True)
            error = result.error_in_exec or result.error_before_exec
        return f"{type(error).__name__}: {error}" if error else dict(shell.user_ns)

    yield run
    InteractiveShell.clear_instance()
    sys.modules["__main__"] = main
    patch.undo()


def edited(*replacements: str) -> str:
    """The parameters cell with texts replaced: old, new, old, new."""
    cell = CELL
    for old, new in zip(replacements[::2], replacements[1::2], strict=True):
        assert cell.count(old) == 1
        cell = cell.replace(old, new)
    return cell


OBEYED = {
    "nothing": CELL,
    "a plain assignment": edited(SEED, "seed = 3"),
    "an import": "import os\n" + edited(SEED, "seed = 3"),
    "a star import": "from os.path import *\n" + edited(SEED, "seed = 3"),
    "a print": edited(SEED, "seed = 3") + "\nprint(seed)",
    "a docstring": '"""Mine."""\n' + edited(SEED, "seed = 3"),
    "a comment with a type": edited(SEED, "seed = 3  # seed: int = 4"),
    "%%time": "%%time\n" + edited(SEED, "seed = 3"),
    "%%capture": "%%capture out\n" + edited(SEED, "seed = 3"),
    "a command": "!true\n" + edited(SEED, "seed = 3"),
    "a line magic": "%pwd\n" + edited(SEED, "seed = 3"),
    "help": edited(SEED, "seed = 3") + "\nseed?",
    "a semicolon": edited(SEED, "seed = 3;"),
    "two in one line": edited(SEED, "seed = 3; _mine = 4"),
    "a tuple": edited(f"{SEED}\n{EPOCHS}", "seed, epochs = 3, -1"),
    "a chain": edited(SEED, "_mine = seed = 3"),
    "another annotation": edited(SEED, "seed: int | None = 3"),
    "a wrong annotation": edited(SEED, "seed: 'a seed' = 3"),
    "a computed value": edited(SEED, "seed: int = 1 + 2"),
    "a walrus": edited(SEED, "print(seed := 3)"),
    "a condition": edited(SEED, "if True:\n    seed = 3"),
    "names of one's own": edited(SEED, "seed = 3") + "\n_x, _y = 1, 2",
    "a function with the name inside": edited(SEED, "seed = 3") + "\ndef f():\n    seed = 4\nf()",
    "a comprehension with the name inside": edited(SEED, "seed = 3")
    + "\nprint([seed for seed in range(5)])",
}


@pytest.mark.parametrize("cell", OBEYED.values(), ids=OBEYED)
def test_an_edited_cell_is_obeyed(kernel, cell):
    after = kernel(cell, CHECK)
    assert after["config"] == RunConfig.create(
        "smoke", method="ie-ft", seed=0 if cell == CELL else 3
    )


REFUSED = {
    "a typo": (
        edited(SEED, "sede: int = 3"),
        "sede: .*did you mean 'seed'.*`sede: int = 3`(.|\n)*seed: no line sets it",
    ),
    "a plain typo": (edited(SEED, "sede = 3"), "sede: this notebook has no such parameter"),
    "another name": (
        CELL + "\nlearning_rate = 0.1",
        r"learning_rate: .*no such parameter \(names of your own begin with _\)",
    ),
    "a tuple of one's own": (CELL + "\nx, y = 1, 2", "x: .*`x, y = 1, 2`\ny: "),
    "a loop": (CELL + "\nfor i in range(3): pass", "i: this notebook has no such parameter"),
    "a removed line": (edited(SEED + "\n", ""), "seed: no line sets it"),
    "a commented line": (edited(SEED, f"# {SEED}"), "seed: no line sets it"),
    "no value": (edited(SEED, "seed: int"), "seed: no line sets it"),
    "a second line": (
        CELL + "\nseed = 3",
        "seed: two lines set it, `seed: int = 0  # first seed` and `seed = 3`; keep one",
    ),
    "a second line in a loop": (CELL + "\nfor seed in range(4): pass", "seed: two lines set it"),
    "a sum": (CELL + "\nseed += 3", "seed: two lines set it"),
    "a list": (
        edited(SEED, "seed: list = [0, 1]"),
        r"seed: \[0, 1\] is no int, in the line `seed: list = \[0, 1\]`",
    ),
    "none": (edited(SEED, "seed: int | None = None"), "seed: None is no int"),
    "a truth value": (edited(SEED, "seed = True"), "seed: True is no int"),
    "out of range": (
        edited(EPOCHS, "epochs = 0"),
        "epochs: 0 is not usable; .*in the line `epochs = 0`",
    ),
    "behind the back": (
        CELL + '\nglobals()["seed"] = 3',
        "seed: the line `seed: int = 0 .* is not what the kernel holds, 3",
    ),
    "exec": (CELL + '\nexec("seed = 3")', "seed: the line .* is not what the kernel holds, 3"),
    "a dead branch": (
        edited(SEED, "if False:\n    seed = 3"),
        "seed: the line `if False:` left no value here",
    ),
    "a function of the name": (edited(SEED, "def seed(): pass"), "seed: no line sets it"),
    "an import of the name": (edited(SEED, "import os as seed"), "seed: no line sets it"),
    "a deleted name": (CELL + "\ndel seed", "seed: the line .* left no value here"),
    "%%timeit, which keeps nothing": ("%%timeit -n1 -r1\n" + CELL, "seed: .* left no value here"),
    "another language": ("%%html\n" + CELL, "left no value here"),
}


@pytest.mark.parametrize(("cell", "message"), REFUSED.values(), ids=REFUSED)
def test_an_edit_that_cannot_be_obeyed_is_refused_with_its_line(kernel, cell, message):
    found = kernel(cell, CHECK)
    assert (
        isinstance(found, str) and found.startswith("ConfigError: ") and re.search(message, found)
    ), found


INJECTED = "# Parameters\nseed = 3\n"
SESSIONS = {
    "papermill": ([CELL, INJECTED, CHECK], 3),
    "papermill, its cell run twice": ([CELL, INJECTED, INJECTED, CHECK], 3),
    "a cell that was cut in two": ([edited(EPOCHS, ""), EPOCHS, CHECK], 0),
    "cells that were merged": ([edited(SEED, "seed = 3") + "\n\n" + CHECK], 3),
    "edited and run again": ([CELL, CHECK, "x = 1", edited(SEED, "seed = 3"), CHECK], 3),
    "corrected": ([edited(SEED, "sede = 3"), CHECK, edited(SEED, "seed = 3"), CHECK], 3),
    "corrected before the check": ([edited(SEED, "sede = 3"), edited(SEED, "seed = 3"), CHECK], 3),
    "checked twice": ([CELL, CHECK, "teachers = x = 4", CHECK], 0),
    "no parameters cell": ([CHECK], "no cell was run that sets preset, method, seed, epochs, lr"),
    "papermill without the tag": (
        [INJECTED, CELL, CHECK],
        "seed: two lines set it.* the tag `parameters`",
    ),
    "papermill, a typo": (
        [CELL, "# Parameters\nsede = 3\n", CHECK],
        "sede: this notebook has no such parameter",
    ),
    "papermill, a name with an underscore": (
        [CELL, "# Parameters\n_seed = 3\n", CHECK],
        "_seed: this notebook has no such parameter",
    ),
    "a name of an earlier %run": (
        ["__file__ = 'elsewhere.py'", edited(SEED, "seed = 3"), CHECK],
        3,
    ),
    "papermill over a typo": (
        [edited(SEED, "sede = 0"), INJECTED, CHECK],
        "sede: this notebook has no such parameter",
    ),
    "a cell of one's own below": ([CELL, "seed = 3", CHECK], "seed: two lines set it"),
    "a cell of one's own above": (["seed = 3", CELL, CHECK], "seed: two lines set it"),
    "a typo in a cell of one's own": (
        ["methd = 'kd'", CELL, CHECK],
        "methd: .*did you mean 'method'",
    ),
    "a line removed in a running kernel": (
        [CELL, CHECK, edited(SEED + "\n", ""), CHECK],
        "seed: no line sets it",
    ),
    "a stale value": (
        [CELL, CHECK, "seed = 7", CHECK],
        "seed: the line .* is not what the kernel holds, 7",
    ),
    "%%timeit in a running kernel": (
        [CELL, CHECK, "%%timeit -n1 -r1\n" + edited(SEED, "seed = 3"), CHECK],
        "kernel holds, 0",
    ),
}


@pytest.mark.parametrize(("sources", "expected"), SESSIONS.values(), ids=SESSIONS)
def test_sessions(kernel, sources, expected):
    found = kernel(*sources)
    if isinstance(expected, int):
        assert found["config"].seed == expected
    else:
        assert isinstance(found, str) and re.search(expected, found), found


def test_numbers_keep_the_type_that_the_page_means(kernel):
    """YAML, and so papermill -f, reads 1e-3 as text."""
    for text in ('"1e-3"', "1", '"1E+2"', '".5e-1"'):
        after = kernel(edited("lr: float = -1.0", f"lr = {text}"), CHECK)
        assert (
            after["lr"] == after["config"].lr == float(text.strip('"'))
            and type(after["lr"]) is float
        )
    assert "lr: '0.1' is no float" in kernel(edited("lr: float = -1.0", "lr = '0.1'"), CHECK)


# ---------------------------------------------------------------------- any mixture of edits

VALUES = {
    "preset": st.sampled_from(["smoke", "class"]),
    "method": st.sampled_from(["supervised", "kd", "ft"]),
    "seed": st.integers(0, 10**6),
    "epochs": st.integers(1, 999),
    "lr": st.floats(1e-6, 10, allow_subnormal=False),
}
FORMS = [
    "{0}: {2} = {1!r}",
    "{0} = {1!r}",
    "{0}: object = {1!r}  # mine",
    "{0} = ({1!r})",
    "{0}={1!r};",
    "{0} = _mine = {1!r}",
]
SPOILED = [
    "",
    "# {0} = {1!r}",
    "{0}: {2}",
    "{0}s: {2} = {1!r}",
    "{0} = {1!r}\n{0} = {1!r}",
    "{0} = [{1!r}]",
    "my_{0} = {0} = {1!r}",
]
ADDED = [
    "",
    "import math",
    "print('x')",
    '"""Mine."""',
    "%pwd",
    "# a comment",
    "_x, _y = 1, 2",
    "pass",
]


@st.composite
def mixtures(draw):
    """A cell of the five parameters, the values that it sets, and the names whose lines were
    spoiled.
    """
    values = {name: draw(strategy) for name, strategy in VALUES.items()}
    spoiled = draw(st.sets(st.sampled_from(list(VALUES)), max_size=2))
    lines = [draw(st.sampled_from(ADDED))]
    for name in draw(st.permutations(list(VALUES))):
        form = draw(st.sampled_from(SPOILED if name in spoiled else FORMS))
        lines += [
            form.format(name, values[name], type(values[name]).__name__),
            draw(st.sampled_from(ADDED)),
        ]
    return draw(st.sampled_from(["", "%%time\n", "\n\n"])) + "\n".join(lines), values, spoiled


@given(mixtures())
@settings(max_examples=30, deadline=None)
def test_any_mixture_of_edits_is_obeyed_or_refused(kernel, mixture):
    cell, values, spoiled = mixture
    found = kernel(cell, CHECK.replace("run_config", "parameters").replace("config.command()", "1"))
    if spoiled:
        assert isinstance(found, str) and all(
            re.search(f"^(my_)?{name}s?: ", found, re.M) for name in spoiled
        ), (cell, found)
    else:
        assert found["config"] == values, cell


# --------------------------------------------------------------------- other ways to run a notebook


def file_of(path: Path, *sources: str) -> Path:
    """A notebook file of these code cells, or a script of them as nbconvert writes it."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    text = (
        nbformat.writes(book)
        if path.suffix == ".ipynb"
        else "".join(f"\n# In[ ]:\n\n\n{source}\n" for source in sources)
    )
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["made.ipynb", "made.py"])
def test_percent_run(kernel, tmp_path, capsys, name):
    def run(*sources):
        kernel(f"%run {file_of(tmp_path / name, *sources, 'print(made)')}")
        return capsys.readouterr().out

    assert "--seed 3\n" in run(edited(SEED, "seed = 3"), CHECK)
    assert "--seed 3\n" in run(CELL, INJECTED, CHECK)
    assert "x: this notebook has no such parameter" in run(CELL + "\nx = 1", CHECK)
    assert "sede: this notebook has no such parameter" in run(edited(SEED, "sede = 3"), CHECK)


def test_a_script_made_of_a_notebook(tmp_path):
    def run(*sources):
        return runpy.run_path(str(file_of(tmp_path / "made.py", *sources)))

    assert run(edited(SEED, "seed = 3") + "\nimport os", CHECK)["config"].seed == 3
    assert run(CELL, INJECTED, CHECK)["config"].seed == 3
    with pytest.raises(
        ConfigError, match=r"sede: this notebook has no such parameter \(did you mean 'seed'\?\)"
    ):
        run(edited(SEED, "sede = 3"), CHECK)


@pytest.mark.parametrize(
    "border", ["# In[3]:", "# %%", "# %% [markdown]", '# %% tags=["x"]', "# +", '# + tags=["x"]']
)
def test_the_cells_of_a_script(tmp_path, border):
    file = tmp_path / "made.py"
    file.write_text(f"{border}\nseed = 0\n{border}\n# Parameters\nseed = 3\n", encoding="utf-8")
    found = [source for source in cells.executed({"__file__": str(file)}) if source.strip()]
    assert [cells.is_injected(source) for source in found] == [False, True]


def test_a_notebook_that_names_nothing_is_refused(kernel):
    assert "name the parameters that this notebook reads" in kernel(
        CELL, "from iekd import notebook\nnotebook.parameters()"
    )
    assert "share: of which type?" in kernel(
        "share = 1", "from iekd import notebook\nnotebook.parameters('share')"
    )
    own = kernel(
        "share = 1", "from iekd import notebook\nfound = notebook.parameters('share: float >= 1')"
    )
    assert own["found"] == {"share": 1.0} and type(own["share"]) is float


# ---------------------------------------------------------------------- the chapters

PAGES = sorted(path.stem for path in BOOK.glob("*.ipynb"))


def code(stem: str, **values) -> list[str]:
    """The code cells of a chapter after `papermill -p`."""
    book = nbformat.read(BOOK / f"{stem}.ipynb", as_version=4)
    book.metadata["papermill"] = {}
    for cell in book.cells:
        cell.metadata["papermill"] = {}
        cell.metadata.setdefault("tags", [])
    book = parameterize_notebook(book, values) if values else book
    return [cell.source for cell in book.cells if cell.cell_type == "code"]


def until_check(stem: str, **values) -> list[str]:
    """Those cells until the parameters are checked."""
    sources = code(stem, **values)
    return sources[: next(i for i, source in enumerate(sources) if cells.read(source).checks) + 1]


@pytest.mark.parametrize("stem", PAGES)
def test_a_chapter_names_its_parameters_and_sets_them_nowhere_else(stem):
    first, *others = map(cells.read, code(stem))
    own = [name for line in first.lines for name in line.names]
    found = re.search(
        r"notebook\.(?:parameters|given|run_config)\(((?:\s*\"[^\"]*\",?)+)",
        "\n".join(until_check(stem)),
    )
    named = (
        notebook.declarations(re.findall(r'"([^"]*)"', found[1]))
        if found
        else [*RunConfig.model_fields, "exercises"]
    )
    assert list(named) == own
    rest = [
        cells.read(re.sub(r"\b(parameters|given|run_config)\(", "x(", source))
        for source in code(stem)[1:]
    ]
    assert not [line for cell in rest for line in cell.lines if set(line.names) & set(own)]
    assert any(cell.checks for cell in others)


WRONG = [
    ("factor", dict(seeds=0), "seeds: 0 is not usable"),
    ("factor", dict(seeds=1), "seeds: 1 is not usable; this page needs at least 2"),
    ("teacher-and-student", dict(seeds=0), "seeds: 0 is not usable"),
    (
        "teacher-and-student",
        dict(train_images=15),
        "train_images: 15 is not usable; this page needs 0 .all. or at least 30",
    ),
    ("teacher-and-student", dict(epochs=0), "epochs: 0 is not usable"),
    ("inherit-and-explore", dict(seeds=0), "seeds: 0 is not usable"),
    ("halves", dict(seeds=0), "seeds: 0 is not usable"),
    ("measures", dict(seed=-1), "seed: -1 is not usable"),
    ("ablations", dict(seeds=-1), "seeds: -1 is not usable"),
    (
        "ablations",
        dict(method="ie-at"),
        "method: 'ie-at' has no exploration measure to compare; choose ie-ft",
    ),
    ("ablations", dict(method="kd"), "choose ie-ft"),
    ("small-teacher", dict(seeds=True), "seeds: True is no int"),
    # arms without a split are measured on halves: a quarter has no control there
    ("analysis", dict(split_ratio=0.25), "split_ratio: this notebook has no such parameter"),
    ("looks", dict(split_ratio=0.25), "split_ratio: this notebook has no such parameter"),
    ("mutual", dict(turns="hour"), "turns: 'hour' is not usable; choose one of batch, epoch"),
    ("gpu", dict(minutes=0), "minutes: 0 is not usable"),
    ("gpu", dict(rate="inf"), "rate: 'inf' is no float"),
    ("protocol", dict(power=1.0), "power: 1.0 is not usable"),
    ("run", dict(batch_size=0), "batch_size: 0 is not usable"),
    ("run", dict(lr=float("inf")), "lr: inf is not usable"),
    ("run", dict(exercises="no"), "exercises: 'no' is no bool"),
    ("methods", dict(methods_tried="kd; ft"), "method: 'kd;' is not usable"),
    (
        "reliability",
        dict(folder="/does/not/exist"),
        "folder: '/does/not/exist' is not usable; there is no such folder",
    ),
    ("speed", dict(folder="~/no such folder"), "there is no such folder"),
    ("speed", dict(folder=__file__), "there is no such folder"),
    ("reliability", dict(folder=str(ROOT)), r"there is no report \(\*.json\) in this folder"),
    ("detection", dict(dataset="digits"), "this page needs boxes; choose discs, bccd or voc"),
    ("detection", dict(dataset=""), "this page needs boxes"),
    ("tables", dict(grid="none.yaml"), "none.yaml: No such file"),
]


@pytest.mark.parametrize(("stem", "values", "message"), WRONG)
def test_a_chapter_refuses_before_anything_trains(kernel, runs, stem, values, message):
    found = kernel(*until_check(stem, **values))
    assert isinstance(found, str) and re.search(message, found) and not runs.exists(), found


def test_a_page_that_measures_halves_of_plain_students_cuts_in_half():
    """`similarity.reference` divides them as IE-FT does by default, whatever a page says."""
    measured = [stem for stem in PAGES if "metrics.analyse(" in "\n".join(code(stem))]
    assert {"analysis", "looks"} <= set(measured)
    for stem in measured:
        own = {name for line in cells.read(code(stem)[0]).lines for name in line.names}
        assert not {"split", "split_ratio"} & own, stem


def test_lists_take_blanks_and_commas(kernel):
    after = kernel(*until_check("ablations", measures_tried="none, l1 ,cka,,", explore="cka"))
    assert after["tried"] == ["cka", "none", "l1"]
    after = kernel(*until_check("methods", methods_tried=" kd\tft,"))
    assert [config.method for config in after["live_arms"]] == ["supervised", "kd", "ft"]
    assert notebook.listed("") == notebook.listed(" , ") == []


def test_a_folder_in_the_home(kernel, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "one.json").write_text('{"attacks": {}, "rounds": 1, "losses": 0}')
    after = kernel(*until_check("reliability", folder="~/reports"))
    assert after["folder"] == str(tmp_path / "reports") and len(after["reports"]) == 1


GRIDS = [
    (
        "tables",
        "runs: [{method: [supervised, kd]}]",
        "this page needs FT or IE-FT in its grid, which has only supervised, kd",
    ),
    (
        "tables",
        "runs: [{method: dml}]",
        "this page needs FT or IE-FT in its grid, which has only dml",
    ),
    (
        "tables",
        "runs: [{method: ft}, {method: kd, student: resnet14}]",
        "this page shows one student, and the grid has resnet8, resnet14",
    ),
    ("tables", "runs: [{method: ft, dataset: [cifar10, cifar100]}]", "this page shows one dataset"),
    (
        "methods",
        "runs: [{method: supervised}]",
        "this page needs a method that learns from a teacher",
    ),
    (
        "methods",
        "runs: [{method: [tf-kd, dml]}]",
        "this page needs a method that learns from a teacher",
    ),
    (
        "methods",
        "runs: [{method: kd, teacher: [resnet20, resnet14]}]",
        "this page shows one teacher",
    ),
]


@pytest.mark.parametrize(("stem", "text", "message"), GRIDS)
def test_a_page_says_what_it_needs_of_a_grid(kernel, tmp_path, stem, text, message):
    grid = tmp_path / "grid.yaml"
    grid.write_text("base: {preset: class, seed: [0, 1]}\n" + text, encoding="utf-8")
    found = kernel(*until_check(stem, grid=str(grid)))
    assert isinstance(found, str) and message in found and str(grid) in found


def test_a_grid_that_a_page_can_show(kernel, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text("base: {preset: class}\nruns: [{method: [supervised, ft]}]", encoding="utf-8")
    assert kernel(*until_check("tables", grid=str(grid)))["distilled"].method == "ft"
