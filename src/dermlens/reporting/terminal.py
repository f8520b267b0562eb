"""Answers, models and the machine on a terminal: tables to read at a glance, the warning once below them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dermlens.bundle.bundle import Bundle
from dermlens.bundle.card_text import class_words, fact_lines, model_facts, warnings
from dermlens.bundle.limits import OperatingPoint
from dermlens.bundle.nearest import Neighbour
from dermlens.diagnoses import DISCLAIMER, display_name
from dermlens.inference.prediction import Prediction
from dermlens.text import one_line, percent, printable

BAR_WIDTH = 8
WIDE, NARROW = 110, 75  # columns from which on there is room for bars, and below which names are folded
STATUS_STYLE = {"ok": "green", "uncertain": "yellow", "rejected": "bold red"}
STYLE = {"malignant": "bold red", "premalignant": "bold yellow", "benign": "green"}

RULE_WORDS = (
    "The diagnosis gives all classes the same weight, so that a rare disease is not overlooked. The probabilities are "
    "those of the training data. So the diagnosis may differ from the most probable class."
)
SET_WORDS = (
    "Cannot be ruled out: the diagnoses that fit this image. A common diagnosis may be missing although it is "
    "probable, if images of it nearly always fit better."
)
NEIGHBOUR_WORDS = (
    "Nearest: the training lesions that look most alike to the network, with their diagnosis and similarity (1 is the "
    "same). They show what the answer is based on; they prove nothing."
)


def show(answers: Sequence[Prediction], bundle: Bundle, *, top: int, console: Console) -> None:
    """Print one row for each answer, errors included, and below them what one needs to know to read it."""
    read = [answer for answer in answers if answer.error is None]
    folder = common_folder([answer.image for answer in read])
    if read and folder:
        console.print(Text(f"in {printable(folder)}", "dim"))
    if read:
        console.print(_table(read, folder, top, console.width))
    _show_reasons(read, folder, console)
    _show_neighbours(read, folder, console)
    for answer in answers:
        if answer.error is not None:
            words = f"error: {answer.error['message']} {answer.error['remedy']}"
            console.print(Text(printable(words), "red"))
    if len(read) < len(answers):
        console.print(f"{len(read)} answered, {len(answers) - len(read)} failed.")
    if not read:
        return
    console.print(Text("\n" + one_line(bundle.scope), "dim"))
    named = [answer for answer in read if answer.status != "rejected"]
    if any(answer.diagnosis_code != answer.top(1)[0][0] for answer in named):
        console.print(Text(RULE_WORDS, "dim"))
    if any(answer.prediction_set and answer.prediction_set[0] != answer.top(1)[0][0] for answer in named):
        console.print(Text(SET_WORDS, "dim"))
    _show_referrals(read, folder, bundle, console)
    for sentence in warnings(model_facts(bundle.card)):
        console.print(Text(sentence, "red" if bundle.leaky else "yellow"))
    console.print(Text(DISCLAIMER, "bold"))


def _table(answers: Sequence[Prediction], folder: str, top: int, width: int) -> Table:
    wide, longest = width >= WIDE, max(len(_short(answer, folder)) for answer in answers)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("image", overflow="fold", min_width=16, no_wrap=longest <= (24 if width >= NARROW else 16))
    table.add_column("status", no_wrap=True)
    table.add_column("diagnosis", overflow="fold", min_width=10)
    table.add_column("most probable" if wide else "probable", no_wrap=True)
    if wide:
        table.add_column("then", overflow="fold")
    table.add_column("cannot be ruled out" if wide else "not ruled out", overflow="fold", min_width=5)
    for answer in answers:
        name, status = _short(answer, folder), Text(answer.status, STATUS_STYLE[answer.status])
        if answer.status == "rejected":
            table.add_row(Text(name), status, Text("no answer", "dim"))
        else:
            possible = Text(" ".join(answer.prediction_set or ()), "dim")
            table.add_row(Text(name), status, *_diagnosis(answer, top, wide), possible)
    return table


def _diagnosis(answer: Prediction, top: int, wide: bool) -> tuple[Text, ...]:
    """Diagnosis, the most probable class and, where there is room, its bar and the classes after it."""
    name = class_words(answer.diagnosis_code or "", answer.diagnosis_name or "")
    label = Text(name, STYLE.get(answer.malignancy, "bold"))
    (code, share), *others = shown(answer, top)
    filled = round(share * BAR_WIDTH)
    bar = Text("█" * filled + "░" * (BAR_WIDTH - filled) + " " if wide else "", "cyan")
    bar.append(f"{percent(share):>5} {code}")
    then = Text("  ".join(f"{percent(share)} {code}" for code, share in others), "dim")
    return (label, bar, then) if wide else (label, bar)


def common_folder(names: Sequence[str]) -> str:
    """Return the deepest folder that all names begin with, its last slash included; "" where they share none."""
    levels = zip(*(name.split("/")[:-1] for name in names), strict=False)
    shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
    return f"{'/'.join(shared)}/" if any(shared) else ""


def _short(answer: Prediction, folder: str) -> str:
    return printable(answer.image.removeprefix(folder))


def shown(answer: Prediction, top: int) -> list[tuple[str, float]]:
    """Return the most probable classes, and the diagnosis after them when it is not one of them."""
    classes = answer.top(top)
    code = answer.diagnosis_code
    if code is not None and code not in dict(classes):
        classes.append((code, answer.probabilities[code]))
    return classes


def _show_reasons(answers: Iterable[Prediction], folder: str, console: Console) -> None:
    for answer in answers:
        if answer.reasons:
            line = Text(f"{answer.status}: {_short(answer, folder)}: ", STATUS_STYLE[answer.status])
            console.print(line.append(answer.sentences, "default"), soft_wrap=True)


def _show_neighbours(answers: Iterable[Prediction], folder: str, console: Console) -> None:
    with_neighbours = [answer for answer in answers if answer.neighbours]
    for answer in with_neighbours:
        words = f"nearest to {_short(answer, folder)}: {neighbours_words(answer.neighbours or ())}"
        console.print(Text(printable(words)), soft_wrap=True)
    if with_neighbours:
        console.print(Text(NEIGHBOUR_WORDS, "dim"))


def neighbours_words(neighbours: Sequence[Neighbour]) -> str:
    """Return `ISIC_0024306 NV 0.93, ...`: name, diagnosis and similarity of training lesions."""
    return ", ".join(f"{one_line(n.image)} {one_line(n.diagnosis)} {n.similarity:.2f}" for n in neighbours)


def _show_referrals(answers: Sequence[Prediction], folder: str, bundle: Bundle, console: Console) -> None:
    """Name the images of lesions that a specialist should see, and what that threshold reaches."""
    point = bundle.trust.operating_point
    if point is None or not answers:
        return
    names = [_short(answer, folder) for answer in answers if answer.advised]
    console.print(Text(f"Refer to a specialist: {', '.join(names) or 'none'}.", "bold" if names else ""))
    rejected = [_short(answer, folder) for answer in answers if answer.status == "rejected"]
    if rejected:
        words = "Not assessed, which says nothing about the lesion; take another image, or have the lesion seen: "
        console.print(Text(f"{words}{', '.join(rejected)}.", "bold"))
    console.print(Text(referral_words(point), "dim"))


def referral_words(point: OperatingPoint) -> str:
    """Say what the referral threshold does and reaches."""
    what = ", ".join(display_name(code) for code in point.codes)
    together = " together" if len(point.codes) > 1 else ""
    words = f"Referral is advised when the probability of {what}{together} is {percent(point.threshold, 1)} or more"
    sensitivity, specificity = point.sensitivity["value"], point.specificity["value"]
    if sensitivity is None or specificity is None:
        return f"{words}."
    return f"{words}: sensitivity {percent(sensitivity)}, specificity {percent(specificity)} on unseen lesions."


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
