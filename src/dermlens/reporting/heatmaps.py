"""Heat maps as PNG files, one for each image, under names that do not clash."""

from __future__ import annotations

from pathlib import Path

from dermlens.errors import StorageError
from dermlens.inference.explain import Explanation


class HeatmapFolder:
    """A folder that takes the overlays of explanations as `<image>_<code>.png`.

    Raises:
        StorageError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refusal(error) from error

    def write(self, explanation: Explanation) -> Path:
        """Write one overlay and return its path; images of the same name get a number.

        Raises:
            StorageError: no space or no permission.
        """
        stem = f"{Path(explanation.prediction.image).stem or 'image'}_{explanation.code}".replace("/", "_")
        name, number = stem, 2
        while name in self._taken:
            name, number = f"{stem}_{number}", number + 1
        self._taken.add(name)
        path = self._folder / f"{name}.png"
        try:
            path.write_bytes(explanation.as_png())
        except OSError as error:
            raise self._refusal(error) from error
        return path

    def _refusal(self, error: OSError) -> StorageError:
        return StorageError(
            f"Heat maps could not be written to {self._folder}: {error.strerror or error}.",
            remedy="Choose another folder for --heatmap, or free some space.",
        )
