"""Many answers together: a table in a notebook, plain values, a row of a pandas frame or a Parquet file.

`COLUMNS` is the one table of columns: a new field of `Prediction.as_dict()` is one line in it. What an answer does not
have is null.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dermlens.errors import MissingExtraError
from dermlens.inference.notebook import in_notebook
from dermlens.inference.prediction import Prediction

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SHOWN_ANSWERS = 50  # in a notebook


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
        rows = [row(answer, codes, embedding=embedding) for answer in self]
        return pd.DataFrame(rows, columns=names(codes, embedding=embedding))

    def _repr_html_(self) -> str:
        return in_notebook(answers=self[:SHOWN_ANSWERS], table=True, more=len(self) - SHOWN_ANSWERS)


Kind = Literal["text", "number", "texts", "json"]


@dataclass(frozen=True)
class Column:
    """One column: its name, where it is in the JSON object of an answer ("error.code"), and its kind.

    `json` keeps a nested value as JSON text; `texts` is a list of strings.
    """

    name: str
    field: str
    kind: Kind = "text"


COLUMNS = (
    Column("image", "image"),
    Column("status", "status"),
    Column("diagnosis_code", "diagnosis.code"),
    Column("diagnosis_name", "diagnosis.name"),
    Column("probability", "probability", "number"),
    Column("advice", "advice.code"),
    Column("advice_text", "advice.text"),
    Column("why", "why"),
    Column("malignant_probability", "malignant_probability", "number"),
    Column("prediction_set", "prediction_set", "texts"),
    Column("reasons", "reasons", "json"),
    Column("referral", "referral", "json"),
    Column("novelty", "novelty", "json"),
    Column("quality", "quality", "json"),
    Column("error_code", "error.code"),
    Column("error_message", "error.message"),
    Column("error_remedy", "error.remedy"),
    Column("case_mix", "case_mix.name"),
    Column("case_mix_shares", "case_mix.shares", "json"),
    Column("model_name", "model.name"),
    Column("model_version", "model.version"),
    Column("model_sha256", "model.sha256"),
    Column("elapsed_ms", "elapsed_ms", "number"),
    Column("schema", "schema"),
)
"""After these come `probability_CODE` for each class of the model, and `embedding` where it is asked for."""

LEFT_OUT = frozenset({"heatmap"})
"""Fields of an answer that a batch never fills."""


def schema(codes: Sequence[str], *, embedding: bool) -> pa.Schema:
    """Return the Arrow schema for a model's classes; float64 numbers, float32 embedding (d,)."""
    import pyarrow as pa

    types = {"text": pa.string(), "number": pa.float64(), "texts": pa.list_(pa.string()), "json": pa.string()}
    fields = [pa.field(column.name, types[column.kind]) for column in COLUMNS]
    fields += [pa.field(f"probability_{code}", pa.float64()) for code in codes]
    if embedding:
        fields.append(pa.field("embedding", pa.list_(pa.float32())))
    return pa.schema(fields)


def names(codes: Sequence[str], *, embedding: bool) -> list[str]:
    """Return the names of all columns, in order."""
    probabilities = [f"probability_{code}" for code in codes]
    return [*(column.name for column in COLUMNS), *probabilities, *(["embedding"] if embedding else [])]


def row(answer: Prediction, codes: Sequence[str], *, embedding: bool) -> dict[str, Any]:
    """Return column name -> value for one answer, errors included."""
    values = answer.as_dict()
    result = {column.name: _value(values, column) for column in COLUMNS}
    for code in codes:
        result[f"probability_{code}"] = values["probabilities"].get(code)
    if embedding:
        result["embedding"] = answer.embedding
    return result


def _value(values: dict[str, Any], column: Column) -> Any:
    value: Any = values
    for key in column.field.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if value is None:
        return None
    if column.kind == "json":
        return json.dumps(value)
    if column.kind == "text":  # a file name need not be text; Parquet's strings must be
        return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    return value
