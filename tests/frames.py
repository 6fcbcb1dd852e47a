"""A frame as `records.load` gives it, made of errors typed in: for the tests of tables, claims and
figures.
"""

import numpy as np
import pandas as pd

from iekd.config import RunConfig


def rows(config: RunConfig, errors: dict[int, float]) -> list[dict]:
    """One row per seed of an arm, `errors` by seed."""
    runs = []
    for seed, error in errors.items():
        run = config.replace(seed=seed)
        names = {k: getattr(run, k) for k in ("hash", "path", "variant", "pair")}
        metrics = {
            "last": error,
            "val_selected": error,
            "best_on_test": error - 0.1,
            "last_exact": np.nan,
        }
        facts = {
            "seconds": 60.0,
            "images_per_second": 900.0,
            "device": "cpu",
            "command": run.command(),
        }
        runs.append({**run.model_dump(), **names, **metrics, **facts})
    return runs


def frame(preset: str, *arms: tuple[dict, dict[int, float]], **setting) -> pd.DataFrame:
    """`arms`: (fields, errors by seed); the fields {'role': 'teacher'} stand for the teacher's own
    runs.
    """
    all_rows = []
    for fields, errors in arms:
        is_teacher = fields.get("role") == "teacher"
        config = RunConfig.create(
            preset, **{**setting, **({"method": "kd"} if is_teacher else fields)}
        )
        all_rows += rows(config.teacher_run() if is_teacher else config, errors)
    return pd.DataFrame(all_rows)
