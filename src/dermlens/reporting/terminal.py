"""Answers on a terminal: a table people can read at a glance, with the scope and the warning once below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dermlens.bundle.bundle import Bundle
from dermlens.bundle.decision import OperatingPoint
from dermlens.bundle.nearest import Neighbour
from dermlens.bundle.trust import Trust
from dermlens.diagnoses import DIAGNOSES, DISCLAIMER, display_name
from dermlens.inference.prediction import Prediction
from dermlens.text import figure, one_line

BAR_WIDTH = 8
WIDE = 110  # columns from which on there is room for bars
STATUS_STYLE = {"ok": "green", "uncertain": "yellow", "rejected": "bold red"}
STYLE = {"malignant": "bold red", "premalignant": "bold yellow", "benign": "green"}


def printable(name: str) -> str:
    """Return a file name with bytes that are no text shown as escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


RULE_WORDS = (
    "The diagnosis weighs all classes alike, so that a rare disease is not overlooked; the probabilities are those of "
    "the data that the model learned from. So the diagnosis may differ from the most probable class."
)

SET_WORDS = (
    "Compatible with: the diagnoses for which this picture is not unusual. A common diagnosis may be missing although "
    "it is probable, since pictures of it nearly always look more like it."
)

NEIGHBOUR_WORDS = (
    "Nearest: the training lesions that look most alike to the network, with their diagnosis and their similarity (1 "
    "is the same). They show what the answer leans on and prove nothing."
)


def show(answers: Sequence[Prediction], bundle: Bundle, *, top: int, console: Console) -> None:
    """Print one row for each answer, errors included."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    folder = common_folder([answer.image for answer in answers])
    wide = console.width >= WIDE
    table.add_column("image" if not folder else f"in {printable(folder)}", overflow="fold", min_width=20)
    table.add_column("status", no_wrap=True)
    table.add_column("diagnosis", overflow="fold")
    table.add_column("most probable" if wide else "probable", no_wrap=True)
    if wide:
        table.add_column("then", overflow="fold")
    table.add_column("compatible with", overflow="fold")
    for answer in answers:
        if answer.error is None:
            table.add_row(Text(printable(answer.image.removeprefix(folder))), *_cells(answer, top, wide))
    if table.row_count:
        console.print(table)
    _show_doubts(answers, console)
    _show_neighbours(answers, console)
    for answer in answers:
        if answer.error is not None:
            console.print(
                Text(printable(f"cannot be read: {answer.error['message']} {answer.error['remedy']}"), style="red")
            )
    failed = sum(answer.error is not None for answer in answers)
    if failed:
        console.print(f"{len(answers) - failed} read, {failed} not.", highlight=False)
    if failed == len(answers):
        return
    console.print(Text("\n" + one_line(bundle.scope), style="dim"))
    if any(answer.probabilities and answer.diagnosis_code != answer.top(1)[0][0] for answer in answers):
        console.print(Text(RULE_WORDS, style="dim"))
    if any(a.prediction_set and a.prediction_set[0] != a.top(1)[0][0] for a in answers if a.status != "rejected"):
        console.print(Text(SET_WORDS, style="dim"))
    _show_referrals(answers, bundle.trust, console)
    if bundle.leaky:
        console.print(Text("LEAKY model: its training and test images overlap; its scores are too good.", style="red"))
    if bundle.trust.novelty is None:
        console.print(
            Text("This model cannot tell pictures that are strange to it; it answers for any.", style="yellow")
        )
    if not bundle.calibrated:
        console.print(Text("The probabilities of this model are not calibrated.", style="yellow"))
    console.print(Text(DISCLAIMER, style="bold"))


def common_folder(names: Sequence[str]) -> str:
    """Return the folder that all names begin with, its last slash included; "" where they share none or stand alone."""
    folders = {name.rpartition("/")[0] for name in names}
    return f"{folders.pop()}/" if len(names) > 1 and len(folders) == 1 and "" not in folders else ""


def _diagnosis_cells(answer: Prediction, top: int, wide: bool) -> tuple[Text, ...]:
    """Diagnosis, the most probable class and, where there is room, its bar and the classes after it."""
    diagnosis = DIAGNOSES.get(answer.diagnosis_code or "")
    style = STYLE.get(diagnosis.malignancy, "") if diagnosis else "bold"
    (code, probability), *others = shown(answer, top)
    filled = round(probability * BAR_WIDTH)
    bar = Text("█" * filled + "░" * (BAR_WIDTH - filled) + " " if wide else "", style="cyan")
    bar.append(f"{percent(probability):>4} {code}")
    then = Text("  ".join(f"{percent(probability)} {code}" for code, probability in others), style="dim")
    name = answer.diagnosis_name or ""
    label = name if name == answer.diagnosis_code else f"{name} ({answer.diagnosis_code})"
    return (Text(label, style=style), bar, then) if wide else (Text(label, style=style), bar)


def _cells(answer: Prediction, top: int, wide: bool) -> tuple[Text, ...]:
    """The row of an answer; a rejected one names no diagnosis."""
    status = Text(answer.status, style=STATUS_STYLE.get(answer.status, ""))
    if answer.status == "rejected":
        return status, Text("not answered", style="dim")
    return status, *_diagnosis_cells(answer, top, wide), Text(" ".join(answer.prediction_set or ()), style="dim")


def _show_doubts(answers: Sequence[Prediction], console: Console) -> None:
    """Say for each answer that is not ok why."""
    for answer in answers:
        if answer.reasons and answer.error is None:
            words = " ".join(reason.text for reason in answer.reasons)
            line = Text(printable(f"{answer.status}: {Path(answer.image).name}: "), STATUS_STYLE[answer.status])
            console.print(line.append(words, style="default"), soft_wrap=True)


def _show_neighbours(answers: Sequence[Prediction], console: Console) -> None:
    """Name the training lesions that each image resembles most, where they were asked for."""
    told = [answer for answer in answers if answer.neighbours]
    for answer in told:
        words = f"nearest to {Path(answer.image).name}: {neighbours_words(answer.neighbours or ())}"
        console.print(Text(printable(words)), soft_wrap=True)
    if told:
        console.print(Text(NEIGHBOUR_WORDS, style="dim"))


def neighbours_words(neighbours: Sequence[Neighbour]) -> str:
    """Return `ISIC_0024306 NV 0.93, ...`: name, diagnosis and similarity of training lesions."""
    return ", ".join(f"{one_line(n.image)} {one_line(n.diagnosis)} {n.similarity:.2f}" for n in neighbours)


def _show_referrals(answers: Sequence[Prediction], trust: Trust, console: Console) -> None:
    """Name the images that a specialist should see, and what that threshold reaches."""
    told = [a for a in answers if a.status in ("ok", "uncertain") and a.referral is not None]
    advised = [a for a in told if a.referral is not None and a.referral["advised"]]
    point = trust.operating_point
    if point is None or not told:
        return
    names = ", ".join(printable(Path(answer.image).name) for answer in advised[:8])
    more = f" and {len(advised) - 8} more" if len(advised) > 8 else ""
    console.print(Text(f"To be seen by a specialist: {names or 'none'}{more}.", style="bold" if advised else ""))
    console.print(Text(f"A specialist is {referral_words(point)}", style="dim"))


def referral_words(point: OperatingPoint) -> str:
    """Say in a sentence what the referral threshold does and reaches."""
    what = ", ".join(display_name(code) for code in point.codes)
    together = " together" if len(point.codes) > 1 else ""
    words = f"advised when the probability of {what}{together} is {point.threshold:.1%} or more."
    if point.sensitivity is None or point.specificity is None:
        return words
    return (
        f"{words} On lesions new to the model this caught {point.sensitivity:.0%} of them and left "
        f"{point.specificity:.0%} of the others alone."
    )


def shown(answer: Prediction, top: int) -> list[tuple[str, float]]:
    """Return the most probable classes, and the diagnosis behind them when it is not among them."""
    classes = answer.top(top)
    code = answer.diagnosis_code
    if code is not None and code not in dict(classes):
        classes.append((code, answer.probabilities[code]))
    return classes


def percent(probability: float) -> str:
    """Return a probability as whole percent; what is not zero is not shown as zero."""
    return "<1%" if 0 < probability < 0.005 else f"{probability:.0%}"


def model_facts(bundle: Bundle) -> dict[str, Any]:
    """Return what `dermlens models` shows of a bundle."""
    card = bundle.card
    metrics = card["metrics"]
    return {
        "name": bundle.name,
        "version": bundle.version,
        "scope": bundle.scope,
        "classes": list(bundle.codes),
        "balanced_accuracy": metrics["balanced_accuracy"],
        "melanoma_auc": metrics["per_class"].get("MEL", {}).get("auc"),
        "leaky": bundle.leaky,
        "weights_licence": card["licence"]["weights"],
        "size_mb": round(sum(p.stat().st_size for p in bundle.folder.iterdir()) / 1e6, 1),
        "sha256": bundle.sha256,
    }


def show_models(bundles: Sequence[Bundle], console: Console, added: Mapping[str, Bundle] | None = None) -> None:
    """Print a paragraph for each embedded model, and for each that was added, by its name here."""
    if not bundles:
        console.print("No embedded models.")
    for name, bundle in [*((b.name, b) for b in bundles), *(added or {}).items()]:
        facts = model_facts(bundle)
        own = "" if name == facts["name"] else f"  (added; its own name is {facts['name']})"
        console.print(Text(name, "bold") + Text(one_line(f" {facts['version']}  ({facts['size_mb']} MB){own}")))
        console.print(Text(f"  {one_line(facts['scope'])}"))
        classes = ", ".join(f"{c} {display_name(c)}" for c in facts["classes"])
        console.print(Text(f"  classes: {one_line(classes)}"))
        score = figure(facts["balanced_accuracy"])
        console.print(Text(f"  balanced accuracy on unseen lesions {score} (95 % interval)"))
        console.print(Text(f"  weights: {one_line(facts['weights_licence'])}"))
        console.print(f"  {DISCLAIMER}", style="bold", highlight=False)


def show_doctor(facts: dict[str, Any], console: Console) -> None:
    """Print what `dermlens doctor` found."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_row("Python", f"{facts['python']} on {facts['system']}")
    table.add_row(
        "processor",
        f"{facts['processor']}, {facts['cores']} cores, fast in {', '.join(facts['optimised_for'])}",
    )
    told = "not told by this system" if facts["instructions"] is None else ", ".join(facts["instructions"]) or "none"
    table.add_row("instructions", told)
    table.add_row("threads", _threads(facts["threads"]))
    table.add_row("free disk", f"{facts['free_disk_gb']} GB here")
    table.add_row("packages", ", ".join(f"{n} {v}" for n, v in facts["packages"].items() if v))
    for model in facts["models"]:
        state = _runs(model) if model["status"] == "ok" else f"{model['error']['message']} {model['error']['remedy']}"
        table.add_row(f"model {model['name']}", Text(state))
    table.add_row("ready", Text(", ".join(facts["ready"]) or "nothing"))
    for verb, gap in facts["missing"].items():
        table.add_row(f"for {verb}", Text(f"missing {', '.join(gap['modules'])}: {gap['install']}"))
    console.print(table, highlight=False)
    for sentence in facts["advice"]:
        console.print(sentence, style="yellow", highlight=False)
    predicting = "Predicting: all well." if facts["ok"] else "Predicting: a model is missing or unusable."
    rest = "".join(f" {verb.capitalize()}: not installed." for verb in facts["missing"])
    console.print(predicting + rest, highlight=False)


def _threads(facts: Mapping[str, Any]) -> str:
    share = "" if facts["container_share"] is None else f", a container's quota of {facts['container_share']:g}"
    return f"{facts['allowed']} of {facts['processors']} processors may be used{share}"


def _runs(model: Mapping[str, Any]) -> str:
    runs = model["runs"]
    return (
        f"ok, first answer after {model['load_and_first_answer_ms']} ms; runs {Path(model['graph']).name} at "
        f"{model['input_px']} px on {runs['device']} in {runs['precision']} with {runs['threads']} threads"
    )
