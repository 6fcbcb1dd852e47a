"""The methods that IE-KD is compared with, one file each. Importing this registers all methods."""

from iekd.baselines import ab, cc, crd, fitnet, kd, nst, pkt, rkd, sp, supervised, tf_kd, vid
from iekd.method import attention_transfer, factor, factor_transfer, mutual, overhaul

# The order in which tables list them.
STORY = (
    *(supervised, factor, kd, factor_transfer, attention_transfer, overhaul),
    *(tf_kd, fitnet, ab, sp, cc, vid, rkd, pkt, nst, crd, mutual),
)
