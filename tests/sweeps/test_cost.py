"""What a run costs."""

import pytest
from tiny import tiny

from iekd.sweeps.cost import cost, flops


def test_flops_are_counted_as_the_literature_does():
    """ResNet-20 on 32 x 32: 40.8 million multiply-adds (He et al. 2016 count them as FLOPs), so
    twice that in operations.
    """
    assert flops("resnet20", "cifar10", 32) == pytest.approx(2 * 40.8e6, rel=0.01)
    assert flops("resnet20", "cifar10", 16) == pytest.approx(2 * 40.8e6 / 4, rel=0.01)


def test_the_cost_follows_epochs_images_and_networks():
    config, double = tiny("kd"), tiny("kd", epochs=6)
    assert cost(double) == 2 * cost(config)
    assert cost(tiny("kd", train_images=100)) == cost(config) / 2
    student, teacher = (flops(name, "digits", 8) for name in (config.student, config.teacher))
    assert (
        cost(config) == 3 * 200 * (3 * student + teacher) and cost(tiny()) == 3 * 200 * 3 * student
    )
    assert cost(tiny(train_images=0)) > cost(tiny(train_images=1000))  # 0 = all images
