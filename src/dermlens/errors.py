"""Every error that dermlens raises on purpose, drawn as a tree.

DermlensError                 something a person can put right; shown as one line, never as a traceback
├── UsageError                the call itself is wrong: an unknown name, a missing folder, a bad option
│   └── RecipeError           a recipe setting that does not exist or does not make sense
├── ImageError                one image cannot be used; its row in the result carries the error
├── DataError                 a data set cannot be used: no images, missing columns, a class too small
│   └── LeakageError          the same picture or lesion on both sides of a split
├── WeightsError              pretrained weights are missing, damaged or belong to another network
├── BundleError               a model bundle is missing, damaged or from a newer version
├── StorageError              a result could not be written (no space, no permission)
└── MissingExtraError         an optional part of dermlens is not installed

The message says *what is wrong, with the value*, and *what is allowed*; the remedy says *what to do*.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial


class DermlensError(Exception):
    """Base of all errors with a remedy.

    Args:
        message: what is wrong and what is allowed, one line.
        remedy: what to do about it, one line.
        code: a stable snake_case word for programs; part of `predict --json`.
    """

    default_code = "error"

    def __init__(self, message: str, *, remedy: str, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.code = code or self.default_code

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"

    def __reduce__(self) -> tuple[partial[DermlensError], tuple[()]]:
        """Let an error travel from one process to another."""
        return partial(type(self), self.message, remedy=self.remedy, code=self.code), ()

    def as_dict(self) -> dict[str, str]:
        """Return `{"code", "message", "remedy"}`, the form used in JSON results."""
        return {"code": self.code, "message": self.message, "remedy": self.remedy}


class UsageError(DermlensError):
    """The call itself is wrong."""

    default_code = "usage"


class RecipeError(UsageError):
    """A recipe setting does not exist or does not make sense."""

    default_code = "recipe"


class ImageError(DermlensError):
    """One image cannot be used."""

    default_code = "image"


class DataError(DermlensError):
    """A data set cannot be used as it is."""

    default_code = "data"


class LeakageError(DataError):
    """Evaluation images share a picture or a lesion with training images."""

    default_code = "leakage"


class WeightsError(DermlensError):
    """Pretrained weights are missing, damaged or belong to another network."""

    default_code = "weights"


class BundleError(DermlensError):
    """A model bundle is missing, damaged or from a newer version."""

    default_code = "bundle"


class StorageError(DermlensError):
    """A result could not be written."""

    default_code = "storage"


class MissingExtraError(DermlensError):
    """An optional part of dermlens is not installed."""

    default_code = "missing_extra"


@contextmanager
def os_errors(
    what: str, remedy: str, kind: type[DermlensError] = StorageError, code: str | None = None
) -> Iterator[None]:
    """Turn an OSError into an error of this kind that reads "WHAT: reason." and has the remedy."""
    try:
        yield
    except OSError as error:
        raise kind(f"{what}: {error.strerror or error}.", remedy=remedy, code=code) from error
