"""Plain training on the labels: the student alone, and every teacher."""

from torch import Tensor, nn

from iekd.method.features import Batch
from iekd.method.registry import method
from iekd.networks import Output


@method(
    "supervised",
    label="Student alone",
    fields=("weights_file",),
    detects=True,
    build=lambda run, networks: Supervised(),
)
class Supervised(nn.Module):
    """task = CE(logits, batch.labels), batch mean."""

    def forward(self, batch: Batch, student: Output, teacher: Output | None) -> dict[str, Tensor]:
        return {"task": batch.goal(student)}
