"""The command line: what it prints, and how it refuses."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from filelock import FileLock, Timeout
from tiny import SMALL, made_up, tiny

from iekd import records
from iekd.cli import main, options, parser
from iekd.config import RunConfig
from iekd.records import store
from iekd.report.labels import label_of


def words_of(config: RunConfig) -> list[str]:
    """`iekd run` with the options that make this run."""
    return shlex.split(config.command())[1:]


@pytest.fixture
def iekd(capsys):
    """iekd('run', ...) -> (exit status, standard output, standard error)."""

    def call(*words):
        try:
            status = main.main([str(word) for word in words])
        except SystemExit as exit:  # argparse's own refusals
            status = exit.code
        return status, *capsys.readouterr()

    return call


def test_help_lists_the_commands_and_every_field(iekd):
    status, out, _ = iekd("--help")
    assert status == 0 and all(
        command in out for command in ("run", "sweep", "table", "data", "doctor")
    )
    status, out, _ = iekd("run", "--help")
    text = " ".join(out.split())
    assert status == 0 and all(
        f"--{name.replace('_', '-')} VALUE" in text for name in parser.FIELDS
    )
    assert (
        "x0.1 at 50 % and 75 % of the epochs" in text
        and "one of none, l1, l2, cosine, partial-l2, orthogonal, cka" in text
    )


def test_dry_run_prints_configuration_hash_and_path_and_trains_nothing(iekd, runs):
    config = tiny("ie-ft", explore="cka", seed=3)
    status, out, err = iekd(*words_of(config), "--dry-run")
    assert (status, err) == (0, "") and not runs.exists()
    *printed, name, path = out.strip().splitlines()
    assert json.loads("\n".join(printed)) == config.model_dump(exclude=config.unread())
    assert name == f"hash {config.hash}" and path == f"record {records.record_path(config)}"


def test_a_run_prints_its_errors_and_its_record_and_loads_the_second_time(iekd, runs):
    words = words_of(tiny("kd"))
    status, out, _ = iekd(*words)
    record = records.find(tiny("kd"))
    assert (
        status == 0
        and f"last: test error {record.metrics['last'].test_error:.2f} % (epoch 3)" in out
    )
    assert (
        "val_selected: " in out
        and "best_on_test: " in out
        and str(records.record_path(record.config)) in out
    )
    written = records.record_path(record.config).stat().st_mtime_ns
    assert iekd(*words)[:2] == (0, out)
    assert records.record_path(record.config).stat().st_mtime_ns == written


def test_an_autoencoder_prints_its_loss(iekd):
    status, out, _ = iekd(*words_of(tiny("factor-ae")))
    assert status == 0 and "last: test loss" in out


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["run", "--exlore", "cka"],
            "exlore: no such parameter (did you mean 'explore'?); `iekd run --help` lists all of "
            "them",
        ),
        (["run", "--exlore=cka", "--dry-run"], "exlore: no such parameter"),
        (
            ["run", "--explor", "cka"],
            "explor: no such parameter (did you mean 'explore'?)",
        ),  # no guessing by prefix
        (["run", "cka"], "cka: no such option"),
        (["run", "--seed"], "expected one argument"),
        (
            ["sweep", "g.yaml", "--job", "2"],
            "iekd sweep: --job: no such option (did you mean '--jobs'?); see iekd sweep --help\n",
        ),
        (
            ["sweep", "g.yaml", "--time-limt=3"],
            "--time-limt: no such option (did you mean '--time-limit'?)",
        ),
        (
            ["data", "list", "--rooot", "x"],
            "iekd data list: --rooot: no such option (did you mean '--root'?); see iekd data list "
            "--help",
        ),
        (["sweep", "g.yaml", "--jobs", "0"], "'0' is not a whole number of at least 1"),
        (["sweep", "g.yaml", "--jobs", "two"], "'two' is not a whole number of at least 1"),
        (["sweep", "g.yaml", "--time-limit", "0"], "'0' is not a number of seconds"),
        (["sweep", "g.yaml", "--time-limit", "1h"], "'1h' is not a number of seconds"),
        (["sweep", "g.yaml", "--time_limit", "0"], "'0' is not a number of seconds"),
        (["bundle", "r.tar", "--limit", "nan"], "'nan' is not a number of megabytes"),
        (["bundle", "r.tar", "--limit", "-1"], "'-1' is not a number of megabytes"),
        (["bundle", "r.tar", "--limit=1GB"], "'1GB' is not a number of megabytes"),
        (["table", "--rule", "best"], "choose from"),
        (["dance"], "dance"),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_option_exits_with_2_and_a_message(iekd, runs, words, message):
    status, out, err = iekd(*words)
    assert status == 2 and message in err and out == "" and not runs.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["run", "--explore", "cca"],
            "iekd: explore: 'cca' is not usable; choose one of none, l1, l2",
        ),
        (["run", "--method", "kd", "--explore", "cca"], "iekd: explore: 'cca' is not usable"),
        (
            ["run", "--explore", "cka"],
            "iekd: explore: supervised does not read it; methods that do: ie-ft\n",
        ),
        (
            ["run", "--method", "ft", "--inherit-weight", "5"],
            "inherit_weight: ft does not read it; methods that do: ie-ft, ie-dml\n",
        ),
        (["table"], "iekd: there are no records of preset 'class' in "),
        (["run", "--seed", "many"], "iekd: seed: 'many' is not usable"),
        (
            ["run", "--student", "resnet21"],
            "iekd: network 'resnet21' is not known; the networks are",
        ),
        (
            ["run", "--preset", "big"],
            "iekd: preset: 'big' is not usable; choose one of smoke, class, desk, paper",
        ),
        (["run", "--train-images", "5000"], "iekd: train_images: 5000 is not usable"),
        (
            ["run", "--method", "ft", "--teacher", "vgg13"],
            "Choose a pair with the same down-sampling",
        ),
        (["sweep", "none.yaml"], "iekd: none.yaml: No such file"),
        (["data", "pack", "mnist", "there"], "iekd: data set 'mnist' is not known"),
    ],
)
def test_a_wrong_value_exits_with_1_and_one_message_without_traceback(
    iekd, tmp_path, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    status, out, err = iekd(*words)
    assert status == 1 and message in err and "Traceback" not in err and out == ""
    assert len(records.load()) == 0


def test_a_corrupt_record_exits_with_1_and_names_the_file(iekd):
    made_up(tiny()).save()
    path = records.record_path(tiny())
    path.write_text("{")
    status, _, err = iekd(*words_of(tiny()))
    assert status == 1 and str(path) in err and "Restore it from git" in err
    assert iekd("table", "--preset", "smoke")[0] == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_gives_a_status_of_its_own_and_a_last_line(iekd, monkeypatch, number, status):
    monkeypatch.setattr("iekd.training.runner.fit", lambda *_: signal.raise_signal(number))
    found, _, err = iekd(*words_of(tiny()))
    assert found == status
    assert (
        err.splitlines()[-1]
        == f"iekd: stopped by {number.name}; the same command continues from the last checkpoint"
    )


def test_a_run_of_another_process_is_left_to_it_on_demand(iekd, monkeypatch):
    monkeypatch.setattr(FileLock, "acquire", lambda *_, **__: (_ for _ in ()).throw(Timeout("")))
    status, _, err = iekd(*words_of(tiny()), "--no-wait")
    assert status == 75 and err == f"iekd: {tiny().path}: another process trains this run\n"


@pytest.mark.parametrize(
    "words",
    [
        ["--batch_size", "32", "--dry_run"],
        ["--batch_size=32", "--dry-run"],
        ["--batch-size", "32", "--dry_run"],
        ["--batch_size", "32", "--no_wait", "--dry-run"],
        ["--kd-alpha", "0.5", "--method=kd", "--batch_size=32", "--dry-run"],
        ["--train_images", "130", "--batch-size=32", "--dry-run"],
        ["--dry-run", "--batch_size", "32", "--weight_decay=1e-3"],
    ],
)
def test_options_may_be_written_as_notebooks_and_grids_write_them(iekd, words):
    status, out, err = iekd("run", *words)
    assert (status, err) == (0, "") and '"batch_size": 32' in out


def test_values_and_what_follows_two_hyphens_keep_their_underscores():
    words = ["run", "--student=my_net", "--x_y=a_b", "a_b", "--", "--c_d"]
    assert options.spelled(words) == ["run", "--student=my_net", "--x-y=a_b", "a_b", "--", "--c_d"]


# ---------------------------------------------------------------------- the other commands


def test_doctor(iekd):
    made_up(tiny()).save()
    status, out, _ = iekd("doctor")
    assert status == 0 and "torch" in out and "device: " in out and "records: 1 in" in out
    assert all(
        name in out for name in ("digits", "fashion-mnist", "cifar10", "cifar100", "imagenette")
    )


def test_data_list(iekd, tmp_path):
    status, out, _ = iekd("data", "list", "--root", tmp_path)
    names = ["digits", "fashion-mnist", "cifar10", "cifar100", "imagenette"]
    names += ["imagenet64", "imagenet", "discs", "bccd", "voc"]
    assert status == 0 and [line.split()[0] for line in out.splitlines()] == names


def test_sweep_dry_run_and_summary(iekd, tmp_path):
    grid = tmp_path / "grid.yaml"
    base = {name: value for name, value in SMALL.items() if name not in tiny("kd").unread()}
    grid.write_text(
        yaml.safe_dump({"base": base, "runs": [{"method": "supervised"}, {"method": "kd"}]})
    )
    made_up(tiny(), error=12.5).save()
    status, out, _ = iekd("sweep", grid, "--dry-run")
    lines = sorted(line.split() for line in out.splitlines()[:-1])
    assert out.splitlines()[-1] == "3 runs with their parents: 1 done, 2 pending"
    assert status == 0 and lines == [
        ["done", tiny().path],
        ["pending", tiny("kd").path],
        ["pending", tiny("kd").teacher_run().path],
    ]
    for config in (tiny("kd"), tiny("kd").teacher_run()):
        made_up(config, error=20).save()
    status, out, _ = iekd("sweep", grid)
    assert (
        status == 0
        and f"loaded   12.50 %  {tiny().path}" in out
        and out.splitlines()[-1] == "3 runs, 0 failed"
    )


def test_table(iekd):
    for seed in (0, 1):
        made_up(tiny(seed=seed), error=10 + seed).save()
    status, out, _ = iekd("table", "--preset", "smoke")
    assert status == 0 and "10.50 ± 0.71" in out
    status, out, _ = iekd("table", "--preset", "smoke", "--format", "csv")
    assert status == 0 and len(out.strip().splitlines()) == 2


def test_table_tells_data_sets_apart_and_calls_nothing_a_student_that_may_be_a_teacher(iekd):
    for dataset in ("digits", "cifar10"):
        made_up(tiny(dataset=dataset)).save()
    lines = iekd("table", "--preset", "smoke")[1].splitlines()
    assert [line.split(" | ")[0] for line in lines] == [
        "| data set",
        "| ---",
        "| cifar10",
        "| digits",
    ]
    assert "| Trained alone |" in lines[-1] or "| Trained alone, " in lines[-1]


def test_no_table_is_written_into_a_readme_that_is_not_ours(iekd, runs):
    """`IEKD_RUNS` names records; the README beside it is somebody else's."""
    theirs = runs.parent / "README.md"
    theirs.write_text("theirs")
    status, _, err = iekd("table", "--readme")
    assert (
        status == 1
        and "there are no records of preset 'class'" in err
        and theirs.read_text() == "theirs"
    )


def test_a_bundle_that_cannot_be_written_is_refused_before_the_sweep(iekd, tmp_path, runs):
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump({"runs": [{"student": "resnet8x0.25"}]}))
    for file in (grid / "results.tar", tmp_path):  # below a file; a folder
        status, _, err = iekd("sweep", grid, "--bundle", file)
        assert status == 1 and f"cannot write {file}" in err and not runs.exists()


def test_an_empty_bundle_is_said_to_be_empty(iekd, tmp_path):
    status, out, err = iekd("bundle", tmp_path / "results.tar")
    assert status == 0 and "0 records" in out and "the archive is empty" in err


def test_ctrl_c_while_the_libraries_are_imported_needs_no_traceback(tmp_path):
    """The command must be ready for it before it imports torch, which takes seconds."""
    (tmp_path / "torch.py").write_text(
        "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.getcwd(), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-m", "iekd", "doctor"],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (
        130,
        "iekd: stopped by SIGINT; the same command continues from the last checkpoint\n",
    )


# ------------------------------------------------------------------ from a grid to a figure


@pytest.fixture
def grid(tmp_path):
    """A grid of two arms with three seeds, all finished; and a run that is of no grid."""
    path = tmp_path / "mine.yaml"
    base = {name: value for name, value in SMALL.items() if name not in tiny("kd").unread()}
    arms = [{"method": "supervised"}, {"method": "kd"}]
    path.write_text(yaml.safe_dump({"base": {**base, "seed": "0..2"}, "runs": arms}))
    for seed in range(3):
        made_up(tiny(seed=seed), error=20 + seed).save()
        made_up(tiny("kd", seed=seed), error=18 + seed).save()
        made_up(tiny("kd", seed=seed).teacher_run(), error=9).save()
    made_up(tiny("kd", seed=7), error=99).save()
    return path


def test_the_table_of_a_grid_has_its_runs_and_no_others(iekd, grid):
    status, out, _ = iekd("table", grid, "--format", "json")
    arms = {arm["label"]: arm for arm in json.loads(out)}
    assert status == 0 and arms.keys() == {label_of(tiny()), label_of(tiny("kd"))}
    kd = arms[label_of(tiny("kd"))]
    assert kd["n"] == 3 and kd["mean"] == 19


@pytest.mark.parametrize("baseline", [label_of(tiny()), tiny().variant])
def test_a_baseline_is_named_as_in_tables_or_in_paths(iekd, grid, baseline):
    status, out, _ = iekd("table", grid, "--baseline", baseline)
    lines = [line.split(" | ") for line in out.splitlines()]
    assert status == 0 and lines[0][3].startswith("minus Student alone")
    (kd,) = [line for line in lines if line[0].startswith("| KD")]
    assert kd[1] == "3" and kd[3].startswith("−2.00")


def test_a_baseline_that_is_none_is_refused(iekd, grid):
    status, _, err = iekd("table", grid, "--baseline", "nobody")
    assert status == 1 and "there is no arm 'nobody'; the arms are" in err


@pytest.mark.parametrize("words", [["--preset", "class"], ["--readme"]])
def test_what_is_for_the_whole_store_is_refused_beside_a_grid(iekd, grid, words):
    status, out, err = iekd("table", grid, *words)
    assert status == 1 and not out and "name them without a grid" in err


def test_a_baseline_needs_a_grid_of_one_pair(iekd, grid, tmp_path):
    status, _, err = iekd("table", "--preset", "smoke", "--baseline", "KD")
    assert status == 1 and "baseline: name the grid" in err
    other = tmp_path / "other.yaml"
    other.write_text("base: {student: [resnet8, resnet14]}\nruns: [{method: supervised}]")
    status, _, err = iekd("table", other, "--baseline", "KD")
    assert status == 1 and "one student, and the grid has resnet8, resnet14" in err
    status, _, err = iekd("table", other)
    assert status == 1 and "there are no records of these grids" in err


def test_the_runs_of_a_grid_as_a_file(iekd, grid, tmp_path):
    runs, curves = tmp_path / "runs.csv", tmp_path / "curves.csv"
    assert iekd("export", runs, grid)[1] == f"6 rows written to {runs}\n"
    assert sorted(pd.read_csv(runs)["last"]) == [18, 19, 20, 20, 21, 22]
    iekd("export", curves, grid, "--history")
    assert len(pd.read_csv(curves)) == 6 * tiny().epochs
    iekd("export", runs)
    assert len(pd.read_csv(runs)) > 6


def test_what_is_known_of_a_run(iekd, grid):
    status, out, _ = iekd("show", tiny("kd").path)
    assert status == 0 and out.startswith(tiny("kd").command()) and "test_error 18" in out
    assert iekd("show", f"{tiny('kd').path}.json")[1] == out
    file = store.record_file(tiny("kd").path)
    assert iekd("show", file)[1] == out
    status, _, err = iekd("show", file.with_name("seed0.jso"))
    assert status == 1 and "there is no such record (did you mean 'seed0.json'?)" in err
    (analysis := file.with_name("seed0.analysis.json")).write_text("{}")
    status, _, err = iekd("show", analysis)
    assert status == 1 and "there is no such record" in err and "delete" not in err
    status, _, err = iekd("table", file)
    assert status == 1 and "is not a grid: it is the record of a run, for `iekd show`" in err
    status, _, err = iekd("show", "smoke/nothing/seed0")
    assert status == 1 and "smoke/nothing/seed0.json: there is no such record" in err


def test_a_sweep_ends_with_its_arms_and_takes_some_of_the_seeds(iekd, grid):
    status, out, _ = iekd("sweep", grid)
    assert status == 0 and "| 3 | 19.00 ± 1.00 |" in out and "99" not in out
    status, out, _ = iekd("sweep", grid, "--seed", "1..2", "--dry-run")
    assert status == 0 and "seed0" not in out.replace(tiny("kd").teacher_run().path, "")
    for words, message in [
        (["--seed", "5"], "seed: no run of these grids has one of 5"),
        (["--epochs", "3"], "epochs: a grid names its runs"),
        (["--seed", "x"], "seed: 'x' is not usable"),
    ]:
        status, _, err = iekd("sweep", grid, *words)
        assert status == 1 and message in err


def test_a_sweep_without_a_file(iekd):
    words = "--preset smoke --method ie-ft --explore none,l1 --seed 0..2,7 --dry-run"
    status, out, _ = iekd("sweep", *words.split())
    named = [line.split()[1] for line in out.splitlines() if "/ie-ft" in line]
    wanted = [("ie-ft-explore=none", k) for k in (0, 1, 2, 7)] + [
        ("ie-ft", k) for k in (0, 1, 2, 7)
    ]
    assert status == 0
    assert sorted(path.split("/", 3)[3] for path in named) == sorted(
        f"{variant}/seed{k}" for variant, k in wanted
    )
    for words, message in [
        ([], "name a grid, or the fields of runs"),
        (["--method", "kd", "--explore", "l1"], "explore: kd does not read it"),
        (
            ["--seed", "0-4"],
            "seed: '0-4' is not a value; write several as a list, [0, 1, 2], or 0..2",
        ),
    ]:
        status, _, err = iekd("sweep", *words)
        assert status == 1 and message in err


def test_a_hand_out(iekd, tmp_path):
    status, out, _ = iekd("handout", tmp_path / "class", "--chapters", "factor, mutual")
    assert status == 0 and [Path(line).name for line in out.splitlines()] == [
        "factor.ipynb",
        "mutual.ipynb",
    ]
    status, _, err = iekd("handout", tmp_path / "class")
    assert status == 1 and "already exists" in err
