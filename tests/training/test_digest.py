"""The digest of a loss: every change of its arithmetic changes it, layout and place do not; and
what `train` does then.
"""

import importlib
import itertools
import sys
import textwrap
from pathlib import Path

import pytest
from tiny import tiny

from iekd import records
from iekd.config import ConfigError, RunConfig
from iekd.config.known import import_files, methods
from iekd.method import measures
from iekd.method.factor import FactorAE
from iekd.training import digest, runner

CODE = '''
"""A module."""
from helpers import scale

WEIGHT = 3.0

class Refused(Exception):
    """Refused."""

def push(x: float, y: float) -> float:
    """Away."""
    if x < 0:
        raise Refused()
    return -WEIGHT * scale(x - y)

class Loss:
    """A loss."""

    half = 0.5

    def forward(self, x: float) -> float:
        """The term."""
        return self.half * push(x, 1)
'''
NUMBERS = itertools.count()
ROOT = Path(__file__).parents[2]
HELPERS = "def scale(x):\n    return 2 * x\n"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """written(code, helpers) is the digest of the class `Loss` in a module of that code."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def digest_of(code: str, helpers: str = HELPERS) -> str | None:
        number = next(NUMBERS)  # a module is imported once
        (tmp_path / f"helpers{number}.py").write_text(helpers)
        (tmp_path / f"losses{number}.py").write_text(
            code.replace("from helpers", f"from helpers{number}")
        )
        importlib.invalidate_caches()
        module = importlib.import_module(f"losses{number}")
        return digest.digest(module.Loss, sys.modules[f"helpers{number}"].scale)

    return digest_of


@pytest.mark.parametrize(
    "old, new",
    [
        ('"""A loss."""', '"""Another text."""'),
        ('    """The term."""\n', ""),
        ("x: float, y: float", "x, y"),
        ("-> float", "-> int"),
        ("-WEIGHT * scale(x - y)", "(  -WEIGHT  *\n            scale(x - y)\n    )  # as before"),
        ("WEIGHT = 3.0\n", "# three\nWEIGHT = 3.0\nUNUSED = 4\n"),
        ('"""Refused."""', "def __str__(self): return 'no'"),
    ],
)
def test_what_computes_nothing_does_not_count(written, old, new):
    assert old in CODE
    assert written(CODE) == written(CODE.replace(old, new))


@pytest.mark.parametrize(
    "old, new",
    [
        ("-WEIGHT", "WEIGHT"),
        ("WEIGHT = 3.0", "WEIGHT = 4.0"),
        ("half = 0.5", "half = 0.25"),
        ("push(x, 1)", "push(x, 2)"),
        ("x - y", "y - x"),
    ],
)
def test_every_change_of_the_arithmetic_counts(written, old, new):
    assert old in CODE
    assert written(CODE) != written(CODE.replace(old, new))


def test_a_helper_counts(written):
    assert written(CODE) != written(CODE, HELPERS.replace("2", "3"))


def test_a_module_may_be_imported_in_another_way(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "somewhere.py").write_text("def scale(x):\n    return 2 * x\n")
    loss = "def loss(x):\n    return {}scale(x)\n"
    (tmp_path / "one.py").write_text("import somewhere\n" + loss.format("somewhere."))
    (tmp_path / "two.py").write_text("from somewhere import scale\n" + loss.format(""))
    one, two = (importlib.import_module(name) for name in ("one", "two"))
    assert digest.digest(one.loss) == digest.digest(two.loss)


def test_code_without_source_has_no_digest():
    space = {"__name__": "nowhere"}
    exec("def f(x):\n    return x\n", space)
    assert digest.digest(space["f"]) is None


def test_a_class_of_a_notebook_is_read_from_its_functions(monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    cell = textwrap.dedent("""
        class Mine:
            def forward(self, x):
                return {} * x
    """)
    found = []
    for factor in (2, 2, 3):
        shell.run_cell(cell.format(factor))
        found.append(digest.digest(shell.user_ns["Mine"]))
    InteractiveShell.clear_instance()
    assert found[0] == found[1] != found[2] and None not in found


# ---------------------------------------------------------------------- of the methods


@pytest.mark.parametrize("folder, kinds", [("records", 20), ("again/records", 10)])
def test_no_loss_of_a_committed_run_is_called_edited(folder, kinds, own_losses):
    """Whoever loads a student of the evidence is not told that its loss was edited since."""
    import_files([ROOT / "runs" / "mirror" / "mirror.py"])
    found = {}
    for path in records.files(ROOT / "runs" / folder):
        record = records.read(path)
        config = record.config
        if config.preset != "smoke" and record.loss_digest:  # the book's own cells train that
            kind = config.method, config.inherit, config.explore, record.loss_digest
            found[kind] = record
    assert len(found) > kinds
    assert [record.config.path for record in found.values() if digest.is_edited(record)] == []


GOAL = """
from helpers import scale
import torch.nn.functional as F

class Batch:
    labels: int
    {goal}

class Loss:
    def forward(self, batch: Batch, student):
        return 2 * {task}
"""


def test_the_goal_of_a_batch_is_read_as_its_cross_entropy(written):
    plain = written(GOAL.format(goal="", task="F.cross_entropy(student.logits, batch.labels)"))
    goal = "def goal(self, x):\n        return 3 * x"
    assert written(GOAL.format(goal=goal, task="batch.goal(student)")) == plain
    assert written(GOAL.format(goal=goal, task="batch.goal(other)")) != plain
    assert written(GOAL.format(goal="", task="batch.other(student)")) != plain


def test_every_method_has_a_digest_of_its_own():
    found = {digest.digest(loss) for loss in [row.kind for row in methods().values()]}
    assert len(found) == len(methods()) and None not in found


def test_the_measures_of_a_run_count():
    found = {
        digest.of(tiny("ie-ft", inherit=i, explore=e))
        for i in ("none", "l1", "l2")
        for e in ("none", "l1", "cka")
    }
    assert len(found) == 9


def test_classes_are_what_is_built():
    for method in ("supervised", "ft", "ie-ft", "at", "ie-od", "dml", "factor-ae"):
        run = runner.make_run(tiny(method))
        assert type(run.learner["method"]) is methods()[method].kind


# ---------------------------------------------------------------------- what `train` does with it


@pytest.fixture
def edit(monkeypatch):
    """edit(method) is what a student does who mends the loss of that method."""

    def change(*changed: str) -> None:
        plain = digest.of
        monkeypatch.setattr(
            digest,
            "of",
            lambda config, **how: "edited" if config.method in changed else plain(config, **how),
        )

    return change


def train(config: RunConfig):
    return runner.train(config, progress=False)


def test_an_edited_loss_is_trained_anew_at_smoke_scale(edit):
    config = tiny("ft")
    before = train(config)
    edit("ft")
    after = train(config)
    assert after.loss_digest == "edited" and before.loss_digest != "edited"
    assert train(config).started == after.started and records.find(config).loss_digest == "edited"


def test_an_edited_auto_encoder_reaches_its_students(edit, monkeypatch):
    config = tiny("ft")
    before = train(config)
    edit("factor-ae")
    monkeypatch.setattr(FactorAE, "__init__", _narrow(FactorAE.__init__))
    after = train(config)
    assert after.parents["autoencoder"] != before.parents["autoencoder"]
    assert after.weights != before.weights


def _narrow(init):
    """An auto-encoder whose loss is another one."""

    def changed(self, *arguments):
        init(self, *arguments)
        self.power = 1

    return changed


def test_elsewhere_the_evidence_stays_and_a_line_says_so(edit, capsys):
    config = RunConfig.create("class", **{**TINY, "method": "supervised"})
    before = train(config)
    edit("supervised")
    assert train(config).loss_digest == before.loss_digest
    assert "has been edited since" in capsys.readouterr().out
    train(config)
    assert "has been edited since" not in capsys.readouterr().out  # once


@pytest.mark.parametrize("field", ["method", "explore"])
def test_a_loss_that_is_not_registered_is_named_before_anything_trains(field):
    record = train(tiny("ie-ft"))
    fields = record.config.model_dump() | {field: "unheard", "seed": 7}
    config = RunConfig.model_validate(fields, context={"finished": True})
    record.model_copy(update={"config": config, "hash": config.hash}).save()
    assert not digest.is_edited(records.find(config))
    assert train(config).weights == record.weights  # as it is recorded
    with pytest.raises(ConfigError, match=f"{field} 'unheard' is not known here; import the file"):
        runner.train(config, again=True)


def test_a_record_without_digest_is_left_alone(edit):
    record = train(tiny())
    record.model_copy(update={"loss_digest": None}).save()
    edit("supervised")
    assert train(tiny()).loss_digest is None


TINY = dict(
    dataset="digits",
    teacher="resnet8x0.5",
    student="resnet8x0.25",
    train_images=200,
    validation_images=100,
    epochs=2,
    image_size=0,
)


def test_measures_are_read_through_their_tables():
    """`explore=l1` names a closure: its digest holds the measure and the sign."""
    assert digest.digest(measures.EXPLORE["l1"]) != digest.digest(measures.INHERIT["l1"])
    assert digest.digest(measures.EXPLORE["l1"]) != digest.digest(measures.EXPLORE["l2"])
