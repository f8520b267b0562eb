"""Many answers together: a table in a notebook, plain values, a pandas frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dermlens.errors import MissingExtraError
from dermlens.inference import columns
from dermlens.inference.inline import answers_html
from dermlens.inference.predict import Prediction

if TYPE_CHECKING:
    import pandas as pd


class Answers(tuple[Prediction, ...]):
    """Predictions in order, bad images included.

    Examples:
        >>> answers = Answers(predictor.predict_many(paths))  # doctest: +SKIP
        >>> answers.to_frame().groupby("status").size()  # doctest: +SKIP
    """

    __slots__ = ()

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the objects that `dermlens predict --json` prints."""
        return [answer.as_dict() for answer in self]

    def to_frame(self, *, embedding: bool = False) -> pd.DataFrame:
        """Return one row for each answer, with the columns of `dermlens batch` (nested values as JSON text).

        Args:
            embedding: add the column `embedding`, float32 (d,) each.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "A frame needs pandas, which the light core does not install.",
                remedy="Run `pip install pandas`, or take to_dicts().",
            ) from error
        codes = list(dict.fromkeys(code for answer in self for code in answer.probabilities))
        rows = [columns.row(answer, codes, embedding=embedding) for answer in self]
        return pd.DataFrame(rows, columns=columns.names(codes, embedding=embedding))

    def _repr_html_(self) -> str:
        return answers_html(self)
