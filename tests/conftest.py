"""Tests never write into the real runs folder: each has a store of its own."""

import pytest
import torch

torch.set_num_threads(1)  # as a sweep's workers; results depend on the number of threads


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("IEKD_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def tiny():
    """Fields of a run that takes about a second."""
    return dict(
        teacher="resnet8x0.25", student="resnet8x0.25", epochs=3, teacher_epochs=2, ae_epochs=1, train_images=200, validation_images=100
    )
