"""What a step allocates it frees: the memory of a run is bounded, however long it trains."""

import pytest
from tiny import tiny
from torch.profiler import ProfilerActivity, profile

from iekd.speed import memory
from iekd.training import loop, runner

EPOCHS = 4  # of four steps each


@pytest.mark.parametrize("method", ["supervised", "ie-ft", "od", "crd", "ie-dml"])
def test_steps_keep_no_memory(method):
    """Apart from the gradients of the last one: those of the step before the count began may have
    been others.
    """
    config = tiny(method, augment="standard")
    run = runner.make_run(config)
    loop.train_epoch(config, run, 0)  # there is momentum now
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as taken:
        for epoch in range(EPOCHS):
            loop.train_epoch(config, run, epoch)
    sizes = [event.self_cpu_memory_usage for event in taken.key_averages()]
    gradients = 4 * sum(p.numel() for p in run.learner.parameters())
    assert sum(size for size in sizes if size > 0) > 50 * gradients  # it does see what is allocated
    assert abs(sum(sizes)) <= 1.1 * gradients, (sum(sizes), gradients)


def test_the_peak_is_that_of_a_process_with_torch():
    memory.keep()
    assert memory.peak() == 0 or 50 < memory.peak() < 1_000_000
