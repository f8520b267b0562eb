"""Answers, models and the machine on a terminal: one line a picture, what to do and the warning once below."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dermlens.bundle.bundle import Bundle
from dermlens.bundle.card_text import fact_lines, model_facts, warnings
from dermlens.bundle.case_mix import CaseMix, mix_words
from dermlens.bundle.nearest import Neighbour
from dermlens.diagnoses import DISCLAIMER, display_name
from dermlens.inference.judge import ADVICE, SYMBOLS, spoken
from dermlens.inference.prediction import Prediction
from dermlens.reporting.proven import MARKS, Proven, Verdict
from dermlens.text import one_line, percent, printable

BAR_WIDTH = 8
ROOMY = 72  # columns from which on two spaces stand between columns
LEAST_NAME = 12  # columns for the name of an image, before names of diagnoses give way to their codes
LEAST = 5  # in any case
STATUS_STYLE = {"ok": "green", "uncertain": "yellow", "rejected": "bold red"}
ADVICE_STYLE = {
    "refer": "bold red",
    "see_clinician": "bold yellow",
    "retake": "bold blue",
    "not_assessed": "bold",
    "no_referral": "green",
}
"""The colour of each advice, the gravest first."""

ASCII = str.maketrans("▲◆↻○–█░…✓✗", "!!>o-#.~+x")  # for terminals that have no other characters
UNRELIABLE = "Its figures, marked “?”, are not to be relied on."
IN_BRACKETS = "In brackets: how probable it is to be malignant or premalignant."
NEIGHBOUR_WORDS = (
    "Nearest: the training lesions that look most alike to the network, with their diagnosis and similarity (1 is the "
    "same). They show what the answer is based on; they prove nothing."
)


def show(
    answers: Sequence[Prediction], bundle: Bundle, *, top: int, console: Console, proven: Proven | None = None
) -> None:
    """Print one line for each answer, errors included, and below them what to do and what one needs to know.

    Args:
        top: how many classes a wide terminal shows.
        proven: what was proven for the images, to show beside the answers.
    """
    read = [answer for answer in answers if answer.error is None]
    folder = common_folder([answer.image for answer in read])

    def tell(words: str | Text, style: str = "", indent: int = 0) -> None:
        text = words if isinstance(words, Text) else Text(words, style)
        if console.options.ascii_only:
            text.plain = text.plain.translate(ASCII)
        console.print(Padding(text, (0, 0, 0, indent), expand=False) if indent else text)

    def name_all(names: Sequence[str]) -> None:
        for line in _filled(names, console.width - 2):
            tell(line, indent=2)

    if read and folder:
        tell(f"in {printable(folder)}", "dim")
    for line in _lines(read, folder, top, console.width, proven):
        tell(line)
    _tell_advice(read, folder, tell, name_all)
    _tell_neighbours(read, folder, tell)
    if len(read) < len(answers):
        tell("")
    for answer in answers:
        if answer.error is not None:
            tell(printable(f"error: {answer.error['message']} {answer.error['remedy']}"), "red")
    if len(read) < len(answers):
        tell(f"{len(read)} answered, {len(answers) - len(read)} failed.")
    if not read:
        return
    tell("")
    if proven and (words := proven.summary(read)):
        tell(words, "bold")
    for words in (mix_sentence(read[0].case_mix), *referral_words(read), one_line(bundle.scope)):
        tell(words, "dim")
    for sentence in warnings(model_facts(bundle.card)):
        tell(sentence, "red" if bundle.leaky else "yellow")
    tell(DISCLAIMER, "bold")


def _lines(answers: Sequence[Prediction], folder: str, top: int, width: int, proven: Proven | None) -> Iterable[Text]:
    """Lay out one line for each answer, the richer the wider the terminal is; what matters is never cut off."""
    if not answers:
        return
    gap = 2 if width >= ROOMY else 1
    names = [_short(answer, folder) for answer in answers]
    longest = max(map(cell_len, names))
    verdicts = [proven.of(answer) if proven else None for answer in answers]
    status = _Column("status", [Text(answer.status, STATUS_STYLE[answer.status]) for answer in answers])
    share = _Column("%", [Text(_share(answer), _tone(answer)) for answer in answers], right=True)
    advice = _Column("advice", [_advice(answer) for answer in answers])
    for label, beside in ((display_name, display_name), (display_name, str), (str, str)):
        shown = [_proven(verdicts, beside)] if any(verdicts) else []
        left = width - sum(column.width + gap for column in (status, share, *shown, advice)) - gap
        room = left - min(longest, LEAST_NAME)
        if max(cell_len(_first(answer, label)) for answer in answers) <= room:
            break
    longest_code = max(cell_len(_first(answer, str)) for answer in answers)
    room = max(room, min(left - LEAST, longest_code), LEAST)
    firsts = [_diagnosis(answer, label, room) for answer in answers]
    columns = [status, share, _Column("diagnosis", [first for first, _ in firsts]), *shown, advice]
    left = width - sum(column.width + gap for column in columns)
    for column in _extras(answers, [told for _, told in firsts], top):
        if left - column.width - gap >= longest:
            columns.insert(len(columns) if column.title else 2, column)
            left -= column.width + gap
    image = _Column("image", [Text(name) for name in shortened(names, max(LEAST, min(left, longest)))])
    for cells in zip(*(column.padded() for column in (image, *columns)), strict=True):
        line = Text(" " * gap).join(cells)
        line.rstrip()
        yield line


class _Column:
    """Cells of one width under a dim title, which is cut to them."""

    def __init__(self, title: str, cells: Sequence[Text], *, right: bool = False) -> None:
        self.title = title
        self.width = max(LEAST - 1, *(cell.cell_len for cell in cells))
        self._cells, self._right = [Text(title if len(title) <= self.width else title[:4], "dim"), *cells], right

    def padded(self) -> Iterable[Text]:
        for cell in self._cells:
            space = Text(" " * (self.width - cell.cell_len))
            yield space + cell if self._right else cell + space


_MARK = {True: "green", False: "red", None: ""}


def _proven(verdicts: Sequence[Verdict | None], label: Callable[[str], str]) -> _Column:
    words = [
        Text("") if v is None else Text(f"{MARKS[v.right]} {label(v.code)}".strip(), _MARK[v.right]) for v in verdicts
    ]
    return _Column("proven", words)


def _share(answer: Prediction) -> str:
    return percent(answer.probability) if answer.shows_lesion and answer.probability is not None else ""


def _tone(answer: Prediction) -> str:
    return "dim" if answer.status == "rejected" else "bold"


def _first(answer: Prediction, label: Callable[[str], str]) -> str:
    if not answer.shows_lesion:
        return "–"
    return one_line(label(answer.diagnosis_code or "")) + (" ?" if answer.status == "rejected" else "")


def _diagnosis(answer: Prediction, label: Callable[[str], str], room: int) -> tuple[Text, int]:
    """Return the first diagnosis, with "or" the next where it is uncertain and there is room, and how many it names."""
    first = _cut(_first(answer, label), room)
    text = Text(first, _tone(answer))
    if answer.status == "uncertain" and len(answer.probabilities) > 1:
        code, share = answer.top(2)[1]
        for name in (label(code), code):
            more = f" or {one_line(name)} {percent(share)}"
            if cell_len(first + more) <= room:
                return text.append(more, ""), 2
    return text, 1


def _extras(answers: Sequence[Prediction], told: Sequence[int], top: int) -> Iterable[_Column]:
    """Yield what a wide terminal shows beside the rest: a bar, the next classes, and what cannot be ruled out."""
    shown = [answer.shows_lesion for answer in answers]
    bars = [round((answer.probability or 0.0) * BAR_WIDTH) for answer in answers]
    yield _Column(
        "", [Text("█" * n + "░" * (BAR_WIDTH - n) if ok else "", "cyan") for n, ok in zip(bars, shown, strict=True)]
    )
    possible = [" ".join(answer.prediction_set or ()) if answer.status != "rejected" else "" for answer in answers]
    if any(possible):
        yield _Column("not ruled out", [Text(one_line(codes), "dim") for codes in possible])
    rest = [answer.top(max(n, top))[n:] if ok else [] for answer, n, ok in zip(answers, told, shown, strict=True)]
    if any(rest):
        yield _Column("then", [Text("  ".join(f"{one_line(c)} {percent(p)}" for c, p in each), "dim") for each in rest])


def _advice(answer: Prediction) -> Text:
    code = answer.advice.code if answer.advice else "not_assessed"
    return Text(f"{SYMBOLS[code]} {ADVICE[code]}", ADVICE_STYLE[code])


def shortened(names: Sequence[str], width: int) -> list[str]:
    """Return names of at most `width` cells, cut in the middle, where they differ if that can be."""
    results = [[_cut(name, width, kept) for name in names] for kept in (width // 3, width // 2, 1, width - 2)]
    return max(results, key=lambda found: len(set(found)))


def _cut(name: str, width: int, kept: int = 1) -> str:
    if cell_len(name) <= width:
        return name
    start = set_cell_size(name, kept).rstrip()
    end = name
    while cell_len(end) > width - kept - 1:
        end = end[1:]
    return f"{start}…{end}"


def common_folder(names: Sequence[str]) -> str:
    """Return the deepest folder that all names begin with, its last slash included; "" where they share none."""
    levels = zip(*(name.split("/")[:-1] for name in names), strict=False)
    shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
    return f"{'/'.join(shared)}/" if any(shared) else ""


def _short(answer: Prediction, folder: str) -> str:
    return printable(answer.image.removeprefix(folder))


Tell = Callable[..., None]


def _tell_advice(answers: Sequence[Prediction], folder: str, tell: Tell, name_all: Tell) -> None:
    """Say what to do, and why it is uncertain or rejected: one sentence for all images that it is true of."""
    groups: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    doubts: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for answer in answers:
        name, advice = _short(answer, folder), answer.advice
        if answer.status != "ok":
            doubts[answer.status, why_words(answer)].append(name)
        if advice is None:
            continue
        first, rest = spoken(advice)
        if advice.code == "no_referral" and not rest:
            continue
        share = answer.malignant_probability if advice.code == "refer" else None
        note = UNRELIABLE if advice.code == "see_clinician" else IN_BRACKETS if share is not None else ""
        rest = f"{rest} {note}".strip()
        groups[advice.code, first, rest].append(f"{name} ({percent(share)})" if share is not None else name)
    gravest = list(ADVICE_STYLE)
    for code, first, rest in sorted(groups, key=lambda group: gravest.index(group[0])):
        tell("")
        tell(Text(f"{SYMBOLS[code]} {first}", ADVICE_STYLE[code]).append(f" {rest}".rstrip(), "default not bold"))
        name_all(groups[code, first, rest])
    for (status, why), names in doubts.items():
        tell("")
        tell(Text(f"{status.capitalize()}: ", STATUS_STYLE[status]).append(why, "default not bold"))
        name_all(names)


def _filled(names: Sequence[str], width: int) -> list[str]:
    """Return names with commas between, on lines that break between two names."""
    lines = [""]
    for name in [*(f"{name}," for name in names[:-1]), *names[-1:]]:
        if lines[-1] and cell_len(f"{lines[-1]} {name}") > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {name}".lstrip()
    return lines


def why_words(answer: Prediction) -> str:
    """Say why it is uncertain or rejected, with every reason once."""
    return " ".join(dict.fromkeys([answer.why, *(reason.text for reason in answer.reasons)]))


def _tell_neighbours(answers: Iterable[Prediction], folder: str, tell: Tell) -> None:
    with_neighbours = [answer for answer in answers if answer.neighbours]
    for answer in with_neighbours:
        tell(printable(f"nearest to {_short(answer, folder)}: {neighbours_words(answer.neighbours or ())}"))
    if with_neighbours:
        tell(NEIGHBOUR_WORDS, "dim")


def neighbours_words(neighbours: Sequence[Neighbour]) -> str:
    """Return `ISIC_0024306 NV 0.93, ...`: name, diagnosis and similarity of training lesions."""
    return ", ".join(f"{one_line(n.image)} {one_line(n.diagnosis)} {n.similarity:.2f}" for n in neighbours)


def mix_sentence(mix: CaseMix) -> str:
    """Say what percentages mean."""
    return f"The percentages tell how probable a diagnosis would be {mix_words(mix)}."


def referral_words(answers: Sequence[Prediction]) -> list[str]:
    """Say what the referral threshold of these answers does and reaches; nothing where there is none."""
    point = next((a.referral for a in answers if a.referral and a.referral.get("threshold") is not None), None)
    if point is None:
        return []
    words = f"Referral is advised from {percent(point['threshold'], 1)} malignant or premalignant on"
    sensitivity, specificity = point["sensitivity"], point["specificity"]
    if sensitivity is None or specificity is None:
        return [f"{words}."]
    return [f"{words}: sensitivity {percent(sensitivity)}, specificity {percent(specificity)} on unseen lesions."]


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
