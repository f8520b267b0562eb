"""The one table of columns: it knows every field of an answer, whatever is nested in it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

import tiny
from dermlens import Predictor
from dermlens.inference import answers


def test_every_field_of_an_answer_has_its_column(tmp_path: Path) -> None:
    """A new field of `Prediction.as_dict()` needs a line in COLUMNS, or in LEFT_OUT."""
    predictor = Predictor(tiny.write(tmp_path / "b"))
    for answer in (predictor.predict(tiny.colour("RED")), predictor.predict(b"")):
        known = {column.field.partition(".")[0] for column in answers.COLUMNS} | {"probabilities"} | answers.LEFT_OUT
        assert set(answer.as_dict()) <= known
        row = answers.row(answer, tiny.CODES, embedding=True)
        schema = answers.schema(tiny.CODES, embedding=True)
        assert list(row) == schema.names
        assert pa.RecordBatch.from_pylist([row], schema).num_rows == 1


def test_nested_and_absent_fields_and_names_that_are_no_text(tmp_path: Path) -> None:
    class Answer:
        embedding = None

        def as_dict(self) -> dict[str, object]:
            facts = {"threshold": 2.0, "score": 3.5}
            return {
                "image": "\udcff.png",
                "novelty": facts,
                "prediction_set": ["A", "B"],
                "probabilities": {"RED": 0.25},
            }

    row = answers.row(Answer(), ["RED", "BLUE"], embedding=True)  # type: ignore[arg-type]
    table = pa.RecordBatch.from_pylist([row], answers.schema(["RED", "BLUE"], embedding=True)).to_pylist()[0]
    assert table["image"] == "\\udcff.png"
    assert json.loads(table["novelty"]) == {"threshold": 2.0, "score": 3.5}
    assert table["prediction_set"] == ["A", "B"]
    assert (table["probability_RED"], table["probability_BLUE"], table["embedding"]) == (0.25, None, None)
    assert table["error_code"] is None and table["quality"] is None
