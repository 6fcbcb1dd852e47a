"""DML and IE-DML: which update sees what, and a record for each of the two networks."""

import copy

import numpy as np
import pytest
import torch
from scipy import special, stats
from tiny import content, tiny
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from iekd import data, networks, records
from iekd.config import grid
from iekd.errors import TrainingError
from iekd.method.features import Batch
from iekd.method.mutual import DML, IEDML
from iekd.method.split import channel_split
from iekd.records import store
from iekd.training import checkpoint, finish, loop, runner
from iekd.training.loop import evaluate, train_epoch
from iekd.training.runner import load_network, load_run, make_run

CPU = torch.device("cpu")
MUTUAL = ["dml", "ie-dml"]
LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
BATCH = Batch(LABELS, torch.arange(8))


@pytest.fixture
def images():
    return torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pair():
    """A small and a larger network."""
    torch.manual_seed(1)
    return networks.build("resnet8x0.25", 10, 1), networks.build("resnet8x0.5", 10, 1)


def ie_dml(small: nn.Module, large: nn.Module, **fields) -> IEDML:
    torch.manual_seed(2)
    usual = dict(
        ratio=0.5,
        decoder="transposed",
        reconstruction="l2",
        inherit_weight=50.0,
        explore_weight=7.0,
        split="random",
        split_ratio=0.5,
        seed=3,
        turns="batch",
    )
    return IEDML(small.feature_channels, large.feature_channels, **{**usual, **fields})


def train(config, **how):
    return runner.train(config, progress=False, **how)


def numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# ---------------------------------------------------------------------- DML


def test_the_terms_of_dml(images, pair):
    outputs = [network(images) for network in pair]
    for own, other in (outputs, outputs[::-1]):
        terms = DML(2.0).terms(BATCH, own, other)
        p, q = (special.softmax(numpy(o.logits), axis=1) for o in (other, own))
        assert terms["dml"].item() == pytest.approx(
            2 * stats.entropy(p, q, axis=1).mean(), rel=1e-4
        )
        assert terms["task"].item() == pytest.approx(
            -np.log(q[np.arange(8), LABELS]).mean(), rel=1e-5
        )
    assert DML(1.0).terms(BATCH, outputs[0], outputs[0])["dml"].item() == pytest.approx(0, abs=1e-6)


def test_the_divergence_moves_its_own_network_alone(images, pair):
    own, other = (network(images) for network in pair)
    DML(1.0).terms(BATCH, own, other)["dml"].backward()
    assert all(p.grad is None for p in pair[1].parameters())
    assert pair[0].head.weight.grad.abs().sum() > 0


def test_dml_is_the_algorithm_of_its_paper(images, pair):
    """Two optimisers, every forward pass fresh: what the shared one with one forward pass less must
    come to.
    """
    reference = copy.deepcopy(pair)
    optimisers = [
        torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
        for network in reference
    ]
    method = DML(1.0)
    shared = torch.optim.SGD(
        [*pair[0].parameters(), *pair[1].parameters()], 0.1, 0.9, weight_decay=5e-4, nesterov=True
    )
    for _ in range(4):
        for own, other, optimiser in zip(reference, reference[::-1], optimisers, strict=True):
            p, log_q = other(images).logits.softmax(1).detach(), own(images).logits.log_softmax(1)
            loss = -log_q[range(8), LABELS].mean() + (p * (p.log() - log_q)).sum(1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        order = []
        for whose, _, terms in method.updates(BATCH, images, *pair):
            order.append(whose)
            shared.zero_grad()
            sum(terms.values()).backward()
            shared.step()
        assert order == ["student", "peer"]
    for network, expected in zip(pair, reference, strict=True):
        torch.testing.assert_close(weights(network), weights(expected), rtol=1e-3, atol=1e-5)


def test_without_divergence_the_student_of_dml_is_the_student_alone():
    ends = []
    for config in (tiny(), tiny("dml", dml_weight=0.0), tiny("dml")):
        run = make_run(config, CPU)
        ends.append([weights(run.learner["student"])])
        train_epoch(config, run, 1)
        ends[-1].append(weights(run.learner["student"]))
    (start, alone), (_, off), (_, on) = ends
    assert torch.equal(start, ends[2][0]) and torch.equal(alone, off) and not torch.equal(alone, on)


# ---------------------------------------------------------------------- IE-DML


def l1(x: np.ndarray, y: np.ndarray) -> float:
    x, y = (z.reshape(len(z), -1) for z in (x, y))
    return np.abs(
        x / np.linalg.norm(x, axis=1, keepdims=True) - y / np.linalg.norm(y, axis=1, keepdims=True)
    ).mean()


def test_the_four_updates_of_ie_dml_and_what_each_sees(images, pair):
    """Every term computed anew from the networks as they are when its turn comes."""
    student, peer = pair
    method = ie_dml(*pair)
    everything = nn.ModuleDict({"student": student, "peer": peer, "method": method})
    optimiser = torch.optim.SGD(everything.parameters(), 0.01)
    roles = {"student": student, "peer": peer}
    expected = [
        ("student", {"method.autoencoders.student"}),
        ("peer", {"peer", "method.losses.peer"}),
        ("peer", {"method.autoencoders.peer"}),
        ("student", {"student", "method.losses.student"}),
    ]
    updates = method.updates(BATCH, images, student, peer)
    for whose, moved in expected:
        before = {name: p.detach().clone() for name, p in everything.named_parameters()}
        found, output, terms = next(updates)
        assert found == whose
        if output is None:
            feature, autoencoder = (
                roles[whose](images).feature,
                method.autoencoders[whose].autoencoder,
            )
            error = numpy(autoencoder(feature)) - numpy(feature)
            assert list(terms) == ["reconstruction"] and terms[
                "reconstruction"
            ].item() == pytest.approx((error**2).mean(), rel=1e-4)
        else:
            other = "peer" if whose == "student" else "student"
            factor = numpy(
                method.autoencoders[other].autoencoder.encoder(roles[other](images).feature)
            )
            own = roles[whose](images)
            log_p = special.log_softmax(numpy(own.logits), axis=1)
            assert terms["task"].item() == pytest.approx(
                -log_p[np.arange(8), LABELS].mean(), rel=1e-4
            )
            channels = channel_split(own.feature.shape[1], 0.5, "random", 3)
            for name, part, weight in zip(("inherit", "explore"), channels, (50, -7), strict=True):
                half = method.losses[whose].halves[name]
                assert terms[name].item() == pytest.approx(
                    weight * l1(numpy(half.encoder(own.feature[:, part])), factor), rel=1e-3
                )
        optimiser.zero_grad()
        sum(terms.values()).backward()
        optimiser.step()
        for name, parameter in everything.named_parameters():
            assert torch.equal(parameter, before[name]) != any(
                name.startswith(f"{part}.") for part in moved
            ), (whose, name)
    assert next(updates, None) is None


def test_one_turn_an_epoch(images, pair):
    method = ie_dml(*pair, turns="epoch")
    turns = [
        [
            (whose, *terms)
            for whose, _, terms in method.updates(BATCH._replace(epoch=e), images, *pair)
        ]
        for e in range(5)
    ]
    learn = ("task", "inherit", "explore")
    assert turns == [
        [("student", "reconstruction")],
        [("peer", *learn)],
        [("peer", "reconstruction")],
        [("student", *learn)],
        turns[0],
    ]


def test_a_run_of_turns_by_epoch_finishes():
    history = train(tiny("ie-dml", turns="epoch", epochs=5)).history
    assert [value is not None for value in history["train_error"]] == [
        False,
        False,
        False,
        True,
        False,
    ]
    assert [value is not None for value in history["loss_reconstruction"]] == [
        True,
        False,
        False,
        False,
        True,
    ]
    assert None not in history["test_error"] and None not in history["test_error_peer"]


def test_a_pair_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(runner, "fit", lambda *_: pytest.fail("trained"))
    with pytest.raises(
        TrainingError, match="ie-dml cannot compare .*Choose a pair with the same down-sampling"
    ):
        train(tiny("ie-dml", teacher="vgg13"))


@pytest.mark.parametrize("name", MUTUAL)
def test_no_value_is_read_in_a_step(name):
    """Fake tensors have shapes and no values: .item(), a branch on a value or a boolean index would
    raise.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        pair = networks.build("resnet8x0.25", 10, 1), networks.build("resnet8x0.5", 10, 1)
        method = DML(1.0) if name == "dml" else ie_dml(*pair)
        batch = Batch(torch.zeros(8, dtype=torch.long), torch.arange(8))
        for _, _, terms in method.updates(batch, torch.rand(8, 1, 8, 8), *pair):
            sum(terms.values()).backward()


# ---------------------------------------------------------------------- two records


def test_the_two_configurations_of_one_training():
    first = tiny("dml")
    second = first.partner()
    assert (second.student, second.teacher, second.place) == (
        first.teacher,
        first.student,
        "second",
    )
    assert second.partner() == first and second.hash != first.hash and second.path != first.path
    assert first.parents() == {} and second.parents() == {"first": first}
    assert list(grid.with_parents([second])) == [first.path, second.path]
    twins = tiny("dml", teacher="resnet8x0.25")
    assert twins.partner().pair == twins.pair and twins.partner().path != twins.path
    assert tiny("kd", place="second") == tiny("kd")  # read by mutual learning alone


@pytest.mark.parametrize("method", MUTUAL)
def test_one_training_leaves_two_records_seen_from_either_side(method, monkeypatch):
    first = tiny(method)
    second = first.partner()
    train(first)
    here = records.find(first)
    monkeypatch.setattr(runner, "fit", lambda *_: pytest.fail("trained twice"))
    there = train(second)
    assert (
        there.config == second and there.parents == {"first": here.weights} and here.parents == {}
    )
    assert there.weights != here.weights and here.history["loss"] == there.history["loss"]
    for name in ("train_error", "test_error", "validation_error", "loss_task"):
        assert (
            here.history[f"{name}_peer"] == there.history[name]
            and here.history[name] == there.history[f"{name}_peer"]
        )
    assert there.metrics["last"].test_error == pytest.approx(here.history["test_error_peer"][-1])
    assert here.metrics["last"].test_error == pytest.approx(here.history["test_error"][-1])
    facts, test = data.FACTS["digits"], data.load(first).test
    for record in (here, there):
        logits = load_network(record.config)(
            (test.images.float() / 255 - facts.mean[0]) / facts.std[0]
        ).logits
        assert 100 * (logits.argmax(1) != test.labels).double().mean().item() == pytest.approx(
            record.metrics["last"].test_error
        )
    run = load_run(second)
    assert evaluate(run, "test")["error"] == pytest.approx(there.metrics["last"].test_error)
    assert len(records.load()) == 2


def test_asking_for_the_second_trains_both():
    second = tiny("dml").partner()
    record = train(second)
    assert record.config == second and records.find(second.partner()) is not None
    first = content(records.find(second.partner()))
    records.record_path(second).unlink()
    assert (
        content(train(second)) == content(record)
        and content(records.find(second.partner())) == first
    )
    for path in records.weights_paths(second):
        path.unlink(missing_ok=True)
    load_network(second)  # trains again


def test_twins_differ():
    config = tiny("dml", teacher="resnet8x0.25")
    run = make_run(config, CPU)
    assert not torch.equal(weights(run.learner["student"]), weights(run.learner["peer"]))
    assert train(config).weights != train(config.partner()).weights


def test_exchanging_twice_is_nothing():
    state = make_run(tiny("ie-dml"), CPU).learner.state_dict()
    swapped = finish.swap_state(state)
    assert swapped["student.head.weight"] is state["peer.head.weight"]
    name = "method.losses.{}.halves.inherit.encoder.0.0.weight"
    assert swapped[name.format("peer")] is state[name.format("student")]
    assert store.checksum(finish.swap_state(swapped)) == store.checksum(state)
    curves = {
        "lr": [1],
        "loss": [2],
        "loss_task": [3],
        "loss_task_peer": [4],
        "test_error": [5],
        "test_error_peer": [6],
    }
    assert finish.swap_curves(curves)["test_error"] == [6] and finish.swap_curves(curves)["lr"] == [
        1
    ]
    assert finish.swap_curves(finish.swap_curves(curves)) == curves


@pytest.mark.parametrize("method", MUTUAL)
def test_everything_is_trained_and_the_losses_go_down(method):
    config = tiny(method, epochs=8, weight_decay=0.0)
    run = make_run(config, CPU)
    before = {name: p.detach().clone() for name, p in run.learner.named_parameters()}
    history = [train_epoch(config, run, epoch) for epoch in range(8)]
    assert not [name for name, p in run.learner.named_parameters() if torch.equal(p, before[name])]
    for term in (
        "task",
        "task_peer",
        *(("reconstruction", "reconstruction_peer") if method == "ie-dml" else ()),
    ):
        assert history[-1][f"loss_{term}"] < history[0][f"loss_{term}"]


@pytest.mark.parametrize("method", MUTUAL)
def test_a_resumed_run_is_the_same_run(method):
    config = tiny(method, epochs=3)
    run = make_run(config, CPU)
    train_epoch(config, run, 0)
    checkpoint.save(config, {}, run, [{}], 1.0)
    resumed = make_run(config, CPU)
    assert checkpoint.resume(config, {}, resumed) == ([{}], 1.0)
    for each in (run, resumed):
        train_epoch(config, each, 1)
    assert store.checksum(run.learner.state_dict()) == store.checksum(resumed.learner.state_dict())


def test_a_kill_between_the_two_records_loses_neither(monkeypatch):
    first = tiny("dml")
    expected = [content(train(config)) for config in (first, first.partner())]
    for config in (first, first.partner()):
        records.record_path(config).unlink()
    save = records.Record.save
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(
            records.Record, "save", lambda self: 1 / 0 if self.config == first else save(self)
        )
        train(first)
    assert records.find(first.partner()) and not records.find(first)
    assert [content(train(config)) for config in (first, first.partner())] == expected


def test_the_log_of_a_step_names_both_networks(images):
    run = make_run(tiny("dml"), CPU)
    terms = loop.step(run, images, BATCH)
    assert list(terms) == [
        "task",
        "dml",
        "train_error",
        "task_peer",
        "dml_peer",
        "train_error_peer",
    ]
    assert all(term.dim() == 0 and not term.requires_grad for term in terms.values())
