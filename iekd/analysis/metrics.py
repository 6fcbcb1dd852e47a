"""What the halves learned, measured on the weights of finished runs: similarity, flatness, and
where they look.

`analyse(config)` measures once and writes `seed<k>.analysis.json` next to the record;
`records.load` then has the columns listed in `METRICS`. The sources say that the paper shows CKA
between features and the loss under Gaussian weight noise, but not how they were computed: every
definition is our choice. The relevance maps and active neurons that they also name are measured in
`looks`.
"""

import functools
from typing import Any

from iekd import data, records
from iekd.analysis import looks
from iekd.analysis.flatness import rises, weight_noise
from iekd.analysis.similarity import halves_of, reference, similarity
from iekd.config import RunConfig
from iekd.records import Analysis, store
from iekd.speed import precision
from iekd.training import runner
from iekd.training.teacher import Teacher

METRICS = {
    "cka_halves": "debiased CKA between the two parts of the student's feature",
    "cka_teacher": "debiased CKA between the student's feature and the teacher's",
    "cka_inherit": "the same of the inheriting channels alone",
    "cka_explore": "the same of the exploring channels alone",
    "factor_inherit": "F_inh (FT: the whole factor) against F_T in the method's own measure",
    "factor_explore": "F_exp against F_T in the method's own measure",
    "rise_train": "rise in the cross-entropy on training images under weight noise of size SIGMA, "
    "mean over the draws",
    "rise_validation": "the same on validation images",
}


@precision.undisturbed()
def analyse(config: RunConfig) -> Analysis:
    """The analysis of a finished run: from its file, or measured now. Nothing is trained.

    Raises `StoreError` if the run is not finished or weights are missing.
    """
    if reason := impossible(config):
        raise store.StoreError(f"{config.path} cannot be analysed: {reason}")
    record = records.find(config)
    before = records.analysis_of(record)
    if before and (before[0].answers or _missing(config)):
        return before[0]

    # measure
    run = runner.load_run(config)
    taught_by, other = reference(config).teacher_run(), _another(config)
    weights = [records.find(each).weights for each in (taught_by, other) if each]
    taught = _taught(taught_by, other, *weights)
    teacher = run.teacher or Teacher(taught.network, None)
    noise = weight_noise(run, config.seed)
    metrics = {**similarity(config, run, teacher), **rises(noise)}
    halves = halves_of(config, run.learner["student"].feature_channels)
    metrics |= looks.measure(run, taught, halves, config.seed)
    answers = {"student": looks.answers(run, run.learner["student"]), "teacher": taught.answers}

    # write, then read back what was written: it is rounded
    made_by: dict[str, Any] = {name: records.provenance()[name] for name in ("git", "versions")}
    made_by["parents"] = {"teacher": weights[0]} | record.parents
    found: dict[str, Any] = {"metrics": metrics, "noise": noise.to_dict("list")}
    found["answers"] = answers
    Analysis(hash=config.hash, weights=record.weights, **made_by, **found).save(config)
    return records.read_analysis(records.analysis_path(config), record)


@functools.lru_cache(maxsize=8)
def _taught(teacher: RunConfig, other: RunConfig | None, *weights: str) -> looks.Taught:
    """What its students share; measured again if a teacher was retrained to other `weights`."""
    networks = (runner.load_network(each) if each else None for each in (teacher, other))
    return looks.of_teacher(runner.make_run(teacher), *networks)


def _another(config: RunConfig) -> RunConfig | None:
    """The teacher of the previous seed, if it is a different one and its weights are available."""
    if config.seed == 0:
        return None
    own, other = (
        reference(config.replace(seed=k)).teacher_run() for k in (config.seed, config.seed - 1)
    )
    return other if other != own and records.weights_at_hand(other) else None


def impossible(config: RunConfig) -> str:
    """Why a run cannot be analysed; '' if it can, or has been."""
    if data.has_boxes(config.dataset):
        return "what is measured needs images with one class each"
    record = records.find(config)
    if record is None:
        return "it is not finished; `iekd run` or `iekd sweep` finishes it"
    missing = _missing(config)
    if not missing or records.analysis_of(record):
        return ""
    paths = ", ".join(missing)
    return f"no weights at hand of {paths}; runs/again/grid.yaml says how to train them again"


def _missing(config: RunConfig) -> list[str]:
    """The runs whose weights are needed to analyse this one but are not available."""
    needed = [config, *config.parents().values(), reference(config).teacher_run()]
    return list(dict.fromkeys(run.path for run in needed if not records.weights_at_hand(run)))
