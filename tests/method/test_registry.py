"""A reader's own measure and method, from a cell or a file, are known from then on to everything
that reads names.
"""

import json
import linecache
import os
import subprocess
import sys

import pytest
import torch
from tiny import tiny
from torch import nn
from torch.nn import functional as F

import iekd
from iekd import records
from iekd.config import ConfigError, RunConfig, known
from iekd.config.reads import fields_of
from iekd.method import registry
from iekd.method.check import MeasureError, check_measure
from iekd.report import labels
from iekd.training import digest, runner

FILE = '''
"""A reader's own losses."""
import iekd
from torch import nn
from torch.nn import functional as F


@iekd.measure("huber", label="Huber")
def huber(student, teacher):
    return F.smooth_l1_loss(iekd.unit(student), iekd.unit(teacher), beta=0.01)


@iekd.method("gap", label="Gap", taught="teacher", reads="pooled", source="pooled features, through one linear map.")
class Gap(nn.Module):
    """task = CE, gap = gap_weight * mean squared difference of the pooled features."""

    def __init__(self, networks, *, gap_weight: float = 1.0):
        super().__init__()
        self.translate = nn.Linear(networks.student.head.in_features, networks.teacher.head.in_features)
        self.weight = gap_weight

    def forward(self, batch, student, teacher):
        ours = self.translate(student.features["pooled"])
        distance = F.mse_loss(ours, teacher.features["pooled"])
        return {"task": F.cross_entropy(student.logits, batch.labels), "gap": self.weight * distance}
'''


@pytest.fixture
def mine(tmp_path, own_losses):
    """The file, imported."""
    path = tmp_path / "my_losses.py"
    path.write_text(FILE)
    known.import_file(str(path))
    return path


def test_a_measure_is_a_value_of_both_sides(mine):
    config = tiny("ie-ft", inherit="huber", explore="huber")
    assert config.variant.endswith("-inherit=huber-explore=huber")
    assert labels.label_of(tiny("ie-ft", explore="huber")).startswith(
        "IE-FT (inherit L1, explore Huber)"
    )
    record = runner.train(config, progress=False)
    assert record.metrics["last"].test_error > 0 and "loss_explore" in record.history


def test_the_parameters_of_a_method_are_typed_and_part_of_path_and_hash(mine):
    one, three = tiny("gap"), tiny("gap", gap_weight="3")
    assert one.options == {"gap_weight": 1.0} and three.options == {"gap_weight": 3.0}
    assert one.hash != three.hash and three.variant.endswith("-gap_weight=3")
    assert "--gap-weight 3" in three.command()
    assert three.replace(seed=5).options == {"gap_weight": 3.0}
    assert three.teacher_run().options == {} and three.replace(method="kd").options == {}
    with pytest.raises(ConfigError, match="gap_weight: 'much' is not usable; it is a number"):
        tiny("gap", gap_weight="much")
    with pytest.raises(ConfigError, match="gap_width: no such parameter"):
        tiny("gap", gap_width=3)
    with pytest.raises(ConfigError, match="gap_weight: no such parameter"):
        tiny("kd", gap_weight=3)


def test_a_method_trains_resumes_packs_and_stands_in_the_table(mine):
    alone = runner.train(tiny("gap"), progress=False)
    packed = runner.train_pack([tiny("gap", seed=1), tiny("kd", seed=1)], progress=False)
    frame = records.load()
    assert alone.metrics["last"] is not None and len(packed) == 2
    assert set(frame.loc[frame["method"] == "gap", "seed"]) == {0, 1}
    assert labels.label(frame[frame["method"] == "gap"].iloc[0]).startswith("Gap")


def test_a_record_is_read_where_its_method_is_not_known(mine):
    config = tiny("gap", gap_weight=3, seed=0)
    record = runner.train(config, progress=False)
    path = records.record_path(config)
    code = (
        "import sys, pathlib; from iekd import records; "
        "record = records.read(pathlib.Path(sys.argv[1])); "
        "print(record.config.path); print(records.load()['path'].tolist())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    assert (
        found.stdout.splitlines()[0] == config.path and config.path in found.stdout.splitlines()[1]
    )
    assert record.hash == json.loads(path.read_text())["hash"]
    with pytest.raises(ConfigError, match="choose one of"):
        RunConfig.create("smoke", method="gip")


def test_the_environment_names_files_for_other_processes(mine):
    code = "from iekd.config import RunConfig; print(RunConfig.create('smoke', method='gap', explore='l1').variant)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "IEKD_IMPORT": str(mine)},
    )
    assert found.stdout.strip() == "gap-gap_weight=1", found.stderr


def test_an_edited_measure_is_noticed(mine):
    config = tiny("ie-ft", explore="huber")
    before = digest.of(config)
    mine.write_text(FILE.replace("beta=0.01", "beta=0.02"))
    sys.modules.pop("my_losses")
    linecache.checkcache()
    known.import_file(str(mine))
    assert digest.of(config) != before and digest.of(tiny("ie-ft")) != digest.of(config)


def test_an_edited_method_is_noticed(mine):
    before = digest.of(tiny("gap"))
    mine.write_text(FILE.replace("F.mse_loss", "F.l1_loss"))
    sys.modules.pop("my_losses")
    linecache.checkcache()
    known.import_file(str(mine))
    assert digest.of(tiny("gap")) != before


def test_names_of_the_library_are_taken():
    known.load()
    with pytest.raises(
        ConfigError, match="'l1' is a name of this library; choose another one, for example 'my-l1'"
    ):
        iekd.measure("l1")(lambda x, y: (x - y).mean())
    with pytest.raises(ConfigError, match="'My Loss' cannot name this"):
        iekd.measure("My Loss")(lambda x, y: (x - y).mean())
    with pytest.raises(ConfigError, match="'kd' is a name of this library"):
        iekd.method("kd")(nn.Module)


def test_a_name_taken_before_the_library_is_loaded_is_never_trained_as_its_own():
    code = (
        "from iekd.method.registry import measure\n"
        "measure('cka')(lambda student, teacher: 0)\n"
        "from iekd.config import RunConfig\n"
        "RunConfig.create('smoke', method='ie-ft', explore='cka')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode and "'cka' is a name of this library" in found.stderr


def test_a_parameter_without_type_or_default_is_refused():
    class Bad(nn.Module):
        def __init__(self, networks, *, weight=1.0):
            super().__init__()

    with pytest.raises(ConfigError, match="Bad: weight is a parameter of runs, so it needs a type"):
        iekd.method("bad-one")(Bad)


def test_a_file_that_cannot_be_imported_is_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no such Python file"):
        known.import_file(str(tmp_path / "none_there.py"))
    broken = tmp_path / "broken_losses.py"
    broken.write_text("import nothing_of_the_kind")
    with pytest.raises(
        ConfigError, match="broken_losses.py: it cannot be imported .ModuleNotFoundError"
    ):
        known.import_file(str(broken))


def test_the_fields_of_every_method_are_those_of_the_library():
    for name in known.methods():
        assert set(fields_of(name)) <= set(RunConfig.model_fields)


# ---------------------------------------------------------------------- check_measure


@pytest.mark.parametrize("name", [*known.choices("explore")[1:]])
def test_every_measure_of_the_library_passes(name):
    check_measure(registry.MEASURES[name].function)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (
            lambda x, y: (x - y).abs(),
            r"a tensor of shape \(8, 4, 3, 3\); a measure returns one number",
        ),
        (lambda x, y: (x - y).abs().mean().item(), "it returns a float"),
        (lambda x, y: x.mean() / y.norm(), "for a teacher of zeros|huge"),
        (lambda x, y: (x * y).sum(1).norm(), "huge factors; normalise them first"),
        (
            lambda x, y: (iekd.unit(x) - iekd.unit(y)).square().mean().sqrt(),
            "its gradient is not finite for equal factors",
        ),
        (
            lambda x, y: (iekd.unit(x) + iekd.unit(x).detach().square() * iekd.unit(y)).mean(),
            "its gradient is .* where its value rises by",
        ),
        (lambda x, y: iekd.unit(y).mean(), "does not depend on the student"),
        (
            lambda x, y: iekd.unit(x).mean() if x.sum() > 0 else -iekd.unit(x).mean(),
            "it reads a value while it computes",
        ),
    ],
)
def test_what_would_spoil_a_run_is_said(measure, message):
    with pytest.raises(MeasureError, match=message):
        check_measure(measure)


def test_huber_passes():
    check_measure(lambda x, y: F.smooth_l1_loss(iekd.unit(x), iekd.unit(y), beta=0.01))
    assert torch.is_grad_enabled()


def distance(x, y):
    return (iekd.unit(x) - iekd.unit(y)).abs().mean()


def cosine(x, y):
    return (iekd.unit(x) * iekd.unit(y)).sum(1).mean()


@pytest.mark.parametrize(
    ("measure", "how", "message"),
    [
        (lambda x, y: (x - y).abs().mean(), {"unit": "one"}, "exploration by it has no end"),
        (cosine, {"unit": "one"}, "registered as a distance, .* similarity=True"),
        (distance, {"similarity": True}, "registered as a similarity, .* similarity=False"),
        (lambda x, y: 1 - cosine(x, y), {}, "register it with unit='one'"),
        (distance, {"unit": "one"}, "register it with unit='l1'"),
    ],
)
def test_a_measure_is_what_its_decorator_says(mine, measure, how, message):
    iekd.measure("mine", **how)(measure)
    with pytest.raises(MeasureError, match=message):
        check_measure(measure)


@pytest.mark.parametrize(
    ("measure", "how"),
    [
        (lambda x, y: (x - y).abs().mean(), {"unit": "one", "sides": ("inherit",)}),
        (cosine, {"unit": "one", "similarity": True}),
        (lambda x, y: 1 - cosine(x, y), {"unit": "one"}),
        (distance, {}),
    ],
)
def test_what_is_registered_as_it_is_passes(mine, measure, how):
    iekd.measure("mine", **how)(measure)
    check_measure(measure)


# ---------------------------------------------------------------------- mistakes are said early


@pytest.mark.parametrize(
    ("register", "how"),
    [
        (iekd.method, {"taught": "techer"}),
        (iekd.method, {"reads": "poold"}),
        (iekd.measure, {"unit": "l2"}),
        (iekd.measure, {"sides": ("exploer",)}),
    ],
)
def test_a_misspelt_word_of_a_decorator_is_refused(register, how):
    ((argument, word),) = how.items()
    word = word if isinstance(word, str) else word[0]
    with pytest.raises(ConfigError, match=f"{argument}: {word!r} is not usable; choose one of"):
        register("mine", **how)


def test_a_method_that_takes_no_networks_is_refused_when_it_is_registered(mine):
    class Mine(nn.Module):
        def __init__(self, *, weight: float = 1.0):
            super().__init__()

    with pytest.raises(ConfigError, match=r"Mine: .* def __init__\(self, networks, \*, weight"):
        iekd.method("mine")(Mine)


@pytest.mark.parametrize("returned", ["a number", "a list of them"])
def test_a_method_that_returns_no_terms_says_what_it_should_return(mine, returned):
    @iekd.method("mine")
    class Mine(nn.Module):
        def __init__(self, networks):
            super().__init__()

        def forward(self, batch, student, teacher):
            loss = F.cross_entropy(student.logits, batch.labels, reduction="none")
            return loss.mean() if returned == "a number" else {"task": loss}

    with pytest.raises(ConfigError, match="Mine.forward: it returns the terms of the loss by name"):
        runner.train(tiny("mine"), progress=False)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda x, y: (x - y).abs().mean((1, 2, 3)), r"returns a tensor of shape \(8,\)"),
        (lambda x, y: distance(x.detach(), y), "does not depend on the student"),
    ],
)
def test_nothing_is_trained_by_a_measure_that_teaches_nothing(mine, monkeypatch, measure, message):
    iekd.measure("mine")(measure)
    monkeypatch.setattr(runner, "fit", lambda *_: pytest.fail("it trains"))
    with pytest.raises(ConfigError, match=f"mine: .*{message}"):
        runner.train(tiny("ie-ft", explore="mine"), progress=False)
