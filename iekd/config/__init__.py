"""One run as data: its fields, the presets that fill them in, and grids of many runs."""

import iekd
from iekd.config.run import RunConfig, refuse_unread, unknown_field
from iekd.errors import ConfigError

iekd._open(__name__)
