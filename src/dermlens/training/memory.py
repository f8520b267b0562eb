"""Keep freed memory: each training step frees and takes back hundreds of megabytes.

Left alone, glibc returns such blocks to the system and the kernel hands them out again page by page. On the virtual
machine this was measured on, that was 1.5 million page faults and a fifth of the processor time in five steps; with
these settings 42 thousand and 3 %.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_SETTINGS = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 256 * 2**20))


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed for the next step; False where the C library has no such settings."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    done = [mallopt(option, value) == 1 for option, value in _SETTINGS]
    return all(done)
