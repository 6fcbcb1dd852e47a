"""One of the runs that are trained together, between two epochs: its progress."""

import time
from dataclasses import dataclass, field

from iekd.config import RunConfig
from iekd.training import checkpoint, loop, signals
from iekd.training.probe import probe
from iekd.training.run import Run

# Written at the end of an epoch: at least so many seconds apart, in at most this share of time.
CHECKPOINT_SECONDS = 2.0
CHECKPOINT_SHARE = 0.05


@dataclass(eq=False)
class Member:
    """A run with its history so far."""

    config: RunConfig
    run: Run
    parents: dict[str, str]  # role -> checksum
    started: str
    history: list[dict] = field(default_factory=list)
    seconds: float = 0.0  # its share of the time: time that n runs share counts 1/n for each
    saved: float = field(default_factory=time.monotonic)
    saving: float = 0.0  # seconds that the last checkpoint took

    def measure(self) -> dict[str, float | None]:
        """The measurements at the end of an epoch: the probe, and errors when they are due."""
        epoch, last = len(self.history) + 1, self.config.epochs
        found, parts = probe(self.run), {}
        if epoch == last or epoch % self.config.evaluate_every == 0:
            parts = {"validation": "validation", "test": "test"}
        if epoch == last:
            parts["train"] = "train_eval"  # 'train_error' is the one on the augmented batches
        for part, title in parts.items():
            for name, value in loop.evaluate(self.run, part).items():
                found[f"{title}_{name}"] = value
        return found

    def save_if_due(self, runs: int) -> None:
        """Write a checkpoint if it is time.

        Each of these runs waits while the others write theirs, so many runs write less often.
        """
        began = time.monotonic()
        wait = max(CHECKPOINT_SECONDS, runs * self.saving / CHECKPOINT_SHARE)
        if signals.asked() or began - self.saved > wait:
            checkpoint.save(self.config, self.parents, self.run, self.history, self.seconds)
            self.saved = time.monotonic()
            self.saving = self.saved - began
