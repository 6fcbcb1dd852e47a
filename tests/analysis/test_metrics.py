"""What the halves learned: every formula against an independent one, and files that are true."""

import copy
import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import made_up, tiny
from torch import nn

from iekd import networks, records
from iekd.analysis import metrics
from iekd.analysis.flatness import DRAWS, SIGMA, SIGMAS, filter_noise, noise_of, weight_noise
from iekd.analysis.metrics import analyse
from iekd.analysis.similarity import distances, feature_cka, halves_of, reference
from iekd.cli import main
from iekd.config import RunConfig
from iekd.method import measures
from iekd.method.split import channel_split
from iekd.records import store
from iekd.training import runner


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A runs folder with the runs that the tests analyse: trained once, only read."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def runs(trained, monkeypatch):
    monkeypatch.setenv("IEKD_RUNS", str(trained))
    return trained


def train(config: RunConfig):
    return runner.train(config, progress=False)


def finished(method: str = "ie-ft", **fields) -> RunConfig:
    """A trained run, with the teacher that the analysis needs."""
    config = tiny(method, **fields)
    train(reference(config).teacher_run())
    train(config)
    return config


# ---------------------------------------------------------------------- CKA


def hsic_of_quadruples(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """The U-statistic that defines the unbiased HSIC (Song et al. 2012, theorem 3): a mean over all
    ordered quadruples."""
    quadruples = list(itertools.permutations(range(len(k)), 4))
    return sum(k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in quadruples) / len(
        quadruples
    )


def test_cka_is_the_ratio_of_the_u_statistics():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 5)) + 2
    y[:, 0] += 2 * x[:, 1]
    k, l = x @ x.T, y @ y.T  # noqa: E741
    wanted = hsic_of_quadruples(k, l) / np.sqrt(hsic_of_quadruples(k, k) * hsic_of_quadruples(l, l))
    assert feature_cka(torch.tensor(x), torch.tensor(y)) == pytest.approx(wanted, abs=1e-12)


def test_cka_is_that_of_the_losses():
    torch.manual_seed(0)
    x = torch.randn(60, 7, dtype=torch.double).relu()
    y = (x @ torch.randn(7, 4, dtype=torch.double) + torch.randn(60, 4, dtype=torch.double)).relu()
    assert feature_cka(x, y) == pytest.approx(
        measures.cka(x[..., None, None], y[..., None, None]).item(), abs=1e-12
    )


def test_cka_of_equal_shifted_rotated_and_independent_features():
    torch.manual_seed(0)
    x = torch.randn(200, 16, dtype=torch.double)
    rotation = torch.linalg.qr(torch.randn(16, 16, dtype=torch.double)).Q
    assert feature_cka(x, 3 * x @ rotation + 100) == pytest.approx(1, abs=1e-9)
    found = [feature_cka(x, torch.randn(200, 16)) for _ in range(40)]
    assert (
        abs(np.mean(found)) < 4 * np.std(found) / 40**0.5
    )  # unbiased: biased CKA would be about 0.14 here
    assert feature_cka(x[:, :0], x) is None and feature_cka(torch.ones(200, 3), x) is None


# ---------------------------------------------------------------------- weight noise


def test_noise_is_relative_to_each_filter_and_the_same_for_every_arm():
    torch.manual_seed(0)
    one, other = (networks.build("resnet8x0.5", 10, 1) for _ in range(2))
    relative = []
    for network in (one, other):
        noise = filter_noise(network, seed=3)
        kinds = (nn.Conv2d, nn.Linear)
        assert set(noise) == {
            f"{name}.weight"
            for name, module in network.named_modules()
            if isinstance(module, kinds)
        }
        size = {
            name: network.get_parameter(name).detach().flatten(1).double().pow(2).mean(1).sqrt()
            for name in noise
        }
        relative.append(
            torch.cat(
                [
                    (noise[name].flatten(1).double() / size[name][:, None]).flatten()
                    for name in noise
                ]
            )
        )
    assert torch.allclose(*relative, atol=1e-5)
    assert abs(relative[0].mean()) < 4 / len(relative[0]) ** 0.5 and relative[
        0
    ].std() == pytest.approx(1, abs=0.02)
    different = filter_noise(one, seed=4)
    assert not torch.allclose(different["conv.weight"], filter_noise(one, seed=3)["conv.weight"])


def test_loss_under_noise_does_not_depend_on_the_scale_of_filters(runs):
    config = finished("kd")
    run = runner.load_run(config)
    before = weight_noise(run, seed=0)
    student = run.learner["student"]
    with (
        torch.no_grad()
    ):  # a longer first filter that the batch normalisation behind it takes back: the same function
        student.conv.weight[0] *= 4
        student.norm.running_mean[0] *= 4
        student.norm.running_var[0] = 16 * student.norm.running_var[0] + 15 * student.norm.eps
    pd.testing.assert_frame_equal(weight_noise(run, seed=0), before, rtol=1e-4)


def test_loss_and_error_under_noise_are_those_of_a_network_with_these_weights(runs):
    config = finished("kd")
    run = runner.load_run(config)
    weights = copy.deepcopy(run.learner.state_dict())
    table = weight_noise(run, seed=5)
    assert all(
        torch.equal(tensor, weights[name]) for name, tensor in run.learner.state_dict().items()
    )
    assert list(table["sigma"]) == [0.0, *np.repeat(SIGMAS, DRAWS)] and table[
        "train_loss"
    ].nunique() == len(table)

    sigma, draw = SIGMAS[1], 2
    network = copy.deepcopy(run.learner["student"]).double()
    generator = torch.Generator().manual_seed(5 * DRAWS + draw)
    with torch.no_grad():
        for weight in (w for w in network.parameters() if w.dim() > 1):
            for row, noise in zip(
                weight, torch.randn(weight.shape, generator=generator), strict=True
            ):
                row += sigma * noise * row.square().mean().sqrt()
    row = table[(table["sigma"] == sigma) & (table["draw"] == draw)].iloc[0]
    for name in ("train", "validation"):
        images, labels, _ = getattr(run.dataset, name)
        logits = network((images.double() / 255 - run.mean) / run.std).logits.detach().numpy()
        log_sum = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
        assert row[f"{name}_loss"] == pytest.approx(
            (log_sum - logits[range(len(labels)), labels]).mean(), rel=1e-4
        )
        assert row[f"{name}_error"] == pytest.approx(
            100 * (logits.argmax(1) != labels.numpy()).mean(), abs=1e-3
        )
    assert table["validation_error"][0] == pytest.approx(
        records.find(config).metrics["last"].validation_error, abs=1e-4
    )


# ---------------------------------------------------------------------- similarity


def outputs(config: RunConfig):
    """Features and factors of the test images in float64, by the networks alone."""
    run = runner.load_run(config)
    learner, teacher = (
        run.learner.double().eval(),
        runner.load_network(reference(config).teacher_run()).double(),
    )
    images = (run.dataset.test.images.double() / 255 - run.mean) / run.std
    with torch.no_grad():
        student, taught = learner["student"](images).feature, teacher(images).feature
        factor = (
            runner.load_network(config.autoencoder_run()).double().encoder(taught)
            if config.method != "supervised"
            else None
        )
    return learner, student, taught, factor


def unit_l1(x: torch.Tensor, y: torch.Tensor) -> float:
    x, y = (z.flatten(1).numpy() for z in (x, y))
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    return np.abs(x - y).mean()


def test_metrics_of_ie_ft(runs):
    config = finished("ie-ft", explore="orthogonal", seed=2)
    learner, student, taught, factor = outputs(config)
    inherit, explore = channel_split(student.shape[1], 0.5, "random", 2)
    halves = learner["method"].halves
    found = analyse(config).metrics
    pooled = {
        name: feature.mean((2, 3))
        for name, feature in {"student": student, "teacher": taught}.items()
    }
    gram = {
        name: measures.cka(pooled["student"][:, c, None, None], taught).item()
        for name, c in zip("ie", (inherit, explore), strict=True)
    }
    assert found["cka_inherit"] == pytest.approx(gram["i"], abs=1e-5) and found[
        "cka_explore"
    ] == pytest.approx(gram["e"], abs=1e-5)
    assert found["cka_teacher"] == pytest.approx(measures.cka(student, taught).item(), abs=1e-5)
    assert found["cka_halves"] == pytest.approx(
        measures.cka(student[:, inherit], student[:, explore]).item(), abs=1e-5
    )
    with torch.no_grad():
        f_inh, f_exp = (
            halves[name].encoder(student[:, c])
            for name, c in (("inherit", inherit), ("explore", explore))
        )
    assert found["factor_inherit"] == pytest.approx(unit_l1(f_inh, factor), rel=1e-4)
    cosines = torch.cosine_similarity(f_exp.flatten(1), factor.flatten(1))
    assert found["factor_explore"] == pytest.approx(cosines.abs().mean().item(), abs=1e-5)


def test_metrics_of_ft_and_of_a_student_without_a_teacher(runs):
    ft = finished("ft")
    learner, student, taught, factor = outputs(ft)
    with torch.no_grad():
        wanted = unit_l1(learner["method"].encoder(student), factor)
    found = analyse(ft).metrics
    assert (
        found["factor_inherit"] == pytest.approx(wanted, rel=1e-4)
        and found["factor_explore"] is None
    )

    alone = finished("supervised")
    found = analyse(alone).metrics
    _, student, taught, _ = outputs(alone)
    assert found["factor_inherit"] is None
    assert found["cka_teacher"] == pytest.approx(measures.cka(student, taught).item(), abs=1e-5)
    inherit, explore = channel_split(
        student.shape[1], 0.5, "random", 0
    )  # as an IE-FT run with this seed would be split
    assert found["cka_halves"] == pytest.approx(
        measures.cka(student[:, inherit], student[:, explore]).item(), abs=1e-5
    )


@pytest.mark.parametrize(
    "inherit, explore",
    [("partial-l2", "cka"), ("l2", "partial-l2"), ("cosine", "none"), ("none", "l2")],
)
def test_own_measure_is_the_loss_without_sign_weight_and_unit(runs, inherit, explore):
    config = finished("ie-ft", inherit=inherit, explore=explore)
    learner, student, _, factor = outputs(config)
    found = analyse(config).metrics
    for name in ("inherit", "explore"):
        if getattr(config, name) == "none":
            assert found[f"factor_{name}"] is None
            continue
        half = learner["method"].halves[name]
        with torch.no_grad():
            loss = half(half.factor(student), factor).abs().item() / half.weight
        unit = measures.l1_unit(factor) if getattr(config, name) in ("cosine", "cka") else 1
        assert abs(found[f"factor_{name}"]) == pytest.approx(loss / unit, rel=1e-4, abs=1e-6)


def test_all_channels_in_one_half(runs):
    found = analyse(finished("ie-ft", split_ratio=1.0)).metrics
    assert (
        found["cka_halves"] is None
        and found["cka_explore"] is None
        and found["factor_explore"] is None
    )
    assert found["cka_inherit"] == found["cka_teacher"]


@pytest.mark.parametrize("method", ["ie-at", "ie-od"])
def test_methods_that_divide_every_stage_are_measured_on_their_last(runs, method):
    config = finished(method, seed=1)
    halves = runner.load_run(config).learner["method"]
    found = halves_of(config, 16)
    assert torch.equal(found["inherit"], halves.inherit[-1].channels) and torch.equal(
        found["explore"], halves.explore[-1].channels
    )
    metrics = analyse(config).metrics
    assert metrics["cka_halves"] is not None and metrics["factor_inherit"] is None


def test_arms_with_one_seed_share_teacher_and_split():
    ie = RunConfig.create("class", method="ie-ft", seed=103)
    for method in ("supervised", "kd", "ft"):
        other = reference(RunConfig.create("class", method=method, seed=103))
        assert other.teacher_run() == ie.teacher_run() and other.teacher_run().seed == 3
        assert (other.split, other.split_ratio, other.seed) == ("random", 0.5, 103)
    halves = RunConfig.create("class", method="ie-ft", split="halves", split_ratio=0.25)
    assert reference(halves) == halves


# ---------------------------------------------------------------------- files


def test_an_analysis_is_made_once_per_weights_and_is_no_record(runs, monkeypatch):
    config = finished("ie-ft", seed=3)
    first = analyse(config)
    path = records.analysis_path(config)
    assert (
        path == records.record_path(config).parent / "seed3.analysis.json"
        and path.stat().st_size < 8000
    )
    assert json.loads(path.read_text())["schema"] == records.SCHEMA
    assert first.weights == records.find(config).weights
    assert first.parents == records.find(config).parents
    for text in ("similarity", "weight_noise"):
        monkeypatch.setattr(metrics, text, lambda *_: pytest.fail("measured again"))
    assert analyse(config) == first

    frame = records.load(hash=config.hash)
    assert len(frame) == 1 and set(metrics.METRICS) <= set(frame)
    assert frame["cka_halves"][0] == first.metrics["cka_halves"]
    curve = noise_of(frame).set_index("sigma")
    assert curve.loc[SIGMA, "train_loss"] - curve.loc[0.0, "train_loss"] == pytest.approx(
        frame["rise_train"][0], abs=1e-6
    )

    monkeypatch.undo()
    monkeypatch.setenv("IEKD_RUNS", str(runs))
    stale = first.model_copy(
        update={"weights": "0" * 64, "metrics": first.metrics | {"cka_halves": 9.0}}
    )
    stale.save(config)  # what is left when the run was trained again
    assert not (records.load(hash=config.hash).get("cka_halves", pd.Series([np.nan])) == 9.0).any()
    assert analyse(config).metrics == first.metrics


def test_an_analysis_of_an_earlier_version_is_measured_again_where_the_weights_are(runs):
    """It had no answers and no maps: pages that need them said that nothing was analysed."""
    config = finished("kd", seed=3)
    whole = analyse(config)
    few = {name: whole.metrics[name] for name in metrics.METRICS}
    whole.model_copy(update={"metrics": few, "answers": {}}).save(config)
    assert analyse(config) == whole

    # What cannot be measured again stays.
    old = whole.model_copy(update={"metrics": few, "answers": {}})
    old.save(config)
    for path in records.weights_paths(config):
        path.unlink(missing_ok=True)
    assert metrics.impossible(config) == "" and analyse(config).metrics == few


def test_a_damaged_analysis_is_named(runs):
    config = finished("kd")
    analyse(config)
    path = records.analysis_path(config)
    path.write_text(path.read_text()[:100])
    with pytest.raises(
        store.StoreError, match="seed0.analysis.json is not a valid analysis.*Delete it"
    ):
        records.load()
    path.unlink()


def test_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("IEKD_RUNS", str(tmp_path))
    monkeypatch.setattr(runner, "fit", lambda *_: pytest.fail("trained"))
    config = tiny("kd")
    with pytest.raises(store.StoreError, match="not finished"):
        analyse(config)
    made_up(config).save()
    with pytest.raises(
        store.StoreError,
        match=f"no weights at hand of {config.path}, {tiny('kd').teacher_run().path}",
    ):
        analyse(config)


def test_a_run_without_weights_is_measured_on_a_second_training(runs, tmp_path, monkeypatch):
    config = finished("kd", seed=6)
    record = records.find(config)
    lost = record.model_copy(
        update={"weights": "0" * 64}
    )  # as another version of PyTorch had made them
    second = analyse(config)  # of the training that is at hand
    monkeypatch.setenv("IEKD_RUNS", str(tmp_path / "runs"))
    lost.save()
    with pytest.raises(store.StoreError, match="no weights at hand of .*runs/again/grid.yaml"):
        analyse(config)
    assert "cka_halves" not in records.load()

    monkeypatch.setenv("IEKD_RUNS", str(tmp_path / "runs" / "again"))
    record.model_copy(
        update={
            "metrics": {
                **record.metrics,
                "last": record.metrics["last"].model_copy(update={"test_error": 12.5}),
            }
        }
    ).save()
    second.save(config)
    monkeypatch.setenv("IEKD_RUNS", str(tmp_path / "runs"))
    frame = records.load()  # the error of the first training, what was measured on the second
    assert (len(frame), frame["last"][0], frame["last_again"][0]) == (
        1,
        record.metrics["last"].test_error,
        12.5,
    )
    assert frame["cka_halves"][0] == second.metrics["cka_halves"] and analyse(config) == second
    assert set(noise_of(frame)["path"]) == {config.path}

    monkeypatch.setenv("IEKD_RUNS", str(tmp_path / "runs" / "again"))
    record.model_copy(update={"weights": "1" * 64}).save()
    monkeypatch.setenv("IEKD_RUNS", str(tmp_path / "runs"))
    assert (
        records.analysis_of(lost) is None
    )  # a third training: what was measured on the second counts no more


def test_the_command_analyses_what_is_finished(runs, tmp_path, capsys):
    done, missing = finished("kd", seed=4), tiny("kd", seed=5)
    grid = tmp_path / "grid.yaml"
    fields = {
        k: v
        for k, v in done.model_dump().items()
        if k in done.changed() or k in ("preset", "teacher", "student", "method")
    }
    grid.write_text(json.dumps({"base": {**fields, "seed": [4, 5]}, "runs": [{}]}))
    assert main.main(["analyse", str(grid)]) == 0
    out = capsys.readouterr().out
    assert (
        f"skipped {missing.path}: it is not finished" in out and "1 runs analysed, 1 skipped" in out
    )
    assert records.analysis_path(done).exists() and not records.analysis_path(missing).exists()


# ---------------------------------------------------------------------- over training


def test_distances_are_the_losses_without_weight_and_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("IEKD_RUNS", str(tmp_path))
    curves = {
        "loss_inherit": [2.0, 1.0, 0.5],
        "loss_explore": [-2.0, -3.0, -4.0],
        "loss_ft": [5.0, 4.0, 3.0],
    }
    arms = [
        tiny("ie-ft", explore_weight=10.0),
        tiny("ie-ft", explore="cka"),
        tiny("ft"),
        tiny("kd"),
        tiny("ie-ft", explore_target="inherit"),
    ]
    for config in arms:
        made_up(config).model_copy(update={"history": curves}).save()
    found = distances(records.load()).set_index(["path", "half"])["distance"]
    assert list(found[arms[0].path, "inherit"]) == [0.04, 0.02, 0.01]
    assert list(found[arms[0].path, "explore"]) == [0.2, 0.3, 0.4]
    assert list(found[arms[2].path, "inherit"]) == [0.01, 0.008, 0.006]
    pairs = {
        (arms[0].path, "inherit"),
        (arms[0].path, "explore"),
        (arms[1].path, "inherit"),
        (arms[2].path, "inherit"),
    }
    assert set(found.index) == pairs | {(arms[4].path, "inherit")}
    assert distances(records.load(method="kd")).empty
