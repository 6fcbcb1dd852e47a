"""What comes out of a training: its weights, then the record that names them."""

from __future__ import annotations

from torch import Tensor

from iekd import records
from iekd.config import RunConfig
from iekd.errors import TrainingError
from iekd.records import Metric, Record, store
from iekd.training import digest, given, peers
from iekd.training.run import Run

Curves = dict[str, list[float | None]]


def finish(
    config: RunConfig,
    parents: dict[str, str],
    run: Run,
    history: list[dict],
    seconds: float,
    started: str,
    provenance: dict,
) -> Record:
    """Store the weights, then the record: a record therefore always has its weights.

    Of two networks trained together, the record of the first comes last. Raises `TrainingError` for
    weights that the last update made infinite, which no later loss would show.
    """
    state = run.learner.state_dict()
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise TrainingError(
            f"{config.path}: the last step made '{broken[0]}' infinite. Nothing was recorded; "
            "lower lr or the weights."
        )
    curves = _curves(history)
    facts = dict(
        started=started,
        seconds=round(seconds, 1),
        images_per_second=round(len(history) * len(run.dataset.train.labels) / seconds, 1),
        data=_data(config, run),
        loss_digest=digest.of(config),
        **provenance,
    )
    weights = _save_weights(config, state)
    record = _record(config, weights, parents, curves, facts)
    if config.is_mutual:
        # its record is gone, or it is the first time
        if not records.find(config):
            _refuse_orphans(record)
        partner = config.partner()
        theirs = _save_weights(partner, peers.swap_state(state))
        _save(_record(partner, theirs, {"first": weights}, peers.swap_curves(curves), facts))
    return _save(record)


def _data(config: RunConfig, run: Run) -> dict[str, str]:
    """What the run was made of, by checksum."""
    found = {"name": run.dataset.name, "checksum": run.dataset.checksum}
    if config.is_given:
        found["weights_file"] = given.checksum(config.weights_file)
    return found


def _curves(history: list[dict]) -> Curves:
    """The rows of the epochs as columns, in the order in which their names first appear."""
    curves: Curves = {}
    for name in dict.fromkeys(name for row in history for name in row):
        curves[name] = [row.get(name) for row in history]
    return curves


def _save(record: Record) -> Record:
    """Save a record; one of a run that was trained again, and ended in the same weights, stays as
    it was.

    Raises `TrainingError` if it ended in other weights and finished runs learned from the old ones,
    also when its record was lost.
    """
    before = records.find(record.config)
    # the runs that learned from the weights of an edited loss are trained anew, too
    if not (before and digest.is_void(before)):
        if before and (before.weights, before.parents) == (record.weights, record.parents):
            return before
        _refuse_orphans(record)
    record.save()
    return record


def _refuse_orphans(record: Record) -> None:
    """Refuse to leave runs behind that learned from other weights, which would be nowhere."""
    if orphans := records.orphans(record):
        raise TrainingError(
            f"{record.config.path}: trained again, it came out different (another machine or "
            "version?), and "
            f"{len(orphans)} finished runs learned from its lost weights ({orphans[0]}, ...). "
            "Bring these weights "
            f"to {records.weights_paths(record.config)[1]}, set IEKD_RUNS to another folder, or "
            "delete its record "
            "and those of the runs that learned from it."
        )


def _save_weights(config: RunConfig, state: dict[str, Tensor]) -> str:
    path = store.cache_folder() / f"{config.path}.safetensors"
    return store.save_tensors(path, state, {"hash": config.hash})


def _record(
    config: RunConfig, weights: str, parents: dict[str, str], curves: Curves, facts: dict
) -> Record:
    return Record(
        config=config,
        hash=config.hash,
        weights=weights,
        parents=parents,
        history=curves,
        metrics=_metrics(curves, config.epochs),
        **facts,
    )


def _metrics(curves: Curves, epochs: int) -> dict[str, Metric | None]:
    """The three selection rules: last epoch, lowest validation error, lowest test error.

    The last one is biased, for comparison only.
    """
    return {
        "last": _metric(curves, epochs - 1),
        "val_selected": _best(curves, "validation_error"),
        "best_on_test": _best(curves, "test_error"),
    }


def _metric(curves: Curves, epoch: int) -> Metric:
    """What was measured in an epoch, from 0."""
    names = [name for name in Metric.model_fields if name != "epoch"]
    nothing = [None] * (epoch + 1)
    return Metric(epoch=epoch + 1, **{name: curves.get(name, nothing)[epoch] for name in names})


def _best(curves: Curves, name: str) -> Metric | None:
    """What was measured in the first epoch with the lowest value."""
    known = [(value, i) for i, value in enumerate(curves.get(name, [])) if value is not None]
    return _metric(curves, min(known)[1]) if known else None
