"""What the halves learned, measured on the weights of finished runs: similarity and flatness.

`analyse(config)` measures once and leaves `seed<k>.analysis.json` beside the record; `records.load`
then has the columns that `METRICS` lists. The sources say that the paper shows CKA between features
and the loss under Gaussian weight noise, not how they were computed: every definition is our
choice. The relevance maps and active neurons that they also name are in `relevance` and `neurons`.
"""

from typing import Any

from iekd import records
from iekd.analysis.flatness import rises, weight_noise
from iekd.analysis.similarity import reference, similarity
from iekd.config import RunConfig
from iekd.records import Analysis, store
from iekd.training import runner
from iekd.training.teacher import Teacher

METRICS = {
    "cka_halves": "debiased CKA between the two parts of the student's feature",
    "cka_teacher": "debiased CKA between the student's feature and the teacher's",
    "cka_inherit": "the same of the inheriting channels alone",
    "cka_explore": "the same of the exploring channels alone",
    "factor_inherit": "F_inh (FT: the whole factor) against F_T in the method's own measure",
    "factor_explore": "F_exp against F_T in the method's own measure",
    "rise_train": "rise of the cross-entropy on training images under weight noise of size SIGMA, "
    "mean over the draws",
    "rise_validation": "the same on validation images",
}


def analyse(config: RunConfig) -> Analysis:
    """The analysis of a finished run: from its file, or measured now. Nothing is trained.

    Raises `StoreError` if the run is not finished or weights are not at hand.
    """
    if reason := impossible(config):
        raise store.StoreError(f"{config.path} cannot be analysed: {reason}")
    record = records.find(config)
    if before := records.analysis_of(record):
        return before[0]

    # measure
    run = runner.load_run(config)
    taught_by = reference(config).teacher_run()
    teacher = run.teacher or Teacher(runner.load_network(taught_by), None)
    noise = weight_noise(run, config.seed)
    metrics = {**similarity(config, run, teacher), **rises(noise)}

    # write, and read what was written: it is rounded
    made_by: dict[str, Any] = {name: records.provenance()[name] for name in ("git", "versions")}
    made_by["parents"] = {"teacher": records.find(taught_by).weights} | record.parents
    found: dict[str, Any] = {"metrics": metrics, "noise": noise.to_dict("list")}
    Analysis(hash=config.hash, weights=record.weights, **made_by, **found).save(config)
    return records.read_analysis(records.analysis_path(config), record)


def impossible(config: RunConfig) -> str:
    """Why a run cannot be analysed; '' if it can, or has been."""
    record = records.find(config)
    if record is None:
        return "it is not finished; `iekd run` or `iekd sweep` finishes it"
    if records.analysis_of(record):
        return ""
    needed = [config, *config.parents().values(), reference(config).teacher_run()]
    missing = dict.fromkeys(run.path for run in needed if not records.weights_at_hand(run))
    if not missing:
        return ""
    paths = ", ".join(missing)
    return f"no weights at hand of {paths}; runs/again/grid.yaml says how to train them again"
