"""The allocator of a process that trains on a CPU: freed memory is kept for the next step and is in
huge pages.

Every step needs the same tensors again. By default glibc returns large ones to the system when they
are freed, and the kernel clears and looks up each new page one by one: on two cores, up to a
quarter of a small network's step.
"""

import ctypes

# Read by glibc when a process starts, so only processes that we start can have it (those of `iekd
# sweep` and `iekd bench`). Linux only.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = 2**30  # bytes


def keep() -> None:
    """From now on, freed memory stays with this process; does nothing without glibc."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT)
    except (OSError, AttributeError):
        pass


def peak() -> int:
    """Largest resident size of this process so far, in MB; 0 if the system does not report it."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
