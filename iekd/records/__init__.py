"""The evidence: what a finished run leaves, where it is stored, and all of it as one table."""

from iekd.records.analyses import Analysis, analysis_of, analysis_path, read_analysis
from iekd.records.frame import as_row, history, load
from iekd.records.provenance import provenance
from iekd.records.record import (
    ANALYSIS,
    SCHEMA,
    Metric,
    Record,
    files,
    find,
    is_place,
    orphans,
    pass_over,
    read,
    record_path,
    weights_at_hand,
    weights_paths,
)
