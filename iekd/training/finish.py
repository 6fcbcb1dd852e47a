"""What comes out of a training: its weights, then the record that names them."""

from __future__ import annotations

from torch import Tensor

from iekd import records
from iekd.config import RunConfig
from iekd.errors import TrainingError
from iekd.records import Metric, Record, store
from iekd.training import digest, peers
from iekd.training.engine import Run


def finish(
    config: RunConfig,
    parents: dict[str, str],
    run: Run,
    history: list[dict],
    seconds: float,
    started: str,
    provenance: dict,
) -> Record:
    """Store the weights, then the record: a record therefore always has its weights. Of two networks, the record of the first is last.

    Raises `TrainingError` for weights that the last update made infinite, which no later loss would show.
    """
    state = run.learner.state_dict()
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise TrainingError(
            f"{config.path}: the last step made '{broken[0]}' infinite. Nothing was recorded; lower lr or the weights."
        )
    curves = {
        name: [row.get(name) for row in history]
        for name in dict.fromkeys(k for row in history for k in row)
    }
    facts = dict(
        started=started,
        seconds=round(seconds, 1),
        images_per_second=round(len(history) * len(run.dataset.train.labels) / seconds, 1),
        data={"name": run.dataset.name, "checksum": run.dataset.checksum},
        loss_digest=digest.of(config),
        **provenance,
    )
    weights = _save_weights(config, state)
    if config.is_mutual:
        partner, swapped = config.partner(), peers.swap_curves(curves)
        if not records.find(config):  # its record is gone, or it is the first time
            _refuse_orphans(_record(config, weights, parents, curves, facts))
        _save(
            _record(
                partner,
                _save_weights(partner, peers.swap_state(state)),
                {"first": weights},
                swapped,
                facts,
            )
        )
    return _save(_record(config, weights, parents, curves, facts))


def _save(record: Record) -> Record:
    """Save a record; one of a run that was trained again, and ended in the same weights, stays as it was.

    Raises `TrainingError` if it ended in other weights and finished runs learned from the old ones, also when its record was lost.
    """
    before = records.find(record.config)
    edited = before and record.config.preset == "smoke" and before.loss_digest != record.loss_digest
    if edited:  # the runs that learned from the old weights are trained anew, too
        record.save()
        return record
    if before and (before.weights, before.parents) == (record.weights, record.parents):
        return before
    _refuse_orphans(record)
    record.save()
    return record


def _refuse_orphans(record: Record) -> None:
    """Of finished runs that learned from other weights: they would name a parent that is nowhere."""
    if orphans := records.orphans(record):
        raise TrainingError(
            f"{record.config.path}: trained again, it came out different (another machine or version?), and {len(orphans)} finished runs "
            f"learned from its lost weights ({orphans[0]}, ...). Bring these weights to {records.weights_paths(record.config)[1]}, set "
            "IEKD_RUNS to another folder, or delete its record and those of the runs that learned from it."
        )


def _save_weights(config: RunConfig, state: dict[str, Tensor]) -> str:
    return store.save_tensors(
        store.cache_folder() / f"{config.path}.safetensors", state, {"hash": config.hash}
    )


def _record(
    config: RunConfig, weights: str, parents: dict[str, str], curves: dict[str, list], facts: dict
) -> Record:
    return Record(
        config=config,
        hash=config.hash,
        weights=weights,
        parents=parents,
        history=curves,
        metrics=_metrics(curves),
        **facts,
    )


def _metrics(curves: dict[str, list[float | None]]) -> dict[str, Metric | None]:
    """The three selection rules: last epoch; lowest validation error; lowest test error (biased, for comparison only). Ties: the first."""

    def at(index: int) -> Metric:
        values = {
            name: curves.get(name, [None] * (index + 1))[index]
            for name in Metric.model_fields
            if name != "epoch"
        }
        return Metric(epoch=index + 1, **values)

    def best(name: str) -> Metric | None:
        known = [(value, i) for i, value in enumerate(curves.get(name, [])) if value is not None]
        return at(min(known)[1]) if known else None

    return {
        "last": at(len(curves["lr"]) - 1),
        "val_selected": best("validation_error"),
        "best_on_test": best("test_error"),
    }
