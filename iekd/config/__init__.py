"""One run as data: its fields, the presets that fill them in, and grids of many runs."""

import iekd
from iekd.config.reads import refuse_unread
from iekd.config.run import RunConfig, unknown_field
from iekd.errors import ConfigError

iekd._open(__name__)
