"""The method that a configuration names: what it compares, what it reads from the teacher, and the
method itself.
"""

from torch import Tensor, nn

from iekd import data, networks
from iekd.config import known
from iekd.config.run import RunConfig
from iekd.errors import ConfigError
from iekd.method.features import Pair
from iekd.method.registry import Method, Networks


def registered(config: RunConfig) -> Method:
    """The row of a run's method. Raises `ConfigError` if that or a measure is not known here."""
    for field in ("method", "inherit", "explore"):
        if (name := getattr(config, field)) not in known.choices(field):
            raise ConfigError(
                f"{config.path}: {field} {name!r} is not known here; import the file that "
                "registers it (--import FILE, or IEKD_IMPORT=FILE before Python starts)"
            )
    return known.methods()[config.method]


def compared(config: RunConfig) -> list[Pair]:
    """The stages that the run's method compares, known before anything is trained.

    Raises `PairError` if the networks do not fit.
    """
    row = registered(config)
    if row.compares is None:
        return []
    image = data.image_shape(config)
    student, teacher = (
        networks.feature_shapes(name, image) for name in (config.student, config.teacher)
    )
    return row.compares(student, teacher)


def needs(config: RunConfig) -> list[str]:
    """The teacher's features that the run's method reads besides the logits."""
    shapes = networks.feature_shapes(config.teacher, data.image_shape(config))
    return registered(config).needs(compared(config), shapes)


def build(
    config: RunConfig,
    student: nn.Module | None,
    teacher: nn.Module | None,
    autoencoder: nn.Module | None,
    labels: Tensor | None = None,
) -> nn.Module:
    """The method with fresh parts for these networks. Raises `PairError` if it cannot compare them.

    `labels`: the classes of all training images, for a method with a memory. In mutual learning
    `teacher` is the peer.
    """
    given = Networks(student, teacher, autoencoder, labels, compared(config))
    return registered(config).build(config, given)
