"""The results of training: the weights, then the record that names them."""

from typing import Any

from torch import Tensor

from iekd import records
from iekd.config import RunConfig
from iekd.data import DataSet
from iekd.errors import TrainingError
from iekd.records import Metric, Record, store
from iekd.training import digest, given
from iekd.training.loop import SUFFIX
from iekd.training.member import Member

Curves = dict[str, list[float | None]]
OTHER = {"student": "peer", "peer": "student"}
# Curves of mutual training as a whole, rather than of one of its networks.
SHARED = ("lr", "loss")


def finish(member: Member, provenance: dict) -> Record:
    """Store a run's weights, then its record, so that a record always has its weights.

    For two networks trained together, the record of the first comes last. Raises `TrainingError` if
    the last update made the weights infinite, which no later loss would show.
    """
    config, dataset, history = member.config, member.run.dataset, member.history
    state = member.run.learner.state_dict()
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise TrainingError(
            f"{config.path}: the last step made '{broken[0]}' infinite. Nothing was recorded; "
            "lower lr or the weights."
        )

    # Turn the rows of the epochs into columns, in the order in which their names first appear.
    curves: Curves = {}
    for name in dict.fromkeys(name for row in history for name in row):
        curves[name] = [row.get(name) for row in history]

    # The weights, then the other facts.
    images = len(history) * len(dataset.train.labels)
    facts = dict(
        started=member.started,
        seconds=round(member.seconds, 1),
        images_per_second=round(images / member.seconds, 1),
        data=_data(config, dataset),
        loss_digest=digest.of(config),
        **provenance,
    )
    weights = _save_weights(config, state)
    record = _record(config, weights, member.parents, curves, facts)
    if config.is_mutual:
        # its record is gone, or this is the first time
        if not records.find(config):
            _refuse_orphans(record)
        partner = config.partner()
        theirs = _save_weights(partner, swap_state(state))
        _save(_record(partner, theirs, {"first": weights}, swap_curves(curves), facts))
    return _save(record)


def _data(config: RunConfig, dataset: DataSet) -> dict[str, str]:
    """The data that the run was made from, by checksum."""
    found = {"name": dataset.name, "checksum": dataset.checksum}
    if config.is_given:
        found |= given.facts(config.weights_file)
    return found


def _save(record: Record) -> Record:
    """Save a record; if the run was trained again to the same weights, its old record stays.

    Raises `TrainingError` if the weights differ and finished runs learned from the old ones, even
    if its record was lost.
    """
    before = records.find(record.config)
    # runs that learned from the weights of an edited loss are trained again, too
    if not (before and digest.is_void(before)):
        if before and (before.weights, before.parents) == (record.weights, record.parents):
            return before
        _refuse_orphans(record)
    record.save()
    return record


def _refuse_orphans(record: Record) -> None:
    """Refuse if finished runs learned from other weights, which would then be lost."""
    if orphans := records.orphans(record):
        raise TrainingError(
            f"{record.config.path}: trained again, it came out different (another machine or "
            f"version?), and {len(orphans)} finished runs learned from its lost weights "
            f"({orphans[0]}, ...). Bring these weights to "
            f"{records.weights_paths(record.config)[1]}, set IEKD_RUNS to another folder, or "
            "delete its record and those of the runs that learned from it."
        )


def _save_weights(config: RunConfig, state: dict[str, Tensor]) -> str:
    path = store.cache_folder() / f"{config.path}.safetensors"
    return store.save_tensors(path, state, {"hash": config.hash})


def _record(
    config: RunConfig, weights: str, parents: dict[str, str], curves: Curves, facts: dict
) -> Record:
    """A record with the three selection rules; the best on test is biased, for comparison only."""
    metrics = {
        "last": _metric(curves, config.epochs - 1),
        "val_selected": _best(curves, "validation_error"),
        "best_on_test": _best(curves, "test_error"),
    }
    about: dict[str, Any] = {"config": config, "hash": config.hash, "parents": parents}
    return Record(**about, **facts, weights=weights, history=curves, metrics=metrics)


def _metric(curves: Curves, epoch: int) -> Metric:
    """The measurements of an epoch, counted from 0."""
    names = [name for name in Metric.model_fields if name != "epoch"]
    nothing = [None] * (epoch + 1)
    return Metric(epoch=epoch + 1, **{name: curves.get(name, nothing)[epoch] for name in names})


def _best(curves: Curves, name: str) -> Metric | None:
    """The measurements of the first epoch with the lowest value."""
    known = [(value, i) for i, value in enumerate(curves.get(name, [])) if value is not None]
    return _metric(curves, min(known)[1]) if known else None


# ---------------------------------------------------------------------- two networks


# A mutual training keeps its second network as 'peer'. The second's own record and weights are
# those of the first with the two roles exchanged in the names of tensors and curves.


def swap_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a learner with 'student' and 'peer' exchanged in every name."""
    swapped = {}
    for name, tensor in state.items():
        parts = [OTHER.get(part, part) for part in name.split(".")]
        swapped[".".join(parts)] = tensor
    return swapped


def swap_curves(curves: dict[str, list]) -> dict[str, list]:
    """A history with the two networks exchanged ('test_error_peer'); `SHARED` curves stay."""
    swapped, suffix = {}, SUFFIX["peer"]
    for name, curve in curves.items():
        own = name in SHARED or name.endswith(suffix)
        swapped[name.removesuffix(suffix) if own else name + suffix] = curve
    return swapped
