"""The evidence: what a finished run leaves, where it lies, and all of it as one table."""

from iekd.records.record import *  # noqa: F403
