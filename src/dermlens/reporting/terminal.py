"""Models and the machine on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dermlens.bundle.bundle import Bundle
from dermlens.bundle.card_text import fact_lines, warnings
from dermlens.diagnoses import DISCLAIMER
from dermlens.text import one_line


def show_models(models: Mapping[str, Bundle], console: Console) -> None:
    """Print a paragraph for each model, by its name here."""
    if not models:
        console.print("No embedded models.")
    for name, bundle in models.items():
        facts = bundle.facts()
        own = "" if name == bundle.name else f"  (added; its own name is {bundle.name})"
        console.print(Text(name, "bold") + Text(" " + one_line(f"{bundle.version}  ({facts['size_mb']} MB){own}")))
        show_facts(facts, console)


def show_facts(facts: Mapping[str, Any], console: Console, more: Mapping[str, str] | None = None) -> None:
    """Print what to know of a model; a sentence that the card says cannot make a line of its own.

    Args:
        facts: of `Bundle.facts`; more: label -> text of further lines.
    """
    lines = {**fact_lines(facts), **(more or {})}
    width = max(map(len, lines))
    for label, words in lines.items():
        console.print(Text(f"  {label:{width}}  {one_line(words)}"), soft_wrap=True)
    for sentence in (*warnings(facts), DISCLAIMER):
        console.print(Text(f"  {sentence}", "bold"), soft_wrap=True)


def show_doctor(facts: Mapping[str, Any], console: Console) -> None:
    """Print what `dermlens doctor` found."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    quota = facts["threads"]["container_share"]
    share = "" if quota is None else f", a container's quota of {quota:g}"
    listed = (
        "not listed by this system" if facts["instructions"] is None else ", ".join(facts["instructions"]) or "none"
    )
    rows = {
        "Python": f"{facts['python']} on {facts['system']}",
        "processor": f"{facts['processor']}, {facts['cores']} cores, fast in {', '.join(facts['optimised_for'])}",
        "instructions": listed,
        "threads": f"{facts['threads']['allowed']} of {facts['threads']['processors']} processors may be used{share}",
        "free disk": f"{facts['free_disk_gb']} GB here",
        "packages": ", ".join(f"{name} {version}" for name, version in facts["packages"].items() if version),
        **{f"model {model['name']}": _state(model) for model in facts["models"]},
        "ready": ", ".join(facts["ready"]) or "nothing",
        **{
            f"for {verb}": f"missing {', '.join(gap['modules'])}: {gap['install']}"
            for verb, gap in facts["missing"].items()
        },
    }
    for label, words in rows.items():
        table.add_row(label, Text(words))
    console.print(table)
    for sentence in facts["advice"]:
        console.print(Text(sentence, "yellow"))
    predicting = "Predicting works." if facts["ok"] else "Predicting: a model is missing or unusable."
    console.print(predicting + "".join(f" {verb.capitalize()}: not installed." for verb in facts["missing"]))


def _state(model: Mapping[str, Any]) -> str:
    if model["status"] != "ok":
        return f"{model['error']['message']} {model['error']['remedy']}"
    runs = model["runs"]
    return (
        f"ok, first answer after {model['load_and_first_answer_ms']} ms; runs {Path(model['graph']).name} at "
        f"{model['input_px']} px on {runs['device']} in {runs['precision']} with {runs['threads']} threads"
    )
