"""The floor of a step: work counted by hand, positive rates, limits that follow from both."""

import pytest
import torch

from iekd.benchmark import roofline
from iekd.config import RunConfig

CPU = torch.device("cpu")


def test_outputs_of_a_resnet_counted_by_hand():
    config = RunConfig.create("paper", method="supervised", student="resnet8")
    # at 32 x 32: the stem and two convolutions of 16 channels; 16 x 16: two of 32 and the shortcut;
    # 8 x 8: two of 64 and the shortcut
    assert roofline.outputs("resnet8", config) == 3 * 16 * 32**2 + 3 * 32 * 16**2 + 3 * 64 * 8**2


def test_limits_are_rate_over_work():
    rates = {"gflops": 200.0, "gflops_bf16": 800.0, "gbytes": 10.0}
    alone, taught = (
        roofline.roof(RunConfig.create("paper", method=method), rates)
        for method in ("supervised", "kd")
    )
    assert alone["gflops_limit"] == pytest.approx(200 / alone["gflop"], abs=0.1)
    assert alone["gbytes_limit"] == pytest.approx(10e3 / alone["mbyte"], abs=0.1)
    assert taught["gflops_bf16_limit"] == pytest.approx(4 * taught["gflops_limit"], rel=1e-3)
    assert taught["gflop"] - alone["gflop"] == pytest.approx(
        2 * 0.125, rel=0.05
    )  # ResNet-56: 125 million multiply-adds


def test_rates_are_measured(monkeypatch):
    monkeypatch.setattr(roofline, "ROUNDS", 1)
    rates = roofline.rates(CPU)
    assert list(rates) == ["gflops", "gflops_bf16", "gbytes"] and all(
        rate > 0 for rate in rates.values()
    )


def test_on_a_gpu_float32_is_measured_without_tf32_and_tf32_by_itself(monkeypatch):
    asked = []
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    monkeypatch.setattr(
        roofline,
        "_seconds",
        lambda work, device: asked.append([flag.allow_tf32 for flag in flags]) or 1.0,
    )
    monkeypatch.setattr(roofline, "copy", lambda device: 1.0)
    for flag in flags:
        flag.allow_tf32 = True
    monkeypatch.setattr(torch, "randn", lambda *size, device: torch.zeros(*size, device="meta"))
    assert list(roofline.rates(torch.device("cuda"))) == [
        "gflops",
        "gflops_tf32",
        "gflops_bf16",
        "gbytes",
    ]
    assert asked == 2 * [[False, False]] + 2 * [[True, True]] + 2 * [
        [False, False]
    ]  # a product and a convolution each
