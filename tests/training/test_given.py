"""A teacher from a file is taken as it is, whoever saved it; what does not fit is named."""

import pickle

import pytest
import torch
from made import lived
from safetensors.torch import save_file
from tiny import tiny
from torchvision.models import resnet18, resnet34

from iekd import networks, records
from iekd.cli import main
from iekd.config import RunConfig, refuse_unread
from iekd.errors import ConfigError, DataError
from iekd.records import store
from iekd.training import given, runner


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("IEKD_DATA", str(tmp_path))
    (tmp_path / "teachers").mkdir()
    return tmp_path / "teachers"


def weights(name: str = "resnet8x0.5", seed: int = 0) -> dict[str, torch.Tensor]:
    """What a person would save: a network after some training."""
    torch.manual_seed(seed)
    return lived(networks.build(name, 10, 1)).state_dict()


def taught(method: str = "kd", **fields) -> RunConfig:
    return tiny(method, teacher_file="mine", **fields)


def test_the_record_of_the_teacher_tells_its_error_and_where_it_comes_from(folder):
    source = tiny(student="resnet8x0.5", epochs=4)
    trained = runner.train(source, progress=False)
    torch.save(runner.load_network(source).state_dict(), folder / "mine.pth")

    record = runner.train(taught("ie-ft"), progress=False)
    teacher = records.find(taught().teacher_run())
    assert teacher.last.test_error == trained.last.test_error
    assert teacher.last.validation_error == trained.last.validation_error
    assert teacher.data["weights_file"] == given.checksum("mine")
    assert record.parents["teacher"] == teacher.weights
    assert "teacher_file=mine" in record.config.path
    assert record.config.parents()["autoencoder"].parents() == {"teacher": teacher.config}


def test_all_seeds_have_the_one_teacher(folder):
    assert {taught(seed=seed).teacher_run().path for seed in range(7)} == {
        taught().teacher_run().path
    }
    assert taught().teacher_run().epochs == 1


def test_a_finished_run_needs_no_file_but_another_file_of_that_name_is_noticed(folder):
    torch.save(weights(), folder / "mine.pth")
    runner.train(taught(), progress=False)
    first = records.find(taught())
    torch.save(weights(seed=1), folder / "mine.pth")
    assert runner.train(taught(), progress=False) == first
    with pytest.raises(DataError, match="not the file that .* was made of"):
        runner.train(taught(seed=1), progress=False)
    (folder / "mine.pth").unlink()
    assert runner.train(taught(seed=1), progress=False).parents == first.parents


@pytest.mark.parametrize("name", ["mine.safetensors", "mine.pt", "mine.pth", "mine.th", "mine.tar"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.module."])
@pytest.mark.parametrize("key", [None, "state_dict", "net"])
def test_whoever_saved_it(folder, name, prefix, key):
    """Data-parallel wrappers, trainers' checkpoints, half precision, without counters."""
    own = weights()
    saved = {prefix + k: v.half() for k, v in own.items() if "num_batches" not in k}
    if name.endswith("safetensors"):
        save_file(saved, folder / name)
    else:
        torch.save({key: saved, "epoch": 3} if key else saved, folder / name)
    network = networks.build("resnet8x0.5", 10, 1)
    given.load(network, "mine")
    assert all(
        torch.equal(value, own[k].half().float())
        for k, value in network.state_dict().items()
        if "num_batches" not in k
    )


@pytest.mark.parametrize("theirs", [resnet18, resnet34])
@torch.no_grad()
def test_torchvision_s_weights_give_torchvision_s_logits(folder, theirs) -> None:
    """Random weights, and the statistics and scales as after some training."""
    reference, ours = lived(theirs()), networks.build(theirs.__name__, 1000).eval()
    torch.save(reference.state_dict(), folder / "theirs.pth")
    given.load(ours, "theirs")
    x = torch.randn(2, 3, 64, 64)
    expected = reference(x)
    assert (ours(x).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """Where torchvision's download of ResNet-34 would lie: nothing is downloaded here."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints" / "resnet34-b627a593.pth"


def test_torchvision_s_weights_are_saved_with_their_source(hub, capsys):
    reference = lived(resnet34())
    torch.save(reference.state_dict(), hub)
    assert main.main(["data", "teacher", "resnet34"]) == 0
    assert "--teacher resnet34 --teacher-file torchvision-resnet34" in capsys.readouterr().out
    ours = networks.build("resnet34", 1000)
    given.load(ours, "torchvision-resnet34")
    assert torch.equal(ours.head.weight, reference.fc.weight)
    facts = given.facts("torchvision-resnet34")
    assert facts["weights_file"] == given.checksum("torchvision-resnet34")
    assert "torchvision ResNet34_Weights.IMAGENET1K_V1, https://" in facts["weights_source"]


def test_the_record_names_the_source(folder):
    store.save_tensors(folder / "mine.safetensors", weights(), {"source": "a friend"})
    runner.train(taught().teacher_run(), progress=False)
    assert records.find(taught().teacher_run()).data["weights_source"] == "a friend"


def test_a_download_that_would_execute_something_is_refused(hub, folder, capsys):
    torch.save(Harmful(), hub)
    assert main.main(["data", "teacher", "resnet34"]) == 1
    said = capsys.readouterr()
    assert "executed" not in said.out and f"delete {hub} if it is there" in said.err
    assert not list(folder.iterdir())


def test_only_networks_that_are_ours_too_can_be_had(folder):
    with pytest.raises(ConfigError, match="resnet50: no such weights; choose one of resnet18, r"):
        given.fetch("resnet50")


def without(name: str) -> dict:
    return {key: value for key, value in weights().items() if key != name}


class Harmful:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    "content, message",
    [
        (weights("resnet8"), r"conv.weight is \(16, 1, 3, 3\) in the file and \(8, 1, 3, 3\)"),
        (weights("resnet14x0.5"), "unknown: stages.0.1.conv1.weight"),
        (without("conv.weight"), "missing: conv.weight"),
        ({"student": weights(), "epoch": 3}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
        ({}, "holds no state dict"),
        ({"weight": torch.zeros(1)}, "missing: conv.weight, head.bias, head.weight and"),
        (Harmful(), "cannot be read"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_trains(folder, capsys, content, message):
    torch.save(content, folder / "mine.pth")
    with pytest.raises(DataError, match=message):
        runner.train(taught(), progress=False)
    assert "executed" not in capsys.readouterr().out and not records.find(taught())


@pytest.mark.parametrize("content", [b"", b"abc", pickle.dumps(Harmful())])
@pytest.mark.parametrize("name", ["mine.safetensors", "mine.pth"])
def test_a_damaged_file_is_named(folder, content, name):
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match="mine.* cannot be read .* Save the state dict alone"):
        runner.train(taught(), progress=False)


def test_a_missing_file_is_named_with_the_way_out(folder):
    with pytest.raises(DataError, match=r"teacher_file: there is no .*teachers/mine .*IEKD_DATA"):
        runner.train(taught(), progress=False)


@pytest.mark.parametrize("name", ["../mine", "/mine", "a b", "-x", "."])
def test_a_name_that_paths_cannot_hold_is_refused(name):
    with pytest.raises(ConfigError, match="teacher_file"):
        tiny("kd", teacher_file=name)


@pytest.mark.parametrize("field", ["teacher_epochs", "teacher_lr", "teachers"])
def test_how_a_teacher_would_be_trained_cannot_be_named_with_it(field):
    with pytest.raises(ConfigError, match=f"{field}: kd does not read it where teacher_file"):
        refuse_unread([field, "teacher_file"], [taught()])


def test_the_student_alone_beside_it_is_no_teacher():
    alone = taught(student="resnet8x0.5").replace(method="supervised")
    assert alone == tiny(student="resnet8x0.5") and not alone.is_given
    assert not taught().teacher_run().replace(method="kd", teacher="resnet8").weights_file


def test_how_a_teacher_would_be_trained_is_no_identity_of_what_learns_from_a_file():
    assert taught("ie-ft", teacher_epochs=7, teachers=2) == taught("ie-ft")
    assert "teacher_epochs" not in taught("ie-ft").path


def test_mutual_learning_has_no_teacher_to_be_given():
    with pytest.raises(ConfigError, match="teacher_file: dml does not read it"):
        refuse_unread(["teacher_file"], [tiny("dml", teacher_file="mine")])
