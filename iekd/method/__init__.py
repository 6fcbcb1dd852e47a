"""The paper: measures, the factor, the split, and the four methods that inherit and explore.

Read `measures`, `factor`, `split` and `factor_transfer` first.
"""

import iekd

iekd._open(__name__)
