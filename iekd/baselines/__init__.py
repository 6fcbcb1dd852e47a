"""What IE-KD is compared with, one file each. Importing this registers all methods, the paper's among them."""

# isort: off  (the order in which tables list them)
from iekd.baselines import ab, cc, crd, fitnet, kd, nst, pkt, rkd, sp, supervised, tf_kd, vid
from iekd.method import attention_transfer, factor, factor_transfer, mutual, overhaul

__all__ = [
    "ab",
    "attention_transfer",
    "cc",
    "crd",
    "factor",
    "factor_transfer",
    "fitnet",
    "kd",
    "mutual",
    "nst",
    "overhaul",
    "pkt",
    "rkd",
    "sp",
    "supervised",
    "tf_kd",
    "vid",
]
