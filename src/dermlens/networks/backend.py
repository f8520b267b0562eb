"""TensorFlow and Keras as a working place: loaded without chatter, with memory kept between steps, layers listed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

AGREEMENT = 1e-3  # most that an exported graph may differ from Keras, of the largest absolute value of an output
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_SETTINGS = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 256 * 2**20))


def load_tensorflow() -> None:
    """Import TensorFlow with its native log switched off; an error while importing is raised as always.

    Another TF_CPP_MIN_LOG_LEVEL than 3 (the package's default) shows the log.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "3":
        import tensorflow
    else:
        with _native_stderr_closed():
            import tensorflow
    del tensorflow


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Send file descriptor 2 to nowhere: some lines are written before TensorFlow reads its log level."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed for the next step; False where the C library has no such settings.

    A training step frees and takes back hundreds of megabytes. Left alone, glibc returns such blocks to the system and
    the kernel hands them out again page by page: on the virtual machine this was measured on, 1.5 million page faults
    and a fifth of the processor time in five steps; with these settings 42 thousand and 3 %.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    done = [mallopt(option, value) == 1 for option, value in _SETTINGS]
    return all(done)


def leaves(model: keras.Model) -> list[keras.layers.Layer]:
    """Return the layers of a model with nested models opened."""
    import keras

    found: list[keras.layers.Layer] = []
    for layer in model.layers:
        found += leaves(layer) if isinstance(layer, keras.Model) else [layer]
    return found
