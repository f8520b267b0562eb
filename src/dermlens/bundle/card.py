"""What the card of a bundle must hold so that every verb can show it: checked before a stranger's model is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dermlens.bundle.bundle import Bundle
from dermlens.errors import BundleError

_FIGURES = ("balanced_accuracy", "accuracy", "macro_auc")
_LARGEST = 1e15


def check_card(bundle: Bundle) -> None:
    """Look at the fields of bundle.json that are shown to people and that loading takes as they are.

    Raises:
        BundleError: one has another type than `dermlens train` writes, or a name that cannot be printed.
    """
    wrong = next(_wrong_fields(bundle.card), None)
    if wrong is not None:
        raise BundleError(
            f"The model bundle is damaged: {bundle.folder / 'bundle.json'}: {wrong}.",
            remedy="Do not use it: dermlens writes no such cards.",
            code="bundle_damaged",
        )


def _wrong_fields(card: Mapping[str, Any]) -> Iterator[str]:
    parts = {name: card[name] for name in ("data", "metrics", "licence")}
    if broken := [name for name, part in parts.items() if not isinstance(part, dict)]:
        yield f"{broken[0]!r} is no mapping"
        return
    data, metrics, licence = parts.values()
    names = [card["name"], card["version"], *(c[key] for c in card["classes"] for key in ("code", "name"))]
    yield from (f"{name!r} is no name" for name in names if not (isinstance(name, str) and name.isprintable()))
    texts = {key: card[key] for key in ("scope", "created", "modality")}
    texts |= {f"licence.{key}": licence.get(key) for key in ("weights", "code")}
    yield from (f"{name!r} is no text" for name, text in texts.items() if not _is_text(text))
    for key in ("sources", "not_tested_on"):
        if not isinstance(listed := data.get(key), list) or not all(map(_is_text, listed)):
            yield f"'data.{key}' is no list of texts"
    counts = {"data.images": data.get("images"), **{f"metrics.{key}": metrics.get(key) for key in ("n", "n_lesions")}}
    yield from (f"{name!r} is no number" for name, count in counts.items() if not _is_number(count))
    yield from _wrong_figures(metrics)


def _wrong_figures(metrics: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"'metrics.{name}' is no figure" for name in _FIGURES if not _is_figure(metrics.get(name)))
    per_class = metrics.get("per_class")
    if not isinstance(per_class, dict) or not all(isinstance(each, dict) for each in per_class.values()):
        yield "'metrics.per_class' is no mapping of mappings"
    elif broken := [code for code, each in per_class.items() if not _is_figure(each.get("auc"))]:
        yield f"'metrics.per_class.{broken[0]}.auc' is no figure"


def _is_text(value: object) -> bool:
    """Whether it is text that can be written as UTF-8, which half of a surrogate pair cannot."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST


def _is_figure(value: object) -> bool:
    """Whether it is a figure; its numbers are null where the images cannot tell them."""
    return isinstance(value, dict) and all(
        key in value and (value[key] is None or _is_number(value[key])) for key in ("value", "low", "high")
    )
