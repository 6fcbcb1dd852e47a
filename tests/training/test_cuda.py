"""A GPU computes what the CPU does, and the CPU what float64 says: a step of every method, from the
same weights on the same images.
"""

import pytest
import torch
from tiny import tiny
from torch import Tensor

from iekd.benchmark.sides import untrained_parents
from iekd.config import RunConfig
from iekd.config.known import methods
from iekd.speed import precision
from iekd.training import loop
from iekd.training.pack import Pack
from iekd.training.run import Run, build_run
from iekd.training.teacher import Teacher

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FIRST_STAGE = {"fitnet": {"init_epochs": 1}, "ab": {"init_epochs": 1}}
STEPS = [(method, 0) for method in methods()] + [
    (method, 2) for method in FIRST_STAGE
]  # (method, epoch): in each stage one
IMAGES = 64
# Relative errors that are allowed, about five times the largest seen in float32 on a CPU. Another
# device multiplies and adds up in other ways, and gets ten times as much: TF32 needs still more.
LOSS, UPDATE, STATISTICS = 1e-5, 1e-4, 1e-6
ELSEWHERE = 10


def needs_gpu(test):
    return pytest.mark.cuda(
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")(test)
    )


def run_of(config: RunConfig, device: torch.device, double: bool = False) -> Run:
    """A run from parents that were never trained."""
    torch.manual_seed(9)
    parents = untrained_parents(config)
    run = build_run(config, parents, device)
    if not double:
        return run
    run.learner.double()
    for state in run.optimiser.state.values():
        state["momentum_buffer"] = state["momentum_buffer"].double()
    encoder = parents["autoencoder"].encoder if "autoencoder" in parents else None
    teacher = Teacher(parents["teacher"], encoder).double() if run.teacher is not None else None
    return run._replace(teacher=teacher, mean=run.mean.double(), std=run.std.double())


def step_of(
    config: RunConfig, epoch: int, device: torch.device, double: bool = False
) -> dict[str, Tensor]:
    """What a step makes: its loss terms, the update of all parameters in one vector, the running
    statistics in another.
    """
    run = run_of(config, device, double)
    loop.begin(run, epoch)
    before = [p.detach().clone() for p in run.learner.parameters()]
    plan = loop.draw_epoch(config, run.dataset, epoch)[:, :IMAGES]
    names, row = Pack([(config, run)]).step(plan[None].to(device), epoch)
    update = torch.cat(
        [(p.detach() - b).flatten() for p, b in zip(run.learner.parameters(), before, strict=True)]
    )
    statistics = [
        b.double().flatten() for name, b in run.learner.named_buffers() if "running" in name
    ]
    found = dict(zip(names[0], row, strict=True)) | {
        "update": update,
        "statistics": torch.cat(statistics),
    }
    return {name: value.double().cpu() for name, value in found.items()}


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors by name."""
    assert found.keys() == expected.keys() and all(
        value.isfinite().all() for value in found.values()
    )
    return {
        name: ((found[name] - value).norm() / value.norm().clamp_min(1e-12)).item()
        for name, value in expected.items()
    }


def within(found: dict[str, float], times: float) -> bool:
    allowed = {"update": UPDATE, "statistics": STATISTICS, "train_error": 0, "train_error_peer": 0}
    return all(error <= times * allowed.get(name, LOSS) for name, error in found.items())


def config_of(method: str) -> RunConfig:
    return tiny(method, augment="standard", **FIRST_STAGE.get(method, {}))


@pytest.mark.parametrize(("method", "epoch"), STEPS)
def test_a_step_in_float32_is_that_in_float64(method, epoch):
    config = config_of(method)
    assert within(
        found := errors(step_of(config, epoch, CPU), step_of(config, epoch, CPU, double=True)), 1
    ), found
    assert found["update"] > 0


def test_another_step_is_noticed():
    config = config_of("ie-ft")
    found = errors(step_of(config.replace(explore_weight=50.5), 0, CPU), step_of(config, 0, CPU))
    assert not within(found, ELSEWHERE), found


@needs_gpu
@pytest.mark.parametrize(("method", "epoch"), STEPS)
def test_a_step_on_a_gpu_is_that_on_the_cpu(method, epoch):
    config = config_of(method)
    assert within(
        found := errors(step_of(config, epoch, GPU), step_of(config, epoch, CPU)), ELSEWHERE
    ), found


@needs_gpu
def test_float32_is_no_tf32():
    images, weight = torch.randn(64, 64, 16, 16, device=GPU), torch.randn(64, 64, 3, 3, device=GPU)
    matrix = torch.randn(1024, 1024, device=GPU)
    error = {}
    for name in ("fp32", "tf32"):
        precision.set_tf32(name)
        for work, arguments in ((torch.conv2d, (images, weight)), (torch.matmul, (matrix, matrix))):
            exact = work(*(argument.double() for argument in arguments))
            error[name, work.__name__] = ((work(*arguments) - exact).norm() / exact.norm()).item()
    assert (
        error["fp32", "conv2d"] < 1e-5
        and error["fp32", "matmul"] < 1e-5 < error["tf32", "matmul"] < 1e-2
    ), error
