"""How this process gets memory from the system, which decides a third of the speed of learning on a
CPU."""

import ctypes
import sys

# The numbers of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory(devices: int = 1) -> bool:
    """Lets malloc keep what is freed rather than return it to the system; whether that could be
    set.

    `devices` that compute at once, as those of several seeds do, each get an arena of malloc's, or
    they would wait for each other: measured, a third of an update of QMIX again.

    A compiled update of recurrent networks works in hundreds of megabytes that XLA allocates and
    frees at each call. By default malloc maps and unmaps them, and the system then hands out every
    page anew: measured, a third of an update of QMIX. To be called before JAX starts its threads,
    so before anything is computed.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    settings = ((M_ARENA_MAX, devices), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1))
    return all(mallopt(*setting) for setting in settings)
