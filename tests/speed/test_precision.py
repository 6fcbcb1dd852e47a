"""TF32 is a GPU's and never by accident; in bfloat16 the networks compute, everything else stays in
float32.
"""

import copy
from contextlib import contextmanager

import pytest
import torch
from tiny import content, tiny

from iekd import networks
from iekd.config import RunConfig
from iekd.data import augment
from iekd.method.features import Batch
from iekd.speed import precision
from iekd.training import loop, runner
from iekd.training.run import build_run

CPU = torch.device("cpu")


def bf16(method="kd", **fields):
    return tiny(method, precision="bf16", **fields)


def step_of(config):
    """The first step, from parents that were trained in float32."""
    parents = {
        role: runner.load_network(parent)
        for role, parent in config.replace(precision="fp32").parents().items()
    }
    run = build_run(config, parents, CPU)
    images, labels, _ = run.dataset.train
    index = torch.arange(64)
    run.learner.train()
    return run, loop.step(
        run, augment.normalise(images[index], run.mean, run.std), Batch(labels[index], index)
    )


@pytest.mark.parametrize("method", ["supervised", "kd", "ft", "ie-ft"])
def test_the_first_step_is_that_of_float32_within_the_rounding_of_bfloat16(method):
    (run, narrow), (_, wide) = (
        step_of(bf16(method)),
        step_of(bf16(method).replace(precision="fp32")),
    )
    values, expected = (
        {name: term.item() for name, term in terms.items() if name != "train_error"}
        for terms in (narrow, wide)
    )
    assert values == pytest.approx(expected, rel=0.02) and values != expected
    assert all(term.dtype == torch.float32 for term in narrow.values())
    state = [
        *run.learner.state_dict().values(),
        *(s["momentum_buffer"] for s in run.optimiser.state.values()),
    ]
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in state)
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in run.learner.parameters())


def test_the_student_computes_in_bfloat16_while_it_trains_and_in_float32_when_it_is_evaluated():
    network, images = (
        precision.train_in_bf16(networks.build("resnet8", 10)),
        torch.randn(4, 3, 16, 16),
    )
    plain = networks.build("resnet8", 10)
    plain.load_state_dict(network.state_dict())
    seen = []
    network.stages[0][0].conv2.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    trained = network(images)
    assert all(
        value.dtype == torch.float32 for value in (trained.logits, *trained.features.values())
    )
    plain.load_state_dict(network.state_dict())
    assert torch.equal(network.eval()(images).logits, plain.eval()(images).logits)
    assert seen == [torch.bfloat16, torch.float32]


def test_a_copy_of_the_network_has_its_own_forward():
    network, images = (
        precision.train_in_bf16(networks.build("resnet8", 10)),
        torch.randn(2, 3, 16, 16),
    )
    twin = copy.deepcopy(network)
    with torch.no_grad():
        network.head.bias.fill_(100)
    assert twin(images).logits.abs().max() < 50 < network(images).logits.abs().max()


def test_the_teacher_computes_in_bfloat16():
    run = runner.make_run(bf16("ft"))
    assert {p.dtype for p in run.teacher.parameters()} == {torch.bfloat16}
    output = run.teacher(torch.randn(2, 1, 8, 8))
    assert all(value.dtype == torch.float32 for value in (output.logits, *output.features.values()))


def test_a_run_in_bfloat16_learns_and_is_the_same_twice():
    config = bf16("ie-ft", views=2, augment="standard")
    record = runner.train(config, progress=False)
    assert record.history["loss"][-1] < record.history["loss"][0]
    assert content(runner.train(config, progress=False, again=True)) == content(record)
    assert "precision=bf16" in config.path and config.teacher_run().precision == "bf16"


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("name", "allowed"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_making_a_run_settles_whether_a_gpu_may_use_tf32(name, allowed, before):
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    convolutions.allow_tf32 = products.allow_tf32 = before
    build_run(tiny(precision=name), {}, CPU)
    assert (convolutions.allow_tf32, products.allow_tf32) == (allowed, allowed)


def test_tf32_computes_in_float32_on_a_cpu():
    (_, terms), (_, expected) = step_of(tiny("ie-ft", precision="tf32")), step_of(tiny("ie-ft"))
    assert terms == expected


@contextmanager
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


ASKED = {
    "no gradient": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "another type": in_float64,
    "another device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("asked", ASKED)
def test_what_the_caller_asks_pytorch_for_changes_no_run(asked, lent):
    """A cell asks for no gradients, and a run whose weights are not at hand is trained in it."""
    record, plain = runner.train(tiny("ft"), progress=False), runner.load_run(tiny("ft"))
    kinds = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
    with ASKED[asked]():
        assert content(runner.train(tiny("ft"), progress=False, again=True)) == content(record)
        within = runner.load_run(tiny("ft")).learner.state_dict()
    for name, tensor in plain.learner.state_dict().items():
        assert tensor.dtype == within[name].dtype and torch.equal(tensor, within[name])
    now = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
    assert now == kinds


def test_the_paper_preset_computes_in_tf32_and_its_paths_do_not_say_so():
    config = RunConfig.create("paper", method="ie-ft")
    assert config.precision == "tf32" and {
        parent.precision for parent in config.parents().values()
    } == {"tf32"}
    assert config.path == "paper/cifar10/resnet56-resnet20/ie-ft/seed0"
    assert [RunConfig.create(preset, method="kd").precision for preset in ("class", "smoke")] == [
        "fp32",
        "fp32",
    ]
